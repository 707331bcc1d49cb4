"""The guides: every command in them is parsed, then run in order on small settings or left out for a
reason that the reader sees; links, notebooks and names hold.
`pytest -s tests/test_guides.py` lists what ran, for how long, and what did not run and why."""
import ast, contextlib, csv, io, json, re, shlex, time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nbformat, pytest, soundfile as sf, typer

from csm_expressive_nb import cli
from csm_expressive_nb.commands import training
from csm_expressive_nb.pipelines import emotion, preparation
from csm_expressive_nb.evaluation import measurement
from csm_expressive_nb.core.files import assets, read_json
from csm_expressive_nb.core.config import EmotionConfig, ExpressiveConfig
from csm_expressive_nb.data.folders import CORPORA, read_corpus

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / 'nbs/guides'
PAGES = sorted(GUIDES.glob('*.ipynb'))
PROGRAM = typer.main.get_command(cli.app)
# by name, those of a group as `group name`; the old names are no examples for a guide
KNOWN = {name: command for name, command in PROGRAM.commands.items() if not command.hidden}
for group in [name for name, command in KNOWN.items() if hasattr(command, 'commands')]:
    KNOWN |= {f'{group} {name}': command for name, command in KNOWN.pop(group).commands.items()}
# a comment after a command: why the tests do not run it
REASON = re.compile(
    r'(installs|downloads|needs|opens)\b.*(PyPI|\d MB|GPU|weights|account|browser|disk|raters|hours)'
)
MACHINE = re.compile(r'(?<![\w.])/(work|tmp|root|home|Users|var|opt|mnt)/')

@dataclass
class Line:
    "A line of a bash fence"
    guide: str
    text: str
    commands: list[list[str]]  # `a && b` gives two; a redirection is left out
    comment: str

    @property
    def is_run(self) -> bool:
        return not REASON.match(self.comment)

def cells(path: Path, kind: str) -> list[str]:
    "The sources of a notebook's cells of one kind"
    notebook = json.loads(path.read_text(encoding='utf-8'))
    return [''.join(cell['source']) for cell in notebook['cells'] if cell['cell_type'] == kind]

def text_of(path: Path) -> str:
    return '\n'.join(cells(path, 'markdown'))

def without_redirection(words: list[str]) -> list[str]:
    redirections = [i for i, word in enumerate(words) if re.match(r'\d?[<>]|\|$', word)]
    return words[: redirections[0]] if redirections else words

def split_commands(text: str) -> list[list[str]]:
    commands = [[]]
    for word in shlex.split(text, comments=True):
        if word == '&&': commands.append([])
        else: commands[-1].append(word)
    return [without_redirection(words) for words in commands]

def read_lines() -> list[Line]:
    "Every line of every bash fence of the guides that holds more than a comment"
    lines = []
    for path in PAGES:
        for fence in re.findall(r'```bash\n(.*?)```', text_of(path), re.S):
            for text in fence.replace('\\\n', ' ').splitlines():
                if not shlex.split(text, comments=True): continue
                comment = re.search(r'\s#\s+(.*)$', text)
                lines.append(
                    Line(path.stem, text.strip(), split_commands(text), comment[1] if comment else '')
                )
    return lines

LINES = read_lines()

def command_of(argv: list[str]) -> tuple[str, list[str]]:
    "Name and arguments of a command of ours"
    name = ' '.join(argv[1:3])
    return (name, argv[3:]) if name in KNOWN else (argv[1], argv[2:])

def parse_command(argv: list[str]) -> dict:
    """The parameters of a command of ours: unknown options, missing arguments and impossible values are
    errors"""
    name, arguments = command_of(argv)
    with KNOWN[name].make_context(name, list(arguments)) as context:
        return context.params

def parse_papermill(argv: list[str]) -> tuple[Path, dict, str]:
    "The notebook, its parameters, and where the executed one goes"
    from papermill.cli import _resolve_type, papermill
    options = papermill.make_context('papermill', list(argv[1:])).params
    parameters = {name: _resolve_type(value) for name, value in options['parameters']}
    return ROOT / options['notebook_path'], parameters, options['output_path']

def test_the_guides_are_there():
    assert [path.name[:3] for path in PAGES] == [f'{i:02}_' for i in range(1, len(PAGES) + 1)]
    assert len(PAGES) >= 9
    assert len(LINES) >= 30

