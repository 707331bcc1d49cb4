"The command line on bad days: broken settings, runs, datasets and answers, odd spellings, Ctrl-C, pipes."
import json, os, shutil, signal, subprocess, sys
from pathlib import Path

import pytest

from csm_expressive_nb import cli
from csm_expressive_nb.core.files import atomic_write
from csm_expressive_nb.evaluation import listening, listening_analysis

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, '-m', 'csm_expressive_nb.cli']

# ---- helpers -----------------------------------------------------------------------------------------------

@pytest.fixture
def verdict(monkeypatch, capsys):
    "Runs a command as a shell would: (exit code, what it printed, its line on stderr)"
    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', ['csm_expressive', *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as end: code = end.code
        output = capsys.readouterr()
        lines = [line for line in output.err.splitlines() if line.startswith('error: ')]
        assert 'Traceback' not in output.err
        assert len(lines) == (code == 1), output.err
        return code, output.out, lines[0] if lines else output.err
    return run

def assert_refused(result, *words):
    code, _, line = result
    assert code == 1
    for word in words: assert word in line, line

# ---- settings ----------------------------------------------------------------------------------------------

SETTINGS = {
    b'steps: 3\nlr: [1\n': 'a.yaml, line 3 is damaged, no YAML',
    b'steps: 3\n\tlr: 1\n': 'blanks instead of the tab',
    b'- steps\n': 'must hold `name: value` lines',
    b'hello': 'must hold `name: value` lines',
    b'\xff\xfe\0\1': 'a.yaml is damaged, no UTF-8',
    b'3: 4\n': 'a.yaml: 3 is no name of a setting',
    b'model: 3\n': 'model = 3: write a name in quotes',
    b'!!python/object:os.system x\n': 'could not determine a constructor',
    b'[' * 1500: 'a.yaml is damaged, no YAML: maximum recursion',
    b'out: 2024_05\n': 'in quotes for YAML',
    b'STEPS: 3\n': "did you mean 'steps'?",
}

@pytest.mark.parametrize('text', SETTINGS, ids=lambda text: text[:9].decode('latin-1'))
@pytest.mark.parametrize('command', [('config', 'show'), ('estimate', 'sad'), ('train', 'sad')])
def test_settings_that_cannot_be_read_are_named(command, text, tmp_path, verdict):
    path = atomic_write(tmp_path / 'a.yaml', text)
    assert_refused(verdict(*command, '--config', path), SETTINGS[text])

def test_settings_of_the_command_line_are_named(verdict):
    assert_refused(verdict('config', 'show', '--set', 'steps=[1'), '--set steps=[1 is damaged, no YAML')
    assert_refused(verdict('config', 'show', '--set', 'steps'), 'write name=value')
    assert_refused(verdict('config', 'show', '--config', '/'), '/ is a folder: a file belongs there')
    shares = ('--shares', '-1', '1', '1')
    assert_refused(verdict('data', 'merge', 'x', '--out', 'y', *shares), 'are not negative')

def test_an_empty_file_of_settings_holds_none(tmp_path, verdict):
    path = atomic_write(tmp_path / 'a.yaml', '')
    assert verdict('config', 'show', '--config', path)[:2] == verdict('config', 'show')[:2]

# ---- names and paths ---------------------------------------------------------------------------------------

def test_home_is_found_where_no_shell_looks(tmp_path, monkeypatch, verdict):
    monkeypatch.setenv('HOME', str(tmp_path))
    out = verdict('config', 'show', '--set', 'source=~/data', '--set', 'out=~/run', '--set', 'base=~/b')[1]
    for line in (f'source: {tmp_path}/data', f'out: {tmp_path}/run', f'base: {tmp_path}/b'):
        assert line in out
    assert_refused(verdict('data', 'prepare', 'auto', '--source=~/in', '--out=~/out'), f'{tmp_path}/in')
    assert_refused(verdict('eval', '~/run', '--baseline=~/b'), f'{tmp_path}/run does not exist')
    assert_refused(verdict('dashboard', '~/runs', '--out=~/d.html'), f'{tmp_path}/runs does not exist')
    assert not (ROOT / '~').exists()

