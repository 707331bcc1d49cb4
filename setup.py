from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here / 'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_name']
readme = here / 'README.md'

# `requirements` is the core; `<name>_requirements` are extras. Requirements hold no blanks: they are split at
# them
extras = {
    k.removesuffix('_requirements').replace('_', '-'): cfg[k].split()
    for k in cfg
    if k.endswith('_requirements')
}
by_licence = ['eval-gpl', 'eval-nc']         # never part of `all` or `dev`
extras['all'] = [
    r for name, requirements in extras.items() if name not in ['dev', *by_licence] for r in requirements
]
extras['dev'] = [*extras['all'], *extras['dev']]

setup(
    name=lib,
    version=cfg['version'],
    description=cfg['description'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    license='Apache-2.0',
    python_requires='>=' + cfg['min_python'],
    keywords=cfg['keywords'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    packages=find_packages(include=[lib, lib + '.*']),
    package_data={lib: cfg['package_data'].split()},
    data_files=[(f'share/{lib}', ['settings.ini'])],         # the sdist needs it to build
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={'nbdev': [f'{lib}={lib}._modidx:d'], 'console_scripts': cfg['console_scripts'].split()},
    zip_safe=False,
)
