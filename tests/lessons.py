"""Does the lesson of a public definition notice when the definition returns nothing?

`python tests/lessons.py` counts lessons per public definition; `python tests/lessons.py 60` draws as many
at
random (`--seed 0`), runs their chapters, and at each drawn lesson runs it once more in a forked process
where the
definition returns None: its assert has to fail. A lesson is a cell between the export cell of a definition
and
the next export cell that names the definition and asserts something."""
import argparse, ast, json, multiprocessing, os, random, re, sys
from pathlib import Path

from style import FUNCTIONS, ROOT

ASSERTS = re.compile(r'\bassert\b|\btest_\w+\(|\.raises\(')

def sources(path: Path) -> list[str]:
    "The code cells of a chapter, without those that need the hub, a GPU or time"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    return [
        c
        for c in code
        if not re.search(r'(?m)^#\| *(hub|gpu|slow|eval: false)', c) and 'nbdev_export(' not in c
    ]

def is_exported(cell: str) -> bool:
    return bool(re.search(r'(?m)^#\| *export', cell))

def definitions(cell: str) -> list[str]:
    "Public functions and classes of an export cell"
    nodes = [n for n in ast.parse(cell).body if isinstance(n, (*FUNCTIONS, ast.ClassDef))]
    patches = [n for n in nodes if any('patch' in ast.unparse(d) for d in n.decorator_list)]
    return [n.name for n in nodes if not n.name.startswith('_') and n not in patches]

def lessons(cells: list[str]) -> dict[str, int | None]:
    "Number of the cell that is the lesson of each public definition"
    found = {}
    for number, cell in enumerate(cells):
        if not is_exported(cell): continue
        for name in definitions(cell):
            found[name] = None
            for later in range(number + 1, len(cells)):
                if is_exported(cells[later]) and definitions(cells[later]): break
                called = re.search(rf'\b{name}\b', cells[later]) or is_command(cell, name)
                if called and ASSERTS.search(cells[later]):
                    found[name] = later
                    break
    return found

def is_command(cell: str, name: str) -> bool:
    "A command of the program is called through the program"
    nodes = [n for n in ast.parse(cell).body if isinstance(n, FUNCTIONS) and n.name == name]
    return any('command(' in ast.unparse(d) for n in nodes for d in n.decorator_list)

def notices(shell, name: str, cell: str) -> bool:
    "Whether a lesson fails where `name` returns None, tried in a fork of this process"

    def run():
        sys.stdout = sys.stderr = open(os.devnull, 'w', encoding='utf-8')
        old = shell.user_ns[name]
        shell.user_ns[name] = lambda *args, **options: None
        for group in [v for v in shell.user_ns.values() if hasattr(v, 'registered_commands')]:
            for command in group.registered_commands:
                if command.callback is old: command.callback = lambda **options: None
        result = shell.run_cell(cell)
        os._exit(0 if result.exception else 1)

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    process.join(300)
    if process.is_alive(): process.kill()
    return process.exitcode == 0

def run_until(path: Path, names: set[str]) -> dict[str, bool]:
    "Run a chapter and try the lessons of `names`, up to a cell that finds its files made by a trial"
    from execnb.shell import CaptureShell
    os.chdir(path.parent)
    shell = CaptureShell(path=path.parent)
    cells = sources(path)
    at = {number: name for name, number in lessons(cells).items() if name in names}
    results = {}
    for number, cell in enumerate(cells):
        if number in at: results[at[number]] = notices(shell, at[number], cell)
        if len(results) == len(names): break
        result = shell.run_cell(cell)
        if result.exception and not results:
            raise SystemExit(f'{path.name}: {result.exception}')
        if result.exception: break
    return results

def try_chapter(path: Path, names: set[str]) -> dict[str, bool]:
    "Whether the lessons of `names` notice; the chapter is run again where a trial left files behind"
    results = {}
    while names - results.keys():
        results |= run_until(path, names - results.keys())
    return results

def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('draw', nargs='?', type=int, default=0)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--chapters', nargs='*', type=Path)
    options = parser.parse_args()
    chapters = [
        p
        for p in sorted((ROOT / 'nbs').rglob('*.ipynb'))
        if '#| default_exp' in p.read_text(encoding='utf-8')
    ]
    chapters = [p.resolve() for p in options.chapters or chapters]
    table = {path: lessons(sources(path)) for path in chapters}
    for path, found in table.items():
        missing = [name for name, number in found.items() if number is None]
        print(
            f'{path.stem:34} {len(found) - len(missing):3} of {len(found):3}   without: {" ".join(missing)}'
        )
    pairs = [
        (path, name) for path, found in table.items() for name, number in found.items() if number is not None
    ]
    total = sum(map(len, table.values()))
    print(f'{len(pairs)} lessons for {total} public definitions: {len(pairs) / total:.2f}')
    drawn = random.Random(options.seed).sample(pairs, min(options.draw, len(pairs)))
    noticed = []
    for path in dict.fromkeys(path for path, _ in drawn):
        for name, result in try_chapter(path, {n for p, n in drawn if p == path}).items():
            print(
                f'{path.stem}: {name}: {"fails, as it should" if result else "DOES NOT NOTICE"}', flush=True
            )
            noticed.append(result)
    if drawn: print(f'{sum(noticed)} of {len(noticed)} lessons notice')

if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    main()