def test_home_in_a_notebook_and_in_python(tmp_path, monkeypatch):
    from csm_expressive_nb.core.config import notebook_config
    from csm_expressive_nb.data import dataset
    monkeypatch.setenv('HOME', str(tmp_path))
    assert notebook_config(dict(emotion='sad', source='~/data', out='~/run')).source == f'{tmp_path}/data'
    for open_it in (dataset.Dataset, dataset.open_dataset):
        with pytest.raises(FileNotFoundError, match=f'{tmp_path}/data'): open_it('~/data')
    assert dataset.claim_folder('~/out', {}) == tmp_path / 'out'

def test_names_are_found_in_any_case(tmp_path, verdict):
    for model in ('NANO', 'Nano'): assert 'model: nano' in verdict('config', 'show', '--model', model)[1]
    for model in ('CSM-1B', 'Sesame/csm-1b'):
        assert 'model: csm-1b\n' in verdict('config', 'show', '--model', model, '--set', 'source=x')[1]
    for name in ('RAVDESS', 'ravdess'):
        command = ('data', 'prepare', name, '--source', tmp_path, '--out', tmp_path / 'o', '--balance', 'CAP')
        assert_refused(verdict(*command, '--verify', 'OFF'), 'no usable clip')
    assert_refused(verdict('data', 'prepare', 'RAVDES', '--out', 'o'), "did you mean 'ravdess'?")
    assert_refused(verdict('data', 'prepare', 'Emo-DB', '--out', 'o'), 'emodb cannot be downloaded')

# ---- runs --------------------------------------------------------------------------------------------------

DAMAGES = {
    '': 'holds no settings', 'emotion: [sad': 'is damaged, no YAML', '- sad': 'name: value',
    '3: 4': '3 is no name of a setting',
}

@pytest.mark.parametrize('text', DAMAGES)
def test_a_run_whose_settings_are_damaged_is_neither_overwritten_nor_a_traceback(text, tmp_path, verdict):
    run = tmp_path / 'run'
    atomic_write(run / 'config.yaml', text)
    atomic_write(run / 'metrics.jsonl', '{"step": 0, "loss": 1.0}\n')
    result = verdict('train', 'sad', '--out', run)
    assert_refused(result, DAMAGES[text], str(run / 'config.yaml'), 'restore it, choose another `out`')
    assert (run / 'config.yaml').read_text(encoding='utf-8') == text
    for command in ('eval', 'scale-sweep'): assert_refused(verdict(command, run), 'config.yaml')

def test_a_run_without_its_settings_is_not_gone_on_with(tmp_path, verdict):
    atomic_write(tmp_path / 'run/metrics.jsonl', '{"step": 0, "loss": 1.0}\n')
    assert_refused(verdict('train', 'sad', '--out', tmp_path / 'run'), 'config.yaml is missing')

def small_run(folder: Path) -> Path:
    "The settings and the log of a run, without its adapter"
    atomic_write(folder / 'config.yaml', 'emotion: sad\nsteps: 1\n')
    line = dict(step=0, loss=1.0, c0=1.0, depth=1.0, codebooks=[1.0], lr=0.1, grad_norm=1.0)
    atomic_write(folder / 'metrics.jsonl', json.dumps(line) + '\n')
    return folder

BROKEN = {
    'config.yaml': 'emotion: [sad', 'metrics.jsonl': '{"step": 0, "lo\n', 'report.json': '{"samples": 3}',
    'evaluation.json': '{"run": 3}', 'intensity.json': '{"clips": 3}', 'ended.json': '[',
    'evaluation/clips.csv': '\0',
}

@pytest.mark.parametrize('name', BROKEN)
@pytest.mark.parametrize('is_folder', [False, True])
def test_a_damaged_run_keeps_no_other_from_the_dashboard(name, is_folder, tmp_path, verdict):
    whole, damaged = small_run(tmp_path / 'whole'), small_run(tmp_path / 'damaged')
    (damaged / name).unlink(missing_ok=True)
    if is_folder: (damaged / name).mkdir(parents=True)
    else: atomic_write(damaged / name, BROKEN[name])
    code, out, _ = verdict('dashboard', damaged, whole, '--out', tmp_path / 'd.html')
    assert code == 0
    assert 'damaged' in out
    assert 'whole' in (tmp_path / 'd.html').read_text(encoding='utf-8')

