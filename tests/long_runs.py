"""Many short runs, in one process and of the command: memory, open files, threads, temporary files and caches
must not grow with their number.

    python tests/long_runs.py [--runs 200] [--commands 20] [--out long_runs.json]
"""
import argparse, gc, json, os, shutil, subprocess, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path

os.environ['LOKY_MAX_CPU_COUNT'] = '1'
os.environ['TQDM_DISABLE'] = '1'

import psutil
from tqdm import tqdm

from csm_expressive_nb.core.caches import cache_root, stored_entries
from csm_expressive_nb.core.files import assets, write_json

CACHE_LIMIT = 0.02              # GB: a few of the datasets below, and Fisher information
NEW_RECORDINGS = 10             # runs after which the recordings change, and are prepared anew
REPORT_EVERY = 20               # runs of which one is measured and reported, which takes most of the time
WARM = 0.5                      # share of the runs before growth is measured: libraries fill their own caches
MEMORY_PER_RUN = 1.0            # MB that a run may leave behind, in the mean over the rest
SHORT = dict(
    steps=2, batch=2, sentences=8, strength_sentences=0, validate_every=0, trackers=[], rank=2, tokens=1024
)

COMMAND = [
    sys.executable, '-m', 'csm_expressive_nb.cli', 'train', 'sad', '--data', 'recordings', '--out', 'run',
    '--steps', '2', '--set', 'sentences=8', '--set', 'rank=2', '--set', 'validate_every=0',
    '--set', 'strength_sentences=0',
]

# ---- what is measured --------------------------------------------------------------------------------------

def count_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))

def measure(process: psutil.Process) -> dict:
    "What a process and the machine hold at this moment"
    return dict(
        memory=round(process.memory_info().rss / 1e6, 1),
        open_files=process.num_fds(),
        threads=process.num_threads(),
        temporary_files=count_files(Path(tempfile.gettempdir())),
        cache=round(sum(entry.size for entry in stored_entries()) / 1e6, 2),
        cache_files=count_files(cache_root()),
    )

def slope(values: list[float]) -> float:
    "Growth per run: least squares"
    if len(values) < 2: return 0.0
    mean_x, mean_y = (len(values) - 1) / 2, sum(values) / len(values)
    products = sum((x - mean_x) * (y - mean_y) for x, y in enumerate(values))
    return products / sum((x - mean_x) ** 2 for x in range(len(values)))

def growth(rows: list[dict]) -> dict:
    "Growth per run of each quantity, over the runs after the warm ones"
    rest = rows[int(len(rows) * WARM) :]
    return {name: round(slope([row[name] for row in rest]), 4) for name in rest[0]}

