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
    is_function = isinstance(call.func, ast.Name) or name != 'open'
    arguments = call.args[1:] if is_function else call.args
    modes = [*arguments[:1], *(keyword.value for keyword in call.keywords if keyword.arg == 'mode')]
    if not modes: return 'r'
    return modes[0].value if isinstance(modes[0], ast.Constant) else None

def uses_locale(call: ast.Call) -> bool:
    "Does the call read or write text in the encoding of the locale?"
    if any(keyword.arg == 'encoding' for keyword in call.keywords): return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, 'id', '')
    owner = getattr(getattr(call.func, 'value', None), 'id', '')
    if name in ('read_text', 'write_text'): return owner != 'self'
    if name not in ('open', 'fdopen') or owner in ('Run', 'Image') or (owner == 'os' and name == 'open'):
        return False
    mode = mode_of(call, name)
    return isinstance(mode, str) and 'b' not in mode

def decoded_by_locale(code: str) -> list[int]:
    "Lines of the calls that read or write text in the encoding of the locale"
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if uses_locale(call)]

def test_26_text_is_utf8_in_every_locale():
    assert decoded_by_locale("open(f); open(f, 'a'); p.open(); p.read_text(); p.write_text(x)") == [1] * 5
    assert not decoded_by_locale(
        "open(f, 'rb'); p.open('rb'); open(f, mode='wb'); open(f, encoding='utf-8'); Run.open(p, c)"
    )
    lines = {path: decoded_by_locale(path.read_text(encoding='utf-8')) for path in CODE}
    wrong_lines = {path.name: numbers for path, numbers in lines.items() if numbers}
    assert not wrong_lines, f"give them encoding='utf-8': {wrong_lines}"

def test_26_a_terminal_without_the_character():
    from csm_expressive_nb import cli
    narrow = io.TextIOWrapper(io.BytesIO(), encoding='cp1252')
    def command(): print('开心')
    with patch.object(cli, 'app', command), patch.object(sys, 'stdout', narrow):
        cli.main()
    narrow.flush()
    assert narrow.buffer.getvalue().strip() == rb'\u5f00\u5fc3'

SMALL = dict(
    steps=2, batch=2, sentences=8, strength_sentences=0, validate_every=0, trackers=[], rank=2, tokens=1024
)

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """An adapter trained for two updates in a folder where two starts failed before; still claimed by this
    process"""
    from csm_expressive_nb.core.config import make_config
    from csm_expressive_nb.model import lora
    from csm_expressive_nb.pipelines import emotion, preparation
    settings = SMALL | dict(emotion='sad', out=str(tmp_path_factory.mktemp('field') / 'run'))
    umask = os.umask(0o022)
    # 28: a source that does not exist, then a model that does not
    cfg = make_config(**settings, source='nowhere')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        preparation.prepare_data(cfg, preparation.open_run(cfg), *lora.load_base(cfg))
    cfg = make_config(**settings, model='nan0')
    preparation.open_run(cfg)
    with pytest.raises(ValueError, match="did you mean 'nano'"): lora.load_base(cfg)
    cfg = make_config(**settings)
    run = preparation.open_run(cfg)
    model, processor = lora.load_base(cfg)
    emotion.fit(cfg, run, model, processor, preparation.prepare_data(cfg, run, model, processor), show=False)
    yield run
    os.umask(umask)

def test_22_no_git(monkeypatch, tmp_path):
    from csm_expressive_nb.core.machine import collect_environment
    monkeypatch.setenv('PATH', str(tmp_path))
    assert collect_environment()['commit'] == 'no git'

