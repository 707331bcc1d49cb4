"""Bad days: a process that is killed, a disk that is full, folders that cannot be written, files that are
damaged, two commands in one folder. Each has one line that names the file and what helps, nothing that was
finished is lost, and the same command again ends with the result of an undisturbed one.

The sweeps are thinned. A preparation is killed at every second of its writes and fails at every fourth, a
training at every third and ninth, a whole command at four moments, a long one at four to six. SIGTERM has a
path of its own in training only; EDQUOT, EIO and EACCES take that of ENOSPC, so that a few moments of a
preparation stand for them, and the words of each error are tested by themselves."""
import csv, errno, hashlib, json, os, shutil, sys, time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np, pytest, soundfile as sf, torch
from faults import Fault, Workshop, in_fork
from run_folders import run_folder
from typer.testing import CliRunner

from csm_expressive_nb import cli

ROOT = Path(__file__).parents[1]
DAMAGE = dict(
    empty=lambda data: b'',
    truncated=lambda data: data[: len(data) // 2],
    garbage=lambda data: bytes(len(data)),
    other=lambda data: b'{"version": 9}\n',
)

# ---- helpers -----------------------------------------------------------------------------------------------

def damage(path: Path, kind: str):
    "Spoil a file"
    path.write_bytes(DAMAGE[kind](path.read_bytes()))

def content(path: Path) -> bytes:
    """What a file says: a sound by its samples, for a float WAV holds the time at which it was written, and a
    block of speech without the seconds that it took"""
    if path.suffix == '.wav': return sf.read(path)[0].tobytes()
    if path.parent.name == 'blocks':
        block = json.loads(path.read_text())
        for row in block['rows']: del row['seconds']
        return json.dumps(block).encode()
    if path.name == 'config.yaml':
        lines = path.read_bytes().splitlines()
        return b'\n'.join(line for line in lines if not line.startswith((b'out:', b'source:')))
    return path.read_bytes()

VOLATILE = {'speed.jsonl', 'environment.json', 'evaluation_cost.json', 'error.txt'}

def contents(folder: Path) -> dict[str, str]:
    "Hashes of a folder's files by name, but for hidden ones and those that tell the time"
    hashes = {}
    for path in sorted(folder.rglob('*')):
        name = path.relative_to(folder)
        hidden = any(part.startswith('.') for part in name.parts)
        if path.is_dir() or path.name in VOLATILE or hidden: continue
        hashes[str(name)] = hashlib.sha256(content(path)).hexdigest()
    return hashes

def temporary_files(folder: Path) -> list[str]:
    "What should have been removed"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*.tmp'))

def assert_whole(folder: Path):
    "No file under its final name is half of one"
    for path in folder.rglob('*'):
        if path.is_dir() or any(part.startswith('.') for part in path.relative_to(folder).parts): continue
        if path.suffix == '.json': json.loads(path.read_text(encoding='utf-8'))
        elif path.suffix in ('.wav', '.flac'): assert len(sf.read(path)[0]) == sf.info(path).frames, path
        elif path.suffix == '.safetensors':
            from safetensors.torch import load_file
            load_file(path)
        elif path.suffix == '.parquet':
            import pyarrow.parquet as pq
            pq.read_table(path)
        elif path.suffix in ('.svg', '.html'):
            assert path.read_text(encoding='utf-8').rstrip().endswith(('</svg>', '</html>')), path

EMOTIONS = 'neutral', 'sad'

def tones(folder: Path) -> Path:
    "Recordings of six speakers, tones in place of speech, with a table"
    folder.mkdir(parents=True)
    rows, rng = ['file,text,emotion,speaker'], np.random.default_rng(0)
    for i in range(24):
        times = np.arange(9600) / 24_000
        noise = 0.002 * rng.standard_normal(len(times))
        sf.write(folder / f'{i:02}.wav', 0.1 * np.sin(2 * np.pi * (150 + 3 * i) * times) + noise, 24_000)
        rows.append(f'{i:02}.wav,Sentence {i % 5}.,{EMOTIONS[i % 2]},s{i // 4}')
    (folder / 'metadata.csv').write_text('\n'.join(rows) + '\n')
    return folder

@pytest.fixture(scope='module', autouse=True)
def imported():
    "What a fork needs, imported once"
    from importlib import import_module
    for name in ('peft', 'accelerate', 'transformers.models.csm', 'csm_expressive_nb.data.dataset',
                 'csm_expressive_nb.training.loop', 'csm_expressive_nb.pipelines.evaluate'):
        import_module(name)

@pytest.fixture(scope='module')
def recordings(tmp_path_factory) -> Path:
    return tones(tmp_path_factory.mktemp('tones') / 'in')

def process_quickly(clip, path: Path) -> tuple:
    "In place of `dataset.process`, whose measures take time"
    from csm_expressive_nb.data import dataset
    encoded = dataset.encode_flac(sf.read(path, dtype='float32')[0])
    digest = hashlib.sha256(encoded).hexdigest()
    measures = dict(level_db=-20.0, peak=0.1, duration=0.4, f0_hz=150.0, audio_sha256=digest)
    return dataset.replace(clip, **measures), encoded

def prepare(source: Path, out: Path):
    from csm_expressive_nb.data import dataset
    with patch.object(dataset, 'process', process_quickly):
        return dataset.prepare(source, out, 'folder', verify='off')

def moments(writes: list[str], every: int) -> list[int]:
    "Some of the writes of a command, by number, the last among them"
    return sorted({*range(1, len(writes) + 1, every), len(writes)})

forks = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')

# ---- a process that is killed, or cannot write -------------------------------------------------------------

def sweep_preparation(recordings: Path, folder: Path, kinds: tuple, every: int):
    "Every so many writes of `prepare` fail; the same call again gives the bytes of an undisturbed one"
    undisturbed = folder / 'undisturbed'
    count = Fault('count', below=f'{undisturbed}/')
    writes = in_fork(lambda: prepare(recordings, undisturbed), count, folder).writes
    expected = contents(undisturbed)
    assert len(writes) > 20 and 'dataset.json' in expected
    for kind in kinds:
        for at in moments(writes, every):
            out = folder / f'{kind}_{at}'
            ended = in_fork(lambda: prepare(recordings, out), Fault(kind, at, f'{out}/'), folder)
            assert ended.code or 'mkdir' in writes[at - 1], (kind, at, writes[at - 1])     # it was there
            if ended.code and not kind.startswith('SIG'):
                assert f"'{out}/" in ended.verdict, (kind, at, ended.verdict)
                assert not temporary_files(out), (kind, at)
            again = in_fork(lambda: prepare(recordings, out), Fault('count', 0, f'{out}/'), folder)
            assert again.code == 0, (kind, at, again.err)
            assert contents(out) == expected, (kind, at)
            assert not temporary_files(out), (kind, at)

@forks
def test_preparation_that_is_killed_or_cannot_write_is_made_again(recordings, tmp_path):
    sweep_preparation(recordings, tmp_path, ('SIGKILL', 'ENOSPC'), 7)

STRIDES = dict(SIGKILL=2, SIGTERM=19, SIGINT=9, ENOSPC=4, EDQUOT=19, EIO=19, EACCES=19)

@forks
@pytest.mark.long
@pytest.mark.parametrize('kind', STRIDES)
def test_preparation_at_many_moments(kind, recordings, tmp_path):
    sweep_preparation(recordings, tmp_path, (kind,), STRIDES[kind])

@forks
def test_a_finished_dataset_is_not_written_again(recordings, tmp_path):
    finished = prepare(recordings, tmp_path / 'out')
    parquet = sorted((tmp_path / 'out/data').iterdir())
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in parquet]
    assert prepare(recordings, tmp_path / 'out').info == finished.info
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in parquet] == before
    # a second attempt that is killed at its first write leaves it finished, too
    killed = in_fork(lambda: prepare(recordings, tmp_path / 'out'),
                     Fault('SIGKILL', 8, f'{tmp_path}/out/'), tmp_path)
    from csm_expressive_nb.data.dataset import Dataset
    assert killed.code == -9 and Dataset(tmp_path / 'out').info == finished.info

