"""The guides: every command in them is parsed, then run in order on small settings or left out for a
reason that the reader sees; links, notebooks and names hold.
`pytest -s tests/test_guides.py` lists what ran, for how long, and what did not run and why."""
import ast, contextlib, csv, io, json, re, shlex, time
from pathlib import Path

import nbformat, pytest, soundfile as sf, typer

from csm_expressive_nb import cli, metrics, road
from csm_expressive_nb.core import EmotionConfig, ExpressiveConfig, assets
from csm_expressive_nb.corpora import CORPORA, read_corpus

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / 'nbs/guides'
PAGES = sorted(GUIDES.glob('*.ipynb'))
PROGRAM = typer.main.get_command(cli.app)
# by name, those of a group as `group name`; the old names are no examples for a guide
KNOWN = {name: command for name, command in PROGRAM.commands.items() if not command.hidden}
for group in [name for name, command in KNOWN.items() if hasattr(command, 'commands')]:
    KNOWN |= {f'{group} {name}': command for name, command in KNOWN.pop(group).commands.items()}
# a comment after a command: why the tests do not run it
WHY = re.compile(
    r'(installs|downloads|needs|opens)\b.*(PyPI|\d MB|GPU|weights|account|browser|disk|raters|hours)'
)
MACHINE = re.compile(r'(?<![\w.])/(work|tmp|root|home|Users|var|opt|mnt)/')

src = lambda c: ''.join(c['source'])

def cells(p: Path, kind: str) -> list[str]:
    return [src(c) for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]

def commands() -> list[tuple]:  # (guide, line, [argv, ...], comment)
    "Every line of every bash fence; `a && b` gives two argv, a redirection is left out"
    out = []
    for p in PAGES:
        for fence in re.findall(r'```bash\n(.*?)```', '\n'.join(cells(p, 'markdown')), re.S):
            for line in fence.replace('\\\n', ' ').splitlines():
                words, argv = shlex.split(line, comments=True), [[]]
                for w in words:
                    argv.append([]) if w == '&&' else argv[-1].append(w)
                cut = lambda a: a[: next((i for i, w in enumerate(a) if re.match(r'\d?>', w)), len(a))]
                if words:
                    out.append(
                        (
                            p.stem,
                            line.strip(),
                            [cut(a) for a in argv],
                            (re.search(r'\s#\s+(.*)$', line) or ['', ''])[1],
                        )
                    )
    return out

COMMANDS = commands()
spoken = lambda w: w[1:] if w[0] == 'csm_expressive' else w

def command_of(argv: list[str]) -> tuple[str, list[str]]:
    "Name and arguments of a command of ours"
    name = ' '.join(argv[1:3])
    return (name, argv[3:]) if name in KNOWN else (argv[1], argv[2:])

def parsed(argv: list[str]):
    "The context of a command of ours: unknown options, missing arguments and impossible values are errors"
    name, arguments = command_of(argv)
    with KNOWN[name].make_context(name, list(arguments)) as context:
        return context.params

def notebook_of(
    argv: list[str],
) -> tuple[Path, dict, str]:  # (notebook, parameters, where the executed one goes)
    from papermill.cli import _resolve_type, papermill
    p = papermill.make_context('papermill', list(argv[1:])).params
    return ROOT / p['notebook_path'], {k: _resolve_type(v) for k, v in p['parameters']}, p['output_path']

def test_the_guides_are_there():
    assert (
        [p.name[:3] for p in PAGES] == [f'{i:02}_' for i in range(1, len(PAGES) + 1)]
        and len(PAGES) >= 9
        and len(COMMANDS) >= 30
    )

@pytest.mark.parametrize('p', PAGES, ids=lambda p: p.stem)
def test_a_guide_is_a_well_formed_notebook(p):
    nb = nbformat.read(p, 4)
    nbformat.validate(nb)
    raw = p.read_text(encoding='utf-8')
    code = [c for c in nb.cells if c.cell_type == 'code']
    assert (
        nb.metadata == dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
        and p.stat().st_size < 200_000
        and len({c.id for c in nb.cells}) == len(nb.cells)
    )
    assert (
        nb.cells[0].cell_type == 'markdown'
        and re.match(r'# .+\n\n> .+', nb.cells[0].source)
        and '#| export' not in raw
        and '—' not in raw
        and '–' not in raw
    )
    for c in code:
        kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(c.source).body}
        assert len(kinds) == 1, f'imports and code in one cell: {c.source[:60]!r}'
        assert not c.metadata and c.execution_count is None
        for o in c.outputs:
            assert o.output_type != 'error' and o.get('name') != 'stderr'
            assert not MACHINE.search(json.dumps(o)), (
                f'{p.name}: a path of some machine in the output of {c.source[:60]!r}'
            )
    assert not code or any(c.outputs for c in code), 'executed notebooks keep their outputs'

