"""What the chapters cannot test about themselves: the notebooks as files, papermill, and the adapter
without our code."""
import ast, configparser, json, re, subprocess, sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
NBS = sorted((ROOT / 'nbs').rglob('[!.]*.ipynb'))
DATA = ROOT.parent / 'shared' / 'data'
need_ravdess = pytest.mark.skipif(
    not (DATA / 'ravdess').is_dir(), reason='the RAVDESS recordings (shared/data) are not here'
)

def source_of(cell: dict) -> str:
    return ''.join(cell['source'])

def cells_of(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding='utf-8'))['cells']

def read_report(folder: Path) -> dict:
    return json.loads((folder / 'report.json').read_text(encoding='utf-8'))

def name_of(path: Path) -> str:
    return path.stem

# ---- notebooks as files ------------------------------------------------------------------------------------

@pytest.mark.parametrize('path', NBS, ids=name_of)
def test_notebook_is_well_formed(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    assert nb['metadata']['kernelspec'] == dict(name='python3', display_name='python3', language='python')
    assert path.stat().st_size < 500_000
    assert all('id' in cell for cell in nb['cells'])
    for cell in nb['cells']:
        for output in cell.get('outputs', []):
            # a widget's view is nothing without its kernel
            assert 'application/vnd.jupyter.widget-view+json' not in output.get('data', {})
            assert output['output_type'] != 'error'

@pytest.mark.parametrize('path', NBS, ids=name_of)
def test_the_first_cell_holds_title_and_description(path):
    title = source_of(cells_of(path)[0])
    assert title.startswith('# ')
    assert '\n> ' in title
    # nbdev drops the rest of this cell from the site: the introduction is the next cell
    shown = re.sub(r'<!--.*?-->', '', title, flags=re.S).split('\n')[1:]
    assert not [line for line in shown if line.strip() and not re.match(r'> |- [\w-]+:', line)]

@pytest.mark.parametrize('path', NBS, ids=name_of)
def test_imports_come_first_in_an_exported_cell(path):
    for cell in cells_of(path):
        if cell['cell_type'] != 'code' or '#| export' not in source_of(cell): continue
        statements = [node for node in ast.parse(source_of(cell)).body if not isinstance(node, ast.Expr)]
        imports = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in statements]
        assert imports == sorted(imports, reverse=True), 'imports first'

def public_names(body: list[ast.stmt]) -> list[str]:
    "What `__all__` of a module lists"
    assignments = [node for node in body if isinstance(node, ast.Assign)]
    return next(ast.literal_eval(node.value) for node in assignments if node.targets[0].id == '__all__')

def test_what_is_exported_says_what_it_is():
    bare = []
    for path in sorted((ROOT / 'csm_expressive_nb').rglob('[!_]*.py')):
        if path.parent.name == 'nano': continue
        body = ast.parse(path.read_text(encoding='utf-8')).body
        definitions = {node.name: node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        for name in public_names(body):
            if name in definitions and not ast.get_docstring(definitions[name]):
                bare.append(f'{path.stem}.{name}')
    assert not bare, bare

@pytest.mark.parametrize('path', [path for path in NBS if re.match(r'2\d_', path.name)], ids=name_of)
def test_report_notebooks_have_one_parameters_cell_and_no_logic(path):
    assert sum('parameters' in cell['metadata'].get('tags', []) for cell in cells_of(path)) == 1
    code = [source_of(cell) for cell in cells_of(path) if cell['cell_type'] == 'code']
    logic = ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If
    assert '#| export' not in '\n'.join(code)
    for source in code:
        assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, logic)]

def load_execute() -> ModuleType:
    "`.ci/execute` as a module"
    loader = SourceFileLoader('execute', str(ROOT / '.ci/execute'))
    tool = ModuleType('execute')
    tool.__file__ = str(ROOT / '.ci/execute')
    loader.exec_module(tool)
    return tool

