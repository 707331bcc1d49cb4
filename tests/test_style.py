"""How the code reads: gates over the syntax trees of notebooks, tests and scripts (`python tests/style.py`
has the
figures). What may be longer stands here, each with its reason."""
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import style

ROOT = Path(__file__).parents[1]
UNITS = style.all_units()
SCRIPTS = sorted((ROOT / 'csm_expressive_nb/assets/web').glob('*.js'))
# chapters that are rewritten when what they compute changes: names and layout are done, rooms come with that
REWRITTEN_LATER = (
    '65a_evaluation.summary', '72a_report.evaluation_page', '83_pipelines.evaluate',     # evaluation of a run
    '72c_report.benchmark_page', '86_pipelines.benchmark',
    '85_pipelines.dose_response',
)
LONG_CELLS = {
    'TrainConfig': 'one class: every setting of a run with its comment beside it',
    'train': 'the training loop of the package is read in one piece; and the command with its thirteen '
    'options',
    'prepare': 'a command: eighteen options with their help',
    'evaluate': 'a command: eleven options with their help',
    'speak': 'a command: twelve options with their help',
}
MANY_PARAMETERS = {
    'train': 'what a run is trained with, and the command',
    'estimate': 'a command',
    'prepare': 'a command',
    'evaluate': 'a command',
    'speak': 'a command',
}

def place_of(message: str) -> str:
    "The notebook or file that a message of `style` is about"
    return message.split('.ipynb')[0].split('.py')[0]

def is_later(name: str) -> bool:
    return name.startswith(REWRITTEN_LATER)

@pytest.mark.parametrize('check', [style.joined_statements, style.wide_lines, style.effect_comprehensions],
                         ids=lambda check: check.__name__)
def test_none(check):
    assert not [place for unit in UNITS for place in check(unit)]

@pytest.mark.parametrize('check, code', [
    (style.joined_statements, 'a = 1; b = 2'),
    (style.joined_statements, 'if a: b(); c()'),
    (style.wide_lines, 'a = 1  # ' + 'x' * 110),
    (style.effect_comprehensions, '[print(a) for a in b]'),
    (style.nested_comprehensions, '[[c for c in b] for b in a]'),
    (style.walruses, 'if a := b: pass'),
    (style.long_functions, 'def f():\n' + '    a = 1\n' * 41),
    (style.many_parameters, 'def f(a, b, c, d, e, f, g, h, i): pass'),
])
def test_each_check_sees_what_it_looks_for(check, code):
    assert check(style.Unit('cell', code))

def test_the_figures_hold():
    figures = style.measures(UNITS)
    assert figures['code lines'] > 15_000
    assert figures['tokens per line, p50'] <= 10
    assert figures['tokens per line, p95'] <= 30
    assert figures['nested comprehensions per 1000 lines'] <= 3
    assert figures['walrus per 1000 lines'] <= 4
    assert figures['single-letter names, %'] <= 25
    assert figures['functions named by a participle, %'] <= 1
    assert figures['everyday words as names, %'] <= 0.5

def test_functions_fit_forty_lines():
    found = [message for unit in UNITS for message in style.long_functions(unit)]
    assert not [message for message in found if not is_later(message)]

def test_functions_have_at_most_eight_parameters():
    found = [message for unit in UNITS for message in style.many_parameters(unit) if not is_later(message)]
    assert {message.split()[-2] for message in found} <= MANY_PARAMETERS.keys()

def test_export_cells_fit_a_screen():
    exported = [unit for unit in UNITS if unit.exported and not is_later(unit.name)]
    long = [unit for unit in exported if len(unit.code) > 1500 and not style.only_imports(unit)]
    names = [style.public_definitions(unit) for unit in long]
    assert {name for defined in names for name in defined} <= LONG_CELLS.keys()
    assert len(long) <= 6

def test_an_export_cell_defines_one_thing_or_a_pair():
    several = [unit for unit in UNITS if unit.exported and len(style.public_definitions(unit)) > 1]
    assert max(len(style.public_definitions(unit)) for unit in several) == 2
    assert len(several) <= 25

def test_modules_are_short_and_keep_their_private_names():
    modules = [
        p for p in (ROOT / 'csm_expressive_nb').rglob('*.py') if p.name not in ('_modidx.py', '__init__.py')
    ]
    assert len(modules) > 60
    assert not [p.name for p in modules if len(p.read_text(encoding='utf-8')) > 25_000]
    imports = [(p.name, line) for p in modules for line in style.private_imports(p)]
    assert not imports

def test_no_two_lessons_are_the_same():
    lessons = [unit.code.strip() for unit in UNITS if not unit.exported and unit.name.count('.ipynb')]
    repeated = [code for code, n in Counter(lessons).items() if n > 1 and len(code) > 200]
    assert not repeated

def check_syntax(path: Path) -> subprocess.CompletedProcess:
    "What the node of playwright's driver says about a script"
    driver = pytest.importorskip('playwright._impl._driver')
    node, _ = driver.compute_driver_executable()
    return subprocess.run([node, '--check', path], capture_output=True, text=True)

@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_scripts_of_the_pages_are_javascript(path):
    checked = check_syntax(path)
    assert checked.returncode == 0, checked.stderr

def test_a_broken_script_is_noticed(tmp_path):
    (tmp_path / 'broken.js').write_text('const a = ;', encoding='utf-8')
    assert SCRIPTS and 'SyntaxError' in check_syntax(tmp_path / 'broken.js').stderr