def test_links_resolve():
    links = [
        (p.name, l)
        for p in PAGES
        for l in re.findall(r'\]\((?!https?:)([^)]+)\)', '\n'.join(cells(p, 'markdown')))
    ]
    assert len(links) > 20
    for name, l in links:
        assert (GUIDES / l.split('#')[0]).exists(), f'{name} links to {l}, which does not exist'

def test_every_command_can_be_parsed():
    "Subcommands, options and settings exist; so do the parameters given to notebooks"
    import papermill
    wrong = []
    for guide, line, argvs, _ in COMMANDS:
        for a in argvs:
            try:
                if a[0] == 'csm_expressive':
                    name, _ = command_of(a)
                    if name not in KNOWN: raise ValueError(f'{name} is no command')
                    q = parsed(a)
                    if name in ('train', 'estimate'):
                        cls = ExpressiveConfig if q['multi'] else EmotionConfig
                        cli.read_settings(cls, q['config'], q['memory'], cli.parse_overrides(q['sets']))
                elif a[0] == 'papermill':
                    nb, given, _ = notebook_of(a)
                    if not nb.exists(): raise ValueError(f'{nb.name} does not exist')
                    if gone := set(given) - set(papermill.inspect_notebook(nb)):
                        raise ValueError(f'{nb.name} has no parameter {", ".join(gone)}')
                elif a[0] not in ('pip', 'hf', 'jupyter'):
                    raise ValueError('not a program of this project')
            except Exception as e: wrong.append(f'{guide}: {line}\n    {type(e).__name__}: {e}')
    for p in PAGES:  # and those named in the text
        for words in re.findall(r'`csm_expressive ([\w-]+(?: \w+)?)', '\n'.join(cells(p, 'markdown'))):
            name, _ = command_of(['csm_expressive', *words.split()])
            if name not in KNOWN: wrong.append(f'{p.stem}: csm_expressive {name} is no command')
        for name in re.findall(r'`--set (\w+)=', '\n'.join(cells(p, 'markdown'))):
            if name not in ExpressiveConfig.model_fields and name not in EmotionConfig.model_fields:
                wrong.append(f'{p.stem}: {name} is no setting')
    assert not wrong, '\n'.join(wrong)

# ---- running them

SMALL = dict(
    train='--steps 2 --set sentences=8 --set batch=4 --set rank=4 --set validate_every=0 --set '
    'ewc_clips=8 --set ewc_pilot=2',
    multi='--steps 2 --set sentences=4 --set batch=4 --set rank=4 --set validate_every=2 --set '
    'sample_every=0 --set "emotions=[neutral, sad]"',
    eval='--sentences 4 --seeds 1 --contexts 0 --recordings 2 --jobs 1 --metrics stopped,vad',
)
SMALL |= {'listen create': '--pairs 2', 'scale-sweep': '--scales 0,1 --sentences 4'}
NOTEBOOK = {'20_emotion': dict(steps=2, sentences=8, batch=4, rank=4, validate_every=0)}

def recordings(folder: str, speakers: dict, emotions: dict, n: int = 2, skip: int = 0, table: bool = True):
    "Embedded clips as a folder of one's own: with metadata.csv, or in folders named after emotions"
    rows, seen = [], {}
    for c in CORPUS.clips:
        k = c.speaker, c.emotion
        seen[k] = seen.get(k, 0) + 1
        if c.speaker not in speakers or c.emotion not in emotions or not skip < seen[k] <= skip + n:
            continue
        e = emotions[c.emotion]
        f = Path(folder) / (
            f'{c.speaker}_{c.emotion}_{seen[k]}.wav' if table else f'{e}/{c.speaker}_{seen[k]}.wav'
        )
        f.parent.mkdir(parents=True, exist_ok=True)
        x, rate = sf.read(CORPUS.path(c))
        sf.write(f, x, rate)
        rows.append((f.name, c.text, e, speakers[c.speaker], c.sex))
        if not table: f.with_suffix('.txt').write_text(c.text, encoding='utf-8')
    if table:
        with open(Path(folder) / 'metadata.csv', 'w', newline='', encoding='utf-8') as g:
            csv.writer(g).writerows([('file', 'text', 'emotion', 'speaker', 'sex'), *rows])

CORPUS = read_corpus('embedded')