def has_outputs(path: Path) -> bool:
    return any(cell.get('outputs') for cell in cells_of(path))

def test_stored_outputs_belong_to_the_committed_code():
    """`.ci/execute` writes the hash of the code it ran; a cell changed since then has a stale output below
    it.
    Older modules are named and not refused, for some notebooks take hours"""
    recorded = json.loads((ROOT / 'nbs/results/executed.json').read_text(encoding='utf-8'))
    executed = [path for path in NBS if has_outputs(path)]
    assert len(executed) > 30
    tool = load_execute()
    stale = []
    for path in executed:
        name = str(path.relative_to(ROOT / 'nbs'))
        if recorded.get(name, {}).get('code') != tool.code_hash(cells_of(path)):
            stale.append(str(path.relative_to(ROOT)))
    assert not stale, f'run .ci/execute {" ".join(stale)}'
    package = {name: tool.package_hash(cells_of(ROOT / 'nbs' / name)) for name in recorded}
    older = [name for name, hashes in recorded.items() if hashes['package'] != package[name]]
    print('executed before the last change of the modules they use:', ', '.join(older) or 'none')

def chapters_by_module() -> dict[str, Path]:
    chapters = {}
    for path in NBS:
        text = '\n'.join(source_of(cell) for cell in cells_of(path))
        name = re.search(r'(?m)^#\| default_exp (\S+)', text)
        if name: chapters[name[1]] = path
    return chapters

def number_of(path: Path) -> str:
    return path.name.split('_')[0]

def test_modules_import_only_from_smaller_numbers():
    tool, chapters = load_execute(), chapters_by_module()
    assert len(chapters) >= 15
    for module, path in chapters.items():
        sources = [source_of(cell) for cell in cells_of(path)]
        exported = '\n'.join(source for source in sources if re.search(r'(?m)^#\| export', source))
        names = {name.strip('.') for name in tool.imports_in_tree(exported, module)}
        for used in names & chapters.keys() - {module}:
            assert number_of(chapters[used]) < number_of(path), f'{module} imports {used}'

def test_symlink_and_settings():
    assert (ROOT / 'nbs/_quarto.yml').is_symlink()
    assert (ROOT / 'nbs/_quarto.yml').resolve() == ROOT / '_quarto.yml'
    config = configparser.ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini')
    assert 'tags' in config['DEFAULT']['allowed_cell_metadata_keys']
    assert 'nbdev>=2.4.14,<3' in config['DEFAULT']['dev_requirements']
    assert subprocess.run(['nbdev_export', '--help'], capture_output=True).returncode == 0

def links_from_the_root(text: str) -> str:
    "Text of nbs/index.ipynb with its links as README.md needs them, without the players"
    folders = r'(images/|sounds/|guides/|results/|chapters/|[0-9a-z_]+\.ipynb)'
    lines = [line for line in text.splitlines() if '<audio ' not in line]
    return re.sub(r'(\]\(|src=")' + folders, r'\1nbs/\2', '\n'.join(lines))

def test_readme_is_the_index():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    for cell in cells_of(ROOT / 'nbs/index.ipynb'):
        if cell['cell_type'] != 'markdown': continue
        text = source_of(cell)
        assert links_from_the_root(text.strip()) in readme, (
            f'run .ci/readme: {text[:80]!r} is not in README.md'
        )
    links = re.findall(r'\]\((?!http)([^)#]+)', readme)
    assert not [link for link in links if not (ROOT / link).exists()]

# ---- papermill ---------------------------------------------------------------------------------------------

def parameter_options(**parameters) -> list[str]:
    "As papermill takes parameters on the command line"
    options = []
    for name, value in parameters.items(): options += ['-p', name, str(value)]
    return options