def small_training(folder: Path, every: int = 1):
    "An adapter after three steps on codes that ship with the package"
    from csm_expressive_nb.core.config import TrainConfig
    from csm_expressive_nb.core.run import Run
    from csm_expressive_nb.model.csm import load_csm
    from csm_expressive_nb.training.loop import train
    from csm_expressive_nb.training.rehearsal import neutral_examples
    from csm_expressive_nb.training.sampler import Example
    cfg = TrainConfig(
        steps=3, batch=2, rank=1, tokens=300, trackers=[], validate_every=1, monitor='loss', context=0.0,
        checkpoint_every=every,
    )
    model, processor = load_csm()
    neutral = neutral_examples(processor)
    target = [Example(example.ids, example.variants) for example in neutral[:4]]
    train(model, cfg, Run(folder, cfg), target, neutral[20:24], neutral[40:42], show=False)

def sweep_training(folder: Path, kind: str, steps: tuple):
    "One run is struck again and again, each time at a later write; its end is that of an undisturbed one"
    undisturbed, out = folder / 'undisturbed', folder / kind
    count = Fault('count', below=f'{undisturbed}/')
    writes = in_fork(lambda: small_training(undisturbed), count, folder).writes
    expected = contents(undisturbed)
    assert {'adapter/adapter_model.safetensors', 'metrics.jsonl', 'ended.json'} <= expected.keys()
    for at in steps or range(1, len(writes), 3 if kind == 'SIGKILL' else 9):
        ended = in_fork(lambda: small_training(out), Fault(kind, at, f'{out}/'), folder)
        if out.exists(): assert_whole(out)
        if ended.code == 0: continue         # a run that goes on has fewer writes
        if kind.startswith('E'):
            assert f"'{out}" in ended.verdict or f'{out}' in ended.verdict, (at, ended.verdict)
            assert not temporary_files(out), at
    again = in_fork(lambda: small_training(out), Fault('count', 0, f'{out}/'), folder)
    assert again.code == 0, again.err
    assert contents(out) == expected
    assert not temporary_files(out)

@forks
def test_training_that_is_killed_ends_with_the_same_weights(tmp_path):
    sweep_training(tmp_path, 'SIGKILL', (46, 30))

@forks
@pytest.mark.long
@pytest.mark.parametrize('kind', ['SIGKILL', 'SIGTERM', 'SIGINT', 'ENOSPC'])
def test_training_at_many_moments(kind, tmp_path):
    sweep_training(tmp_path, kind, ())

VERDICTS = {
    'ENOSPC': 'no space is left on its disk: make room, then run the same command again',
    'EDQUOT': 'your quota on its disk is used up: make room, then run the same command again',
    'EROFS': 'lies on a disk that cannot be written: choose another place (--out, CSM_EXPRESSIVE_CACHE)',
    'EACCES': 'choose another place, or change its mode', 'EPERM': 'choose another place',
    'EIO': 'the disk failed', 'EISDIR': 'is a folder: a file belongs there', 'EMFILE': 'ulimit -n 4096',
}

@pytest.mark.parametrize('name', VERDICTS)
def test_an_error_of_the_system_names_the_file_and_the_remedy(name, tmp_path):
    from csm_expressive_nb.core import files
    number = getattr(errno, name)
    with patch.object(files.os, 'fsync', side_effect=OSError(number, 'not by name')):
        with pytest.raises(OSError) as error: files.atomic_write(tmp_path / 'report.json', '{}')
    line = cli.explain_failure(error.value)
    assert line.startswith(f'{tmp_path}/report.json ') and VERDICTS[name] in line
    assert not list(tmp_path.iterdir())