def stand_in(line: str) -> str:
    "What a command that is not run would have made, where a later one needs it: returns what was put there"
    if '--out data/cremad' in line and not Path('data/cremad').exists():
        recordings(
            'stand_in/cremad',
            {f'0{i}': f'100{i}' for i in (1, 3, 5, 7)},
            {e: e for e in ('neutral', 'sad', 'angry')},
            n=1,
            skip=1,
        )
        command = (
            'csm_expressive data prepare folder --source stand_in/cremad --name cremad --out data/cremad'
        )
        run_cli(command.split())
        return 'embedded clips as data/cremad'
    return ''

def run_cli(argv: list[str]) -> str:
    "One command of ours in this process; what it printed"
    got = io.StringIO()
    with contextlib.redirect_stdout(got): code = cli.app(argv[1:], standalone_mode=False)
    assert not code, f'exit {code}: {got.getvalue()[-500:]}'
    return got.getvalue()

def run_notebook(argv: list[str]) -> str:
    """A papermill line in this process: its parameters put in by papermill's own function, the cells run
    by nbdev's shell"""
    from execnb.shell import CaptureShell
    from papermill.parameterize import parameterize_notebook
    import papermill.iorw
    nb, given, out = notebook_of(argv)
    small = NOTEBOOK.get(nb.stem, {})
    made = parameterize_notebook(papermill.iorw.load_notebook_node(str(nb)), small | given)
    Path('ran').mkdir(exist_ok=True)
    for c in made.cells: c.setdefault('id', 'injected')
    where = Path(out or f'ran/{nb.name}')
    where.parent.mkdir(parents=True, exist_ok=True)
    made_at = Path('ran') / f'with_parameters_{nb.name}'
    nbformat.write(made, made_at)
    CaptureShell(path=Path.cwd()).execute(made_at, where, exc_stop=True)
    return where.read_text(encoding='utf-8')

def finished(folder):
    return all(
        (Path(folder) / f).stat().st_size > 0
        for f in ('report.json', 'index.html', 'adapter/adapter_model.safetensors', 'config.yaml')
    ) and json.loads((Path(folder) / 'report.json').read_text(encoding='utf-8'))

def check(argv: list[str], said: str, began: float):
    "What a command promises is there"
    if argv[0] == 'papermill':
        nb, given, out = notebook_of(argv)
        if nb.stem == '20_emotion':
            assert (
                finished(given.get('out', f"_reports/{given['emotion']}"))['config']['emotion']
                == given['emotion']
            )
        else: assert Path(out).stat().st_size > 10_000
        return
    q, (name, arguments) = parsed(argv), command_of(argv)
    out = q.get('out')
    fresh = lambda d: [f for f in Path(d).rglob('*') if f.is_file() and f.stat().st_mtime >= began - 1]
    if name == 'estimate' or q.get('dry_run'):
        gib = float(re.search(r'memory +([\d.]+) GiB', said)[1])
        assert gib > 0.01 and re.search(r'time +[\d.]+ h', said)
    elif name in ('data prepare', 'data merge'):
        d = json.loads((out / 'dataset.json').read_text(encoding='utf-8'))
        assert (
            d['complete']
            and d['clips'] > 2
            and (out / 'README.md').stat().st_size
            and (out / 'quarantine.csv').exists()
            and f"{d['clips']} clips" in said
        )
        if q.get('own'): assert q['own'] in (out / 'README.md').read_text(encoding='utf-8')
    elif name == 'data encode':
        assert [
            f for f in (q['folder'] / 'codes').rglob('codes.bin') if f.stat().st_size > 0
        ] and 'frames of 6 codes' in said
    elif name == 'train' and q['multi']:
        assert set(finished(out)['emotions']) <= set(ExpressiveConfig().emotions)
    elif name == 'train':
        for e in q['names']:
            r = finished(out / e if len(q['names']) > 1 else out)
            assert r['config']['emotion'] == e
            for k, v in (('base', q['base']), ('source', q['data'])):
                assert not v or r['config'][k] == str(v)
            for k, v in cli.parse_overrides(q['sets']).items():
                assert r['config'].get(k, v) == v
    elif name == 'eval':
        d = json.loads((q['folder'] / 'evaluation.json').read_text(encoding='utf-8'))
        assert (
            d['values']
            and (q['folder'] / 'evaluation/index.html').exists()
            and (not q['baseline'] or d['protocol']['against'] == str(q['baseline']))
        )
    elif name == 'listen create':
        assert (out / 'index.html').stat().st_size > 10_000
        assert json.loads(out.with_name(out.name + '.key.json').read_text(encoding='utf-8'))
    elif name == 'data list': assert all(k in said for k in CORPORA)
    elif name == 'metrics': assert all(r['metric'] in said for r in metrics.registry())
    elif name == 'dashboard': assert out.stat().st_size > 1000
    elif name == 'scale-sweep': assert fresh(arguments[0])
    else: raise AssertionError(f'nothing is checked after `{name}`: say what it makes')