def papermill(notebook: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'papermill', str(ROOT / 'nbs' / notebook), '-', *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

@pytest.mark.slow
def test_a_misspelt_parameter_stops_with_the_right_one(tmp_path):
    result = papermill('20_emotion.ipynb', *parameter_options(emtion='sad', out=tmp_path / 'r'))
    assert result.returncode != 0
    assert "did you mean 'emotion'" in result.stderr

@pytest.mark.parametrize(
    'settings, message', [(dict(emotion='sadd'), "'sad'"), (dict(source='nowhere'), 'Actor_01')]
)
def test_a_value_that_is_not_there_stops_with_what_is(settings, message, tmp_path):
    "In this process; that papermill ends with a cell's error is tested above"
    from csm_expressive_nb.core.config import make_config
    from csm_expressive_nb.pipelines.emotion import emotion_run
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        emotion_run(make_config(**settings, out=str(tmp_path / 'r')), show=False)

PLAIN = '''
import csm_expressive_nb.data.codec, json, sys, torch, soundfile as sf           # the first registers the codec
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoProcessor, CsmForConditionalGeneration
nano, run, emotion, out = sys.argv[1:]
report = json.load(open(run + '/report.json'))
model = PeftModel.from_pretrained(CsmForConditionalGeneration.from_pretrained(nano), run + '/adapter').eval()
processor = AutoProcessor.from_pretrained(nano)
invalid = list(range(model.config.codec_config.codebook_size, model.config.vocab_size))
greedy = dict(do_sample=False, suppress_tokens=invalid, max_new_tokens=75)
greedy |= {'depth_decoder_do_sample': False, 'depth_decoder_suppress_tokens': invalid}
codes = {}
for i, sample in enumerate(report['samples']):
    reference, target = sample['reference'], sample[emotion]
    sound = sf.read(run + '/' + reference['file'], dtype='float32')[0]
    before = [dict(type='text', text=reference['text']), dict(type='audio', audio=sound)]
    turns = [dict(role='0', content=before), dict(role='0', content=[dict(type='text', text=target['text'])])]
    inputs = processor.apply_chat_template([turns], tokenize=True, return_dict=True)
    codes[str(i)] = model.generate(**inputs, **greedy)[0].contiguous()
save_file(codes, out)
'''

@pytest.fixture(scope='session')
def sad_run() -> Path:
    folder = ROOT / '_reports/sad'
    if not (folder / 'report.json').exists():
        pytest.skip('run `papermill nbs/20_emotion.ipynb -p emotion sad > /dev/null` first (.ci/run does)')
    return folder

@pytest.mark.slow
def test_peft_alone_speaks_as_the_report_does(sad_run, tmp_path):
    "Greedy codes of plain peft and transformers; the samples themselves are spoken again from their settings"
    import numpy as np, soundfile as sf
    from safetensors.torch import load_file
    from csm_expressive_nb.data.speakers import Reference
    from csm_expressive_nb.model.csm import load_csm
    from csm_expressive_nb.model.lora import load_adapter
    from csm_expressive_nb.speech.generation import Sampling, speak
    nano, codes = ROOT / 'csm_expressive_nb/assets/nano', tmp_path / 'codes.safetensors'
    command = [sys.executable, '-c', PLAIN, str(nano), str(sad_run), 'sad', str(codes)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    model, processor = load_csm()
    lora, generated = load_adapter(model, sad_run / 'adapter'), load_file(codes)
    samples = read_report(sad_run)['samples']
    assert len(generated) == len(samples) > 0
    for i, sample in enumerate(samples):
        sound = sf.read(sad_run / sample['reference']['file'], dtype='float32')[0]
        reference = Reference(sample['reference']['text'], sound, sample['speaker'])
        request = lora, processor, [sample['text']], [reference], '~', sample['seed']
        (greedy,) = speak(*request, Sampling(0.0), desc='')
        assert generated[str(i)][: len(greedy.codes)].equal(greedy.codes)
        (again,) = speak(*request, Sampling(sample['temperature']), desc='')
        kept = sf.read(sad_run / sample['sad']['file'], dtype='float32')[0]
        assert np.array_equal(again.audio, kept), sample['text']

FILES_OF_A_RUN = (
    'adapter/adapter_model.safetensors adapter/README.md config.yaml environment.json metrics.jsonl '
    'rejected.csv index.html figures/before_after.svg figures/judge.svg samples/0_base.wav '
    'samples/0_sad.wav'
).split()

def test_the_main_job_makes_a_sad_voice(sad_run):
    report = read_report(sad_run)
    judged, words = report['target_emotion_accuracy'], report['closed_set_accuracy']
    assert judged['adapter']['value'] >= 0.8 * report['judge']['recall']['sad']
    for name in ('base', 'base_tagged', 'adapter_untagged'): assert judged[name]['value'] <= 0.1
    assert report['judge']['uar'] > 0.6
    assert words['adapter']['value'] >= 0.8 * words['base']['value']
    assert words['base']['n'] >= 100
    for gap in report['prosody_shift'].values(): assert gap['transfer_ratio']['value'] >= 0.7
    assert report['neutral_nll']['change']['value'] <= 0.1
    for name in FILES_OF_A_RUN: assert (sad_run / name).stat().st_size > 0
    assert 'happy' not in (sad_run / 'adapter/README.md').read_text(encoding='utf-8').splitlines()[4]

@pytest.mark.slow
def test_the_general_stage_runs_as_a_notebook(tmp_path, few_clips):
    options = parameter_options(
        out=tmp_path / 'r',
        source=few_clips,
        steps=2,
        batch=4,
        sentences=4,
        strength_sentences=1,
        validate_every=2,
        sample_every=0,
        rank=4,
    )
    result = papermill('21_expressive.ipynb', *options, '-y', 'emotions: [sad, angry]')
    assert result.returncode == 0, result.stderr[-3000:]
    assert set(read_report(tmp_path / 'r')['emotions']) == {'sad', 'angry'}
    assert (tmp_path / 'r/index.html').exists()

@pytest.mark.slow
def test_true_csm_classes_take_the_same_road(tmp_path, short_speech, few_clips):
    from csm_expressive_nb.core.config import make_config
    from csm_expressive_nb.model.csm import load_csm, tiny_csm
    from csm_expressive_nb.pipelines import emotion, preparation
    cfg = make_config(
        emotion='angry',
        model=str(tiny_csm(tmp_path / 'csm')),
        source=few_clips,
        out=str(tmp_path / 'run'),
        steps=2,
        batch=2,
    )
    run = preparation.open_run(cfg)
    model, processor = load_csm(cfg.model)
    data = preparation.prepare_data(cfg, run, model, processor)
    assert data.target[0].variants[0].shape[1] == 32
    emotion.fit(cfg, run, model, processor, data, show=False)
    assert (run.path / 'adapter/adapter_model.safetensors').exists()
    # random weights never stop by themselves: they say why they cannot rehearse their own speech
    own = cfg.model_copy(update=dict(rehearsal_from='own'))
    with pytest.raises(ValueError, match='none of'):
        preparation.neutral_pools(own, run, load_csm(cfg.model)[0], processor, data.ds, data.references)

@pytest.mark.long
@need_ravdess
def test_real_ravdess_runs_through_the_same_notebook(tmp_path):
    folder = tmp_path / 'real'
    options = parameter_options(
        out=folder, steps=4, sentences=8, strength_sentences=2, emotion='sad', source=DATA / 'ravdess'
    )
    result = papermill('20_emotion.ipynb', *options)
    assert result.returncode == 0, result.stderr[-3000:]
    report = read_report(folder)
    assert report['corpus'] == [['ravdess', 'CC BY-NC-SA 4.0']]
    assert 'NC' in (folder / 'adapter/README.md').read_text(encoding='utf-8')
    assert report['quarantined'] == 1
