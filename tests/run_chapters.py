"""The README's main job, the pages of the site, and every chapter through nbdev's own `test_nb`, two at a
time, each in a process of its own.

`python tests/run_chapters.py [NOTEBOOK ...]`: without names, all that belongs to the checks. The processes
are forked from one that has imported the large libraries: seconds saved per chapter. Each keeps to one
processor. Where `_reports/sad` is finished, the main job is not run again."""
import multiprocessing, os, re, signal, subprocess, sys, tempfile, time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO

ROOT, LIMIT = Path(__file__).parents[1], 900
LARGE = (
    'numpy pandas scipy.stats scipy.signal matplotlib.pyplot sklearn.linear_model sklearn.metrics '
    'sklearn.model_selection librosa soundfile pyarrow.parquet torch transformers transformers.models.csm '
    'peft accelerate datasets pydantic nbdev.test nbdev.config execnb.shell librosa.effects '
    'librosa.feature numba silero_vad hama plotly.graph_objects ipywidgets'
).split()
# the longest first, so that nothing long is left for the end
LONGEST = (
    '89c_cli 86_pipelines.benchmark 81_pipelines.emotion 82_pipelines.expressive 85_pipelines.dose_response '
    '83_pipelines.evaluate 26_corpora 76_report.explorer 77_report.studio 46_training.search docs '
    '84_pipelines.retention 74_report.dashboard'
).split()

def notebooks() -> list[Path]:
    """What the checks run: chapters, guides and reports, but for those that papermill runs in the tests,
    and 27, which takes minutes"""
    elsewhere = re.compile(r'2[01245789]_')
    top = (ROOT / 'nbs').glob('[0-9]*.ipynb')
    chapters = (ROOT / 'nbs/chapters').glob('[0-9]*.ipynb')
    guides = (ROOT / 'nbs/guides').glob('*.ipynb')
    numbered = [path for path in [*top, *chapters] if not elsewhere.match(path.name)]
    return sorted([*numbered, ROOT / 'nbs/index.ipynb', *guides])

def main_job():
    "The README's first command, unless its report is there"
    if not (ROOT / '_reports/sad/report.json').exists():
        subprocess.run(['papermill', 'nbs/20_emotion.ipynb', '-p', 'emotion', 'sad'], cwd=ROOT, check=True)

def docs():
    subprocess.run([sys.executable, 'tests/build_docs.py'], cwd=ROOT, check=True)

def chapter(path: Path):
    "One notebook, reports too: they say `skip_exec` for a plain nbdev_test only"
    import nbdev.test
    from nbdev.config import get_config
    nbdev.test.str2bool = lambda _: False
    os.chdir(path.parent)
    passed, _ = nbdev.test.test_nb(
        path, skip_flags=get_config().tst_flags.split(), basepath=get_config().config_path
    )
    if not passed:
        raise SystemExit(1)

def run(job, log):
    "A job in this process, its output in a file"
    from joblib.externals.loky import get_reusable_executor
    # a shell's background job ignores it, and the search chapter sends one
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    try:
        if job == 'main job': main_job()
        elif job == 'docs': docs()
        else: chapter(job)
    finally:
        # joblib's idle processes would be waited for, five minutes
        get_reusable_executor().shutdown(kill_workers=True)

def name_of(job) -> str:
    return job if isinstance(job, str) else job.stem

def rank(job) -> int:
    """The main job first; beside it the early chapters, which share no cache with it; then the longest;
    the rest last"""
    name = name_of(job)
    if name == 'main job':
        return -1
    early = '00' <= name[:2] < '46' and not name.startswith('2') and job.parent.name == 'chapters'
    return 0 if early else 1 + (LONGEST + [name]).index(name)

@dataclass
class Running:
    "A job and its process"
    job: Path | str
    process: multiprocessing.Process
    log: IO
    start: float

    @property
    def seconds(self) -> float:
        return time.time() - self.start

    @property
    def has_ended(self) -> bool:
        return not self.process.is_alive() or self.seconds > LIMIT

def start(job) -> Running:
    log = tempfile.NamedTemporaryFile('w+', suffix='.log', encoding='utf-8', errors='replace')
    process = multiprocessing.get_context('fork').Process(target=run, args=(job, log))
    process.start()
    return Running(job, process, log, time.time())

def finish(running: Running) -> bool:
    "Report a job that has ended, or end one that takes too long; is it green?"
    if running.process.is_alive(): running.process.kill()
    running.process.join()
    name, exitcode = name_of(running.job), running.process.exitcode
    print(f'{name} {running.seconds:.0f} s', flush=True)
    if exitcode:
        running.log.seek(0)
        last_lines = running.log.read().splitlines()[-40:]
        print(f'FAILED {name} ({exitcode})', *last_lines, sep='\n', flush=True)
    return not exitcode

def main(jobs: list):
    "All jobs, two at a time"
    os.environ |= dict(OMP_NUM_THREADS='1', LOKY_MAX_CPU_COUNT='1', IN_TEST='1')
    for module in LARGE:
        import_module(module)
    queue = sorted(jobs, key=rank)
    running, failures = [], []
    while queue or running:
        while queue and len(running) < 2: running.append(start(queue.pop(0)))
        for ended in [entry for entry in running if entry.has_ended]:
            running.remove(ended)
            if not finish(ended): failures.append(name_of(ended.job))
        time.sleep(0.2)
    if failures: sys.exit(f'failed: {", ".join(failures)}')

if __name__ == '__main__':
    main([Path(name).absolute() for name in sys.argv[1:]] or ['main job', *notebooks(), 'docs'])
