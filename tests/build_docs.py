"""Build the site's pages without quarto and check what can be checked without it: navigation, addresses,
titles, links, anchors, resources, tables, images. `--check` skips the build and checks _proc as it lies."""
import json, posixpath, re, shutil, sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# a path of the machine that ran the page
MACHINE_PATH = re.compile(r'(?<![\w.:/-])/(?:work|tmp|root|home)/[^\s\'"<>)]*')
MEDIA = re.compile(r'data:[\w/+.;=-]+;base64,[\w+/=\s]+')
DIRECTIVE = re.compile(r'(?m)^#\|\s*(?:export\w*|default_exp|hide)\b.*$')
NAVIGATION_KEYS = {'text', 'href', 'icon', 'menu', 'section', 'contents'}
PREVIEW = 'images/before_after.png'  # what other sites show of a page, where its own first picture is no file
NO_BREAK_SPACE = '\u00a0'
NUMBER = r'[+\u2212-]?\d[\d.]*(?:[ \u00a0]?%)?'
INTERVAL = re.compile(rf'\[{NUMBER},\s+{NUMBER}\]')
BREAKABLE = re.compile(rf'\[{NUMBER},[ \n]+{NUMBER}\]|[\d%][ \n]\[{NUMBER},\s+{NUMBER}\]')
MANY_DECIMALS = re.compile(r'(?<![\w./-])[+\u2212-]?\d+\.\d{5,}(?:e[+-]?\d+)?(?![\w./])')
TABLE_CELL = re.compile(r'<t[dh]\b[^>]*>(.*?)</t[dh]>', re.S)
HTML_TEXT = re.compile(r'(?s)(<(td|th|p|li|caption)\b[^>]*>)(.*?)(?=</\2>)')
FENCED = re.compile(r'(?ms)(^(`{3,}).*?^\2[ ]*$)')
DOC_LINK = re.compile(r'\[`([^`\]]+)`\]\([^)\s]+\)')
PRIVATE_LINK = re.compile(r'\[(`_\w+`)\]\([^)\s]+\)')
RAW_HTML = re.compile(r'(?s)`````\{=html\}\n(.*)\n`````\n')

def source_of(cell: dict) -> str:
    return ''.join(cell.get('source') or '')

def cells_of(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding='utf-8'))['cells']

# ---- building ----------------------------------------------------------------------------------------------

def build(cfg):
    "What nbdev_docs does before it calls quarto, plus an address of its own for each page"
    from nbdev.doclinks import _build_modidx
    from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml()
    _build_modidx()
    nbdev_sidebar.__wrapped__(path=cfg.nbs_path)
    processed = cfg.config_path / '_proc'
    shutil.rmtree(processed, ignore_errors=True)
    proc_nbs(cfg.nbs_path, n_workers=0, force=True)
    for page in sorted(processed.rglob('*.ipynb')):
        finish_page(page, cfg.nbs_path / page.relative_to(processed), cfg.nbs_path)

def finish_page(
    page: Path,       # below _proc
    notebook: Path,   # what it was made from
    notebooks: Path,  # the folder of all
):
    """Take out show_doc's words where there is no docstring, give a report an address with its number, and
    finish what the cells show"""
    nb = json.loads(page.read_text(encoding='utf-8').replace('*Call self as a function.*', ''))
    for cell in nb['cells']: finish_cell(cell)
    front_matter = source_of(nb['cells'][0])
    if is_report(notebook, notebooks):
        # nbdev drops the numbers: 18b_retention and 22_retention would both be retention.html. The chapter
        # keeps it, as documentation links name it
        front_matter = re.sub(r'(?m)^output-file: .*$', f'output-file: {page.stem}.html', front_matter)
    if first_image_is_data(nb['cells']) and not re.search(r'(?m)^image:', front_matter):
        preview = '../' * len(notebook.relative_to(notebooks).parent.parts) + PREVIEW
        front_matter = front_matter.replace('---\n', f'---\nimage: {preview}\n', 1)
    # quarto takes a list of lines; of one string it makes text on the page
    nb['cells'][0]['source'] = front_matter.splitlines(keepends=True)
    page.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')