def excesses(rows: list[dict]) -> list[str]:
    "Quantities that grew with the number of runs"
    rest, rates = rows[int(len(rows) * WARM) :], growth(rows)
    found = []
    if rates['memory'] > MEMORY_PER_RUN: found.append(f'memory: {rates["memory"]} MB a run')
    for name in ('open_files', 'threads', 'temporary_files', 'cache_files'):
        numbers = [row[name] for row in rest]
        if max(numbers[len(numbers) // 2 :]) > max(numbers[: len(numbers) // 2]):
            found.append(f'{name}: up to {max(numbers)}, {max(numbers[: len(numbers) // 2])} before')
    largest = max(row['cache'] for row in rows)
    if largest > 1e3 * CACHE_LIMIT * 1.5: found.append(f'cache: {largest} MB, limit {1e3 * CACHE_LIMIT}')
    return found

def table(rows: list[dict], every: int) -> str:
    "Some of the rows, as text"
    names = list(rows[0])
    lines = ['  run ' + ''.join(f'{name:>17}' for name in names)]
    for i, row in enumerate(rows):
        if i % every and i != len(rows) - 1: continue
        lines.append(f'{i:>5} ' + ''.join(f'{row[name]:>17}' for name in names))
    return '\n'.join(lines)

# ---- what is run -------------------------------------------------------------------------------------------

def write_recordings(folder: Path):
    "Six speakers of the embedded corpus, four clips of each of four emotions"
    for speaker in ('01', '02', '03', '04', '05', '06'):
        actor = f'Actor_{speaker}'
        (folder / actor).mkdir(parents=True, exist_ok=True)
        for emotion in ('01', '03', '04', '05'):
            clips = sorted((assets('corpus') / actor).glob(f'03-01-{emotion}-*.flac'))
            for clip in clips[:4]: shutil.copy(clip, folder / actor)
    for name in ('corpus.csv', 'statements.csv'): shutil.copy(assets('corpus') / name, folder)

def shorten_speech():
    "Ten frames for a sentence, eight clips of the base's own speech: what is said is not measured here"
    from csm_expressive_nb.pipelines import preparation
    from csm_expressive_nb.speech import generation
    generation.longest_speech = lambda text: 10
    preparation.OWN_CLIPS = 8

def train_adapter(cfg):
    "Recordings to an adapter, without the measurements of a report"
    from csm_expressive_nb.model.lora import load_base
    from csm_expressive_nb.pipelines.emotion import fit
    from csm_expressive_nb.pipelines.preparation import open_run, prepare_data
    model, processor = load_base(cfg)
    run = open_run(cfg)
    fit(cfg, run, model, processor, prepare_data(cfg, run, model, processor), show=False)
    return run

def run_once(i: int, recordings: Path, out: Path):
    "Recordings to an adapter and a sentence spoken with it; at times report, page and dashboard, too"
    from csm_expressive_nb.core.config import make_config
    from csm_expressive_nb.pipelines.emotion import emotion_run
    from csm_expressive_nb.report.dashboard import dashboard
    from csm_expressive_nb.speech.speaker import Speaker
    emotion = ('sad', 'angry', 'happy')[i % 3]
    settings = SHORT | dict(emotion=emotion, source=str(recordings), out=str(out), seed=i, ewc=float(i % 2))
    cfg, reported = make_config(**settings, ewc_clips=8), i % REPORT_EVERY == 0
    run = emotion_run(cfg, show=False)[0] if reported else train_adapter(cfg)
    run.release()
    Speaker(adapter=out).say('It rained.', emotion=emotion)
    if reported: dashboard([out], out / 'dashboard.html', show=False)

@contextmanager
def working_folder():
    "A folder of its own, with caches and temporary files below it"
    with tempfile.TemporaryDirectory(prefix='long_runs_') as name:
        folder, before = Path(name), Path.cwd()
        (folder / 'settings.ini').touch()
        (folder / 'tmp').mkdir()
        os.environ |= dict(TMPDIR=f'{folder}/tmp', CSM_EXPRESSIVE_CACHE_GB=str(CACHE_LIMIT))
        tempfile.tempdir = None
        os.chdir(folder)
        yield folder
        os.chdir(before)
        tempfile.tempdir = None

def runs_in_one_process(n: int, folder: Path) -> list[dict]:
    shorten_speech()
    process, rows = psutil.Process(), []
    for i in tqdm(range(n), desc='runs in one process', unit='run', disable=False, mininterval=20):
        if i % NEW_RECORDINGS == 0: write_recordings(folder / 'recordings')
        run_once(i, folder / 'recordings', folder / 'run')
        shutil.rmtree(folder / 'run')
        gc.collect()
        rows.append(measure(process))
    return rows

def commands_in_a_row(n: int, folder: Path) -> list[dict]:
    "The memory is the command's peak"
    write_recordings(folder / 'recordings')
    rows = []
    for i in tqdm(range(n), desc='commands in a row', unit='run', disable=False):
        if i % NEW_RECORDINGS == 0: write_recordings(folder / 'recordings')
        process = psutil.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak = dict(memory=0.0, open_files=0, threads=0)
        while process.poll() is None:
            time.sleep(0.2)
            try:
                now = measure(process)
            except psutil.Error: continue
            peak = {name: max(peak[name], now[name]) for name in peak}
        assert process.returncode == 0, f'command {i} failed'
        shutil.rmtree('run')
        rows.append(measure(psutil.Process()) | peak)
    return rows

def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--runs', type=int, default=200, help='in one process')
    parser.add_argument('--commands', type=int, default=20, help='in a row')
    parser.add_argument('--out', type=Path, help='JSON file for every number')
    options = parser.parse_args()
    out = options.out and options.out.absolute()
    parts, failed = {}, []
    for name, n in ((runs_in_one_process, options.runs), (commands_in_a_row, options.commands)):
        if not n: continue
        with working_folder() as folder:
            start = time.monotonic()
            rows = name(n, folder)
            seconds = time.monotonic() - start
        found = excesses(rows)
        parts[name.__name__] = dict(rows=rows, growth=growth(rows), excesses=found)
        heading = f'{n} {name.__name__.replace("_", " ")}, {seconds / n:.1f} s each'
        print(f'\n{heading} (memory and cache in MB)')
        print(table(rows, max(1, n // 10)))
        print('growth per run after the first half:', json.dumps(growth(rows)))
        print('grew:', '; '.join(found) or 'nothing')
        failed += found
        if out: write_json(out, parts)
    sys.exit(bool(failed))

if __name__ == '__main__': main()
