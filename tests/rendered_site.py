"""What `quarto render` made of the pages that build_docs.py built: `python tests/rendered_site.py [FOLDER]`,
without a folder _proc/_docs.

Every page is there and in the search index; links and anchors lead somewhere; ids are unique; images have an
alternative text; nothing is loaded from another site. With a Chromium: no page is wider than a phone, and
text stands out from its background in both colour schemes."""
import json, posixpath, re, sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import build_docs

PHONE = dict(width=390, height=844)
CONTRAST = 4.5  # WCAG 2.2, level AA, text of any size
LOADED = dict(script='src', img='src', iframe='src', audio='src', source='src', video='src')
FOREIGN_STYLE = re.compile(r'(?:@import\s+(?:url\()?|\burl\()["\']?(https?://[^"\')\s]+)')
# every text that is seen, as [contrast, text, does it belong to the page's own content]
MEASURE = f"""() => {{{browser.CONTRAST}""" + """
  const result = []
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement
    if (!text || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue
    const box = element.getBoundingClientRect()
    if (box.width < 2 || box.height < 2 || element.closest('script, style, svg, .visually-hidden')) continue
    const own = !!element.closest('#quarto-document-content')
    result.push([contrast(element), text.slice(0, 40), own])
  }
  return result
}"""

class RenderedPage(HTMLParser):
    "Links, ids, images without a text, and what is loaded"

    def __init__(self, html: str):
        super().__init__()
        self.links, self.ids, self.images_without_text, self.loaded = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        # quarto gives the style sheets of both colour schemes one id
        if attributes.get('id') and tag not in ('link', 'script', 'style'): self.ids.append(attributes['id'])
        if tag == 'img' and not (attributes.get('alt') or '').strip():
            self.images_without_text.append(attributes.get('src', '')[:60])
        if attributes.get(LOADED.get(tag)): self.loaded.append(attributes[LOADED[tag]])
        is_style = tag == 'link' and re.search('stylesheet|icon|preload', attributes.get('rel') or '')
        if is_style and attributes.get('href'): self.loaded.append(attributes['href'])
        elif tag == 'a' and attributes.get('href'): self.links.append(attributes['href'])

def file_of(link: str, page: str, site: str) -> str | None:
    "The file that a link on `page` leads to; None where it leaves the site, whose address is `site`"
    parts = urlsplit(link)
    path = unquote(parts.path)
    if link.startswith(site): path = '/' + unquote(urlsplit(link[len(site):]).path).lstrip('/')
    elif parts.scheme or parts.netloc: return None
    if not path: return page
    file = posixpath.normpath(posixpath.join('/', posixpath.dirname(page), path)).lstrip('/')
    return posixpath.join(file, 'index.html') if path.endswith('/') else file

def check_pages(folder: Path, pages: dict[str, RenderedPage], site: str) -> Iterator[str]:
    "Links, anchors, ids, images, and what comes from elsewhere"
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            file, anchor = file_of(link, name, site), unquote(urlsplit(link).fragment)
            if file is None: continue
            if not (folder / file).is_file(): yield f'{name}: {link}: no such page or file'
            elif anchor and file in pages and anchor not in pages[file].ids:
                yield f'{name}: {link}: no such anchor'
        repeated = [(key, n) for key, n in Counter(page.ids).items() if n > 1]
        yield from (f'{name}: {n} elements have the id {key}' for key, n in repeated)
        yield from (f'{name}: no alternative text: {src}' for src in page.images_without_text)
        foreign = [link for link in page.loaded if re.match('https?:|//', link)]
        yield from (f'{name}: loads {link}' for link in foreign if not link.startswith(site))

def check_styles(folder: Path) -> Iterator[str]:
    "No style sheet fetches a font or another sheet from elsewhere"
    for path in sorted(folder.rglob('*.css')):
        foreign = FOREIGN_STYLE.findall(path.read_text(encoding='utf-8'))
        yield from (f'{build_docs.name_below(folder, path)}: loads {address}' for address in foreign)

def check_search(folder: Path, pages: dict[str, RenderedPage]) -> Iterator[str]:
    "The search index knows every page"
    entries = json.loads((folder / 'search.json').read_text(encoding='utf-8'))
    found = {entry['href'].split('#')[0] for entry in entries}
    yield from (f'search.json: {name} is missing' for name in pages if name not in found)

def check_looks(folder: Path, names: list[str]) -> Iterator[str]:
    "On a phone, in both colour schemes: nothing is wider than the screen, all text can be read"
    with browser.browser() as chromium:
        for scheme in ('light', 'dark'):
            context = chromium.new_context(viewport=PHONE, color_scheme=scheme)
            context.route(re.compile('^http'), lambda route: route.abort())
            tab = context.new_page()
            for name in names:
                tab.goto((folder / name).resolve().as_uri())
                yield from (f'{name}, {scheme}: {fault}' for fault in look_faults(tab, scheme))

def look_faults(tab, scheme: str) -> Iterator[str]:
    "What is wrong with the page that is open"
    width = tab.evaluate('document.documentElement.scrollWidth')
    if width > PHONE['width']: yield f'{width} pixels wide on a screen of {PHONE["width"]}'
    if not tab.evaluate(f"document.body.classList.contains('quarto-{scheme}')"):
        yield 'does not follow the colour scheme of the system'
    weak = [(contrast, text) for contrast, text, _ in tab.evaluate(MEASURE) if contrast < CONTRAST]
    if weak:
        contrast, text = min(weak)
        yield f'{len(weak)} texts of a contrast below {CONTRAST}, the least {contrast:.1f}: {text!r}'

def check(folder: Path, names: list[str], site: str) -> list[str]:
    "Everything wrong with the rendered site: pages `names` of it, which has the address `site`"
    messages = [f'{name}: not rendered' for name in names if not (folder / name).exists()]
    files = {name: folder / name for name in names if (folder / name).exists()}
    pages = {name: RenderedPage(path.read_text(encoding='utf-8')) for name, path in files.items()}
    messages += [*check_pages(folder, pages, site), *check_styles(folder), *check_search(folder, pages)]
    if browser.MISSING: print('note: width and contrast were not measured: needs', ', '.join(browser.MISSING))
    else: messages += check_looks(folder, list(pages))
    return list(dict.fromkeys(messages))

if __name__ == '__main__':
    from nbdev.config import get_config
    cfg = get_config()
    built = build_docs.read_site(cfg)
    build_docs.check_addresses(built)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else built.folder / '_docs'
    messages = check(folder, sorted(built.addresses), cfg.doc_host + cfg.doc_baseurl)
    print(*messages, sep='\n')
    if messages: sys.exit(f'{len(messages)} faults in the rendered site')
    print(len(built.addresses), 'pages')