def finish_cell(cell: dict):
    "Text and tables as the site shows them"
    if cell['cell_type'] == 'markdown':
        cell['source'] = finish_markdown(source_of(cell)).splitlines(keepends=True)
    for output in cell.get('outputs', []):
        data = output.get('data', {})
        if 'text/html' in data:
            # an output of HTML brings require.js and jquery from a CDN; raw HTML in Markdown does not
            html = HTML_TEXT.sub(finish_element, ''.join(data.pop('text/html')))
            text = f'`````{{=html}}\n{html}\n`````\n'
        elif 'text/markdown' in data: text = finish_markdown(''.join(data['text/markdown']))
        else: continue
        data['text/markdown'] = text.splitlines(keepends=True)  # quarto takes no string here

def finish_element(element: re.Match) -> str:
    "A table cell or paragraph of HTML: code as code, intervals in one piece"
    text = re.sub(r'`([^`<>]+)(?:`|$)', r'<code>\1</code>', element[3])  # pandas may cut the second one off
    return element[1] + keep_intervals(text)

def finish_markdown(text: str) -> str:
    "Intervals in one piece, no link inside a signature, none to a private name: that is on no page"
    pieces = FENCED.split(text)  # text, block, fence, text, ...
    blocks = [DOC_LINK.sub(r'\1', block) for block in pieces[1::3]]
    texts = [PRIVATE_LINK.sub(r'\1', piece) for piece in pieces[::3]]
    texts = [re.sub(r'`[^`]*`|[^`]+', lambda part: keep_intervals(part[0]), piece) for piece in texts]
    return ''.join(piece for pair in zip(texts, [*blocks, '']) for piece in pair)

def keep_intervals(text: str) -> str:
    "No line break within `[low, high]` or between a value and its interval; code is left as it is"
    if text.startswith('`'): return text
    text = INTERVAL.sub(lambda interval: re.sub(r'\s+', NO_BREAK_SPACE, interval[0]), text)
    return re.sub(rf'(?<=[\d%])[ \n](?=\[{NUMBER},{NO_BREAK_SPACE})', NO_BREAK_SPACE, text)

def first_image_is_data(cells: list[dict]) -> bool:
    "Is the page's first picture within an output's HTML? Its address cannot be a preview"
    for cell in cells:
        for output in cell.get('outputs', []):
            if any(kind.startswith('image/') for kind in output.get('data', {})): return False
            address = re.search(r'<img\b[^>]*\bsrc="([^"]{,5})', html_of(output))
            if address: return address[1] == 'data:'
        if cell['cell_type'] == 'markdown' and re.search(r'!\[|<img\b', source_of(cell)): return False
    return False

def html_of(output: dict) -> str:
    "The HTML of an output, before or after `finish_cell`"
    data = output.get('data', {})
    raw = RAW_HTML.fullmatch(''.join(data.get('text/markdown', '')))
    return raw[1] if raw else ''.join(data.get('text/html', ''))

def is_report(notebook: Path, notebooks: Path) -> bool:
    "Numbered, at the top, and the source of no module"
    if notebook.parent != Path(notebooks) or not re.match(r'\d', notebook.name):
        return False
    return '#| default_exp' not in notebook.read_text(encoding='utf-8')

# ---- what is read of a page --------------------------------------------------------------------------------

def front_matter_of(page: Path) -> dict:
    "A processed page's front matter"
    import yaml
    first = cells_of(page)[:1]
    text = source_of(first[0]) if first and first[0]['cell_type'] == 'raw' else ''
    return yaml.safe_load(text.strip().strip('-')) or {}

def slug(heading: str) -> str:
    "pandoc's automatic heading id"
    words = ' '.join(heading.split()).lower()
    letters = re.sub(r'[^\w\s.-]', '', words)
    hyphenated = re.sub(r'\s', '-', letters)
    return re.sub(r'^[^a-z]+', '', hyphenated) or 'section'