def test_a_full_disk_below_safetensors_is_the_same_error(tmp_path):
    from csm_expressive_nb.core import files
    error = files.SafetensorError('Error while serializing: I/O error: Disk quota exceeded (os error 122)')
    with patch('safetensors.torch.save_file', side_effect=error), pytest.raises(OSError) as raised:
        files.save_tensors(dict(x=torch.ones(1)), tmp_path / 'x.safetensors')
    assert raised.value.errno == errno.EDQUOT and raised.value.filename == str(tmp_path / 'x.safetensors')
    assert not list(tmp_path.iterdir())

# ---- damaged files -----------------------------------------------------------------------------------------

def test_a_torn_line_is_gone_before_the_next_one(tmp_path):
    from csm_expressive_nb.core.config import TrainConfig
    from csm_expressive_nb.core.run import Run
    run = Run.open(tmp_path, TrainConfig())
    run.log_to('speed.jsonl', step=0, seconds=1.0)
    with open(tmp_path / 'speed.jsonl', 'a') as file: file.write('{"step": 1, "sec')
    assert run.lines('speed.jsonl') == [dict(step=0, seconds=1.0)]
    run.log_to('speed.jsonl', step=1, seconds=2.0)
    assert [line['step'] for line in run.lines('speed.jsonl')] == [0, 1]

def test_a_damaged_log_is_named_and_a_run_goes_on(tmp_path, capsys):
    from csm_expressive_nb.core.config import TrainConfig
    from csm_expressive_nb.core.run import Run
    run = Run(tmp_path, TrainConfig())
    for step in range(3): run.log(step=step, loss=1.0)
    lines = (tmp_path / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
    (tmp_path / 'metrics.jsonl').write_bytes(lines[0] + b'\0' * 20 + b'\n[1]\n' + lines[2])
    with pytest.raises(ValueError, match='metrics.jsonl, line 2 is damaged, .* delete it'): run.metrics()
    run.rewind(3)
    assert [line['step'] for line in run.metrics()] == [0, 2]
    assert 'metrics.jsonl has lost 2 lines' in capsys.readouterr().out

@pytest.mark.parametrize('kind', [kind for kind in DAMAGE if kind != 'other'])
def test_damaged_settings_are_named(kind, tmp_path):
    from csm_expressive_nb.core.config import TrainConfig
    from csm_expressive_nb.core.run import Run
    run = Run(tmp_path, TrainConfig())
    run.log(step=0, loss=1.0)
    run.release()
    settings = (tmp_path / 'config.yaml').read_bytes()
    (tmp_path / 'config.yaml').write_bytes(b'steps: [1' if kind == 'truncated' else DAMAGE[kind](b'steps: 2'))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match='config.yaml (is damaged|holds no settings).*: restore it, choose'):
        Run(tmp_path, TrainConfig())
    assert contents(tmp_path) == before
    (tmp_path / 'config.yaml').write_bytes(settings)
    assert Run(tmp_path, TrainConfig()).metrics('loss')