def test_24_caches_are_placed_before_librosa_is_imported(monkeypatch, tmp_path):
    from csm_expressive_nb.core import files
    for name in ('NUMBA_CACHE_DIR', 'MPLCONFIGDIR'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(files.tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(files.os, 'access', lambda *_: False)
    files.place_caches()
    assert os.environ['NUMBA_CACHE_DIR'].startswith(str(tmp_path))
    assert os.environ['MPLCONFIGDIR'].startswith(str(tmp_path))
    # whoever imports librosa has imported core before, or imports audio after it
    audio = (ROOT / 'csm_expressive_nb/data/audio.py').read_text(encoding='utf-8')
    assert audio.index('import csm_expressive_nb.core.files') < audio.index('import librosa')

def first_cells(path: Path, n: int):
    "A notebook with its first code cells only"
    import nbformat
    nb = nbformat.read(path, 4)
    nb.cells = [cell for cell in nb.cells if cell.cell_type == 'code'][:n]
    return nb

def test_27_run_all_twice_in_one_kernel():
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from nbformat.v4 import new_code_cell
    path = ROOT / 'nbs/20_emotion.ipynb'
    nb = first_cells(path, 3)
    parameters, _, configuration = nb.cells
    assert 'parameters' in parameters.metadata.tags
    assert 'notebook_config(' in configuration.source
    rest = new_code_cell('report, speech, alpha = {}, {}, .5\nprint(cfg.emotion, cfg.rank, cfg.alpha)')
    nb.cells.append(rest)
    source, resources = parameters.source, dict(metadata=dict(path=str(path.parent)))
    client = NotebookClient(nb, timeout=120, kernel_name='python3', resources=resources)

    def run_all(lines: str) -> str:
        parameters.source = f'{source}\n{lines}'
        for i, cell in enumerate(nb.cells): client.execute_cell(cell, i)
        return rest.outputs[0].text.strip()

    with client.setup_kernel():
        assert run_all("emotion = 'sad'; rank = 3") == 'sad 3 2.0'
        assert run_all("emotion = 'happy'") == 'happy 8 2.0'  # no `alpha` from the plot, no 'speech'
        with pytest.raises(CellExecutionError, match="did you mean 'emotion'"):
            run_all("emtion = 'calm'")
        assert run_all("emotion = 'calm'") == 'calm 8 2.0'

def test_28_a_start_that_failed_blocks_nothing(run):
    from csm_expressive_nb.core.config import load_config
    from csm_expressive_nb.pipelines.preparation import open_run
    assert load_config(run / 'config.yaml').source == 'embedded'
    assert len(run.metrics('loss')) == 2
    with pytest.raises(ValueError, match='other settings .steps: 2 -> 3'):
        open_run(run.cfg.model_copy(update=dict(steps=3)))

def test_28_nor_does_one_of_the_general_stage(tmp_path):
    from csm_expressive_nb.core.config import ExpressiveConfig, load_config, make_config
    from csm_expressive_nb.pipelines.preparation import open_run
    for source in ('nowhere', 'embedded'):
        run = open_run(make_config(ExpressiveConfig, source=source, out=str(tmp_path)))
    assert load_config(run.path / 'config.yaml', ExpressiveConfig).source == 'embedded'

def test_29_a_second_process_is_refused(run):
    from csm_expressive_nb.core.run import Run
    job = [sys.executable, '-m', 'csm_expressive_nb.cli', 'emotion', 'sad', '--out', str(run.path)]
    before = (run.path / 'metrics.jsonl').read_bytes()
    result = subprocess.run(job, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert f'process {os.getpid()} is training in {run.path}' in result.stderr
    assert (run.path / 'metrics.jsonl').read_bytes() == before
    # the other processes of one run claim nothing, and write nothing
    with patch.dict(os.environ, RANK='1'):
        assert Run(run.path, run.cfg.model_copy(update=dict(steps=9))).claim is None

def test_29_a_lock_goes_with_its_process(tmp_path):
    from csm_expressive_nb.core.run import claim
    code = (
        'import sys, os\n'
        'from csm_expressive_nb.core.run import claim\n'
        'claimed = claim(sys.argv[1])\n'
        'os.kill(os.getpid(), 9)'
    )
    assert subprocess.run([sys.executable, '-c', code, str(tmp_path)], cwd=ROOT).returncode == -9
    assert (tmp_path / '.training.json').exists()
    assert claim(tmp_path).end.alive

def test_33_34_11_what_is_written_can_be_passed_on(run):
    from csm_expressive_nb.core.files import assets, read_json
    from csm_expressive_nb.model.lora import merge_adapter
    merged = merge_adapter(run.path)
    files = [path for path in run.path.rglob('*') if path.is_file() and not path.name.startswith('.')]
    assert sum(path.suffix == '.safetensors' for path in files) >= 3
    modes = {str(path): oct(path.stat().st_mode & 0o777) for path in files}
    assert {name: mode for name, mode in modes.items() if mode != '0o644'} == {}
    assert read_json(run / 'adapter/adapter_config.json')['base_model_name_or_path'] == 'nano'
    texts = [path for path in (run.path / 'adapter').iterdir() if path.suffix in ('.json', '.md')]
    assert not [path.name for path in texts if str(assets()) in path.read_text(encoding='utf-8')]
    for folder in (merged, assets('nano')):
        config = read_json(folder / 'config.json')
        assert (config['tie_word_embeddings'], config['tie_codebooks_embeddings']) == (False, True)

@pytest.mark.parametrize('settings, remedy', [
    (dict(out=202405), '`-r out 2024_05`'),
    (dict(emotion='Sad'), 'lower-case: sad'),
    (dict(emotion='-'), 'a lower-case letter'),
])
def test_35_a_value_of_the_wrong_kind_names_the_remedy(settings, remedy):
    from csm_expressive_nb.core.config import make_config
    with pytest.raises(ValueError, match=re.escape(remedy)) as error: make_config(**settings)
    assert '^[a-z]' not in str(error.value)

def test_36_a_run_goes_on_under_the_hub_name_of_its_preset(tmp_path):
    from csm_expressive_nb.core.config import make_config
    from csm_expressive_nb.core.run import Run
    Run(tmp_path, make_config(model='csm-1b')).log(step=0, loss=1.0)
    assert Run(tmp_path, make_config(model='sesame/csm-1b')).cfg.model == 'csm-1b'

def test_36_a_name_on_the_hub_is_loaded_from_there_or_says_what_is_missing():
    from csm_expressive_nb.model import csm
    offline = patch.object(csm.CsmForConditionalGeneration, 'from_pretrained', side_effect=OSError('offline'))
    with offline as from_pretrained, patch.dict(os.environ, HF_HUB_OFFLINE='1'):
        with pytest.raises(OSError, match='huggingface.co cannot be reached'):
            csm.load_csm('sesame/csm-1b')
        with pytest.raises(OSError, match='taken for a hub id'): csm.load_csm('unsloth/csm-1b')
    calls = from_pretrained.call_args_list
    assert [call.args for call in calls] == [('sesame/csm-1b',), ('unsloth/csm-1b',)]
    for call in calls:
        assert call.kwargs['use_safetensors']
        assert 'trust_remote_code' not in call.kwargs

ENDINGS = {
    'make room': SafetensorError('I/O error: No space left on device (os error 28)'),
    'httpx[socks]': ImportError("Using SOCKS proxy, but the 'socksio' package is not installed"),
    'no_proxy': httpx.InvalidURL("Invalid port: 'b51a'"),
    'line': csv.Error('line contains NUL'),
}

@pytest.mark.parametrize('remedy', ENDINGS)
def test_31_23_one_line_with_the_remedy(remedy, capsys):
    from csm_expressive_nb import cli
    with patch.object(cli, 'app', side_effect=ENDINGS[remedy]), pytest.raises(SystemExit) as exit_error:
        cli.main()
    assert exit_error.value.code == 1
    assert remedy in capsys.readouterr().err

def test_31_23_a_fault_of_ours_keeps_its_traceback():
    from csm_expressive_nb import cli
    with patch.object(cli, 'app', side_effect=RuntimeError('a fault of ours')), pytest.raises(RuntimeError):
        cli.main()