class Page(HTMLParser):
    "Links (tag, address) and anchors of a page as nbconvert renders it"

    def __init__(self, html: str):
        super().__init__()
        self.links, self.ids = [], []
        self.images_without_text = []
        self.heading = None  # the text of the heading that is being read
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        addresses = [attributes.get(name) for name in ('href', 'src', 'poster')]
        self.links += [(tag, address) for address in addresses if address]
        if tag == 'img' and not (attributes.get('alt') or '').strip():
            self.images_without_text.append(attributes.get('src', '')[:40])
        if re.fullmatch('h[1-6]', tag): self.heading = ''
        elif attributes.get('id') and 'cell-id' not in attributes['id']:
            self.ids.append(attributes['id'])

    def handle_data(self, data):
        if self.heading is not None: self.heading += data

    def handle_endtag(self, tag):
        if self.heading is None or not re.fullmatch('h[1-6]', tag): return
        self.ids.append(self.heading_id())
        self.heading = None

    def heading_id(self) -> str:
        "The heading's own id or the automatic one, with a number where the page has it already"
        own = re.search(r'\{#([^\s}]+)[^}]*\}\s*$', self.heading)
        if own:
            name = own[1]
            n = self.ids.count(name)
        else:
            name = slug(self.heading)
            numbered = re.compile(re.escape(name) + r'(-\d+)?')
            n = sum(bool(numbered.fullmatch(other)) for other in self.ids)
        return f'{name}-{n}' if n else name

def rendered_pages(pages: dict[str, Path]) -> dict[str, Page]:
    "Every page, rendered and read"
    import nbformat
    from nbconvert import HTMLExporter
    # highlighting the code takes half the time and has no links
    exporter = HTMLExporter(template_name='basic', exclude_anchor_links=True, exclude_input=True)
    rendered = {}
    for name, path in pages.items():
        notebook = nbformat.read(path, as_version=4)
        for output in (output for cell in notebook.cells for output in cell.get('outputs', [])):
            html = html_of(output)
            if html: output.data = nbformat.from_dict({'text/html': html})
        html, _ = exporter.from_notebook_node(notebook)
        rendered[name] = Page(MEDIA.sub('data:,', html))
    return rendered

def hrefs(items) -> Iterator[str]:
    "The entries of a sidebar or navbar, flat"
    for item in items or []:
        if isinstance(item, str):
            yield item
            continue
        assert set(item) <= NAVIGATION_KEYS, f'navigation: unknown key in {item}'
        if 'href' in item: yield item['href']
        yield from hrefs(item.get('menu') or item.get('contents'))

def output_texts(cell: dict) -> Iterator[str]:
    "What the outputs of a cell show, embedded media left out"
    for output in cell.get('outputs', []):
        data = output.get('data', {})
        shown = [value for kind, value in data.items() if not kind.startswith(('image/', 'audio/'))]
        for value in [output.get('text', ''), '\n'.join(output.get('traceback', [])), *shown]:
            text = ''.join(value) if isinstance(value, (list, str)) else json.dumps(value)
            yield MEDIA.sub('', text)

# ---- checks ------------------------------------------------------------------------------------------------

@dataclass
class Site:
    "The processed site as it lies in _proc"
    cfg: object                 # nbdev's configuration
    folder: Path
    pages: dict[str, Path]      # by their names below `folder`
    files: set[str]             # names of all files below `folder`
    notebooks: dict[str, Path]  # what there should be a page of, by the same names
    quarto: dict                # _quarto.yml
    addresses: dict[str, str] = field(default_factory=dict)  # page by its address, filled by check_addresses

def read_site(cfg) -> Site:
    folder, source = Path(cfg.config_path / '_proc'), Path(cfg.nbs_path)
    pages = {name_below(folder, path): path for path in sorted(folder.rglob('*.ipynb'))}
    files = {name_below(folder, path) for path in folder.rglob('*') if path.is_file()}
    notebooks = {name_below(source, path): path for path in source.rglob('*.ipynb')}
    shown = {name: notebooks[name] for name in sorted(notebooks) if not is_hidden(name)}
    return Site(cfg, folder, pages, files, shown, read_yaml(folder / '_quarto.yml'))

