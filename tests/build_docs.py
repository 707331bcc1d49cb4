"""Build the site's pages without quarto and check what can be checked without it: navigation, addresses,
links, anchors, resources, outputs. `--check` skips the build and checks _proc as it lies."""
import json, posixpath, re, runpy, shutil, sys
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
    "Take out show_doc's words where there is no docstring, and give a report an address with its number"
    nb = json.loads(page.read_text(encoding='utf-8').replace('*Call self as a function.*', ''))
    if is_report(notebook, notebooks):
        # nbdev drops the numbers: 18b_retention and 22_retention would both be retention.html. The chapter
        # keeps it, as documentation links name it
        address = f'output-file: {page.stem}.html'
        front_matter = re.sub(r'(?m)^output-file: .*$', address, source_of(nb['cells'][0]))
        # quarto takes a list of lines; of one string it makes text on the page
        nb['cells'][0]['source'] = front_matter.splitlines(keepends=True)
    page.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')

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
        self.heading = None  # the text of the heading that is being read
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        addresses = [attributes.get(name) for name in ('href', 'src', 'poster')]
        self.links += [(tag, address) for address in addresses if address]
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
    from nbconvert import HTMLExporter
    # highlighting the code takes half the time and has no links
    exporter = HTMLExporter(template_name='basic', exclude_anchor_links=True, exclude_input=True)
    rendered = {}
    for name, path in pages.items():
        html, _ = exporter.from_filename(str(path))
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
    named = [*site.quarto['metadata-files'], html['css'], website['image']]
    messages = [f'_quarto.yml: {name} does not exist' for name in named if name not in site.files]
    if website['navbar']['right'][0]['href'] != read_yaml(site.folder / 'nbdev.yml')['website']['repo-url']:
        messages.append('_quarto.yml: the Source link is not settings.ini\'s git_url')
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
    lists = {'sidebar.yml': sidebar} | {f'_quarto.yml, {text}': names for text, names in menus.items()}
    for place, names in lists.items():
        messages += [f'{place}: {name} does not exist' for name in names if name not in site.pages]
    for text, pattern in dict(Guides='guides/*', Reports='2*').items():
        belonging = [name for name in site.notebooks if fnmatch(name, pattern)]
        messages += [
            f'_quarto.yml, {text}: {name} is missing' for name in belonging if name not in menus[text]
        ]
    return messages

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

def check_machine_paths(site: Site) -> list[str]:
    "No file beside the pages holds a path of this machine"
    messages = []
    for name in sorted(site.files):
        if not name.endswith(('.json', '.html')): continue
        text = (site.folder / name).read_text(encoding='utf-8')
        paths = MACHINE_PATH.findall(re.sub(r'base64,[\w+/=]+', '', text))
        messages += [f'{name}: holds {path}' for path in paths]
    return messages

def exported_addresses(index: Path) -> set[str]:
    "Where _modidx.py says that exported names are documented"
    modules = runpy.run_path(str(index))['d']['syms'].values()
    return {entry[0] for module in modules for entry in module.values()}

def check_links(site: Site, rendered: dict[str, Page]) -> list[str]:
    "What links lead to, on the site and in the repository, exists; so do the headings they name"
    exported = exported_addresses(site.cfg.lib_path / '_modidx.py')
    messages = []
    for name, page in rendered.items():
        for tag, link in page.links:
            messages += check_repository_link(site.cfg, name, link)
            file = linked_file(site.cfg, name, link)
            if file is None: continue
            target = file if file in site.pages else site.addresses.get(file)
            if target is None: messages += check_linked_file(site, name, tag, link, file)
            else:
                ids = rendered[target].ids
                messages += check_anchor(name, link, target, ids, f'{file}#{anchor_of(link)}' in exported)
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

def check_anchor(name: str, link: str, target: str, ids: list[str], is_exported: bool) -> list[str]:
    "The page a link leads to has the heading, or the exported name, that it names"
    anchor = anchor_of(link)
    if not anchor or anchor in ids or is_exported: return []
    nearest = ' '.join(get_close_matches(anchor, ids)) or 'none'
    return [f'{name}: {link}: {target} has no heading with that anchor; nearest: {nearest}']

def check(cfg) -> tuple[list[str], int, int]:  # (messages, pages, links)
    "Everything wrong with _proc, one line each, naming the file and the link"
    site = read_site(cfg)
    messages = check_pages(site) + check_configuration(site) + check_navigation(site)
    messages += check_addresses(site) + check_front_matter(site)
    rendered = rendered_pages(site.pages)
    note_blank_cells(site)
    messages += check_cells(site) + check_machine_paths(site) + check_links(site, rendered)
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
