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
src = lambda c: ''.join(c['source'])

def cells(p): return json.loads(p.read_text(encoding='utf-8'))['cells']

@pytest.mark.parametrize('p', NBS, ids=lambda p: p.stem)
def test_notebook_is_well_formed(p):
    nb = json.loads(p.read_text(encoding='utf-8'))
    assert nb['metadata']['kernelspec'] == dict(name='python3', display_name='python3', language='python')
    assert p.stat().st_size < 500_000 and all('id' in c for c in nb['cells'])
    # a widget's view is nothing without its kernel
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert not [
        o for o in outputs if 'application/vnd.jupyter.widget-view+json' in o.get('data', {})
    ] and not [o for o in outputs if o['output_type'] == 'error']
    title = src(nb['cells'][0])
    assert title.startswith('# ') and '\n> ' in title
    # nbdev drops the rest of this cell from the site: the introduction is the next cell
    shown = re.sub(r'<!--.*?-->', '', title, flags=re.S)
    assert not [
        line for line in shown.split('\n')[1:] if line.strip() and not re.match(r'> |- [\w-]+:', line)
    ]
    for c in nb['cells']:
        if c['cell_type'] == 'code' and '#| export' in src(c):
            statements = [n for n in ast.parse(src(c)).body if not isinstance(n, ast.Expr)]
            imports = [isinstance(n, (ast.Import, ast.ImportFrom)) for n in statements]
            assert imports == sorted(imports, reverse=True), 'imports first'