def read_yaml(path: Path) -> dict:
    import yaml
    return yaml.safe_load(path.read_text(encoding='utf-8'))

def name_below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()

def is_hidden(name: str) -> bool:
    "Is the file, or a folder above it, one that nbdev leaves out?"
    return any(part[0] in '_.' for part in name.split('/'))

def check_pages(site: Site) -> list[str]:
    "Every notebook has a page"
    return [f'{name}: not built' for name in site.notebooks if name not in site.pages]

def check_configuration(site: Site) -> list[str]:
    "Files that _quarto.yml names exist; the Source link leads to the repository"
    html, website = site.quarto['format']['html'], site.quarto['website']
    named = [*site.quarto['metadata-files'], html['css'], website['image'], website['favicon']]
    messages = [f'_quarto.yml: {name} does not exist' for name in named if name not in site.files]
    messages += foreign_resources(site)
    if website['navbar']['right'][0]['href'] != read_yaml(site.folder / 'nbdev.yml')['website']['repo-url']:
        messages.append('_quarto.yml: the Source link is not settings.ini\'s git_url')
    return messages

def foreign_resources(site: Site) -> list[str]:
    "Settings with which a page would load fonts or scripts from another site"
    html, messages = site.quarto['format']['html'], []
    for scheme, theme in html['theme'].items():
        layers = [site.folder / layer for layer in theme if layer.endswith('.scss') and layer in site.files]
        rules = '\n'.join(layer.read_text(encoding='utf-8') for layer in layers)
        if not re.search(r'(?m)^\$web-font-path: false', rules):
            messages.append(f'_quarto.yml: the {scheme} theme loads its fonts from another site')
    if html.get('html-math-method') != 'mathml':
        messages.append('_quarto.yml: formulas load a script from another site (html-math-method: mathml)')
    return messages

def check_navigation(site: Site) -> list[str]:
    "The sidebar lists every page once, the menus all guides and reports; what they list exists"
    sidebar = list(hrefs(read_yaml(site.folder / 'sidebar.yml')['website']['sidebar']['contents']))
    menus = {item['text']: list(hrefs(item['menu'])) for item in site.quarto['website']['navbar']['left']}
    messages = []
    for name in sorted(set(sidebar)):
        if sidebar.count(name) > 1:
            messages.append(f'sidebar.yml: {name} is listed {sidebar.count(name)} times')
    messages += [f'sidebar.yml: {name} is missing' for name in site.notebooks if name not in sidebar]
    messages += own_labels(site)
    lists = {'sidebar.yml': sidebar} | {f'_quarto.yml, {text}': names for text, names in menus.items()}
    for place, names in lists.items():
        messages += [f'{place}: {name} does not exist' for name in names if name not in site.pages]
    for text, pattern in dict(Guides='guides/*', Reports='2*').items():
        belonging = [name for name in site.notebooks if fnmatch(name, pattern)]
        messages += [
            f'_quarto.yml, {text}: {name} is missing' for name in belonging if name not in menus[text]
        ]
    return messages + check_reference_menu(site)

def own_labels(site: Site) -> list[str]:
    "An entry of the sidebar takes the page's title; only the home page, named after the project, has a label"
    sections = read_yaml(site.folder / 'sidebar.yml')['website']['sidebar']['contents']
    entries = [entry for section in sections for entry in section['contents'] if isinstance(entry, dict)]
    own = [entry['href'] for entry in entries if entry.get('text') and entry['href'] != 'index.ipynb']
    return [f'sidebar.yml: {name} has a label of its own beside the title' for name in own]

