"The checks of the rendered site on a small one made up here, and nbs/styles.css on a page in a browser"
import json
from pathlib import Path

import pytest
import rendered_site
from browser import need_browser

SITE = 'https://x.org/docs'
STYLES = (Path(__file__).parents[1] / 'nbs/styles.css').read_text(encoding='utf-8')
GOOD = '''<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="stylesheet" href="site.css" id="style">
<link rel="icon" href="plot.svg" id="style"><body><script>
const dark = matchMedia('(prefers-color-scheme: dark)').matches
document.body.className = dark ? 'quarto-dark' : 'quarto-light'
</script><main id="quarto-document-content"><h2 id="why">Why</h2><p>Words</p>
<a href="b.html#how">b</a> <a href="#why">here</a>
<a href="https://x.org/docs/b.html">b</a> <a href="https://y.org">y</a>
<img src="plot.svg" alt="a plot"></main>'''
# what quarto's themes do with colours and code, as far as it matters here
CSS = '''body { margin: 0; } .quarto-dark { background: #222; color: #fff; }
a { color: #0b5394; } .quarto-dark a { color: #9fc5e8; }
code { background: #f8f9fa; white-space: pre; font-size: 14px; }
p code { background: none; white-space: pre-wrap; } pre code { background: none; }
blockquote, summary { color: #868e96; }'''

def write_site(folder: Path, page=GOOD, css=CSS, search=('a.html', 'b.html#how')) -> Path:
    "A rendered site of two pages, of which a.html is `page`"
    other = GOOD.replace('id="why"', 'id="how"').replace('href="#why"', 'href="a.html#why"')
    index = json.dumps([dict(href=href, title='A') for href in search])
    files = {'a.html': page, 'b.html': other, 'site.css': css, 'plot.svg': '<svg/>', 'search.json': index}
    for name, text in files.items(): (folder / name).write_text(text, encoding='utf-8')
    return folder

def faults(folder: Path, monkeypatch) -> list[str]:
    "What is wrong with the site, not counting looks"
    monkeypatch.setattr(rendered_site.browser, 'MISSING', ['a browser'])
    return rendered_site.check(folder, ['a.html', 'b.html'], SITE)

def test_a_site_without_faults(tmp_path, monkeypatch, capsys):
    page = GOOD.replace('href="#why"', 'href="./b.html"')
    assert faults(write_site(tmp_path, page), monkeypatch) == []
    assert 'not measured' in capsys.readouterr().out

@pytest.mark.parametrize('good, bad, fault', [
    ('b.html#how', 'c.html', 'a.html: c.html: no such page or file'),
    ('b.html#how', 'b.html#who', 'a.html: b.html#who: no such anchor'),
    ('docs/b.html', 'docs/c.html', 'a.html: https://x.org/docs/c.html: no such page or file'),
    ('<p>', '<p id="why">', 'a.html: 2 elements have the id why'),
    ('alt="a plot"', '', 'a.html: no alternative text: plot.svg'),
    ('plot.svg', 'chart.svg', 'a.html: chart.svg: no such page or file'),
    ('<p>', '<script src="https://cdn.org/r.js"></script><p>', 'a.html: loads https://cdn.org/r.js'),
    ('<p>', '<link rel="stylesheet" href="//f.org/f.css"><p>', 'a.html: loads //f.org/f.css'),
])
def test_a_fault_of_a_page_is_named(good, bad, fault, tmp_path, monkeypatch):
    assert good in GOOD
    assert faults(write_site(tmp_path, GOOD.replace(good, bad, 1)), monkeypatch) == [fault]

def test_a_fault_of_the_site_is_named(tmp_path, monkeypatch):
    write_site(tmp_path, css='@import url("https://fonts.org/css2?family=Lato");', search=('a.html',))
    expected = ['site.css: loads https://fonts.org/css2?family=Lato', 'search.json: b.html is missing']
    assert faults(tmp_path, monkeypatch) == expected
    (tmp_path / 'b.html').unlink()
    assert 'b.html: not rendered' in faults(tmp_path, monkeypatch)