def test_what_is_exported_says_what_it_is():
    bare = []
    for f in sorted((ROOT / 'csm_expressive_nb').rglob('[!_]*.py')):
        if f.parent.name == 'nano': continue
        body = ast.parse(f.read_text(encoding='utf-8')).body
        last = {n.name: n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        public = next(
            ast.literal_eval(n.value)
            for n in body
            if isinstance(n, ast.Assign) and n.targets[0].id == '__all__'
        )
        bare += [f'{f.stem}.{k}' for k, n in last.items() if k in public and not ast.get_docstring(n)]
    assert not bare, bare

@pytest.mark.parametrize('p', [p for p in NBS if re.match(r'2\d_', p.name)], ids=lambda p: p.stem)
def test_report_notebooks_have_one_parameters_cell_and_no_logic(p):
    assert sum('parameters' in c['metadata'].get('tags', []) for c in cells(p)) == 1
    code = [src(c) for c in cells(p) if c['cell_type'] == 'code']
    logic = ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If
    assert '#| export' not in '\n'.join(code)
    assert not [n for c in code for n in ast.walk(ast.parse(c)) if isinstance(n, logic)]

def load_execute() -> ModuleType:
    "`.ci/execute` as a module"
    loader = SourceFileLoader('execute', str(ROOT / '.ci/execute'))
    tool = ModuleType('execute')
    tool.__file__ = str(ROOT / '.ci/execute')
    loader.exec_module(tool)
    return tool

def test_stored_outputs_belong_to_the_committed_code():
    """`.ci/execute` writes the hash of the code it ran; a cell changed since then has a stale output below
    it.
    Older modules are named and not refused, for some notebooks take hours"""
    done = json.loads((ROOT / 'nbs/results/executed.json').read_text(encoding='utf-8'))
    kept = [p for p in NBS if any(c.get('outputs') for c in cells(p))]
    assert len(kept) > 30
    tool = load_execute()
    code = lambda p: tool.code_hash(cells(p))
    stale = [
        str(p.relative_to(ROOT))
        for p in kept
        if done.get(str(p.relative_to(ROOT / 'nbs')), {}).get('code') != code(p)
    ]
    assert not stale, f'run .ci/execute {" ".join(stale)}'
    older = [n for n, d in done.items() if d['package'] != tool.package_hash(cells(ROOT / 'nbs' / n))]
    print('executed before the last change of the modules they use:', ', '.join(older) or 'none')

def test_modules_import_only_from_smaller_numbers():
    tool = load_execute()
    chapters = {}
    for path in NBS:
        name = re.search(r'(?m)^#\| default_exp (\S+)', '\n'.join(map(src, cells(path))))
        if name: chapters[name[1]] = path
    assert len(chapters) >= 15
    for module, path in chapters.items():
        exported = '\n'.join(src(c) for c in cells(path) if re.search(r'(?m)^#\| export', src(c)))
        for used in tool.imported(exported, module) - {module}:
            assert chapters[used].name.split('_')[0] < path.name.split('_')[0], f'{module} imports {used}'

def test_symlink_and_settings():
    assert (ROOT / 'nbs/_quarto.yml').is_symlink() and (
        ROOT / 'nbs/_quarto.yml'
    ).resolve() == ROOT / '_quarto.yml'
    c = configparser.ConfigParser(delimiters=['='])
    c.read(ROOT / 'settings.ini')
    assert (
        'tags' in c['DEFAULT']['allowed_cell_metadata_keys']
        and 'nbdev>=2.4.14,<3' in c['DEFAULT']['dev_requirements']
    )
    assert subprocess.run(['nbdev_export', '--help'], capture_output=True).returncode == 0

def test_readme_is_the_index():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    for c in cells(ROOT / 'nbs/index.ipynb'):
        if c['cell_type'] == 'markdown':
            assert re.sub(r'(\]\(|src=")(images/|sounds/|guides/|results/|[0-9a-z_]+\.ipynb)', r'\1nbs/\2',
                          src(c).strip()) in readme, f'run .ci/readme: {src(c)[:80]!r} is not in README.md'
    assert not [l for l in re.findall(r'\]\((?!http)([^)]+)\)', readme) if not (ROOT / l).exists()]

def papermill(*args):
    return subprocess.run(
        [sys.executable, '-m', 'papermill', str(ROOT / 'nbs/20_emotion.ipynb'), '-', *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

@pytest.mark.slow
def test_a_misspelt_parameter_stops_with_the_right_one(tmp_path):
    r = papermill('-p', 'emtion', 'sad', '-p', 'out', str(tmp_path / 'r'))
    assert r.returncode != 0 and "did you mean 'emotion'" in r.stderr

@pytest.mark.parametrize(
    'wrong, says', [(dict(emotion='sadd'), "'sad'"), (dict(source='nowhere'), 'Actor_01')]
)
def test_a_value_that_is_not_there_stops_with_what_is(wrong, says, tmp_path):
    "In this process; that papermill ends with a cell's error is tested above"
    from csm_expressive_nb.core import make_config
    from csm_expressive_nb.road import emotion_run
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        emotion_run(make_config(**wrong, out=str(tmp_path / 'r')), show=False)

PLAIN = '''
import csm_expressive_nb.codes, json, sys, torch, soundfile as sf           # the first registers the codec
from peft import PeftModel
from transformers import AutoProcessor, CsmForConditionalGeneration
nano, run, emotion = sys.argv[1:]; r = json.load(open(run + '/report.json'))
model = PeftModel.from_pretrained(CsmForConditionalGeneration.from_pretrained(nano), run + '/adapter').eval(); tok = AutoProcessor.from_pretrained(nano).tokenizer
torch.use_deterministic_algorithms(True, warn_only=True)
for s in r['samples']:
    ids = tok(s[emotion]['prompt'], add_special_tokens=False, return_tensors='pt'); torch.manual_seed(s['seed'])
    y = model.generate(input_ids=ids['input_ids'], attention_mask=ids['attention_mask'], output_audio=True, **s['generate'])[0].float().numpy().reshape(-1)
    x = sf.read(run + '/' + s[emotion]['file'], dtype='float32')[0]; assert len(x) == len(y) and (x == y).all(), s['text']
print(len(r['samples']), 'samples equal')
'''

@pytest.fixture(scope='session')
def sad():
    p = ROOT / '_reports/sad'
    if not (p / 'report.json').exists():
        pytest.skip('run `papermill nbs/20_emotion.ipynb -p emotion sad > /dev/null` first (.ci/run does)')
    return p

@pytest.mark.slow
def test_peft_alone_speaks_the_reports_samples_bit_for_bit(sad):
    r = subprocess.run(
        [sys.executable, '-c', PLAIN, str(ROOT / 'csm_expressive_nb/assets/nano'), str(sad), 'sad'],
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stderr[-2000:]
    assert 'samples equal' in r.stdout

def test_the_main_job_makes_a_sad_voice(sad):
    r = json.loads((sad / 'report.json').read_text(encoding='utf-8'))
    t, w = r['judged_as_target'], r['words_recognised']
    assert t['adapter']['value'] >= 0.8 and t['base']['value'] <= 0.3 and r['judge']['uar'] > 0.6
    assert w['adapter']['value'] >= 0.8 * w['base']['value'] and w['base']['n'] >= 100
    assert (
        all(g['share']['value'] >= 0.7 for g in r['gap'].values())
        and r['neutral_nll']['rise']['value'] <= 0.4
    )
    for f in (
        'adapter/adapter_model.safetensors adapter/README.md config.yaml environment.json metrics.jsonl '
        'quarantine.csv index.html figures/before_after.png figures/judge.png samples/0_base.wav '
        'samples/0_sad.wav'
    ).split():
        assert (sad / f).stat().st_size > 0
    assert 'happy' not in (sad / 'adapter/README.md').read_text(encoding='utf-8').splitlines()[4]

def small(tmp_path, name, **kw):
    args = [
        x
        for k, v in dict(out=str(tmp_path / name), steps=4, sentences=8, **kw).items()
        for x in ('-p', k, str(v))
    ]
    r = papermill(*args)
    assert r.returncode == 0, r.stderr[-3000:]
    return tmp_path / name

@pytest.mark.slow
def test_the_general_stage_runs_as_a_notebook(tmp_path, few_clips):
    small = dict(
        out=str(tmp_path / 'r'),
        source=few_clips,
        steps=2,
        batch=4,
        sentences=4,
        validate_every=2,
        sample_every=0,
        rank=4,
    )
    args = [x for k, v in small.items() for x in ('-p', k, str(v))]
    r = subprocess.run(
        [
            sys.executable,
            '-m',
            'papermill',
            str(ROOT / 'nbs/21_expressive.ipynb'),
            '-',
            *args,
            '-y',
            'emotions: [sad, angry]',
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stderr[-3000:]
    assert (
        set(json.loads((tmp_path / 'r/report.json').read_text(encoding='utf-8'))['emotions'])
        == {'sad', 'angry'}
        and (tmp_path / 'r/index.html').exists()
    )

@pytest.mark.slow
def test_true_csm_classes_take_the_same_road(tmp_path, short_speech, few_clips):
    from csm_expressive_nb.model import tiny_csm
    from csm_expressive_nb.core import make_config
    from csm_expressive_nb import road
    from csm_expressive_nb.model import load_csm
    d = tiny_csm(tmp_path / 'csm')
    cfg = make_config(
        emotion='angry',
        model=str(d),
        source=few_clips,
        out=str(tmp_path / 'run'),
        steps=2,
        batch=2,
        rehearsal=0.0,
    )
    run = road.open_run(cfg)
    # random weights never stop by themselves
    model, processor = load_csm(cfg.model)
    keep = road.neutral_pools
    road.neutral_pools = lambda *_: ([], [])
    try:
        data = road.prepare(cfg, run, model, processor)
    finally: road.neutral_pools = keep
    assert data.target[0].variants[0].shape[1] == 32
    road.fit(cfg, run, model, processor, data, show=False)
    assert (run.path / 'adapter/adapter_model.safetensors').exists()
    # and says why they cannot rehearse
    with pytest.raises(ValueError, match='none of'):
        road.neutral_pools(cfg, run, load_csm(cfg.model)[0], processor, data.ds)

@pytest.mark.slow
@need_ravdess
def test_real_ravdess_runs_through_the_same_notebook(tmp_path):
    p = small(tmp_path, 'real', emotion='sad', source=str(DATA / 'ravdess'))
    r = json.loads((p / 'report.json').read_text(encoding='utf-8'))
    assert (
        r['corpus'] == [['ravdess', 'CC BY-NC-SA 4.0']]
        and 'NC' in (p / 'adapter/README.md').read_text(encoding='utf-8')
        and r['quarantined'] == 1
    )