def check_reference_menu(site: Site) -> list[str]:
    "The menu Reference leads to the first chapter of every section of the sidebar"
    sections = read_yaml(site.folder / 'sidebar.yml')['website']['sidebar']['contents']
    first = {section['section']: next(hrefs(section['contents'])) for section in sections}
    menus = {item['text']: item['menu'] for item in site.quarto['website']['navbar']['left']}
    listed = {item['text']: item['href'] for item in menus.get('Reference', [])}
    chapters = {text: name for text, name in first.items() if name.startswith('chapters/')}
    return [
        f'_quarto.yml, Reference: {text} does not lead to {chapters.get(text, "a section of the sidebar")}'
        for text in [*chapters, *listed] if listed.get(text) != chapters.get(text)
    ]

def check_addresses(site: Site) -> list[str]:
    "No two pages have one address, and none has that of a file"
    messages = []
    for name, path in site.pages.items():
        file = front_matter_of(path).get('output-file') or name[:-5] + 'html'
        address = posixpath.join(posixpath.dirname(name), file)
        if address in site.addresses or address in site.files:
            taken_by = site.addresses.get(address, address)
            messages.append(f'{name}: its address {address} is taken by {taken_by}')
        site.addresses[address] = name
    return messages

def check_front_matter(site: Site) -> list[str]:
    "Every page has a title, a description and an address, in front matter that quarto understands"
    messages = []
    for name, path in site.pages.items():
        front_matter = front_matter_of(path)
        for key in ('title', 'description', 'output-file'):
            if not front_matter.get(key): messages.append(f'{name}: no {key}')
        messages += front_matter_in_one_string(name, path)
    for name, path in site.notebooks.items():
        messages += lost_introduction(name, path)
    return messages

def front_matter_in_one_string(name: str, page: Path) -> list[str]:
    "quarto takes a list of lines; of one string it makes text on the page"
    raw = [cell for cell in cells_of(page) if cell['cell_type'] == 'raw']
    if any(isinstance(cell['source'], str) for cell in raw):
        return [f'{name}: front matter in one string']
    return []

def lost_introduction(name: str, notebook: Path) -> list[str]:
    "nbdev takes title and description from the first markdown cell and drops the rest of that cell"
    first = next(source_of(cell) for cell in cells_of(notebook) if cell['cell_type'] == 'markdown')
    shown = re.sub(r'<!--.*?-->', '', first, flags=re.S).split('\n')
    rest = [line for line in shown if line.strip() and not re.match(r'# |> |- [\w-]+:', line)]
    return [f'{name}: not on the site, it stands in the title cell: {rest[0][:60]}'] if rest else []

def check_titles(site: Site) -> list[str]:
    "A title is words, not a module's name, begins with a capital and belongs to one page"
    titles = {name: front_matter_of(path).get('title', '') for name, path in site.pages.items()}
    messages = []
    for name, title in titles.items():
        if name == 'index.ipynb': continue  # the name of the project
        if not re.match('[A-Z]|csm-1b', title): messages.append(f'{name}: title without a capital: {title}')
        code = '\n'.join(map(source_of, cells_of(site.notebooks[name])))
        module = re.search(r'(?m)^#\| default_exp (\S+)', code)
        if module and title.lower().replace(' ', '_') == module[1].split('.')[-1]:
            messages.append(f'{name}: the title is the module\'s name: {title}')
        same = [other for other in titles if titles[other].lower() == title.lower() and other != name]
        if same: messages.append(f'{name}: the title is also that of {same[0]}: {title}')
    return messages

def check_beginnings(site: Site) -> list[str]:
    "A page begins with words: no code stands before the first sentence, unless it is folded"
    messages = []
    for name, path in site.pages.items():
        sources = [(cell['cell_type'], source_of(cell)) for cell in cells_of(path)[1:]]
        shown = [(kind, text) for kind, text in sources if re.sub(r'(?s)<!--.*?-->', '', text).strip()]
        kind, text = shown[0] if shown else ('', '')
        if kind == 'code' and not re.search(r'(?m)^#\| (?:echo: false|code-fold: true)', text):
            messages.append(f'{name}: begins with code: {text[:60]!r}')
    return messages