@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.stem)
def test_a_guide_is_a_well_formed_notebook(path):
    nb = nbformat.read(path, 4)
    nbformat.validate(nb)
    assert nb.metadata == dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    assert path.stat().st_size < 200_000
    assert len({cell.id for cell in nb.cells}) == len(nb.cells)
    assert nb.cells[0].cell_type == 'markdown'
    assert re.match(r'# .+\n\n> .+', nb.cells[0].source)
    raw = path.read_text(encoding='utf-8')
    for unwanted in ('#| export', '—', '–'): assert unwanted not in raw

@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_guide_ran_and_its_outputs_are_clean(path):
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == 'code']
    for cell in code:
        beginning = f'{cell.source[:60]!r}'
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(cell.source).body}
        assert len(kinds) == 1, f'imports and code in one cell: {beginning}'
        assert not cell.metadata
        assert cell.execution_count is None
        for output in cell.outputs:
            assert output.output_type != 'error'
            assert output.get('name') != 'stderr'
            assert not MACHINE.search(json.dumps(output)), (
                f'{path.name}: a path of some machine in the output of {beginning}'
            )
    assert not code or any(cell.outputs for cell in code), 'executed notebooks keep their outputs'

def test_links_resolve():
    links = []
    for path in PAGES:
        found = re.findall(r'\]\((?!https?:)([^)]+)\)', text_of(path))
        links += [(path.name, link) for link in found]
    assert len(links) > 20
    for name, link in links:
        assert (GUIDES / link.split('#')[0]).exists(), f'{name} links to {link}, which does not exist'

def check_arguments(argv: list[str]):
    "Raises unless the program, its subcommand, options, settings and the notebook's parameters exist"
    if argv[0] == 'csm_expressive':
        name, _ = command_of(argv)
        if name not in KNOWN: raise ValueError(f'{name} is no command')
        options = parse_command(argv)
        if name in ('train', 'estimate'):
            config = ExpressiveConfig if options['multi'] else EmotionConfig
            overrides = training.parse_overrides(options['sets'])
            if options['model']: overrides['model'] = options['model']
            training.read_settings(config, options['config'], options['memory'], overrides)
    elif argv[0] == 'papermill':
        import papermill
        notebook, parameters, _ = parse_papermill(argv)
        if not notebook.exists(): raise ValueError(f'{notebook.name} does not exist')
        unknown = set(parameters) - set(papermill.inspect_notebook(notebook))
        if unknown: raise ValueError(f'{notebook.name} has no parameter {", ".join(unknown)}')
    elif argv[0] not in ('pip', 'hf', 'jupyter'):
        raise ValueError('not a program of this project')

def unknown_names(path: Path) -> list[str]:
    "Commands and settings that a guide's text names and that do not exist"
    messages = []
    for words in re.findall(r'`csm_expressive ([\w-]+(?: \w+)?)', text_of(path)):
        name, _ = command_of(['csm_expressive', *words.split()])
        if name not in KNOWN:
            messages.append(f'{path.stem}: csm_expressive {name} is no command')
    for name in re.findall(r'`--set (\w+)=', text_of(path)):
        if name not in ExpressiveConfig.model_fields and name not in EmotionConfig.model_fields:
            messages.append(f'{path.stem}: {name} is no setting')
    return messages

def test_every_command_can_be_parsed():
    "Subcommands, options and settings exist; so do the parameters given to notebooks"
    messages = []
    for line in LINES:
        for argv in line.commands:
            try:
                check_arguments(argv)
            except Exception as error:
                messages.append(f'{line.guide}: {line.text}\n    {type(error).__name__}: {error}')
    for path in PAGES: messages += unknown_names(path)
    assert not messages, '\n'.join(messages)

# ---- running them

SMALL = dict(
    train='--steps 2 --set sentences=8 --set strength_sentences=0 --set batch=4 --set rank=4 --set '
    'validate_every=0 --set ewc_clips=8',
    multi='--steps 2 --set sentences=4 --set strength_sentences=1 --set batch=4 --set rank=4 --set '
    'validate_every=2 --set sample_every=0 --set "emotions=[neutral, sad]"',
    eval='--sentences 4 --seeds 1 --recordings 2 --jobs 1 --metrics stopped,vad',
)
SMALL |= {'listen create': '--pairs 2', 'scale-sweep': '--scales 0,1 --sentences 4'}
NOTEBOOK = {'20_emotion': dict(steps=2, sentences=8, strength_sentences=0, batch=4, rank=4, validate_every=0)}

CORPUS = read_corpus('embedded')

def select_clips(speakers: dict, emotions: dict, n: int, skip: int) -> list[tuple]:  # (clip, number)
    "Embedded clips of these speakers and emotions, `n` of each after the first `skip`"
    counts, selected = Counter(), []
    for clip in CORPUS.clips:
        pair = clip.speaker, clip.emotion
        counts[pair] += 1
        if clip.speaker in speakers and clip.emotion in emotions and skip < counts[pair] <= skip + n:
            selected.append((clip, counts[pair]))
    return selected

