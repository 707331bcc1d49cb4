"""MB of an environment: torch with what only comes for it (CUDA, triton), and the rest: `python
tests/installed_size.py [SITE_PACKAGES]`.
Run by `.ci/long`; compiled bytecode is not counted"""
import re, sys, sysconfig
from importlib.metadata import distributions

from packaging.requirements import Requirement

# named by extras of torch's requirements, which the metadata does not follow
FOR_TORCH = ('nvidia', 'cuda', 'triton')

def canonical(name: str) -> str:
    "A package name as indexes compare them"
    return re.sub(r'[-_.]+', '-', name).lower()

def required(distribution) -> set[str]:
    "Names of what a distribution needs here, without extras"
    requirements = map(Requirement, distribution.requires or [])
    return {canonical(r.name) for r in requirements if not r.marker or r.marker.evaluate({'extra': ''})}

def size_of(distribution) -> int:
    "Bytes of a distribution's files"
    files = [file.locate() for file in distribution.files or [] if '__pycache__' not in str(file)]
    return sum(file.stat().st_size for file in files if file.is_file())

def main(folder: str):
    here = {canonical(d.metadata['Name']): d for d in distributions(path=[folder])}
    size = {name: size_of(d) for name, d in here.items()}
    torch, waiting = {n for n in here if n.startswith(FOR_TORCH)}, ['torch']
    while waiting:
        name = waiting.pop()
        if name in here and name not in torch:
            torch.add(name)
            waiting += required(here[name])
    rest = sorted(set(here) - torch, key=size.get, reverse=True)
    total = lambda names: sum(size[n] for n in names) // 2**20
    print(
        f'{total(rest)} MB beside torch\'s {total(torch)} MB; largest: '
        f'{", ".join(f"{n} {size[n] // 2**20}" for n in rest[:6])}'
    )

if __name__ == '__main__':
    main(sys.argv[1] if sys.argv[1:] else sysconfig.get_paths()['purelib'])
