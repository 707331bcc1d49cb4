"The checks of the site's pages, each on a good page and on a bad one; the site is not built."
import json
from pathlib import Path
from types import SimpleNamespace

import build_docs
import pytest

FRONT_MATTER = '---\ntitle: Audio\ndescription: Sounds\noutput-file: audio.html\n---\n'
TITLE = '# Audio\n\n> Sounds\n'

def write_page(path: Path, *cells: tuple) -> Path:
    "A notebook of (kind, source) cells"
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [dict(cell_type=kind, source=source, metadata={}) for kind, source in cells]
    for i, cell in enumerate(written):
        cell['id'] = f'cell-{i}'
        if cell['cell_type'] == 'code': cell |= dict(outputs=[], execution_count=None)
    metadata = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    notebook = dict(cells=written, metadata=metadata, nbformat=4, nbformat_minor=5)
    path.write_text(json.dumps(notebook), encoding='utf-8')
    return path

def make_site(folder: Path, pages: dict[str, Path], files: tuple = ()) -> build_docs.Site:
    "A site of these pages, without what nbdev and quarto write"
    cfg = SimpleNamespace(
        config_path=folder,
        lib_path=folder,
        doc_host='https://x.org',
        doc_baseurl='/docs',
        git_url='https://y.org/z',
        branch='main',
    )
    (folder / '_modidx.py').write_text("d = {'syms': {'m': {'m.f': ('audio.html#f', 'm.py')}}}", 'utf-8')
    return build_docs.Site(cfg, folder, pages, set(files), pages, dict(project=dict(resources=['*.wav'])))

# ---- front matter ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('title', [
    TITLE,
    '# Audio\n> Sounds\n\n- skip_showdoc: true\n- output-file: audio.html\n',
    '# Audio\n\n> Sounds\n\n<!-- a remark\nof two lines -->\n',
])
def test_a_title_cell_of_title_and_description_is_right(title, tmp_path):
    page = write_page(tmp_path / 'a.ipynb', ('code', 'pass'), ('markdown', title), ('markdown', 'Why.'))
    assert build_docs.lost_introduction('a.ipynb', page) == []

@pytest.mark.parametrize('rest', ['Why there is sound.', '## Why', '* one\n* two', '![](plot.png)'])
def test_what_else_stands_in_the_title_cell_is_named(rest, tmp_path):
    page = write_page(tmp_path / 'a.ipynb', ('markdown', f'{TITLE}\n{rest}\n'), ('markdown', 'Why.'))
    (message,) = build_docs.lost_introduction('a.ipynb', page)
    assert message.startswith('a.ipynb: not on the site')
    assert message.endswith(rest.split('\n')[0])

def test_front_matter_in_one_string_is_noticed(tmp_path):
    lines = write_page(tmp_path / 'lines.ipynb', ('raw', FRONT_MATTER.splitlines(keepends=True)))
    string = write_page(tmp_path / 'string.ipynb', ('raw', FRONT_MATTER))
    assert build_docs.front_matter_of(lines) == build_docs.front_matter_of(string)
    assert build_docs.front_matter_in_one_string('lines', lines) == []
    assert build_docs.front_matter_in_one_string('string', string) == ['string: front matter in one string']

@pytest.mark.parametrize('key', ['title', 'description', 'output-file'])
def test_front_matter_that_is_not_whole_is_noticed(key, tmp_path):
    lines = FRONT_MATTER.splitlines(keepends=True)
    rest = [line for line in lines if not line.startswith(f'{key}:')]
    pages = dict(whole=write_page(tmp_path / 'whole.ipynb', ('raw', lines), ('markdown', TITLE)))
    assert build_docs.check_front_matter(make_site(tmp_path, pages)) == []
    pages |= dict(part=write_page(tmp_path / 'part.ipynb', ('raw', rest), ('markdown', TITLE)))
    assert build_docs.check_front_matter(make_site(tmp_path, pages)) == [f'part: no {key}']

def test_a_processed_report_keeps_its_number_and_lines_of_front_matter(tmp_path):
    notebooks, lines = tmp_path / 'nbs', FRONT_MATTER.splitlines(keepends=True)
    for name, code in (('22_audio.ipynb', 'pass'), ('10_audio.ipynb', '#| default_exp audio')):
        notebook = write_page(notebooks / name, ('markdown', TITLE), ('code', code))
        page = write_page(tmp_path / '_proc' / name, ('raw', lines), ('code', code))
        build_docs.finish_page(page, notebook, notebooks)
        assert build_docs.front_matter_in_one_string(name, page) == []
    report, chapter = tmp_path / '_proc/22_audio.ipynb', tmp_path / '_proc/10_audio.ipynb'
    assert build_docs.front_matter_of(report)['output-file'] == '22_audio.html'
    assert build_docs.front_matter_of(chapter)['output-file'] == 'audio.html'