def copy_recording(clip, path: Path):
    "An embedded clip as a WAV file"
    path.parent.mkdir(parents=True, exist_ok=True)
    samples, rate = sf.read(CORPUS.path(clip))
    sf.write(path, samples, rate)

def recordings_with_table(folder: str, speakers: dict, emotions: dict, n: int = 2, skip: int = 0):
    "Embedded clips as a folder of one's own with metadata.csv; the dicts say what to call whom and what"
    rows = [('file', 'text', 'emotion', 'speaker', 'sex')]
    for clip, number in select_clips(speakers, emotions, n, skip):
        path = Path(folder) / f'{clip.speaker}_{clip.emotion}_{number}.wav'
        copy_recording(clip, path)
        rows.append((path.name, clip.text, emotions[clip.emotion], speakers[clip.speaker], clip.sex))
    with open(Path(folder) / 'metadata.csv', 'w', newline='', encoding='utf-8') as table:
        csv.writer(table).writerows(rows)

def recordings_in_folders(folder: str, speakers: dict, emotions: dict, n: int = 2):
    "Embedded clips in folders named after emotions, each with its text in a file beside it"
    for clip, number in select_clips(speakers, emotions, n, skip=0):
        path = Path(folder) / f'{emotions[clip.emotion]}/{clip.speaker}_{number}.wav'
        copy_recording(clip, path)
        path.with_suffix('.txt').write_text(clip.text, encoding='utf-8')

def stand_in(line: str) -> str:
    """What a command that is not run would have made, where a later one needs it: returns what was put
    there"""
    if '--out data/cremad' not in line or Path('data/cremad').exists(): return ''
    speakers = {'02': '1001', '04': '1003', '06': '1005', '08': '1007'}
    emotions = {emotion: emotion for emotion in ('neutral', 'sad', 'angry')}
    recordings_with_table('stand_in/cremad', speakers, emotions)
    command = 'csm_expressive data prepare folder --source stand_in/cremad --name cremad --out data/cremad'
    run_cli(command.split())
    return 'embedded clips as data/cremad'

def run_cli(argv: list[str]) -> str:
    "One command of ours in this process; what it printed"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.app(argv[1:], standalone_mode=False)
    assert not code, f'exit {code}: {printed.getvalue()[-500:]}'
    return printed.getvalue()

def run_notebook(argv: list[str]) -> str:
    """A papermill line in this process: its parameters put in by papermill's own function, the cells run
    by nbdev's shell"""
    from execnb.shell import CaptureShell
    from papermill.parameterize import parameterize_notebook
    import papermill.iorw
    path, parameters, output_path = parse_papermill(argv)
    notebook = papermill.iorw.load_notebook_node(str(path))
    parameterized = parameterize_notebook(notebook, NOTEBOOK.get(path.stem, {}) | parameters)
    for cell in parameterized.cells: cell.setdefault('id', 'injected')
    Path('ran').mkdir(exist_ok=True)
    executed = Path(output_path or f'ran/{path.name}')
    executed.parent.mkdir(parents=True, exist_ok=True)
    with_parameters = Path('ran') / f'with_parameters_{path.name}'
    nbformat.write(parameterized, with_parameters)
    CaptureShell(path=Path.cwd()).execute(with_parameters, executed, exc_stop=True)
    return executed.read_text(encoding='utf-8')

# ---- what each command promises

CHECKS = {}

def checks(*names: str):
    "Register a check of what the commands with these names promise"

    def register(function):
        for name in names: CHECKS[name] = function
        return function

    return register

@dataclass
class Outcome:
    "A command that ran"
    options: dict          # as parsed
    arguments: list[str]   # behind its name
    printed: str
    start: float           # time.time() before it

def finished_report(folder) -> dict:
    "The report of a run that has all its files"
    for name in ('report.json', 'index.html', 'adapter/adapter_model.safetensors', 'config.yaml'):
        assert (Path(folder) / name).stat().st_size > 0
    return read_json(Path(folder) / 'report.json')

def check_notebook(argv: list[str]):
    path, parameters, output_path = parse_papermill(argv)
    if path.stem == '20_emotion':
        emotion = parameters['emotion']
        report = finished_report(parameters.get('out', f'_reports/{emotion}'))
        assert report['config']['emotion'] == emotion
    else: assert Path(output_path).stat().st_size > 10_000

