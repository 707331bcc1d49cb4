"""The main job, the pages of the site, and every chapter through nbdev's own `test_nb`, two at a time, each in a process of its own. The processes are forked
from one that has imported the large libraries: twelve seconds saved per chapter."""
import multiprocessing, os, signal, subprocess, sys, tempfile, time
from importlib import import_module
from pathlib import Path

from joblib.externals.loky import get_reusable_executor

os.environ |= dict(OMP_NUM_THREADS='1', IN_TEST='1')             # two processes on two cores
ROOT, LIMIT = Path(__file__).parents[1], 900
LARGE = ('numpy pandas scipy.stats scipy.signal matplotlib.pyplot sklearn.linear_model sklearn.metrics sklearn.model_selection librosa soundfile '
         'pyarrow.parquet torch transformers transformers.models.csm peft accelerate datasets pydantic nbdev.test nbdev.config execnb.shell librosa.effects '
         'librosa.feature numba silero_vad hama plotly.graph_objects ipywidgets'.split())

def main_job(): subprocess.run(['papermill', 'nbs/20_emotion.ipynb', '-p', 'emotion', 'sad'], cwd=ROOT, check=True)

def docs(): subprocess.run([sys.executable, 'tests/build_docs.py'], cwd=ROOT, check=True)

def chapter(path: Path):
    from nbdev.config import get_config
    from nbdev.test import test_nb
    head = path.read_text().split('#| export')[0]
    # it sets the environment before the libraries are imported
    if 'os.environ' in head: subprocess.run(['nbdev_test', '--path', path], cwd=ROOT, check=True); return
    os.cpu_count = lambda: 1          # the other core is the other chapter's: no processes for metrics, each of which would import the libraries again
    os.chdir(path.parent); ok, _ = test_nb(path, skip_flags=get_config().tst_flags.split(), basepath=get_config().config_path)
    if not ok: raise SystemExit(1)

def started(job) -> tuple:
    log = tempfile.NamedTemporaryFile('w+', suffix='.log')
    def run():
        signal.signal(signal.SIGINT, signal.default_int_handler)          # started in the background, a shell has it ignored, and chapter 09 sends one
        for f in (1, 2): os.dup2(log.fileno(), f)
        try: {'main job': main_job, 'docs': docs}.get(job, lambda: chapter(job))()
        # a forked process waits for its children, and joblib's are idle for five minutes before they end
        finally: get_reusable_executor().shutdown(kill_workers=True)
    p = multiprocessing.get_context('fork').Process(target=run); p.start(); return p, job, log, time.time()

if __name__ == '__main__':
    for m in LARGE: import_module(m)
    # beside the main job those that share no cache with it, then the longest, which find what it left there
    order = lambda p: 0 if p.name < '12' else 1 if p.name[:2] in ('15', '18', '19') else 2
    chapters = sorted((Path(a).absolute() for a in sys.argv[1:]), key=order)
    queue = ['main job', *chapters, 'docs']; running, failed = [], []
    while queue or running:
        while queue and len(running) < 2: running.append(started(queue.pop(0)))
        for x in list(running):
            p, job, log, t = x; name = getattr(job, 'name', job)
            if p.is_alive() and time.time() - t < LIMIT: continue
            if p.is_alive(): p.kill()
            p.join(); running.remove(x); print(f'{name} {time.time() - t:.0f} s', flush=True)
            if p.exitcode: failed.append(name); log.seek(0); print(f'FAILED {name} ({p.exitcode})\n' + '\n'.join(log.read().splitlines()[-40:]), flush=True)
        time.sleep(.2)
    if failed: sys.exit(f'failed: {", ".join(map(str, failed))}')
