"""The README's main job, the pages of the site, and every chapter through nbdev's own `test_nb`, two at a
time, each in a process of its own.

`python tests/run_chapters.py [NOTEBOOK ...]`: without names, all that belongs to the checks. The processes
are forked from one that has imported
the large libraries: seconds saved per chapter. Each keeps to one processor. Where `_reports/sad` is
finished, the main job is not run again."""
import multiprocessing, os, re, signal, subprocess, sys, tempfile, time
from importlib import import_module
from pathlib import Path

ROOT, LIMIT = Path(__file__).parents[1], 900
LARGE = (
    'numpy pandas scipy.stats scipy.signal matplotlib.pyplot sklearn.linear_model sklearn.metrics '
    'sklearn.model_selection librosa soundfile pyarrow.parquet torch transformers transformers.models.csm '
    'peft accelerate datasets pydantic nbdev.test nbdev.config execnb.shell librosa.effects '
    'librosa.feature numba silero_vad hama plotly.graph_objects ipywidgets'
).split()
# the longest first, so that nothing long is left for the end
LONGEST = (
    '19_cli 17_benchmark 18_expressive 18c_dials 18a_protocol 15_road 26_corpora 18e_widgets '
    '09_search docs 18b_retention 18d_dashboard'
).split()

def notebooks() -> list[Path]:
    """What the checks run: chapters, guides and reports, but for those that papermill runs in the tests,
    and 27, which takes minutes"""
    elsewhere = re.compile(r'2[0124578]_')
    pages = [
        *(ROOT / 'nbs').glob('[0-9]*.ipynb'),
        *(ROOT / 'nbs/chapters').glob('[0-9]*.ipynb'),
        ROOT / 'nbs/index.ipynb',
        *(ROOT / 'nbs/guides').glob('*.ipynb'),
    ]
    return sorted(p for p in pages if not elsewhere.match(p.name) or p.parent.name == 'guides')

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
    # a shell's background job ignores it, and chapter 09 sends one
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    try:
        {'main job': main_job, 'docs': docs}.get(job, lambda: chapter(job))()
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
    return (
        0
        if name < '09' and name[:1].isdigit() and job.parent.name != 'guides'
        else 1 + (LONGEST + [name]).index(name)
    )

def finish(job, process, log, start) -> bool:
    "Report a job that has ended; is it green?"
    process.join()
    print(f'{name_of(job)} {time.time() - start:.0f} s', flush=True)
    if process.exitcode:
        log.seek(0)
        print(
            f'FAILED {name_of(job)} ({process.exitcode})',
            *log.read().splitlines()[-40:],
            sep='\n',
            flush=True,
        )
    return not process.exitcode

def main(jobs: list):
    "All jobs, two at a time"
    os.environ |= dict(OMP_NUM_THREADS='1', LOKY_MAX_CPU_COUNT='1', IN_TEST='1')
    for module in LARGE:
        import_module(module)
    queue = sorted(jobs, key=rank)
    running, failures = [], []
    while queue or running:
        while queue and len(running) < 2:
            log = tempfile.NamedTemporaryFile('w+', suffix='.log', encoding='utf-8', errors='replace')
            job = queue.pop(0)
            process = multiprocessing.get_context('fork').Process(target=run, args=(job, log))
            process.start()
            running.append((job, process, log, time.time()))
        for ended in [r for r in running if not r[1].is_alive() or time.time() - r[3] > LIMIT]:
            if ended[1].is_alive():
                ended[1].kill()
            running.remove(ended)
            if not finish(*ended):
                failures.append(name_of(ended[0]))
        time.sleep(0.2)
    if failures:
        sys.exit(f'failed: {", ".join(failures)}')

if __name__ == '__main__':
    main([Path(a).absolute() for a in sys.argv[1:]] or ['main job', *notebooks(), 'docs'])