@checks('estimate')
def check_estimate(outcome: Outcome):
    gib = float(re.search(r'training +([\d.]+)', outcome.printed)[1])
    assert gib > 0.01
    assert re.search(r'time +[\d.]+ (h|min)', outcome.printed)

@checks('doctor')
def check_doctor(outcome: Outcome):
    assert re.search(r'^ok +packages: csm_expressive_nb [\d.]+, torch', outcome.printed, re.M)
    assert re.search(r'datasets +[\d.,]+ MB', outcome.printed)
    assert 'no problem found' in outcome.printed

@checks('data prepare', 'data merge')
def check_dataset(outcome: Outcome):
    folder = outcome.options['out']
    dataset = read_json(folder / 'dataset.json')
    assert dataset['complete']
    assert dataset['clips'] > 2
    assert (folder / 'README.md').stat().st_size
    assert (folder / 'rejected.csv').exists()
    assert f"{dataset['clips']} clips" in outcome.printed
    own = outcome.options.get('own')
    if own: assert own in (folder / 'README.md').read_text(encoding='utf-8')

@checks('data encode')
def check_codes(outcome: Outcome):
    files = (outcome.options['folder'] / 'codes').rglob('codes.bin')
    assert [path for path in files if path.stat().st_size > 0]
    assert 'frames of 6 codes' in outcome.printed

@checks('train')
def check_training(outcome: Outcome):
    options = outcome.options
    folder, emotions = options['out'], options['names']
    if options['multi']:
        assert set(finished_report(folder)['emotions']) <= set(ExpressiveConfig().emotions)
        return
    for emotion in emotions:
        config = finished_report(folder / emotion if len(emotions) > 1 else folder)['config']
        assert config['emotion'] == emotion
        for name, value in (('base', options['base']), ('source', options['data'])):
            if value: assert config[name] == str(value)
        for name, value in training.parse_overrides(options['sets']).items():
            assert config.get(name, value) == value

@checks('eval')
def check_evaluation(outcome: Outcome):
    folder, baseline = outcome.options['folder'], outcome.options['baseline']
    evaluation = read_json(folder / 'evaluation.json')
    assert evaluation['values']
    assert (folder / 'evaluation/index.html').exists()
    if baseline: assert evaluation['protocol']['against'] == str(baseline)

@checks('listen create')
def check_listening_test(outcome: Outcome):
    folder = outcome.options['out']
    assert (folder / 'index.html').stat().st_size > 10_000
    assert read_json(folder.with_name(folder.name + '.key.json'))

@checks('data list')
def check_list_of_corpora(outcome: Outcome):
    for name in CORPORA: assert name in outcome.printed

@checks('metrics')
def check_list_of_metrics(outcome: Outcome):
    for row in measurement.registry(): assert row['metric'] in outcome.printed

@checks('dashboard')
def check_dashboard(outcome: Outcome):
    assert outcome.options['out'].stat().st_size > 1000

@checks('speak')
def check_speech(outcome: Outcome):
    assert sf.info(outcome.options['out']).duration > 0.5
    assert 's of speech in' in outcome.printed

@checks('scale-sweep')
def check_scale_sweep(outcome: Outcome):
    files = [path for path in Path(outcome.arguments[0]).rglob('*') if path.is_file()]
    assert [path for path in files if path.stat().st_mtime >= outcome.start - 1]

def check(argv: list[str], printed: str, start: float):
    "What a command promises is there"
    if argv[0] == 'papermill':
        check_notebook(argv)
        return
    options, (name, arguments) = parse_command(argv), command_of(argv)
    if options.get('dry_run'): name = 'estimate'
    assert name in CHECKS, f'nothing is checked after `{name}`: say what it makes'
    CHECKS[name](Outcome(options, arguments, printed, start))

# ---- a reader's folder

def link_ravdess(folder: Path, speakers: dict):
    "A part of the embedded corpus laid out as RAVDESS is"
    folder.mkdir(parents=True)
    for name in ('corpus.csv', 'statements.csv'):
        (folder / name).write_bytes((assets('corpus') / name).read_bytes())
    sentences = '03 04 10 11 17 18 27 28'.split()           # two of each speaker
    for clip in CORPUS.clips:
        wanted = clip.emotion in ('neutral', 'sad', 'angry') and clip.sentence in sentences
        if wanted and clip.speaker in speakers:
            link = folder / clip.source
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(CORPUS.path(clip))