@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_fisher_estimate_is_made_again(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('CSM_EXPRESSIVE_CACHE', str(tmp_path))
    from csm_expressive_nb.training import fisher
    estimate = fisher.Fisher(dict(m=torch.rand(3, 4) + 0.1), dict(clips=2))
    model = torch.nn.Linear(1, 1)
    with patch.object(fisher, 'estimate_fisher', return_value=estimate) as estimated:
        arguments = dict(model=model, items=[], base='b')
        for _ in range(2): fisher.cached_fisher(**arguments)
        assert estimated.call_count == 1
        (path,) = tmp_path.glob('fisher/*.safetensors')
        data = path.read_bytes()
        path.write_bytes(data[:-8] + bytes(8) if kind == 'garbage' else DAMAGE[kind](data))
        again, third = fisher.cached_fisher(**arguments), fisher.cached_fisher(**arguments)
    assert estimated.call_count == 2 and f'note: {path} is damaged' in capsys.readouterr().err
    assert again.values['m'].equal(estimate.values['m']) and third.values['m'].equal(estimate.values['m'])

@pytest.mark.parametrize('kind', DAMAGE)
@pytest.mark.parametrize('suffix', ['.safetensors', '.csv'])
def test_damaged_speech_of_the_base_is_made_again(suffix, kind, tmp_path, monkeypatch):
    monkeypatch.setenv('CSM_EXPRESSIVE_CACHE', str(tmp_path))
    from csm_expressive_nb.pipelines import preparation
    codes = torch.arange(12).view(3, 4)
    def generate(): return preparation.generate_rehearsal_speech(None, None, ['One.'], [])
    clips = [SimpleNamespace(text='One.', speaker='s', codes=codes, ended=True)]
    fakes = dict(weights_hash=lambda model: 'w', text_ids=lambda *_: torch.zeros(2))
    fakes['_rejections'] = lambda _: ['']
    speak = patch.object(preparation, 'speak', return_value=clips)
    with patch.multiple(preparation, **fakes), speak as spoken:
        for _ in range(2): generate()
        assert spoken.call_count == 1
        (path,) = tmp_path.glob(f'rehearsal/*{suffix}')
        if suffix == '.csv': path.unlink()
        elif kind == 'garbage': path.write_bytes(path.read_bytes()[:-2] + b'xx')
        else: damage(path, kind)
        (example,), rejected = generate()
    assert spoken.call_count == 2 and rejected.startswith('text,speaker,reason')
    assert example.variants[0].equal(codes)

def test_a_full_temporary_folder_is_named(recordings):
    import tempfile
    from csm_expressive_nb.data import dataset
    spool = dataset._Spool()
    spool.file = SimpleNamespace(tell=lambda: 0, write=None)
    def write(_): raise OSError(errno.ENOSPC, 'full')
    spool.file.write = write
    with pytest.raises(OSError) as error: spool.add(SimpleNamespace(id='a'), b'x')
    assert error.value.filename == f'{tempfile.gettempdir()} (another: TMPDIR)'

def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    from csm_expressive_nb.core.files import read_json, read_or_make, write_json
    (tmp_path / '_cache').write_text('a file where a folder belongs')
    assert read_or_make(tmp_path / '_cache/prosody/a.json', read_json, lambda: [1], write_json) == [1]
    assert 'note: nothing is kept in' in capsys.readouterr().err

def fill_entry(folder: Path, seconds: float) -> list:
    "What an entry of the cache holds; a line of a log tells that it was made"
    from csm_expressive_nb.core.caches import read_or_make_entry
    from csm_expressive_nb.core.files import append_line, read_json, write_json
    def make() -> list:
        append_line(folder / 'made.txt', str(os.getpid()))
        time.sleep(seconds)
        return [1, 2]
    values = read_or_make_entry('prosody', 'a.json', read_json, make, write_json)
    append_line(folder / 'values.txt', str(values))
    return values

@forks
@pytest.mark.parametrize('kill', [False, True])
def test_two_processes_fill_one_entry_of_the_cache(kill, tmp_path, monkeypatch):
    "It is made once; where the one that makes it is killed, the other makes it"
    from multiprocessing import get_context
    monkeypatch.setenv('CSM_EXPRESSIVE_CACHE', str(tmp_path / 'cache'))
    fork = get_context('fork')
    first = fork.Process(target=fill_entry, args=(tmp_path, 60 if kill else 0.5))
    first.start()
    while not (tmp_path / 'made.txt').exists(): time.sleep(0.01)
    second = fork.Process(target=fill_entry, args=(tmp_path, 0))
    second.start()
    second.join(0.2)
    assert second.is_alive()                                # it waits
    if kill: first.kill()
    for process in (first, second): process.join(20)
    assert (first.exitcode, second.exitcode) == (-9 if kill else 0, 0)
    assert len((tmp_path / 'made.txt').read_text().split()) == (2 if kill else 1)
    assert (tmp_path / 'values.txt').read_text() == '[1, 2]\n' * (1 if kill else 2)
    assert fill_entry(tmp_path, 60) == [1, 2]

@pytest.mark.parametrize('name', ['codes.bin', 'index.jsonl'])
@pytest.mark.parametrize('kind', DAMAGE)
def test_damaged_codes_are_never_read(name, kind, tmp_path, capsys):
    from csm_expressive_nb.data.codes import CodeCache
    codes = {f'clip{i}': np.full((2 + i, 4), i + 1) for i in range(3)}
    cache = CodeCache(tmp_path, 'abc', 4)
    cache.repair()
    for key, values in codes.items(): cache.append(key, values)
    damage(tmp_path / 'abc' / name, kind)
    cache = CodeCache(tmp_path, 'abc', 4)
    for key in cache.entries: assert (cache.get(key).numpy() == codes[key]).all()
    cache.repair()
    assert f'{tmp_path}/abc/index.jsonl is damaged after' in capsys.readouterr().err or not cache.entries
    for key, values in codes.items():
        if key not in cache: cache.append(key, values)
    cache = CodeCache(tmp_path, 'abc', 4)
    assert cache.entries.keys() == codes.keys()
    assert all((cache.get(key).numpy() == values).all() for key, values in codes.items())

@pytest.mark.parametrize('kind', DAMAGE)
@pytest.mark.parametrize('name', ['dataset.json', 'data/train-00000-of-00001.parquet'])
def test_a_damaged_dataset_is_named_and_made_again(name, kind, recordings, tmp_path, capsys):
    from csm_expressive_nb.data.dataset import Dataset
    prepare(recordings, tmp_path / 'out')
    expected = contents(tmp_path / 'out')
    damage(tmp_path / 'out' / name, kind)
    with pytest.raises(ValueError, match='run (the|what)|make the dataset again') as error:
        ds = Dataset(tmp_path / 'out')
        for clip in ds.clips: ds.flac(clip)
    assert str(tmp_path / 'out') in str(error.value)
    if name == 'dataset.json' and kind != 'other':        # it may be no dataset: not written over
        with pytest.raises(ValueError, match='dataset.json is damaged, no JSON: remove the folder and make'):
            prepare(recordings, tmp_path / 'out')
        shutil.rmtree(tmp_path / 'out')
    prepare(recordings, tmp_path / 'out')
    assert contents(tmp_path / 'out') == expected

def test_a_damaged_dataset_of_the_cache_is_made_again(recordings, tmp_path, monkeypatch, capsys):
    from csm_expressive_nb.data.dataset import open_dataset
    from csm_expressive_nb.data import dataset
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataset, 'process', process_quickly)
    digest = open_dataset(recordings).info['hash']
    (parquet,) = tmp_path.glob('_cache/datasets/*/data/train-*')
    damage(parquet, 'truncated')
    assert open_dataset(recordings).info['hash'] == digest
    assert f'{parquet.name} is damaged' in capsys.readouterr().err

def test_checkpoints_that_cannot_be_used_are_passed_over(tmp_path, capsys):
    from csm_expressive_nb.training.checkpoint import newest_checkpoint, save_checkpoint
    first, second, third = (
        save_checkpoint(tmp_path, step, dict(x=torch.full((2,), float(step))), keep=3) for step in (1, 2, 3)
    )
    (tmp_path / 'from_elsewhere.safetensors').write_bytes(b'x')
    damage(third, 'truncated')
    second.unlink()
    second.mkdir()
    assert newest_checkpoint(tmp_path) == first
    err = capsys.readouterr().err
    assert f'note: {third} is damaged' in err and f'note: {second} is damaged' in err
    assert newest_checkpoint(tmp_path, lambda path: 'needs more') is None

