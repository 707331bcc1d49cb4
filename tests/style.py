"""Measures of how the code reads, over syntax trees: `python tests/style.py [NOTEBOOK|FILE ...]` prints
them.

Counted are the exported cells and the lessons of the notebooks, the tests and the scripts. Docstrings,
comments
and the inside of strings of several lines are no code lines."""
import ast, io, json, re, sys, tokenize
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
COMPREHENSIONS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
WIDTH = 110

@dataclass
class Unit:
    "A cell of a notebook or a file"
    name: str                            # file, and the cell's id
    code: str
    exported: bool = False
    tree: ast.Module = field(init=False, repr=False)
    def __post_init__(self): self.tree = ast.parse(self.code)

def notebook_units(path: Path) -> list[Unit]:
    "The code cells of a notebook"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    sources = [(c['id'], ''.join(c['source'])) for c in cells if c['cell_type'] == 'code']
    return [Unit(f'{path.name} {name}', code, '#| export' in code) for name, code in sources]

def file_units(path: Path) -> list[Unit]:
    "A Python file"
    return [
        Unit(path.name, path.read_text(encoding='utf-8'), path.is_relative_to(ROOT / 'csm_expressive_nb'))
    ]

def all_units() -> list[Unit]:
    "Everything written by hand"
    notebooks = sorted((ROOT / 'nbs').rglob('[!.]*.ipynb'))
    files = [*sorted((ROOT / 'tests').glob('*.py')), ROOT / '.ci/execute', ROOT / 'setup.py']
    return [u for p in notebooks for u in notebook_units(p)] + [u for p in files for u in file_units(p)]

def tokens_by_line(code: str) -> dict[int, int]:
    "How many tokens begin on each line of code, docstrings not counted"
    hidden = docstring_lines(ast.parse(code))
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    rows = [t.start[0] for t in tokens if t.type not in LAYOUT]
    return Counter(row for row in rows if row not in hidden)

def docstring_lines(tree: ast.AST) -> set[int]:
    "Lines of strings that stand alone"
    found = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            found |= set(range(node.lineno, node.end_lineno + 1))
    return found

def joined_statements(unit: Unit) -> list[str]:
    "Statements that begin on another statement's line; one simple statement may follow a header"
    found = []
    for node in ast.walk(unit.tree):
        for body in (getattr(node, name, None) for name in ('body', 'orelse', 'finalbody')):
            if not isinstance(body, list) or not body: continue
            starts = Counter(s.lineno for s in body if isinstance(s, ast.stmt))
            found += [f'{unit.name}:{line}' for line, n in starts.items() if n > 1]
    return found

def wide_lines(unit: Unit) -> list[str]:
    "Lines over the width; the inside of a string of several lines is not counted"
    inside = set()
    for t in tokenize.generate_tokens(io.StringIO(unit.code).readline):
        if t.type == tokenize.STRING and t.start[0] != t.end[0] and not is_docstring(unit.tree, t.start[0]):
            inside |= set(range(t.start[0], t.end[0] + 1))
    lines = enumerate(unit.code.split('\n'), 1)
    return [f'{unit.name}:{i}: {line[:80]}' for i, line in lines if len(line) > WIDTH and i not in inside]

def is_docstring(tree: ast.AST, line: int) -> bool:
    return line in docstring_lines(tree)

def effect_comprehensions(unit: Unit) -> list[str]:
    "Comprehensions that stand as a statement"
    statements = [n for n in ast.walk(unit.tree) if isinstance(n, ast.Expr)]
    return [f'{unit.name}:{n.lineno}' for n in statements if isinstance(n.value, COMPREHENSIONS)]

def nested_comprehensions(unit: Unit) -> list[str]:
    "Comprehensions inside another one"
    found = []
    for outer in ast.walk(unit.tree):
        if isinstance(outer, COMPREHENSIONS):
            inner = [n for n in ast.walk(outer) if n is not outer and isinstance(n, COMPREHENSIONS)]
            found += [f'{unit.name}:{n.lineno}' for n in inner]
    return sorted(set(found))

def walruses(unit: Unit) -> list[str]:
    return [f'{unit.name}:{n.lineno}' for n in ast.walk(unit.tree) if isinstance(n, ast.NamedExpr)]

def body_length(function: ast.AST, code_lines: set[int]) -> int:
    "Lines of code of a function without its header and docstring"
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    if not body: return 0
    return sum(body[0].lineno <= line <= function.end_lineno for line in code_lines)

def long_functions(unit: Unit, limit: int = 40) -> list[str]:
    lines = set(tokens_by_line(unit.code))
    functions = [n for n in ast.walk(unit.tree) if isinstance(n, FUNCTIONS)]
    sizes = [(body_length(f, lines), f.name) for f in functions]
    return [f'{unit.name}: {name} {size}' for size, name in sizes if size > limit]

def many_parameters(unit: Unit, limit: int = 8) -> list[str]:
    functions = [n for n in ast.walk(unit.tree) if isinstance(n, FUNCTIONS)]
    counts = [(len(f.args.posonlyargs + f.args.args + f.args.kwonlyargs), f.name) for f in functions]
    return [f'{unit.name}: {name} {n}' for n, name in counts if n > limit]