def test_a_dashboard_of_damaged_runs_alone_is_an_error(tmp_path, verdict):
    run = small_run(tmp_path / 'run')
    atomic_write(run / 'config.yaml', 'emotion: [sad')
    assert_refused(verdict('dashboard', run, '--out', tmp_path / 'd.html'), 'config.yaml is damaged')
    assert_refused(verdict('dashboard', small_run(run), '--out', tmp_path), 'is a folder: name the HTML file')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['run']        # no half file

# ---- datasets ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('text', ['', '{', '[]', '{"complete": true}', '{"complete": true, "settings": {}}'])
def test_a_dataset_whose_facts_are_damaged_is_named(text, tmp_path, verdict):
    atomic_write(tmp_path / 'ds/dataset.json', text)
    for command in ('data merge {} --out {}/o', 'data encode {}', 'eval {}', 'train sad --data {} --dry-run'):
        result = verdict(*command.format(tmp_path / 'ds', tmp_path).split())
        assert_refused(result, f'{tmp_path}/ds/dataset.json is damaged', 'make the dataset again')

def test_damaged_parts_of_a_dataset_are_named_or_done_without(few_clips, tmp_path, verdict):
    shutil.copytree(few_clips, tmp_path / 'ds')
    (tmp_path / 'ds/rejected.csv').write_bytes(b'')
    assert verdict('data', 'merge', tmp_path / 'ds', '--out', tmp_path / 'merged')[0] == 0
    parquet = next((tmp_path / 'ds/data').glob('*.parquet'))
    parquet.write_bytes(b'PAR1 and nothing more')
    result = verdict('data', 'merge', tmp_path / 'ds', '--out', tmp_path / 'o')
    assert_refused(result, f'{parquet} is damaged')
    assert not (tmp_path / 'o').exists()

# ---- listening tests ---------------------------------------------------------------------------------------

@pytest.fixture
def answers(tmp_path):
    "A listening test of 4 pairs in a folder `test`, and the answers of three raters"
    clips = []
    for system in ('base', 'adapter'):
        for i in range(6):
            names = dict(file=f'{system}{i}.wav', system=system, emotion='sad', text=f'Text {i}.', voice='1')
            clips.append(names | dict(seed='0', path=tmp_path / f'{system}{i}.wav'))
    plan, key = listening.make_test(clips, n=4)
    atomic_write(tmp_path / 'test/plan.json', json.dumps(plan))
    atomic_write(tmp_path / 'test.key.json', json.dumps(key))
    answers = listening_analysis.simulate_answers(plan, key, raters=3)
    listening_analysis.save_answers(answers, tmp_path / 'a/1.csv')
    return tmp_path

def test_a_damaged_file_of_answers_is_left_out_and_named(answers, verdict):
    (answers / 'a/2.csv').write_bytes(b'\xff\xfe\0')
    atomic_write(answers / 'a/3.CSV', 'a,b\n1,2\n')
    (answers / 'a/4.csv').mkdir()
    code, out, _ = verdict('listen', 'score', answers / 'a', '--test', answers / 'test')
    assert code == 0
    assert out.count('skipped: ') == 3
    for name in ('2.csv', '3.CSV', '4.csv'): assert f'{answers}/a/{name}' in out
    assert (answers / 'test_results/listening.png').stat().st_size
    assert_refused(verdict('listen', 'score', answers / 'a/2.csv', '--test', answers / 'test'), 'a/2.csv')

