"What public reports did to a run, each with the value that is right. Numbers are those of the field cases."
import ast, csv, io, os, re, subprocess, sys
from pathlib import Path
from unittest.mock import patch

import httpx, pytest
from safetensors import SafetensorError

ROOT = Path(__file__).parents[1]
CODE = [*(ROOT / 'csm_expressive_nb').rglob('*.py'), ROOT / '.ci/execute']

def mode_of(call: ast.Call, name: str) -> str | None:
    "The mode an `open` call names; None where it is not a literal"
    free = isinstance(call.func, ast.Name) or name != 'open'
    place = call.args[1:] if free else call.args
    modes = [*place[:1], *(k.value for k in call.keywords if k.arg == 'mode')]
    if not modes: return 'r'
    return modes[0].value if isinstance(modes[0], ast.Constant) else None

def decoded_by_locale(code: str) -> list[int]:
    "Lines of the calls that read or write text in the encoding of the locale"
    lines = []
    for call in ast.walk(ast.parse(code)):
        if not isinstance(call, ast.Call) or any(k.arg == 'encoding' for k in call.keywords):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, 'id', '')
        owner = getattr(getattr(call.func, 'value', None), 'id', '')
        if name in ('read_text', 'write_text') and owner != 'self': lines.append(call.lineno)
        if name not in ('open', 'fdopen') or owner in ('Run', 'Image') or (owner == 'os' and name == 'open'):
            continue
        mode = mode_of(call, name)
        if isinstance(mode, str) and 'b' not in mode: lines.append(call.lineno)
    return lines

def test_26_text_is_utf8_in_every_locale():
    assert decoded_by_locale("open(f); open(f, 'a'); p.open(); p.read_text(); p.write_text(x)") == [1] * 5
    assert not decoded_by_locale(
        "open(f, 'rb'); p.open('rb'); open(f, mode='wb'); open(f, encoding='utf-8'); Run.open(p, c)"
    )
    found = {f.name: lines for f in CODE if (lines := decoded_by_locale(f.read_text(encoding='utf-8')))}
    assert not found, f"give them encoding='utf-8': {found}"

def test_26_a_terminal_without_the_character():
    from csm_expressive_nb import cli
    narrow = io.TextIOWrapper(io.BytesIO(), encoding='cp1252')
    def command(): print('开心')
    with patch.object(cli, 'app', command), patch.object(sys, 'stdout', narrow):
        cli.main()
    narrow.flush()
    assert narrow.buffer.getvalue().strip() == rb'\u5f00\u5fc3'

SMALL = dict(steps=2, batch=2, sentences=8, validate_every=0, trackers=[], rank=2, tokens=1024)

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """An adapter trained for two updates in a folder where two starts failed before; still claimed by this
    process"""
    from csm_expressive_nb import road
    from csm_expressive_nb.core import make_config
    folder = tmp_path_factory.mktemp('field') / 'run'
    config = lambda **kw: make_config(emotion='sad', out=str(folder), **SMALL | kw)
    kept = os.umask(0o022)
    # 28: wrong source, then wrong model
    wrong = config(source='nowhere')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        road.prepare(wrong, road.open_run(wrong), *road.load_base(wrong))
    wrong = config(model='nan0')
    road.open_run(wrong)
    with pytest.raises(ValueError, match='neither a preset'): road.load_base(wrong)
    cfg = config()
    run = road.open_run(cfg)
    model, processor = road.load_base(cfg)
    road.fit(cfg, run, model, processor, road.prepare(cfg, run, model, processor), show=False)
    yield run
    os.umask(kept)

def test_22_no_git(monkeypatch, tmp_path):
    from csm_expressive_nb.core import environment
    monkeypatch.setenv('PATH', str(tmp_path))
    assert environment()['commit'] == 'no git'