def check_previews(site: Site) -> list[str]:
    "A page whose first picture is no file names one in its front matter; that exists"
    messages = []
    for name, path in site.pages.items():
        image = front_matter_of(path).get('image')
        if not image and first_image_is_data(cells_of(path)):
            messages.append(f'{name}: og:image would be a data address; front matter names no `image`')
        file = image and posixpath.normpath(posixpath.join(posixpath.dirname(name), image))
        if file and file not in site.files: messages.append(f'{name}: its image {file} does not exist')
    return messages

def note_blank_cells(site: Site):
    "Print where show_doc was not run; that is no fault"
    for name, path in site.pages.items():
        code = [cell for cell in cells_of(path) if cell['cell_type'] == 'code']
        blank = sum('show_doc(' in source_of(cell) and not cell.get('outputs') for cell in code)
        if blank:
            print(
                f'note: {name} shows nothing for {blank} exported names: `skip_showdoc` keeps show_doc from '
                'running'
            )

def check_cells(site: Site) -> list[str]:
    "No page shows a directive of nbdev or, in an output, a path of this machine"
    messages = []
    for name, path in site.pages.items():
        for i, cell in enumerate(cells_of(path)):
            if cell['cell_type'] != 'code': continue
            directives = DIRECTIVE.findall(source_of(cell))
            messages += [f'{name}, cell {i}: directive left: {directive}' for directive in directives]
            for text in output_texts(cell):
                paths = MACHINE_PATH.findall(text)
                messages += [f'{name}, cell {i}: an output holds {machine_path}' for machine_path in paths]
    return messages

def check_tables(site: Site) -> list[str]:
    "Tables have no decimals without meaning, no interval that breaks over lines, no literal code marks"
    messages = []
    for name, path in site.pages.items():
        for i, cell in enumerate(cells_of(path)):
            place = f'{name}, cell {i}'
            if cell['cell_type'] == 'markdown': messages += markdown_faults(place, source_of(cell))
            for output in cell.get('outputs', []): messages += table_faults(place, output)
    return messages

def table_faults(place: str, output: dict) -> list[str]:
    "What is wrong with the tables of an output"
    data = output.get('data', {})
    html = html_of(output)
    if html: return html_faults(place, MEDIA.sub('', html), is_plain='text/html' not in data)
    if 'text/markdown' in data: return markdown_faults(place, ''.join(data['text/markdown']))
    text = ''.join(data.get('text/plain', '')) + ''.join(output.get('text', ''))
    # a printed table: columns stand apart by two blanks or more
    rows = [line for line in text.split('\n') if re.search(r'\S\s{2,}[+-]?\d+\.\d{5,}(?:\s|$)', line)]
    return decimal_faults(place, rows) if len(rows) > 1 else []

def html_faults(place: str, html: str, is_plain: bool) -> list[str]:
    cells = [re.sub('<[^>]*>', '', cell) for cell in TABLE_CELL.findall(html)]
    messages = [f'{place}: code marks in a table: {cell.strip()[:60]}' for cell in cells if '`' in cell]
    found = BREAKABLE.findall(' | '.join(cells))
    messages += [f'{place}: an interval that breaks: {interval}' for interval in found]
    if not is_plain: messages.append(f'{place}: an output of HTML brings scripts from a CDN')
    return messages + decimal_faults(place, cells)

def markdown_faults(place: str, text: str) -> list[str]:
    blocks = [block for block, _ in FENCED.findall(text)]
    links = [link[0] for block in blocks for link in DOC_LINK.finditer(block)]
    messages = [f'{place}: a link in code: {link}' for link in links]
    rows = re.findall(r'(?m)^\|.*', FENCED.sub('', text))
    for row in rows:
        found = BREAKABLE.search(re.sub('`[^`]*`', '', row))
        if found: messages.append(f'{place}: an interval that breaks: {found[0]}')
    return messages + decimal_faults(place, rows)

