"""A process that runs commands of the product and breaks them on purpose: `Workshop().run(['train', 'sad'])`.

The libraries are imported once and each command is a fork, so that a moment of a command costs no more than
the command. Where it can, the process has mounts of its own (`unshare -m`, root): a small disk, or a folder
that cannot be written. As a script it is that process; it takes jobs as lines of JSON."""
import builtins, contextlib, ctypes, errno, json, os, shutil, signal
import subprocess, sys, threading, time, traceback
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = (
    'torch transformers.models.csm peft accelerate librosa sklearn.linear_model sklearn.metrics joblib '
    'sklearn.model_selection scipy.stats scipy.signal matplotlib.pyplot pyarrow.parquet soundfile '
    'plotly.graph_objects '
    'csm_expressive_nb.cli csm_expressive_nb.data.codes csm_expressive_nb.report.dashboard '
    'csm_expressive_nb.pipelines.dose_response csm_expressive_nb.pipelines.expressive '
    'csm_expressive_nb.pipelines.evaluate_folder csm_expressive_nb.speech.script '
    'csm_expressive_nb.evaluation.listening csm_expressive_nb.report.listening_page '
    'csm_expressive_nb.report.evaluation_page'
).split()
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

@dataclass
class Fault:
    "What happens at one of the writes of a command"
    kind: str                    # a signal (SIGKILL), an error (ENOSPC), or count: nothing happens
    at: int = 0                  # which write, from 1
    below: str = '/'             # writes elsewhere do not count

@dataclass
class Result:
    "How a command ended"
    code: int                    # its exit code; minus the signal that ended it
    out: str
    err: str
    writes: list[str] = field(default_factory=list)      # what was counted

    @property
    def verdict(self) -> str:
        "The last line of stderr"
        lines = [line for line in self.err.strip().splitlines() if line]
        return lines[-1] if lines else ''

# ---- in the process that is broken -------------------------------------------------------------------------

class Saboteur:
    "Counts what a command writes, and strikes at one of them"

    def __init__(self, fault: Fault):
        self.fault, self.writes, self.lock = fault, [], threading.Lock()

    def install(self):
        sys.addaudithook(self.hear)
        import safetensors.torch, pyarrow.parquet as pq
        self.wrap(os, 'fsync')
        self.wrap(safetensors.torch, 'save_file')
        self.wrap(pq.ParquetWriter, 'write_table')

    def wrap(self, owner, name: str):
        "Strike before a function, too: what is written below Python is not heard of otherwise"
        function = getattr(owner, name)

        def wrapped(*args, **kwargs):
            place = os.readlink(f'/proc/self/fd/{args[0]}') if name == 'fsync' else self.fault.below
            self.count(f'{name} {place}', place)
            return function(*args, **kwargs)

        setattr(owner, name, wrapped)

    def hear(self, event: str, args: tuple):
        "An audit hook: Python tells of each file before it is opened, moved or removed"
        if event == 'open':
            path, _, flags = args
            if isinstance(path, int) or not (flags or 0) & WRITING: return
            self.count(f'open {os.fsdecode(path)}', path, append=bool(flags & os.O_APPEND))
        elif event in ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.truncate'):
            path = args[1] if event == 'os.rename' else args[0]
            if not isinstance(path, int): self.count(f'{event[3:]} {os.fsdecode(path)}', path)

    def count(self, label: str, path, append: bool = False):
        path = os.path.abspath(os.fsdecode(path))
        if not path.startswith(self.fault.below) or '__pycache__' in path: return
        with self.lock:
            self.writes.append(label)
            strikes = len(self.writes) == self.fault.at
        if strikes: self.strike(label, path, append)

    def strike(self, label: str, path: str, append: bool):
        kind = self.fault.kind
        if hasattr(errno, kind):
            number = getattr(errno, kind)
            raise OSError(number, os.strerror(number), path)
        if kind == 'SIGKILL' and label.startswith('fsync'):
            os.truncate(path, os.path.getsize(path) // 2)                               # half a file
        if kind == 'SIGKILL' and append:
            with builtins.open(path, 'ab') as file: file.write(b'{"torn')
        os.kill(os.getpid(), getattr(signal, kind))
        if kind == 'SIGTERM': time.sleep(0.01)                                          # for its handler

def obey_permissions():
    "Give up root's rights to read and write what the modes of files forbid (CAP_DAC_*)"
    libc, header, data = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert not libc.capget(header, data)
    for i in (0, 1): data[i] &= ~0b110               # of the effective and the permitted ones
    assert not libc.capset(header, data)

def obey(work, fault: Fault, out: Path, err: Path, counted: Path):
    "Run a function in this process, which ends with it"
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), 'w', encoding='utf-8') for number in (1, 2))
    counts = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(900)
    import tempfile, torch
    torch.set_num_threads(1)
    tempfile.tempdir, code = None, 0
    from csm_expressive_nb.core import run
    run._CLAIMS.clear()                                   # a fork inherits those of the tests
    saboteur = Saboteur(fault)
    saboteur.install()
    try:
        work()
    except SystemExit as exit_error: code = exit_error.code or 0
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(counts, json.dumps(saboteur.writes).encode())
    os._exit(code if isinstance(code, int) else 1)