@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    "A small training that was not disturbed"
    folder = tmp_path_factory.mktemp('trained')
    ended = in_fork(lambda: small_training(folder / 'run'), Fault('count'), folder)
    assert ended.code == 0, ended.err
    return folder / 'run'

@forks
@pytest.mark.long
@pytest.mark.parametrize('name', ['best', 'newest', 'metrics.jsonl', 'adapter', 'ended.json', 'speed.jsonl'])
@pytest.mark.parametrize('kind', DAMAGE)
def test_a_run_with_damaged_files_ends_as_an_undisturbed_one(name, kind, trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / 'run')
    expected = contents(out)
    files = dict(
        best=max(out.glob('best-*')), newest=max((out / 'checkpoints').iterdir()),
        adapter=out / 'adapter/adapter_model.safetensors',
    )
    damage(files.get(name, out / name), kind)
    again = in_fork(lambda: small_training(out), Fault('count'), tmp_path)
    assert again.code == 0, again.err
    now = contents(out)
    if name == 'metrics.jsonl': assert now.pop(name) and expected.pop(name)     # lost lines stay lost
    assert now == expected

def fake_speech(texts, seed: int) -> list:
    "Sounds that follow from text and seed"
    speeches = []
    for text in texts:
        rng = np.random.default_rng([seed, len(text)])
        sound = (0.1 * rng.standard_normal(2400)).astype(np.float32)
        speeches.append(SimpleNamespace(audio=sound, text=text, speaker='s1', ended=True, seconds=0.5))
    return speeches

BLOCKS = [dict(system='base', emotion='', tag='', texts=['One.', 'Second.'], seed=seed, references=[])
          for seed in (0, 1)]

def test_speech_that_is_read_is_as_it_was_spoken(tmp_path):
    "The order of a row's columns, too: it is that of clips.csv"
    from csm_expressive_nb.pipelines import evaluate
    block, speech = BLOCKS[0], fake_speech(BLOCKS[0]['texts'], 0)
    rows = evaluate._write_speeches(tmp_path / 'other', 0, block, speech)
    speak = [tmp_path / 'out', {}, [block], {}, lambda: (None, None), None, False]
    with patch.object(evaluate, '_speak_block', return_value=speech):
        for _ in range(2):
            found = evaluate._speak_blocks(*speak)
            assert [list(row.items()) for row in found] == [list(row.items()) for row in rows]

def speak_blocks(folder: Path) -> int:  # how many were spoken
    from csm_expressive_nb.pipelines import evaluate
    def speak(model, processor, block, *_): return fake_speech(block['texts'], block['seed'])
    with patch.object(evaluate, '_speak_block', side_effect=speak) as spoken:
        evaluate._speak_blocks(folder, dict(key=1), BLOCKS, {}, lambda: (None, None), None, False)
    return spoken.call_count

@pytest.mark.parametrize('name', ['key.json', 'blocks/001.json', 'audio/001_000.flac'])
@pytest.mark.parametrize('kind', DAMAGE)
def test_damaged_speech_of_an_evaluation_is_spoken_again(name, kind, tmp_path, capsys):
    assert (speak_blocks(tmp_path), speak_blocks(tmp_path)) == (2, 0)
    expected = contents(tmp_path)
    damage(tmp_path / name, kind)
    assert speak_blocks(tmp_path) == (2 if name == 'key.json' else 1)
    assert contents(tmp_path) == expected
    assert name == 'key.json' or 'blocks/001.json is spoken again' in capsys.readouterr().err
    (tmp_path / 'audio/000_000.flac').unlink()
    assert speak_blocks(tmp_path) == 1 and contents(tmp_path) == expected

@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_classifier_is_fitted_again(kind, tmp_path, capsys):
    from csm_expressive_nb.core.files import assets
    from csm_expressive_nb.evaluation.judge import load_judge
    from csm_expressive_nb.pipelines import evaluate
    judge = load_judge()
    shutil.copyfile(assets('judge.json'), tmp_path / 'judge.json')
    damage(tmp_path / 'judge.json', kind)
    with patch.object(evaluate, 'train_judge', return_value=(judge, [])):
        again = evaluate._own_judge(tmp_path, None)
    assert np.allclose(again.coef, judge.coef) and again.emotions == judge.emotions
    assert 'judge.json is damaged' in capsys.readouterr().err
    assert load_judge(tmp_path / 'judge.json').emotions == judge.emotions

@pytest.mark.parametrize('name', ['report.json', 'index.html', 'adapter/adapter_model.safetensors'])
def test_a_run_that_lacks_a_result_is_not_finished(name, tmp_path):
    from csm_expressive_nb.core.config import make_config
    from csm_expressive_nb.core.files import atomic_write
    from csm_expressive_nb.pipelines.emotion import finished_run
    cfg = make_config(out=str(tmp_path))
    for file in ('report.json', 'index.html', 'adapter/adapter_model.safetensors'):
        atomic_write(tmp_path / file, '{}')
    assert finished_run(cfg)
    (tmp_path / name).write_text('')
    assert finished_run(cfg) is None
    if name == 'report.json':
        (tmp_path / name).write_text('{"a": ')
        assert finished_run(cfg) is None