@pytest.mark.parametrize('link, page, file', [
    ('b.html', 'chapters/a.html', 'chapters/b.html'),
    ('../b.html#x', 'chapters/a.html', 'b.html'),
    ('#x', 'chapters/a.html', 'chapters/a.html'),
    ('/b.html', 'chapters/a.html', 'b.html'),
    (SITE, 'a.html', 'index.html'),
    (SITE + '/chapters/b.html#x', 'a.html', 'chapters/b.html'),
    ('https://y.org/b.html', 'a.html', None),
    ('mailto:a@x.org', 'a.html', None),
])
def test_the_file_of_a_link(link, page, file):
    assert rendered_site.file_of(link, page, SITE) == file

# ---- in a browser ------------------------------------------------------------------------------------------

COMMAND = 'papermill nbs/20_emotion.ipynb emotion.ipynb -p emotion sad -p data recordings'
LONG_NAME = 'conversations_of_one_speaker_with_many_names'
FAULTS = {  # content: (colour scheme, what is said of it)
    '<p style="width: 500px">wide</p>': ('light', 'pixels wide on a screen of 390'),
    '<p style="color: #aaa">grey on white</p>': ('light', "the least 2.3: 'grey on white'"),
    '<p style="color: rgba(255, 255, 255, .3)">faint</p>': ('dark', "'faint'"),
    '<p style="background: #fff">white on white</p>': ('dark', '1 texts of a contrast below 4.5'),
    '<script>document.body.className = "quarto-light"</script>': ('dark', 'does not follow the colour'),
}
MENDED = {  # by nbs/styles.css; content: what is said without it
    f'<div class="description"><code>{COMMAND}</code></div>': 'pixels wide',
    '<div class="description"><code>sad</code></div>': 'contrast',
    '<h3>The file <code>run.json</code></h3>': 'contrast',
    '<table><tr><th><code>name</code></th></tr></table>': 'contrast',
    '<blockquote>What was said</blockquote>': 'contrast',
    '<details><summary>Code</summary></details>': 'contrast',
    f'<h3>{LONG_NAME}</h3>': 'pixels wide',
    f'<ol><li><pre><code>{COMMAND}</code></pre></li></ol>': 'pixels wide',
    f'<table><tr><th>{LONG_NAME}</th><th>{LONG_NAME}</th></tr></table>': 'pixels wide',
}

def looks(folder: Path, contents: list[str], css: str = CSS) -> list[list[str]]:
    "What is wrong with the looks of a page of each content"
    write_site(folder, css=css)
    names = [f'{i}.html' for i in range(len(contents))]
    for name, content in zip(names, contents):
        (folder / name).write_text(GOOD.replace('<p>Words</p>', content), encoding='utf-8')
    messages = list(rendered_site.check_looks(folder, names))
    return [[message for message in messages if message.startswith(f'{name},')] for name in names]

@need_browser
def test_pages_that_cannot_be_read_are_named(tmp_path):
    good, *bad = looks(tmp_path, ['<p>Words</p>', *FAULTS])
    assert good == []
    for messages, (scheme, fault) in zip(bad, FAULTS.values()):
        assert [message for message in messages if f', {scheme}: ' in message and fault in message]

@need_browser
def test_the_styles_make_code_readable_and_pages_narrow(tmp_path):
    for messages, fault in zip(looks(tmp_path, list(MENDED)), MENDED.values()):
        assert [message for message in messages if fault in message]
    players = '<audio controls></audio>'.join(['<table><tr><td>', '</td><td>', '</td></tr></table>'])
    assert not any(looks(tmp_path, [*MENDED, players], CSS + STYLES))

@need_browser
def test_a_png_keeps_a_white_card_and_an_svg_follows_the_scheme(tmp_path):
    images = [f'<img alt="" src="{src}">' for src in ('plot.png', 'data:image/png;base64,AA', 'plot.svg')]
    page = GOOD.replace('<img src="plot.svg" alt="a plot">', ''.join(images))
    write_site(tmp_path, page, CSS + STYLES)
    seen = {}
    read = '[...document.images].map(i => getComputedStyle(i)).map(s => [s.backgroundColor, s.colorScheme])'
    with rendered_site.browser.browser() as chromium:
        for scheme in ('light', 'dark'):
            tab = chromium.new_context(color_scheme=scheme).new_page()
            tab.goto((tmp_path / 'a.html').as_uri())
            seen[scheme] = tab.evaluate(read)
    for scheme, (png, data, svg) in seen.items():
        assert png[0] == data[0] == 'rgb(255, 255, 255)'
        assert svg == ['rgba(0, 0, 0, 0)', scheme]