# ---- headings and links ------------------------------------------------------------------------------------

@pytest.mark.parametrize('heading, name', [
    ('Why', 'why'),
    ('From clips to codes', 'from-clips-to-codes'),
    ('  Two\n  lines ', 'two-lines'),
    ("A speaker's voice, in `one` line?", 'a-speakers-voice-in-one-line'),
    ('CSM-1B at 24.0 kHz', 'csm-1b-at-24.0-khz'),
    ('load_csm', 'load_csm'),
    ('3. Run it', 'run-it'),
    ('24', 'section'),
])
def test_the_slug_of_a_heading(heading, name):
    assert build_docs.slug(heading) == name

def test_the_ids_of_headings_on_a_page():
    html = '<h1>Run it</h1><h2>Run <code>it</code></h2><h2>Why {#reason}</h2><p id="p"></p><a href="b">c</a>'
    page = build_docs.Page(html)
    assert page.ids == ['run-it', 'run-it-1', 'reason', 'p']
    assert page.links == [('a', 'b')]

GOOD_LINKS = ['b.ipynb', 'b.html', 'b.ipynb#run-it', '#why', 'audio.html#f', 'sound.wav', 'https://other.org',
              'https://x.org/docs/b.html', 'https://y.org/z/blob/main/here.md']
BAD_LINKS = {
    'c.ipynb': 'no such page or file',
    'b.ipynb#run-at': 'b.ipynb has no heading with that anchor; nearest: run-it',
    '#which': 'a.ipynb has no heading with that anchor',
    'data.csv': 'exists, but no pattern of `resources`',
    'https://x.org/docs/c.html': 'no such page or file',
    'https://y.org/z/blob/main/nowhere.md': 'no such file in the repository',
}

def link_messages(folder: Path, link: str) -> list[str]:
    "What the checks say of page a.ipynb with this link"
    (folder / 'here.md').touch()
    site = make_site(folder, {'a.ipynb': folder, 'b.ipynb': folder}, ('sound.wav', 'data.csv'))
    site.addresses |= {'b.html': 'b.ipynb', 'audio.html': 'a.ipynb'}
    rendered = {
        'a.ipynb': build_docs.Page(f'<h2>Why</h2><a href="{link}">there</a>'),
        'b.ipynb': build_docs.Page('<h2>Run it</h2>'),
    }
    return build_docs.check_links(site, rendered)

@pytest.mark.parametrize('link', GOOD_LINKS)
def test_a_link_that_leads_somewhere_is_right(link, tmp_path):
    assert link_messages(tmp_path, link) == []

@pytest.mark.parametrize('link', BAD_LINKS)
def test_a_link_that_leads_nowhere_is_named(link, tmp_path):
    (message,) = link_messages(tmp_path, link)
    assert message.startswith(f'a.ipynb: {link}: ')
    assert BAD_LINKS[link] in message

# ---- contents ----------------------------------------------------------------------------------------------

def test_directives_and_paths_of_the_machine_are_named(tmp_path):
    page = write_page(tmp_path / 'a.ipynb', ('code', 'print(1)'), ('code', '#| exports\nprint(2)'))
    notebook = json.loads(page.read_text(encoding='utf-8'))
    site = make_site(tmp_path, {'a.ipynb': page})
    assert build_docs.check_cells(site) == ['a.ipynb, cell 1: directive left: #| exports']
    output = dict(output_type='stream', name='stdout', text='in /tmp/x and a/tmp/y')
    notebook['cells'][0]['outputs'] = [output]
    page.write_text(json.dumps(notebook), encoding='utf-8')
    assert 'a.ipynb, cell 0: an output holds /tmp/x' in build_docs.check_cells(site)
    assert len(build_docs.check_cells(site)) == 2

def test_two_pages_of_one_address_are_named(tmp_path):
    lines = FRONT_MATTER.splitlines(keepends=True)
    pages = {name: write_page(tmp_path / name, ('raw', lines)) for name in ('a.ipynb', 'b.ipynb')}
    first = make_site(tmp_path, {'a.ipynb': pages['a.ipynb']})
    assert build_docs.check_addresses(first) == []
    assert first.addresses == {'audio.html': 'a.ipynb'}
    messages = build_docs.check_addresses(make_site(tmp_path, pages))
    assert messages == ['b.ipynb: its address audio.html is taken by a.ipynb']