@pytest.fixture
def place(tmp_path, monkeypatch, short_speech):
    """A working directory as a reader has it, with recordings of one's own; runs say eight sentences of
    ten frames, all but the first borrow its measurements:
    the numbers mean nothing"""
    # root() stops here
    monkeypatch.chdir(tmp_path)
    (ROOT / '_cache').mkdir(exist_ok=True)
    (tmp_path / 'nbs').symlink_to(ROOT / 'nbs')
    (tmp_path / '_cache').symlink_to(ROOT / '_cache')
    (tmp_path / 'settings.ini').write_text('', encoding='utf-8')
    odd = dict(zip(('01', '03', '05', '07'), ('ann_1', 'ann_2', 'ann_3', 'ann_4')))
    recordings('my_voice', odd, dict(neutral='neutral', disgust='pirate'))
    recordings('my_folders', {'02': 'x'}, dict(neutral='neutral', sad='sad'), table=False)
    recordings_at = tmp_path / 'path/to/ravdess'
    recordings_at.mkdir(parents=True)
    for f in ('corpus.csv', 'statements.csv'):
        (recordings_at / f).write_bytes((assets('corpus') / f).read_bytes())
    for c in CORPUS.clips:
        if c.emotion in ('neutral', 'sad', 'angry') and c.speaker in odd and c.sentence == '03':
            f = recordings_at / c.source
            f.parent.mkdir(exist_ok=True)
            f.symlink_to(CORPUS.path(c))
    pools = road.neutral_pools
    few = lambda *a: tuple(p[:24] for p in pools(*a))
    monkeypatch.setattr(road, 'neutral_pools', few)
    full, sets, first = road.measure, road.sample_sets, []

    def measure(cfg, *a):
        first[:] = first or [(cfg.emotion, json.dumps(full(cfg, *a)))]
        e, r = first[0]
        return json.loads(r.replace(f'"{e}"', f'"{cfg.emotion}"') if cfg.emotion not in r else r)

    monkeypatch.setattr(road, 'measure', measure)
    monkeypatch.setattr(road, 'sample_sets', lambda *a: {} if first else sets(*a))
    return tmp_path

@pytest.mark.slow
def test_the_commands_run_in_the_order_of_the_guides(place):
    ran, left = [], []
    for guide, line, argvs, note in COMMANDS:
        if WHY.match(note):
            left.append((guide, line, stand_in(line)))
            continue
        for argv in argvs:
            began = time.time()
            cpu = time.process_time()
            if argv[0] == 'papermill': said = run_notebook(argv)
            else:
                assert argv[0] == 'csm_expressive', (
                    f'{guide}: `{line}` is neither run here nor says why not '
                    '(# needs ..., # downloads ..., # installs ..., # opens ...)'
                )
                name, _ = command_of(argv)
                if name not in KNOWN:
                    left.append((guide, line, None))
                    continue
                more = shlex.split(SMALL.get('multi' if '--multi' in argv else name, ''))
                # at the true size it takes a quarter of a minute
                if name == 'estimate':
                    more = ['--model', 'nano', '--set', 'batch=4'] if '--config' in argv else []
                said = run_cli(argv + more)
            check(argv, said, began)
            ran.append((guide, ' '.join(argv), time.process_time() - cpu))
            print(f'{ran[-1][2]:6.1f} s  {guide[:2]}  {ran[-1][1]}', flush=True)
    print(
        f'{len(ran)} commands ran in {sum(r[2] for r in ran):.0f} s of processor time; {len(left)} did '
        'not, for the reason behind the #:'
    )
    for g, l, s in left:
        print(
            f'  {g[:2]}  {l}'
            + (
                f'    (stand-in: {s})'
                if s
                else '    NO SUCH COMMAND, see test_every_command_can_be_parsed'
                if s is None
                else ''
            )
        )
    assert len(ran) >= 20 and {
        command_of(a)[0]
        for _, _, v, n in COMMANDS
        for a in v
        if a[0] == 'csm_expressive' and not WHY.match(n)
    } >= {'data prepare', 'data merge', 'data encode', 'train', 'estimate', 'eval', 'listen create'}