def decimal_faults(place: str, rows: list[str]) -> list[str]:
    "Six decimals of pandas; a small number with a few digits is right, 0.000134"
    numbers = [number for row in rows for number in MANY_DECIMALS.findall(row)]
    few = re.compile(r'\d{0,3}[1-9]')
    found = [number for number in numbers if not few.fullmatch(digits_of(number))]
    return [f'{place}: {len(found)} numbers of five decimals or more, as {found[0]}'] if found else []

def digits_of(number: str) -> str:
    "From the first that is not zero"
    return re.sub(r'^[0.+\u2212-]+|e.*|\.', '', number)

def check_announcements(site: Site) -> list[str]:
    "Where the text points to a table or figure, the cell that follows shows something"
    points = re.compile(r'\b(?:table|figure) (?:says|shows)\b|\b(?:table|figure) below\b')
    messages = []
    for name, path in site.pages.items():
        cells = cells_of(path)
        for i, (before, after) in enumerate(zip(cells, cells[1:])):
            if before['cell_type'] != 'markdown' or after['cell_type'] != 'code' or after['outputs']: continue
            last = source_of(before).strip().split('\n')[-1]
            if points.search(last):
                messages.append(f'{name}, cell {i}: what it points to is not there: {last[-60:]}')
    return messages

def check_images(site: Site, rendered: dict[str, Page]) -> list[str]:
    "Every image has an alternative text: in Markdown, in HTML, and in the `fig-alt` of a cell that draws"
    messages = []
    for name, path in site.pages.items():
        messages += [f'{name}: no alternative text: {src}' for src in rendered[name].images_without_text]
        for i, cell in enumerate(cells_of(path)):
            htmls = [html_of(output) for output in cell.get('outputs', [])]
            without = [src for html in htmls if '<img' in html for src in Page(html).images_without_text]
            messages += [f'{name}, cell {i}: no alternative text: {src}' for src in without]
            drawn = [j for j, output in enumerate(cell.get('outputs', [])) if is_image(output)]
            n_without = sum(not alternative_text(cell, j) for j in drawn)
            if n_without: messages.append(f'{name}, cell {i}: {n_without} images without `#| fig-alt:`')
    return messages

def is_image(output: dict) -> bool:
    return not html_of(output) and any(kind.startswith('image/') for kind in output.get('data', {}))

def alternative_text(cell: dict, i: int) -> str:
    "What `#| fig-alt:` says of output `i`: one text for all outputs, or a list with one for each"
    import yaml
    option = re.search(r'(?m)^#\| (fig-alt:.*)$', source_of(cell))
    texts = yaml.safe_load(option[1])['fig-alt'] if option else None
    if isinstance(texts, list): return texts[i] if i < len(texts) else ''
    return texts or ''

def command_paths(command, path: str = '') -> Iterator[tuple[str, object]]:
    "Every command of a click group, with the words that call it; old names are hidden"
    for name, below in getattr(command, 'commands', {}).items():
        if below.hidden: continue
        if hasattr(below, 'commands'): yield from command_paths(below, f'{path} {name}'.strip())
        else: yield f'{path} {name}'.strip(), below

def check_options(name: str, page: Path, command) -> list[str]:
    "The page of the command line has a section for each command, which holds each of its options"
    outputs = [output for cell in cells_of(page) for output in cell.get('outputs', [])]
    text = '\n'.join(''.join(output.get('data', {}).get('text/markdown', '')) for output in outputs)
    sections = dict(re.findall(r'(?ms)^#+ csm_expressive ([\w -]+?)$(.*?)(?=^#|\Z)', text))
    messages = []
    for path, below in command_paths(command):
        options = [option for parameter in below.params for option in parameter.opts if option[0] == '-']
        missing = [option for option in options if f'`{option}`' not in sections.get(path, '')]
        if path not in sections:
            messages.append(f'{name}: does not show the options of `csm_expressive {path}`')
        elif missing: messages.append(f'{name}: `csm_expressive {path}`: missing {" ".join(missing)}')
    return messages

def command_line():
    "The program, as click has it"
    import typer
    from csm_expressive_nb.cli import app
    return typer.main.get_command(app)

