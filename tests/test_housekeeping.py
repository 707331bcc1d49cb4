"The files around the package: one version everywhere, links that lead somewhere, forms that GitHub accepts."
import ast
import configparser
import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

import csm_expressive_nb

ROOT = Path(__file__).parents[1]
FORMS = ['bug.yml', 'feature.yml']
TEMPLATES = [f'.github/ISSUE_TEMPLATE/{name}' for name in [*FORMS, 'config.yml']]
PAGES = ['CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md', '.github/PULL_REQUEST_TEMPLATE.md']
MACHINE_PATH = re.compile(r'(?<![\w.:/-])/(work|tmp|root|home|Users)/')
REPORTS = sorted((ROOT / 'nbs').glob('2[0-9]_*.ipynb'))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


def settings() -> configparser.SectionProxy:
    config = configparser.ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    return config['DEFAULT']


def headings() -> list[str]:
    "Versions in the changelog, from the top"
    return re.findall(r'(?m)^## \[([^\]]+)\]', read('CHANGELOG.md'))


def test_the_version_is_the_same_everywhere():
    version = settings()['version']
    assert csm_expressive_nb.__version__ == version
    assert yaml.safe_load(read('CITATION.cff'))['version'] == version
    assert headings()[0] == version


def test_the_changelog_keeps_its_form():
    versions = [tuple(map(int, heading.split('.'))) for heading in headings() if heading != 'Unreleased']
    assert len(versions) >= 2
    assert versions == sorted(set(versions), reverse=True)
    kinds = set(re.findall(r'(?m)^### (.+)$', read('CHANGELOG.md')))
    allowed = {'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security', 'Known limits'}
    assert kinds <= allowed


def test_the_citation_agrees_with_the_settings():
    citation, config = yaml.safe_load(read('CITATION.cff')), settings()
    assert citation['cff-version'] == '1.2.0' and citation['type'] == 'software'
    assert citation['title'] == config['title']
    assert [author['name'] for author in citation['authors']] == [config['author']]
    assert citation['repository-code'] == config['git_url']
    assert citation['license'] == 'Apache-2.0' and 'Apache License' in read('LICENSE')
    references = citation['references']
    assert all(reference['title'] and reference['authors'] and reference['year'] for reference in references)
    assert all('doi' in reference or 'url' in reference for reference in references)
    dois = {reference.get('doi') for reference in references}
    assert {'10.1371/journal.pone.0196391', '10.1109/TAFFC.2014.2336244'} <= dois


@pytest.mark.parametrize('name', PAGES)
def test_relative_links_lead_to_files_of_the_repository(name):
    links = re.findall(r'\]\(([^)\s]+)\)', read(name))
    folder = (ROOT / name).parent
    relative = [link.split('#')[0] for link in links if not re.match(r'https?:|#|mailto:', link)]
    assert [link for link in relative if not (folder / link).exists()] == []
    if name == 'CONTRIBUTING.md':
        assert len(relative) >= 10


def test_links_into_the_repository_name_files_that_exist():
    blob = f"{settings()['git_url']}/blob/{settings()['branch']}/"
    text = '\n'.join(read(name) for name in [*PAGES, *TEMPLATES])
    found = set(re.findall(re.escape(blob) + r'([^\s)]+)', text))
    assert 'nbs/guides/07_troubleshooting.ipynb' in found
    assert [path for path in sorted(found) if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize('name', FORMS)
def test_an_issue_form_has_what_github_requires(name):
    form = yaml.safe_load(read(f'.github/ISSUE_TEMPLATE/{name}'))
    for key in ('name', 'description', 'body'): assert form[key]
    fields = [field for field in form['body'] if field['type'] != 'markdown']
    assert {field['type'] for field in fields} <= {'input', 'textarea', 'dropdown', 'checkboxes'}
    assert all(field['attributes']['label'] for field in fields)
    ids = [field['id'] for field in fields]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r'[\w-]+', field_id) for field_id in ids)
    assert any(field.get('validations', {}).get('required') for field in fields)


def test_a_bug_report_asks_for_what_is_needed_to_repeat_it():
    form = yaml.safe_load(read('.github/ISSUE_TEMPLATE/bug.yml'))
    required = {field['id'] for field in form['body'] if field.get('validations', {}).get('required')}
    assert {'command', 'happened', 'expected', 'environment', 'system', 'last-lines'} <= required


def test_the_chooser_links_to_help():
    chooser = yaml.safe_load(read('.github/ISSUE_TEMPLATE/config.yml'))
    assert isinstance(chooser['blank_issues_enabled'], bool)
    assert all(set(link) == {'name', 'url', 'about'} for link in chooser['contact_links'])
    assert any('07_troubleshooting' in link['url'] for link in chooser['contact_links'])


def test_type_checkers_find_the_marker():
    package = ROOT / settings()['lib_path']
    declared = {path for pattern in settings()['package_data'].split() for path in package.glob(pattern)}
    assert package / 'py.typed' in declared
    assert package / 'assets/nano/config.json' in declared
    assert "cfg['package_data'].split()" in read('setup.py')


@pytest.mark.parametrize('name', [*PAGES, *TEMPLATES, 'CITATION.cff'])
def test_no_file_names_a_path_of_some_machine(name):
    assert MACHINE_PATH.search('see /work/x')
    assert not MACHINE_PATH.search('https://example.org/work/x')
    assert not MACHINE_PATH.search(read(name))


@pytest.mark.parametrize('path', REPORTS, ids=lambda path: path.stem)
def test_a_report_is_left_to_papermill_and_its_imports_exist(path):
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import NBProcessor
    assert NBProcessor(path, procs=FrontmatterProc, process=True).nb.frontmatter_['skip_exec'] is True
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    ours = []
    for cell in cells:
        if cell['cell_type'] != 'code': continue
        for node in ast.walk(ast.parse(''.join(cell['source']))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith('csm_expressive_nb'):
                ours += [(node.module, alias.name) for alias in node.names]
    assert ours
    for module, name in ours:
        assert hasattr(importlib.import_module(module), name)


def test_the_table_of_faults_names_tests_that_exist():
    text = read('tests/FAULTS.md')
    for file, name in re.findall(r'(test_\w+\.py)::(\w+)', text):
        assert f'\ndef {name}(' in read(f'tests/{file}'), f'{file}::{name}'
    for number in re.findall(r'chapter (\d\d\w?)', text):
        assert len([*ROOT.glob(f'nbs/chapters/{number}_*.ipynb')]) == 1, number
    guarded = re.findall(r'^\|.*(?:::\w+|chapter \d\d).*\|$', text, re.MULTILINE)
    assert len(guarded) >= 80