def in_fork(work, fault: Fault, shelf: Path) -> Result:
    "How a function ends in a process of its own, with a fault"
    out, err, counted = (shelf / name for name in ('out.txt', 'err.txt', 'counted.json'))
    counted.unlink(missing_ok=True)
    child = os.fork()
    if not child: obey(work, fault, out, err, counted)
    status = os.waitpid(child, 0)[1]
    writes = json.loads((counted.exists() and counted.read_text()) or '[]')
    texts = (path.read_text(encoding='utf-8', errors='replace') for path in (out, err))
    return Result(os.waitstatus_to_exitcode(status), *texts, writes)

def run_job(job: dict) -> dict:
    "A command in a fork"
    def work():
        from csm_expressive_nb import cli
        os.environ.update(job.get('env', {}))
        os.chdir(job['folder'])
        if job.get('permissions'): obey_permissions()
        sys.argv = ['csm_expressive', *job['command']]
        cli.main()

    return vars(in_fork(work, Fault(**job['fault']), Path(job['shelf'])))

def serve():
    "Take jobs until there are no more"
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    from importlib import import_module
    for name in MODULES: import_module(name)
    import torch
    torch.set_num_threads(1)
    from csm_expressive_nb.pipelines import preparation
    from csm_expressive_nb.speech import generation
    generation.longest_speech = lambda text: 10          # tests of what a run does, not of how it sounds
    preparation.OWN_CLIPS = 8
    print('ready', file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if 'command' in job: answer = run_job(job)
        else: answer = dict(code=subprocess.run(job['shell'], shell=True).returncode)
        print(json.dumps(answer), file=answers, flush=True)

# ---- in the tests ------------------------------------------------------------------------------------------

def can_unshare() -> bool:
    "Whether this user can have mounts of its own"
    if os.name != 'posix' or not shutil.which('unshare'): return False
    return not subprocess.run(['unshare', '-m', 'true'], capture_output=True).returncode

class Workshop:
    "The process, from the tests' side"

    def __init__(self, shelf: Path):
        self.shelf, self.has_mounts = shelf, can_unshare()
        shelf.mkdir(parents=True, exist_ok=True)
        program = [sys.executable, __file__]
        command = ['unshare', '-m', '--propagation', 'private', *program] if self.has_mounts else program
        paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
        env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(paths), HF_HUB_OFFLINE='1')
        with open(shelf / 'workshop.txt', 'w', encoding='utf-8') as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env
            )
        assert self.process.stdout.readline() == 'ready\n'

    def ask(self, **job) -> dict:
        self.process.stdin.write(json.dumps(job) + '\n')
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def run(self, command: list, folder: Path, fault: Fault | None = None, **options) -> Result:
        "How a command ends in `folder`, with a fault"
        fault = fault or Fault('count', below=f'{folder}/')
        command = [str(argument) for argument in command]
        return Result(**self.ask(
            command=command, folder=str(folder), fault=vars(fault), shelf=str(self.shelf), **options
        ))

    def shell(self, line: str):
        "A line of shell among the mounts of the process"
        assert not self.ask(shell=line)['code'], line

    def view(self, path: Path) -> Path:
        "A path as the process sees it"
        return Path(f'/proc/{self.process.pid}/root{path}') if self.has_mounts else path

    @contextlib.contextmanager
    def mounted(self, path: Path, options: str):
        "A mount at `path`, for as long as the block"
        self.shell(f'mount {options} {path}')
        try:
            yield self.view(path)
        finally: self.shell(f'umount -l {path}')

    def close(self):
        self.process.stdin.close()
        self.process.wait(20)

if __name__ == '__main__': serve()