def test_a_sound_that_is_none_is_missing_from_the_dashboard(tmp_path):
    from csm_expressive_nb.core.runs import SpeechClip, _explain_unplayable
    for name, data in dict(empty=b'', garbage=b'RIFF' * 9).items():
        (tmp_path / f'{name}.wav').write_bytes(data)
        clip = SpeechClip('r', tmp_path, f'{name}.wav', 'samples', '0', None, 'a', 'v', 'base', '')
        assert _explain_unplayable(clip) == f'{name}.wav'

def test_a_dashboard_shows_a_run_whose_log_is_being_written(tmp_path):
    from csm_expressive_nb.core.runs import read_run
    folder = run_folder(tmp_path / 'sad', 'sad', 4)
    log = folder / 'metrics.jsonl'
    whole, n_points = log.read_bytes(), len(read_run(folder).curves['loss'])
    command, page = CliRunner(), tmp_path / 'page.html'
    log.write_bytes(whole + b'{"step": 20, "lo')                # as a process leaves it that is killed
    assert len(read_run(folder).curves['loss']) == n_points
    result = command.invoke(cli.app, ['dashboard', str(folder), '--out', str(page)], catch_exceptions=False)
    assert result.exit_code == 0 and '1 run' in result.output and page.exists()
    log.write_bytes(whole + b'{"step": 20, "lo\n')
    other = shutil.copytree(folder, tmp_path / 'other')
    (other / 'metrics.jsonl').write_bytes(whole)
    result = command.invoke(cli.app, ['dashboard', str(tmp_path), '--out', str(page)], catch_exceptions=False)
    assert result.exit_code == 0 and '1 run' in result.output
    assert f'skipped: {log}, line 21 is damaged, no JSON' in result.output

# ---- a script of sounds ------------------------------------------------------------------------------------

def test_a_sound_of_a_script_that_is_none_is_spoken_again(tmp_path):
    from csm_expressive_nb.speech import script
    line = SimpleNamespace(number=1, file='0001.wav')
    manifest = script._Manifest(tmp_path, {1: dict(hash='h', file='0001.wav')})
    sf.write(tmp_path / '0001.wav', np.zeros(2400), 24_000)
    assert manifest.is_done(line, 'h')
    for kind in ('empty', 'garbage'):
        damage(tmp_path / '0001.wav', kind)
        assert not manifest.is_done(line, 'h')

def test_a_manifest_with_any_character_is_read(tmp_path):
    from csm_expressive_nb.core.files import read_json_lines
    from csm_expressive_nb.speech import script
    text = 'One\u2028two\x85three\x0bfour\x1cfive'
    manifest = script._Manifest(tmp_path, {1: dict(line=1, text=text), 2: dict(line=2, text='b')})
    manifest.write()
    assert [row['text'] for row in read_json_lines(manifest.path)] == [text, 'b']
    manifest.path.write_text('{"line": 1}\n[]\n')
    with pytest.raises(ValueError, match='manifest.jsonl, line 2 is damaged, .* delete it'):
        script._open_manifest(tmp_path, [])

# ---- two commands in one folder ----------------------------------------------------------------------------

@forks
def test_a_second_preparation_in_the_same_folder_is_refused(recordings, tmp_path):
    from csm_expressive_nb.core.run import claim
    held = claim(tmp_path / 'out', 'preparing')
    second = in_fork(lambda: prepare(recordings, tmp_path / 'out'), Fault('count'), tmp_path)
    assert f'Occupied: process {os.getpid()} is preparing in {tmp_path}/out' in second.verdict
    assert not (tmp_path / 'out/dataset.json').exists()
    held.release()
    assert prepare(recordings, tmp_path / 'out').clips

@forks
@pytest.mark.parametrize('name', ['training', 'evaluating'])
def test_an_evaluation_is_refused_beside_training_or_another_one(name, tmp_path):
    from csm_expressive_nb.core.run import claim
    folder = tmp_path / 'run'
    held = claim(folder, name)
    def work():
        from csm_expressive_nb.pipelines import evaluate
        settings = SimpleNamespace(source='embedded', model='nano')
        with patch.object(evaluate, 'open_finished', return_value=(settings, {}, folder)), \
             patch.object(evaluate, 'open_dataset'):
            evaluate.evaluate(folder)
    refused = in_fork(work, Fault('count'), tmp_path)
    assert f'process {os.getpid()} is {name} in {folder}: wait for its end' in refused.verdict
    assert not [path for path in folder.iterdir() if path.name[0] != '.']
    held.release()

@pytest.mark.parametrize('note', [None, '', '{', '[]', '{"pid": 1}'])
def test_the_note_of_a_claim_never_decides(note, tmp_path):
    "A process that died, a folder copied from another machine, a pid that is somebody else's now"
    from csm_expressive_nb.core.run import claim
    text = json.dumps(dict(pid=os.getpid(), host='elsewhere')) if note is None else note
    (tmp_path / '.training.json').write_text(text)
    (tmp_path / '.training.lock').write_text('')
    claimed = claim(tmp_path)
    assert json.loads((tmp_path / '.training.json').read_text())['pid'] == os.getpid()
    claimed.release()

@forks
@pytest.mark.parametrize('note', ['{', '[]', '{"pid": 1}'])
def test_a_claim_with_a_damaged_note_is_still_one(note, tmp_path):
    from csm_expressive_nb.core.run import claim
    held = claim(tmp_path)
    (tmp_path / '.training.json').write_text(note)
    refused = in_fork(lambda: claim(tmp_path), Fault('count'), tmp_path)
    assert f'another process is training in {tmp_path}' in refused.verdict
    held.release()

# ---- whole commands, in a workshop -------------------------------------------------------------------------

@pytest.fixture(scope='module')
def workshop(tmp_path_factory):
    workshop = Workshop(tmp_path_factory.mktemp('shelf'))
    yield workshop
    workshop.close()

@pytest.fixture
def mounts(workshop):
    if not workshop.has_mounts: pytest.skip('needs root and `unshare -m`: a disk and mounts of its own')
    return workshop