def test_half_a_file_of_answers_has_no_interval_and_still_a_figure(answers, verdict):
    lines = (answers / 'a/1.csv').read_text(encoding='utf-8').splitlines(keepends=True)
    atomic_write(answers / 'half.csv', ''.join(lines[: len(lines) // 3]))
    assert verdict('listen', 'score', answers / 'half.csv', '--test', answers / 'test')[0] == 0

@pytest.mark.parametrize('name', ['test/plan.json', 'test.key.json'])
@pytest.mark.parametrize('text', ['{', '[]', '{}', None])
def test_a_damaged_listening_test_is_named(name, text, answers, verdict):
    (answers / name).unlink()
    if text is not None: atomic_write(answers / name, text)
    result = verdict('listen', 'score', answers / 'a/1.csv', '--test', answers / 'test')
    assert_refused(result, str(answers / name))

def test_a_listening_test_is_written_into_no_other_folder(tmp_path, verdict):
    atomic_write(tmp_path / 'run/evaluation/clips.csv', 'file\n')
    atomic_write(tmp_path / 'mine/thesis.txt', 'x')
    result = verdict('listen', 'create', tmp_path / 'run', '--out', tmp_path / 'mine')
    assert_refused(result, 'mine holds other files')
    assert [path.name for path in (tmp_path / 'mine').iterdir()] == ['thesis.txt']

# ---- errors of libraries -----------------------------------------------------------------------------------

def library_errors() -> dict:
    "An error of each library, by the words of its line"
    import pyarrow, safetensors, soundfile, torch, yaml, zipfile
    from huggingface_hub.errors import LocalEntryNotFoundError
    from sqlalchemy.exc import DatabaseError
    return {
        'tokens=1024': torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.\nlong text'),
        'used up': MemoryError(), 'NVIDIA driver': RuntimeError('Found no NVIDIA driver on your system.\n'),
        'x.wav': soundfile.LibsndfileError(2, "Error opening 'x.wav': "),
        'archive': zipfile.BadZipFile('no zip'),
        'weights': safetensors.SafetensorError('header too small'),
        'hub': LocalEntryNotFoundError('not on the hub'),
        'search': DatabaseError('select', {}, Exception('malformed')), 'line 3': yaml.YAMLError('line 3'),
        'bytes': pyarrow.ArrowInvalid('bytes'),
        '/a/x.json does not exist': FileNotFoundError(2, 'No', '/a/x.json'),
        '/a is not yours': PermissionError(13, 'No', '/a/.b.abcd1234.tmp', None, '/a'),
        '/a cannot be written, your quota on its disk is used up: make room': OSError(122, 'Quota', '/a'),
    }

def test_errors_of_libraries_are_one_line_with_what_helps():
    for words, error in library_errors().items():
        line = cli.explain_failure(error)
        assert words in line, (error, line)
        assert '\n' not in line

def test_faults_of_this_program_keep_their_traceback():
    for error in (KeyError('x'), TypeError('x'), RuntimeError('x'), AttributeError('x'), AssertionError('x')):
        assert cli.explain_failure(error) == ''

def test_a_bare_value_error_of_a_library_says_where_it_comes_from(monkeypatch, verdict):
    import numpy as np
    monkeypatch.setattr(cli, 'app', lambda: np.zeros(3) + np.zeros(4))
    assert_refused(verdict(), 'could not be broadcast', cli.TRACEBACK, 'cli.py')

# ---- interruptions and pipes -------------------------------------------------------------------------------

def test_an_interruption_is_one_line_and_130(monkeypatch, capsys, request):
    def interrupted(): raise SystemExit(130)                  # typer makes this of Ctrl-C
    # a shell's background job ignores Ctrl-C, and so does all that it starts
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    for ending in (interrupted, lambda: signal.raise_signal(signal.SIGINT)):
        monkeypatch.setattr(cli, 'app', ending)
        with pytest.raises(SystemExit) as end: cli.main()
        assert end.value.code == 130
        assert capsys.readouterr().err.startswith('interrupted: run the same command again')

def test_an_old_name_ends_with_the_code_of_the_new_one(monkeypatch, tmp_path, verdict):
    def fail(*_): raise cli.typer.Exit(1)
    monkeypatch.setattr('csm_expressive_nb.commands.training._train_emotions', fail)
    monkeypatch.setattr(sys, 'argv', ['csm_expressive', 'emotion', 'sad', 'happy', '--out', str(tmp_path)])
    with pytest.raises(SystemExit) as end: cli.main()
    assert end.value.code == 1

def test_pipes_that_are_closed_and_disks_that_are_full():
    def shell(line: str) -> subprocess.CompletedProcess:
        command = ['bash', '-c', line.replace('CE', ' '.join(PROGRAM))]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    for line in ('CE config list | head -1', 'CE config list >&-', 'CE config list 2>&-'):
        result = shell(line)
        assert result.returncode == 0
        assert not result.stderr
    if os.path.exists('/dev/full'):
        result = shell('CE config list > /dev/full')
        assert result.returncode == 1
        assert result.stderr.count('make room') == 1
        assert 'Traceback' not in result.stderr