def check_machine_paths(site: Site) -> list[str]:
    "No file beside the pages holds a path of this machine"
    messages = []
    for name in sorted(site.files):
        if not name.endswith(('.json', '.html')): continue
        text = (site.folder / name).read_text(encoding='utf-8')
        paths = MACHINE_PATH.findall(re.sub(r'base64,[\w+/=]+', '', text))
        messages += [f'{name}: holds {path}' for path in paths]
    return messages

def check_links(site: Site, rendered: dict[str, Page]) -> list[str]:
    "What links lead to, on the site and in the repository, exists; so do the headings they name"
    messages = []
    for name, page in rendered.items():
        for tag, link in page.links:
            messages += check_repository_link(site.cfg, name, link)
            file = linked_file(site.cfg, name, link)
            if file is None: continue
            target = file if file in site.pages else site.addresses.get(file)
            if target is None: messages += check_linked_file(site, name, tag, link, file)
            else: messages += check_anchor(name, link, target, rendered[target].ids)
    return messages

def anchor_of(link: str) -> str:
    return unquote(urlsplit(link).fragment)

def check_repository_link(cfg, name: str, link: str) -> list[str]:
    if not link.startswith(f'{cfg.git_url}/blob/{cfg.branch}/'): return []
    file = unquote(urlsplit(link).path).split(f'/blob/{cfg.branch}/')[1]
    return [] if (cfg.config_path / file).exists() else [f'{name}: {link}: no such file in the repository']

def linked_file(cfg, name: str, link: str) -> str | None:
    "The file or address of the site that a link on page `name` leads to; None where it leads elsewhere"
    parts = urlsplit(link)
    path = unquote(parts.path)
    if link.startswith(cfg.doc_host + cfg.doc_baseurl):
        return path.split(cfg.doc_baseurl, 1)[1].strip('/') or 'index.html'
    if parts.scheme or parts.netloc: return None
    if not path: return name
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), path))

def check_linked_file(site: Site, name: str, tag: str, link: str, file: str) -> list[str]:
    "A file that is no page exists, and quarto takes it to the site"
    if file not in site.files: return [f'{name}: {link}: no such page or file']
    if tag == 'img' or any(fnmatch(file, pattern) for pattern in site.quarto['project']['resources']):
        return []
    return [f'{name}: {link}: exists, but no pattern of `resources` in _quarto.yml takes it to the site']

def check_anchor(name: str, link: str, target: str, ids: list[str]) -> list[str]:
    "The page a link leads to shows the heading that it names; show_doc makes one of an exported name"
    anchor = anchor_of(link)
    if not anchor or anchor in ids: return []
    nearest = ' '.join(get_close_matches(anchor, ids)) or 'none'
    return [f'{name}: {link}: {target} has no heading with that anchor; nearest: {nearest}']

def check(cfg) -> tuple[list[str], int, int]:  # (messages, pages, links)
    "Everything wrong with _proc, one line each, naming the file and the link"
    site = read_site(cfg)
    messages = check_pages(site) + check_configuration(site) + check_navigation(site)
    messages += check_addresses(site) + check_front_matter(site)
    messages += check_titles(site) + check_beginnings(site) + check_previews(site)
    rendered = rendered_pages(site.pages)
    note_blank_cells(site)
    messages += check_cells(site) + check_machine_paths(site) + check_links(site, rendered)
    messages += check_tables(site) + check_announcements(site) + check_images(site, rendered)
    page = site.addresses['chapters/cli.html']
    messages += check_options(page, site.pages[page], command_line())
    n_links = sum(len(page.links) for page in rendered.values())
    return list(dict.fromkeys(messages)), len(site.pages), n_links

if __name__ == '__main__':  # nbdev's workers spawn
    from nbdev.config import get_config
    cfg = get_config()
    if '--check' not in sys.argv: build(cfg)
    messages, n_pages, n_links = check(cfg)
    print(*messages, sep='\n')
    if messages: sys.exit(f'{len(messages)} faults in the site')
    print(n_pages, 'pages,', n_links, 'links')