SMALL = ['--set', 'steps=2', '--set', 'batch=2', '--set', 'sentences=8', '--set', 'strength_sentences=2',
         '--set', 'validate_every=1', '--set', 'monitor=loss', '--set', 'checkpoint_every=1',
         '--set', 'rank=2', '--set', 'tokens=1024']

@pytest.fixture(scope='module')
def bench(few_clips, tmp_path_factory) -> Path:
    "A folder to work in, with recordings, a dataset and two lines to speak"
    folder = tmp_path_factory.mktemp('bench')
    shutil.copytree(few_clips, folder / 'ds')
    shutil.copytree(Path(few_clips).parent / 'in', folder / 'in')
    (folder / 'lines.txt').write_text('The road was closed.\nIt rained.\n')
    return folder

def train_command(out) -> list:
    return ['train', 'sad', '--data', 'ds', '--out', out, *SMALL]

@pytest.fixture(scope='module')
def finished(workshop, bench) -> Path:
    "A run that was not disturbed, its evaluation and its sweep of strengths"
    for command in (train_command('run'), ['eval', 'run', *EVALUATION], ['scale-sweep', 'run', *SWEEP]):
        result = workshop.run(command, bench)
        assert result.code == 0, result.err
    return bench / 'run'

EVALUATION = ['--sentences', '4', '--seeds', '1', '--recordings', '2', '--jobs', '1',
              '--metrics', 'prosody,judge']
SWEEP = ['--scales', '0,1', '--sentences', '2']
SHARES = ['--shares', '.34', '.33', '.33']
COMMANDS = {
    'prepare': (['data', 'prepare', 'ravdess', '--source', 'in', '--verify', 'off', *SHARES], 'prepared'),
    'merge': (['data', 'merge', 'ds', *SHARES], 'merged'),
    'speak': (['speak', '--file', 'lines.txt'], 'spoken'),
    'dashboard': (['dashboard', 'run'], 'page/dashboard.html'),
    'listen': (['listen', 'create', 'run', '--pairs', '2'], 'test'),
}

def assert_one_line(result, *words: str):
    "A verdict of one line, no traceback"
    assert result.code == 1, result.err
    assert 'Traceback' not in result.err
    assert result.verdict.startswith('error: ')
    for word in words: assert word in result.verdict, result.verdict