def test_24_caches_are_placed_before_librosa_is_imported(monkeypatch, tmp_path):
    from csm_expressive_nb import core
    for name in ('NUMBA_CACHE_DIR', 'MPLCONFIGDIR'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(core.tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(core.os, 'access', lambda *_: False)
    core.place_caches()
    assert os.environ['NUMBA_CACHE_DIR'].startswith(str(tmp_path)) and os.environ['MPLCONFIGDIR'].startswith(
        str(tmp_path)
    )
    # whoever imports librosa has imported core before, or imports audio after it
    audio = (ROOT / 'csm_expressive_nb/audio.py').read_text(encoding='utf-8')
    assert audio.index('import csm_expressive_nb.core') < audio.index('import librosa')

def test_27_run_all_twice_in_one_kernel():
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    path = ROOT / 'nbs/20_emotion.ipynb'
    nb = nbformat.read(path, 4)
    first = [c for c in nb.cells if c.cell_type == 'code'][:3]  # parameters, import, configuration
    assert 'parameters' in first[0].metadata.tags and 'notebook_config(' in first[2].source
    rest = nbformat.v4.new_code_cell(
        'report, speech, alpha = {}, {}, .5\nprint(cfg.emotion, cfg.rank, cfg.alpha)'
    )
    nb.cells = [*first, rest]
    source = first[0].source
    client = NotebookClient(
        nb, timeout=120, kernel_name='python3', resources=dict(metadata=dict(path=str(path.parent)))
    )

    def run_all(lines: str) -> str:
        first[0].source = f'{source}\n{lines}'
        for i, cell in enumerate(nb.cells): client.execute_cell(cell, i)
        return rest.outputs[0].text.strip()

    with client.setup_kernel():
        assert run_all("emotion = 'sad'; rank = 3") == 'sad 3 2.0'
        assert run_all("emotion = 'happy'") == 'happy 16 2.0'  # no `alpha` from the plot, no 'speech'
        with pytest.raises(CellExecutionError, match="did you mean 'emotion'"):
            run_all("emtion = 'calm'")
        assert run_all("emotion = 'calm'") == 'calm 16 2.0'

def test_28_a_start_that_failed_blocks_nothing(run, tmp_path):
    from csm_expressive_nb.core import ExpressiveConfig, load_config, make_config
    from csm_expressive_nb.expressive import open_expressive
    from csm_expressive_nb.road import open_run
    assert load_config(run / 'config.yaml').source == 'embedded' and len(run.metrics('loss')) == 2
    with pytest.raises(ValueError, match='other settings .steps: 2 -> 3'):
        open_run(run.cfg.model_copy(update=dict(steps=3)))
    stage = lambda source: make_config(ExpressiveConfig, source=source, out=str(tmp_path / 'stage'))
    open_expressive(stage('nowhere'))
    assert (
        load_config(open_expressive(stage('embedded')).path / 'config.yaml', ExpressiveConfig).source
        == 'embedded'
    )

def test_29_a_second_process_is_refused(run):
    from csm_expressive_nb.core import Run
    job = [sys.executable, '-m', 'csm_expressive_nb.cli', 'emotion', 'sad', '--out', str(run.path)]
    before = (run.path / 'metrics.jsonl').read_bytes()
    r = subprocess.run(job, capture_output=True, text=True, cwd=ROOT)
    assert r.returncode == 1 and f'process {os.getpid()} is training in {run.path}' in r.stderr
    assert (run.path / 'metrics.jsonl').read_bytes() == before
    # the other processes of one run claim nothing, and write nothing
    with patch.dict(os.environ, RANK='1'):
        assert Run(run.path, run.cfg.model_copy(update=dict(steps=9))).claim is None

def test_29_a_lock_goes_with_its_process(tmp_path):
    from csm_expressive_nb.core import claim
    job = (
        'import sys, os\nfrom csm_expressive_nb.core import claim\nmine = '
        'claim(sys.argv[1])\nos.kill(os.getpid(), 9)'
    )
    assert subprocess.run([sys.executable, '-c', job, str(tmp_path)], cwd=ROOT).returncode == -9
    assert (tmp_path / '.training.json').exists() and claim(tmp_path).end.alive

def test_33_34_11_what_is_written_can_be_passed_on(run):
    from csm_expressive_nb.core import assets, read_json
    from csm_expressive_nb.road import merged
    whole = merged(run.path)
    files = [f for f in run.path.rglob('*') if f.is_file() and not f.name.startswith('.')]
    assert sum(f.suffix == '.safetensors' for f in files) >= 3
    assert {f.name: oct(f.stat().st_mode & 0o777) for f in files if f.stat().st_mode & 0o777 != 0o644} == {}
    assert read_json(run / 'adapter/adapter_config.json')['base_model_name_or_path'] == 'nano'
    text = [f for f in (run.path / 'adapter').iterdir() if f.suffix in ('.json', '.md')]
    assert not [f.name for f in text if str(assets()) in f.read_text(encoding='utf-8')]
    for folder in (whole, assets('nano')):
        config = read_json(folder / 'config.json')
        assert (config['tie_word_embeddings'], config['tie_codebooks_embeddings']) == (False, True)

def test_35_a_value_of_the_wrong_kind_names_the_remedy():
    from csm_expressive_nb.core import make_config
    for kw, remedy in (
        (dict(out=202405), '`-r out 2024_05`'),
        (dict(emotion='Sad'), 'lower-case: sad'),
        (dict(emotion='-'), 'a lower-case letter'),
    ):
        with pytest.raises(ValueError, match=re.escape(remedy)) as e: make_config(**kw)
        assert '^[a-z]' not in str(e.value)

def test_36_the_hub_name_of_a_preset_is_that_preset(tmp_path):
    from csm_expressive_nb import model as m
    from csm_expressive_nb.core import Run, make_config
    Run(tmp_path, make_config(model='csm-1b')).log(step=0, loss=1.0)
    assert Run(tmp_path, make_config(model='sesame/csm-1b')).cfg.model == 'csm-1b'            # goes on
    with patch.object(
        m.CsmForConditionalGeneration, 'from_pretrained', side_effect=OSError('offline')
    ) as asked:
        with pytest.raises(OSError, match='accept the licence'): m.load_csm('sesame/csm-1b')
        with pytest.raises(OSError, match='taken for a hub id'): m.load_csm('unsloth/csm-1b')
    assert [c.args for c in asked.call_args_list] == [('sesame/csm-1b',), ('unsloth/csm-1b',)]
    assert all(
        c.kwargs['use_safetensors'] and 'trust_remote_code' not in c.kwargs for c in asked.call_args_list
    )

def test_31_23_one_line_with_the_remedy(capsys):
    from csm_expressive_nb import cli

    def ends(error: Exception) -> str:
        with patch.object(cli, 'app', side_effect=error), pytest.raises(SystemExit) as e:
            cli.main()
        assert e.value.code == 1
        return capsys.readouterr().err

    assert 'make room' in ends(SafetensorError('I/O error: No space left on device (os error 28)'))
    assert 'httpx[socks]' in ends(
        ImportError("Using SOCKS proxy, but the 'socksio' package is not installed")
    )
    assert 'no_proxy' in ends(httpx.InvalidURL("Invalid port: 'b51a'")) and 'line' in ends(
        csv.Error('line contains NUL')
    )
    with patch.object(cli, 'app', side_effect=RuntimeError('a fault of ours')), pytest.raises(RuntimeError):
        cli.main()