def shorten_runs(monkeypatch):
    "Runs say eight sentences of ten frames, all but the first borrow its measurements"
    all_pools = preparation.neutral_pools
    measure_all = emotion.measure_samples
    measured = {}  # the first run's emotion and, as JSON, its measurements

    def short_pools(*arguments):
        return tuple(pool[:24] for pool in all_pools(*arguments))

    def measure(cfg, *arguments):
        if preparation.is_general(cfg): return measure_all(cfg, *arguments)
        if not measured:
            measured.update(emotion=cfg.emotion, result=json.dumps(measure_all(cfg, *arguments)))
        result = measured['result']
        if cfg.emotion not in result:
            result = result.replace(f'"{measured["emotion"]}"', f'"{cfg.emotion}"')
        return json.loads(result)

    monkeypatch.setattr(preparation, 'neutral_pools', short_pools)
    monkeypatch.setattr(emotion, 'measure_samples', measure)

@pytest.fixture
def working_folder(tmp_path, monkeypatch, short_speech):
    """A working directory as a reader has it, with recordings of one's own; what runs measure means
    nothing"""
    monkeypatch.chdir(tmp_path)
    (ROOT / '_cache').mkdir(exist_ok=True)
    (tmp_path / 'nbs').symlink_to(ROOT / 'nbs')
    (tmp_path / '_cache').symlink_to(ROOT / '_cache')
    # root() stops here
    (tmp_path / 'settings.ini').write_text('', encoding='utf-8')
    speakers = {'01': 'ann_1', '03': 'ann_2', '05': 'ann_3', '07': 'ann_4'}
    recordings_with_table('my_voice', speakers, dict(neutral='neutral', disgust='pirate'))
    recordings_in_folders('my_folders', {'02': 'x'}, dict(neutral='neutral', sad='sad'))
    link_ravdess(tmp_path / 'path/to/ravdess', speakers)
    shorten_runs(monkeypatch)
    return tmp_path

# ---- the commands, in order

MAIN_COMMANDS = {'data prepare', 'data merge', 'data encode', 'train', 'estimate', 'eval', 'listen create'}

def small_arguments(argv: list[str], name: str) -> list[str]:
    "What makes a command of ours short"
    if name == 'estimate': return ['--set', 'batch=4']
    return shlex.split(SMALL.get('multi' if '--multi' in argv else name, ''))

def for_nano(argv: list[str]) -> list[str]:
    "Without the options that name csm-1b and its card: at the true size it takes a quarter of a minute"
    kept = list(argv)
    for option in ('--model', '--memory'):
        if option not in kept: continue
        place = kept.index(option)
        del kept[place : place + 2]
    return kept

def run_command(argv: list[str]):
    "One command on small settings, and the check of what it made"
    start = time.time()
    if command_of(argv)[0] == 'estimate': argv = for_nano(argv)
    if argv[0] == 'papermill': printed = run_notebook(argv)
    else: printed = run_cli(argv + small_arguments(argv, command_of(argv)[0]))
    check(argv, printed, start)

def is_known(line: Line, argv: list[str]) -> bool:
    "Does the command exist? A line of another program is an error unless it says why it is not run"
    if argv[0] == 'papermill': return True
    assert argv[0] == 'csm_expressive', (
        f'{line.guide}: `{line.text}` is neither run here nor says why not '
        '(# needs ..., # downloads ..., # installs ..., # opens ...)'
    )
    return command_of(argv)[0] in KNOWN

def print_summary(times: list[float], omitted: list[tuple]):  # (line, remark)
    print(
        f'{len(times)} commands ran in {sum(times):.0f} s of processor time; {len(omitted)} did '
        'not, for the reason behind the #:'
    )
    for line, remark in omitted:
        print(f'  {line.guide[:2]}  {line.text}    {remark}'.rstrip())

@pytest.mark.slow
def test_the_commands_run_in_the_order_of_the_guides(working_folder):
    times, omitted = [], []
    for line in LINES:
        if not line.is_run:
            substitute = stand_in(line.text)
            omitted.append((line, f'(stand-in: {substitute})' if substitute else ''))
            continue
        for argv in line.commands:
            if not is_known(line, argv):
                omitted.append((line, 'NO SUCH COMMAND, see test_every_command_can_be_parsed'))
                continue
            start = time.process_time()
            run_command(argv)
            times.append(time.process_time() - start)
            print(f'{times[-1]:6.1f} s  {line.guide[:2]}  {" ".join(argv)}', flush=True)
    print_summary(times, omitted)
    assert len(times) >= 20

def test_the_main_commands_are_run():
    run = [argv for line in LINES if line.is_run for argv in line.commands]
    names = {command_of(argv)[0] for argv in run if argv[0] == 'csm_expressive'}
    assert names >= MAIN_COMMANDS