def bound_names(tree: ast.AST) -> list[str]:
    """Names that are bound: variables, parameters of functions and lambdas, functions, classes, attributes
    of self"""
    names = []
    for n in ast.walk(tree):
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
            names.append(n.id)
        elif isinstance(n, ast.arg) and n.arg not in ('self', 'cls'):
            names.append(n.arg)
        elif isinstance(n, (*FUNCTIONS, ast.ClassDef)): names.append(n.name)
        elif isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store):
            names.append(n.attr)
    return names

def public_definitions(unit: Unit) -> list[str]:
    "Functions and classes of a cell that others may use"
    nodes = [n for n in unit.tree.body if isinstance(n, (*FUNCTIONS, ast.ClassDef))]
    return [n.name for n in nodes if not n.name.startswith('_')]

def percentile(values: list[int], share: float) -> int:
    values = sorted(values)
    return values[min(int(len(values) * share), len(values) - 1)] if values else 0

def only_imports(unit: Unit) -> bool:
    "Whether a cell holds imports and nothing else"
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in unit.tree.body)

def private_imports(path: Path) -> list[str]:
    "Names with an underscore that a module takes from another module of the package"
    nodes = [
        n for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))) if isinstance(n, ast.ImportFrom)
    ]
    ours = [n for n in nodes if n.level or (n.module or '').startswith('csm_expressive_nb')]
    return [alias.name for n in ours for alias in n.names if alias.name.startswith('_')]

PARTICIPLE = re.compile(
    r'^[a-z]{2,}(ed|ing|en|wn)$|^(said|kept|told|made|given|put|heard|found|shown|drawn|lost|cut)$'
)
NOUNS = set('embed feed seed need speed build string thing ring evening morning training setting rating '
            'encoding spelling listening recording reading ceiling padding embedding masking token screen '
            'open listen widen widget when then'.split())
EVERYDAY = set(
    'near said told got mine kept asked given lost gone made put heard seen place here few some many '
    'much good bad better worse right wrong old new first last people calm us them thing things stuff '
    'why what who where how both all none any other others same again before after alone apart away '
    'back own whole owed deep far high low big small'.split()
)
EVERYDAY -= set(
    'new old first last right all any low high none both before after own same other others small some '
    'what where'.split()
)

def measures(units: list[Unit]) -> dict[str, float]:
    "The figures of the gate, of any units"
    tokens = [n for u in units for n in tokens_by_line(u.code).values()]
    lines = len(tokens)
    names = [name for u in units for name in bound_names(u.tree)]
    functions = [n.name for u in units for n in ast.walk(u.tree) if isinstance(n, FUNCTIONS)]
    participles = [f for f in functions if PARTICIPLE.match(f) and f not in NOUNS]
    exported = [u for u in units if u.exported]
    definitions = [len(public_definitions(u)) for u in exported]
    return {
        'code lines': lines,
        'joined statements': sum(len(joined_statements(u)) for u in units),
        f'lines over {WIDTH}': sum(len(wide_lines(u)) for u in units),
        'comprehensions for effect': sum(len(effect_comprehensions(u)) for u in units),
        'tokens per line, p50': percentile(tokens, 0.5),
        'tokens per line, p95': percentile(tokens, 0.95),
        'nested comprehensions per 1000 lines': 1000
        * sum(len(nested_comprehensions(u)) for u in units)
        / lines,
        'walrus per 1000 lines': 1000 * sum(len(walruses(u)) for u in units) / lines,
        'functions over 40 lines': sum(len(long_functions(u)) for u in units),
        'functions with more than 8 parameters': sum(len(many_parameters(u)) for u in units),
        'exported cells over 1500 characters': sum(len(u.code) > 1500 for u in exported),
        'exported cells with more than one public definition': sum(n > 1 for n in definitions),
        'single-letter names, %': 100 * sum(len(n) == 1 and n != '_' for n in names) / max(len(names), 1),
        'functions named by a participle, %': 100 * len(participles) / max(len(functions), 1),
        'everyday words as names, %': 100 * sum(n in EVERYDAY for n in names) / max(len(names), 1),
    }

def main(paths: list[str]):
    "Print the figures, and for named files what is behind them"
    units = all_units()
    if paths:
        readers = {'.ipynb': notebook_units}
        units = [u for p in map(Path, paths) for u in readers.get(p.suffix, file_units)(p.resolve())]
    for name, value in measures(units).items():
        print(f'{name:55} {value:10.2f}')
    if not paths: return
    for check in (joined_statements, wide_lines, effect_comprehensions, nested_comprehensions, walruses,
                  long_functions, many_parameters):
        for place in (p for u in units for p in check(u)): print(check.__name__, place)
    for u in units:
        if u.exported and len(u.code) > 1500:
            print('exported cell', u.name, len(u.code), 'characters')
        if u.exported and len(public_definitions(u)) > 1:
            print('definitions', u.name, *public_definitions(u))
        single = Counter(n for n in bound_names(u.tree) if len(n) == 1 and n != '_')
        if single: print('single letters', u.name, dict(single))
        everyday = Counter(n for n in bound_names(u.tree) if n in EVERYDAY)
        if everyday: print('everyday words', u.name, dict(everyday))
    for u in units:
        for n in ast.walk(u.tree):
            if isinstance(n, FUNCTIONS) and PARTICIPLE.match(n.name) and n.name not in NOUNS:
                print('participle', u.name, n.name)

if __name__ == '__main__': main(sys.argv[1:])