@pytest.mark.long
@pytest.mark.parametrize('kind', ['SIGKILL', 'ENOSPC', 'EACCES'])
@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_that_is_struck_is_given_again(name, kind, workshop, bench, finished, tmp_path):
    command, target = COMMANDS[name]
    undisturbed = tmp_path / 'undisturbed' / target
    count = Fault('count', below=f'{tmp_path}/undisturbed/')
    result = workshop.run([*command, '--out', undisturbed], bench, count)
    assert result.code == 0, result.err
    expected = contents(tmp_path / 'undisturbed')
    for at in moments(result.writes, max(1, len(result.writes) // 3)):
        folder = tmp_path / f'{kind}_{at}'
        struck = workshop.run([*command, '--out', folder / target], bench, Fault(kind, at, f'{folder}/'))
        if folder.exists(): assert_whole(folder)
        if hasattr(errno, kind):
            assert_one_line(struck, f'{folder}', VERDICTS[kind])
            assert not temporary_files(folder)
        again = workshop.run([*command, '--out', folder / target], bench)
        assert again.code == 0, (at, again.err)
        assert contents(folder) == expected, (at, result.writes[at - 1])
        assert not temporary_files(folder), at

def copy_folder(run: Path, folder: Path, *without: str) -> Path:
    "A finished run or a dataset, without some of its results"
    shutil.copytree(run, folder)
    for name in without:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder

CHAINS = {
    'train': (train_command('{}'), ()),
    'train --multi': (['train', '--multi', 'sad', 'happy', '--data', 'ds', '--out', '{}', *SMALL], ()),
    'eval': (['eval', '{}', *EVALUATION], ('evaluation', 'evaluation.json')),
    'scale-sweep': (['scale-sweep', '{}', *SWEEP], ('intensity', 'intensity.json')),
    'encode': (['data', 'encode', '{}'], ('codes',)),
}
PAIRS = [('SIGKILL', name) for name in CHAINS]
PAIRS += ('SIGINT', 'train'), ('ENOSPC', 'train'), ('ENOSPC', 'eval')

@pytest.mark.long
@pytest.mark.parametrize('kind, name', PAIRS)
def test_a_long_command_struck_again_and_again_ends_as_an_undisturbed_one(
    name, kind, workshop, bench, finished, tmp_path
):
    command, without = CHAINS[name]
    copies = [tmp_path / name / 'run' for name in ('undisturbed', 'struck')]      # a page says the name
    original = bench / 'ds' if name == 'encode' else finished
    if without:
        for copy in copies: copy_folder(original, copy, *without)
    undisturbed, struck = ([argument.format(copy) for argument in command] for copy in copies)
    result = workshop.run(undisturbed, bench, Fault('count', below=f'{copies[0]}/'))
    assert result.code == 0, result.err
    n_writes = len(result.writes)
    for at in range(3, n_writes, max(1, n_writes // 5)):
        ended = workshop.run(struck, bench, Fault(kind, at, f'{copies[1]}/'))
        if copies[1].exists(): assert_whole(copies[1])
        if kind == 'ENOSPC' and ended.code: assert_one_line(ended, f'{copies[1]}', 'make room')
        if ended.code == 0: break
    again = workshop.run(struck, bench)
    assert again.code == 0, again.err
    assert contents(copies[1]) == contents(copies[0])
    assert not temporary_files(copies[1])

ROOM = dict(prepare='200k', merge='200k', speak='40k', dashboard='1m', listen='40k', train='300k')

@pytest.mark.long
@pytest.mark.parametrize('name', ROOM)
def test_a_full_disk_is_one_line_and_with_room_it_goes_on(name, mounts, bench, finished, tmp_path):
    command, target = COMMANDS.get(name, (train_command('x')[:-len(SMALL) - 2] + SMALL, 'run'))
    disk = tmp_path / 'disk'
    disk.mkdir()
    with mounts.mounted(disk, f'-t tmpfs -o size={ROOM[name]} tmpfs') as view:
        full = mounts.run([*command, '--out', disk / target], bench)
        assert_one_line(full, 'no space is left', str(disk), 'make room')
        assert not temporary_files(view)
        mounts.shell(f'mount -o remount,size=64m {disk}')
        again = mounts.run([*command, '--out', disk / target], bench)
        assert again.code == 0, again.err
        assert not temporary_files(view)

@pytest.mark.long
def test_a_cache_on_a_full_or_closed_disk_stops_nothing(mounts, bench, finished, tmp_path):
    work = tmp_path / 'work'
    (work / '_cache').mkdir(parents=True)
    disks = dict(full='-t tmpfs -o size=4k tmpfs', closed=f'--bind -o ro {work}/_cache')
    for name, options in disks.items():
        run = copy_folder(finished, tmp_path / name / 'run', 'judge.json')        # a page says the name
        with mounts.mounted(work / '_cache', options):
            result = mounts.run(['eval', run, *EVALUATION], work)
            assert result.code == 0, (name, result.err)
            assert f'note: nothing is kept in {work}/_cache/prosody' in result.err, name
        assert contents(run) == contents(finished)

@pytest.mark.long
def test_sources_are_never_written(mounts, bench, tmp_path):
    command, _ = COMMANDS['prepare']
    with mounts.mounted(bench / 'in', f'--bind -o ro {bench}/in'):
        result = mounts.run([*command, '--out', tmp_path / 'ds'], bench)
        assert result.code == 0, result.err
        raw = mounts.run(['eval', 'in', '--out', tmp_path / 'measured', *EVALUATION[4:]], bench)
        assert raw.code == 0, raw.err

@pytest.mark.long
@pytest.mark.parametrize('name', [*ROOM, 'encode', 'eval'])
def test_a_folder_that_cannot_be_written_is_one_line(name, mounts, bench, finished, tmp_path):
    closed = tmp_path / 'closed'
    shutil.copytree(bench / 'ds', closed / 'ds', ignore=shutil.ignore_patterns('codes'))
    copy_folder(finished, closed / 'run', 'evaluation', 'evaluation.json')
    command, target = COMMANDS.get(name, (train_command('x')[:-len(SMALL) - 2] + SMALL, 'run2'))
    command = [*command, '--out', closed / 'new' / target]
    if name == 'encode': command = ['data', 'encode', closed / 'ds']
    if name == 'eval': command = ['eval', closed / 'run', *EVALUATION]
    with mounts.mounted(closed, f'--bind -o ro {closed}'):
        result = mounts.run(command, bench)
        assert_one_line(result, str(closed), 'lies on a disk that cannot be written: choose another place')

@pytest.mark.long
def test_a_recording_that_may_not_be_read_is_rejected(workshop, bench, recordings, tmp_path):
    if sys.platform != 'linux': pytest.skip('needs the capabilities of Linux')
    shutil.copytree(recordings, tmp_path / 'in')
    (tmp_path / 'in/05.wav').chmod(0)
    command = ['data', 'prepare', 'folder', '--source', tmp_path / 'in', '--out', tmp_path / 'out']
    result = workshop.run(command, tmp_path, permissions=True)
    assert result.code == 0, result.err
    with open(tmp_path / 'out/rejected.csv', newline='', encoding='utf-8') as file:
        rejected = list(csv.DictReader(file))
    assert [(row['path'], row['reason']) for row in rejected] == [('05.wav', 'unreadable')]
    (tmp_path / 'in/metadata.csv').chmod(0)
    command[-1] = tmp_path / 'out2'
    result = workshop.run(command, tmp_path, permissions=True)
    assert_one_line(result, 'metadata.csv is not yours to read or write', 'change its mode')

@pytest.mark.long
def test_no_folder_but_out_need_be_writable(mounts, bench, finished, tmp_path):
    "HOME, TMPDIR and the working directory on a closed disk, in processes that start there"
    closed = tmp_path / 'closed'
    run = copy_folder(finished, tmp_path / 'run', 'judge.json', 'evaluation.json')
    closed.mkdir()
    program = f'cd {closed} && HOME={closed} TMPDIR={closed} {sys.executable} -m csm_expressive_nb.cli'
    prepare_command = f'data prepare ravdess --source {bench}/in --verify off --shares .34 .33 .33'
    commands = dict(
        prepare=f'{prepare_command} --out {tmp_path}/prepared',
        eval=' '.join(['eval', str(run), *EVALUATION]),
        dashboard=f'dashboard {run} --out {tmp_path}/page.html',
    )
    with mounts.mounted(closed, f'--bind -o ro {closed}'):
        for name, command in commands.items():
            mounts.shell(f'{program} {command} > {tmp_path}/{name}.out 2> {tmp_path}/{name}.err')
    undisturbed = mounts.run([*prepare_command.split(), '--out', tmp_path / 'undisturbed'], bench)
    assert undisturbed.code == 0, undisturbed.err
    assert contents(tmp_path / 'prepared') == contents(tmp_path / 'undisturbed')
    assert f'note: nothing is kept in {closed}/_cache/prosody' in (tmp_path / 'eval.err').read_text()
    assert (tmp_path / 'page.html').read_text(encoding='utf-8').rstrip().endswith('</html>')
