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
    'audio.html#g': 'a.ipynb has no heading with that anchor',  # exported perhaps, shown nowhere
    'https://x.org/docs/c.html': 'no such page or file',
    'https://y.org/z/blob/main/nowhere.md': 'no such file in the repository',
}

def link_messages(folder: Path, link: str) -> list[str]:
    "What the checks say of page a.ipynb with this link"
    (folder / 'here.md').touch()
    site = make_site(folder, {'a.ipynb': folder, 'b.ipynb': folder}, ('sound.wav', 'data.csv'))
    site.addresses |= {'b.html': 'b.ipynb', 'audio.html': 'a.ipynb'}
    rendered = {
        'a.ipynb': build_docs.Page(f'<h2>Why</h2><h3>f</h3><a href="{link}">there</a>'),
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

# ---- titles and beginnings ---------------------------------------------------------------------------------

def titled(path: Path, title: str, code: str = 'pass') -> Path:
    lines = FRONT_MATTER.replace('Audio', title).splitlines(keepends=True)
    return write_page(path, ('raw', lines), ('markdown', 'Why.'), ('code', code))

def test_titles_of_words_are_right(tmp_path):
    titles = {'a.ipynb': 'Audio processing', 'b.ipynb': 'csm-1b: an evening', 'index.ipynb': 'a_project'}
    code = '#| default_exp audio'
    pages = {name: titled(tmp_path / name, f'"{title}"', code) for name, title in titles.items()}
    assert build_docs.check_titles(make_site(tmp_path, pages)) == []

@pytest.mark.parametrize('title, fault', [
    ('processing', 'title without a capital'),
    ('Audio_tables', "the title is the module's name"),
    ('Audio tables', "the title is the module's name"),
    ('Speaking', 'the title is also that of b.ipynb'),
])
def test_a_title_that_misleads_is_named(title, fault, tmp_path):
    pages = {
        'a.ipynb': titled(tmp_path / 'a.ipynb', title, '#| default_exp data.audio_tables'),
        'b.ipynb': titled(tmp_path / 'b.ipynb', 'speaking' if title == 'Speaking' else 'Others'),
    }
    messages = build_docs.check_titles(make_site(tmp_path, pages))
    assert [message for message in messages if message.startswith(f'a.ipynb: {fault}')]

def write_navigation(folder: Path, sidebar: list[dict], reference: list[dict]) -> build_docs.Site:
    "A site of this sidebar and this menu Reference"
    text = json.dumps(dict(website=dict(sidebar=dict(contents=sidebar))))
    (folder / 'sidebar.yml').write_text(text, encoding='utf-8')
    site = make_site(folder, {})
    site.quarto['website'] = dict(navbar=dict(left=[dict(text='Reference', menu=reference)]))
    return site

def test_the_sidebar_has_no_labels_of_its_own_and_the_menu_reference_its_sections(tmp_path):
    home = dict(text='What it is', href='index.ipynb')
    chapters = dict(section='Data', contents=['chapters/1.ipynb', dict(href='chapters/2.ipynb')])
    first = dict(text='Data', href='chapters/1.ipynb')
    site = write_navigation(tmp_path, [dict(section='Start', contents=[home]), chapters], [first])
    assert build_docs.own_labels(site) + build_docs.check_reference_menu(site) == []
    chapters['contents'][1]['text'] = 'Two'
    second = dict(text='Model', href='chapters/2.ipynb')
    site = write_navigation(tmp_path, [dict(section='Start', contents=[home]), chapters], [second])
    (message,) = build_docs.own_labels(site)
    assert message == 'sidebar.yml: chapters/2.ipynb has a label of its own beside the title'
    assert build_docs.check_reference_menu(site) == [
        '_quarto.yml, Reference: Data does not lead to chapters/1.ipynb',
        '_quarto.yml, Reference: Model does not lead to a section of the sidebar',
    ]

@pytest.mark.parametrize('first, is_right', [
    (('markdown', 'Why.'), True),
    (('code', '#| code-fold: true\nimport math'), True),
    (('code', 'import math'), False),
])
def test_a_page_begins_with_words(first, is_right, tmp_path):
    cells = ('raw', FRONT_MATTER), ('markdown', '<!-- a remark -->'), first, ('markdown', 'Then.')
    site = make_site(tmp_path, {'a.ipynb': write_page(tmp_path / 'a.ipynb', *cells)})
    messages = build_docs.check_beginnings(site)
    assert messages == ([] if is_right else ["a.ipynb: begins with code: 'import math'"])

# ---- configuration -----------------------------------------------------------------------------------------

def test_fonts_and_formulas_come_from_no_other_site(tmp_path):
    (tmp_path / 'own.scss').write_text('/*-- scss:defaults --*/\n$web-font-path: false !default;\n', 'utf-8')
    site = make_site(tmp_path, {}, ('own.scss',))
    theme = dict(light=['cosmo', 'own.scss'], dark=['darkly', 'own.scss'])
    site.quarto['format'] = dict(html={'theme': theme, 'html-math-method': 'mathml'})
    assert build_docs.foreign_resources(site) == []
    site.quarto['format'] = dict(html=dict(theme=theme | dict(dark=['darkly'])))
    assert build_docs.foreign_resources(site) == [
        '_quarto.yml: the dark theme loads its fonts from another site',
        '_quarto.yml: formulas load a script from another site (html-math-method: mathml)',
    ]

# ---- what cells show ---------------------------------------------------------------------------------------

def page_of(folder: Path, *outputs: dict, source='table', words='Why.') -> build_docs.Site:
    "A site of one page: words, and a cell with these outputs (data by kind, or text)"
    page = write_page(folder / 'a.ipynb', ('raw', FRONT_MATTER), ('markdown', words), ('code', source))
    notebook = json.loads(page.read_text(encoding='utf-8'))
    for data in outputs:
        shown = dict(output_type='display_data', data=data, metadata={})
        notebook['cells'][2]['outputs'].append(dict(data, output_type='stream') if 'text' in data else shown)
    page.write_text(json.dumps(notebook), encoding='utf-8')
    return make_site(folder, {'a.ipynb': page}, ('a.ipynb',))

def finished(site: build_docs.Site) -> build_docs.Site:
    "The same site, its pages finished as after a build"
    for name, page in site.pages.items():
        build_docs.finish_page(page, site.folder / 'nbs' / name, site.folder / 'nbs')
    return site

def html_table(*cells: str) -> dict:
    return {'text/html': '<table><tr>' + ''.join(f'<td>{cell}</td>' for cell in cells) + '</tr></table>'}

MANY = 'numbers of five decimals or more'

@pytest.mark.parametrize('output, n', [
    (html_table('1.610000', '0.25', '<b>100.00000</b>'), 2),
    (html_table('0.000000', '-0.000940', '0.000134', '0.386667'), 3),
    ({'text/markdown': '| a | b |\n|---|---|\n| 0.204000 | 1.2 |\n'}, 1),
    ({'text/plain': 'noisy     20.000000\ncoarse    32.099998\nName: dB, dtype: float32'}, 2),
    (dict(text=' trial    state    value\n     0 COMPLETE  1.338749\n     1 COMPLETE  0.705878\n'), 2),
])
def test_decimals_without_meaning_are_counted(output, n, tmp_path):
    (message,) = build_docs.check_tables(finished(page_of(tmp_path, output)))
    assert message.startswith(f'a.ipynb, cell 2: {n} {MANY}')

@pytest.mark.parametrize('output', [
    html_table('1.61', '5e-06', '0.00094', '-0.000111', 'doi.org/10.48550/arXiv.2404.14946', 'torch 2.11.0'),
    {'text/markdown': '| a |\n|---|\n| 0.204 |\n\nA long one, 0.2046872, in a sentence.\n'},
    {'text/plain': '0.569866379667191'},
    {'text/plain': "{'loss': 4.45504,\n 'depth': 2.77746}"},
])
def test_short_numbers_and_single_ones_are_right(output, tmp_path):
    assert build_docs.check_tables(finished(page_of(tmp_path, output))) == []

INTERVALS = [
    html_table('0.02 [0.00, 0.03]', '12 % [-1.5 %, 3 %]'),
    {'text/markdown': '| a |\n|---|\n| 0.02 [\u22120.01, 0.03] |\n'},
]

@pytest.mark.parametrize('output', INTERVALS)
def test_intervals_are_finished_in_one_piece(output, tmp_path):
    raw = page_of(tmp_path, output)
    assert [message for message in build_docs.check_tables(raw) if 'an interval that breaks' in message]
    assert build_docs.check_tables(finished(raw)) == []

def test_a_table_in_prose_is_finished_and_code_is_not(tmp_path):
    words = 'So `x[0, 1]`.\n\n| share |\n|---|\n| 0.5 [0.4, 0.6] |\n\n```python\nx = [0, 1]\n```\n'
    raw = page_of(tmp_path, words=words)
    assert len(build_docs.check_tables(raw)) == 1
    site = finished(raw)
    assert build_docs.check_tables(site) == []
    text = build_docs.source_of(build_docs.cells_of(site.pages['a.ipynb'])[1])
    assert text.replace(build_docs.NO_BREAK_SPACE, ' ') == words
    assert '`x[0, 1]`' in text and 'x = [0, 1]' in text and '0.5 [0.4, 0.6]' not in text

def test_code_marks_in_tables_and_links_in_signatures_are_finished(tmp_path):
    signature = '### f\n\n```python\ndef f(\n    a, # see [`g`](https://x.org/docs/b.html#g)\n):\n```\n'
    raw = page_of(tmp_path, html_table('run `csm eval`', 'cut: `csm ev...'), {'text/markdown': signature})
    messages = build_docs.check_tables(raw)
    for fault in ('code marks in a table', 'an output of HTML brings scripts from a CDN', 'a link in code'):
        assert [message for message in messages if fault in message]
    site = finished(raw)
    assert build_docs.check_tables(site) == []
    outputs = build_docs.cells_of(site.pages['a.ipynb'])[2]['outputs']
    html, text = [''.join(output['data']['text/markdown']) for output in outputs]
    assert '<td>run <code>csm eval</code></td><td>cut: <code>csm ev...</code></td>' in html
    assert '# see g\n' in text

def test_a_link_to_a_private_name_becomes_code():
    text = 'Here [`_session`](https://x.org/docs/a.html#_session) and [`f`](b.html#f).'
    assert build_docs.finish_markdown(text) == 'Here `_session` and [`f`](b.html#f).'

def test_html_of_an_output_is_read_in_both_forms(tmp_path):
    site = page_of(tmp_path, {'text/html': '<p><a href="b.html">b</a> <img src="plot.svg"></p>'})
    before = build_docs.rendered_pages(site.pages)['a.ipynb']
    after = build_docs.rendered_pages(finished(site).pages)['a.ipynb']
    assert before.links == after.links == [('a', 'b.html'), ('img', 'plot.svg')]
    (output,) = build_docs.cells_of(site.pages['a.ipynb'])[2]['outputs']
    assert isinstance(output['data']['text/markdown'], list)  # of lines, as quarto takes it

def test_a_table_that_is_announced_is_there(tmp_path):
    words = 'Where there is a card; elsewhere the table says so.'
    assert build_docs.check_announcements(page_of(tmp_path, html_table('1'), words=words)) == []
    (message,) = build_docs.check_announcements(page_of(tmp_path, words=words))
    assert message.startswith('a.ipynb, cell 1: what it points to is not there')

PNG = {'image/png': 'iVBORw0KGgo='}

@pytest.mark.parametrize('source, words', [
    ('#| fig-alt: Loss over steps\nplot()', 'Why.'),
    ('#| fig-alt: ["Loss", "Rate"]\nplot()', '![a spectrogram](plot.png)'),
])
def test_images_with_a_text_are_right(source, words, tmp_path):
    site = page_of(tmp_path, PNG, PNG, source=source, words=words)
    assert build_docs.check_images(site, build_docs.rendered_pages(site.pages)) == []

@pytest.mark.parametrize('outputs, source, words, fault', [
    ([PNG, PNG], 'plot()', 'Why.', 'cell 2: 2 images without `#| fig-alt:`'),
    ([PNG, PNG], '#| fig-alt: [Loss]\nplot()', 'Why.', 'cell 2: 1 images without `#| fig-alt:`'),
    ([], 'plot()', '![](plot.png)', 'no alternative text: plot.png'),
    ([{'text/html': '<img src="plot.svg">'}], 'plot()', 'Why.', 'no alternative text: plot.svg'),
])
def test_images_without_a_text_are_named(outputs, source, words, fault, tmp_path):
    site = page_of(tmp_path, *outputs, source=source, words=words)
    (message,) = build_docs.check_images(site, build_docs.rendered_pages(site.pages))
    assert message.startswith('a.ipynb') and message.endswith(fault)

def test_a_page_of_data_addresses_gets_a_preview(tmp_path):
    raw = page_of(tmp_path, {'text/html': '<p>see</p><img alt="x" src="data:image/png;base64,iVBORw0KGgo=">'})
    (message,) = build_docs.check_previews(raw)
    assert message.startswith('a.ipynb: og:image would be a data address')
    build_docs.finish_page(raw.pages['a.ipynb'], tmp_path / 'nbs/chapters/a.ipynb', tmp_path / 'nbs')
    front_matter = build_docs.front_matter_of(raw.pages['a.ipynb'])
    assert front_matter['image'] == '../images/before_after.png' and front_matter['title'] == 'Audio'
    site = make_site(tmp_path, {'chapters/a.ipynb': raw.pages['a.ipynb']}, ('images/before_after.png',))
    assert build_docs.check_previews(site) == []
    site.files.clear()
    assert build_docs.check_previews(site) == [
        'chapters/a.ipynb: its image images/before_after.png does not exist'
    ]

# ---- the command line --------------------------------------------------------------------------------------

def test_the_options_of_each_command_are_shown(tmp_path):
    click = pytest.importorskip('click')
    train = click.Command('train', params=[click.Option(['--steps']), click.Argument(['names'])])
    old = click.Command('finetune', hidden=True, params=[click.Option(['--rank'])])
    merge = click.Command('merge', params=[click.Option(['-o', '--out'])])
    group = click.Group('data', commands=dict(merge=merge))
    program = click.Group('program', commands=dict(train=train, finetune=old, data=group))
    text = '### csm_expressive train\n\n| `--steps` | 5 |\n'
    text += '\n### csm_expressive data merge\n\n| `-o`, `--out` | |\n'
    messages = {}
    for name, shown in dict(whole=text, part=text.replace('`--out`', ''), none=text[:50]).items():
        site = page_of(tmp_path, {'text/markdown': shown})
        messages[name] = build_docs.check_options('a.ipynb', site.pages['a.ipynb'], program)
    assert messages == dict(
        whole=[],
        part=['a.ipynb: `csm_expressive data merge`: missing --out'],
        none=['a.ipynb: does not show the options of `csm_expressive data merge`'],
    )
