"""Build the site's pages without quarto and check what can be checked without it: navigation, addresses,
links, anchors, resources, outputs. `--check` skips
the build and checks _proc as it lies."""
import json, posixpath, re, runpy, shutil, sys
from difflib import get_close_matches
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

src = lambda c: ''.join(c.get('source') or '')
cells = lambda p: json.loads(p.read_text(encoding='utf-8'))['cells']
# a path of the machine that ran the page
machine = re.compile(r'(?<![\w.:/-])/(?:work|tmp|root|home)/[^\s\'"<>)]*')

def build(cfg):
    "What nbdev_docs does before it calls quarto, plus an address of its own for each page"
    from nbdev.doclinks import _build_modidx
    from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml()
    _build_modidx()
    nbdev_sidebar.__wrapped__(path=cfg.nbs_path)
    shutil.rmtree(cfg.config_path / '_proc', ignore_errors=True)
    proc_nbs(cfg.nbs_path, n_workers=0, force=True)
    for p in sorted((cfg.config_path / '_proc').rglob('*.ipynb')):
        # show_doc's words where there is no docstring
        nb = json.loads(p.read_text(encoding='utf-8').replace('*Call self as a function.*', ''))
        n = p.relative_to(cfg.config_path / '_proc')
        report = (
            len(n.parts) == 1
            and re.match(r'\d', p.name)
            and '#| default_exp' not in (cfg.nbs_path / n).read_text(encoding='utf-8')
        )
        # nbdev drops the numbers: 18b_retention and 22_retention would both be retention.html. The chapter
        # keeps it, as documentation links name it
        if report:
            front_matter = re.sub(
                r'(?m)^output-file: .*$', f'output-file: {p.stem}.html', src(nb['cells'][0])
            )
            # quarto takes a list of lines; of one string it makes text on the page
            nb['cells'][0]['source'] = front_matter.splitlines(keepends=True)
        p.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')

def front(p):
    "A processed page's front matter"
    import yaml
    c = cells(p)[:1]
    s = src(c[0]) if c and c[0]['cell_type'] == 'raw' else ''
    return yaml.safe_load(s.strip().strip('-')) or {}

def slug(text):
    "pandoc's automatic heading id"
    return (
        re.sub(
            r'^[^a-z]+',
            '',
            re.sub(
                r'\s', '-', re.sub(r'[^\w\s.-]', '', ' '.join(text.split()).lower())
            ),
        )
        or 'section'
    )

class Page(HTMLParser):
    "Links (tag, address) and anchors of a page as nbconvert renders it"

    def __init__(self, html):
        super().__init__()
        self.links, self.ids, self.head = [], [], None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.links += [(tag, a[k]) for k in ('href', 'src', 'poster') if a.get(k)]
        if re.fullmatch('h[1-6]', tag): self.head = ''
        elif a.get('id') and 'cell-id' not in a['id']:
            self.ids.append(a['id'])

    def handle_data(self, s):
        if self.head is not None: self.head += s

    def handle_endtag(self, tag):
        if self.head is None or not re.fullmatch('h[1-6]', tag): return
        own = re.search(r'\{#([^\s}]+)[^}]*\}\s*$', self.head)
        i = own[1] if own else slug(self.head)
        n = (
            self.ids.count(i)
            if own
            else sum(bool(re.fullmatch(re.escape(i) + r'(-\d+)?', j)) for j in self.ids)
        )
        self.ids.append(i if not n else f'{i}-{n}')
        self.head = None

def hrefs(items):
    "The entries of a sidebar or navbar, flat"
    for i in items or []:
        if isinstance(i, str): yield i
        else:
            assert set(i) <= {'text', 'href', 'icon', 'menu', 'section', 'contents'}, (
                f'navigation: unknown key in {i}'
            )
            if 'href' in i: yield i['href']
            yield from hrefs(i.get('menu') or i.get('contents'))

def texts(c):
    "What the outputs of a cell show, embedded media left out"
    for o in c.get('outputs', []):
        for v in [
            o.get('text', ''),
            '\n'.join(o.get('traceback', [])),
            *(v for k, v in o.get('data', {}).items() if not k.startswith(('image/', 'audio/'))),
        ]:
            yield re.sub(
                r'data:[\w/+.;=-]+;base64,[\w+/=\s]+',
                '',
                ''.join(v) if isinstance(v, (list, str)) else json.dumps(v),
            )

def lost_introduction(name, path):
    "nbdev takes title and description from the first markdown cell and drops the rest of that cell"
    first = next(src(c) for c in cells(path) if c['cell_type'] == 'markdown')
    shown = re.sub(r'<!--.*?-->', '', first, flags=re.S).split('\n')
    rest = [line for line in shown if line.strip() and not re.match(r'# |> |- [\w-]+:', line)]
    return [f'{name}: not on the site, it stands in the title cell: {rest[0][:60]}'] if rest else []

def check(cfg):
    "Everything wrong with _proc, one line each, naming the file and the link"
    import yaml
    from nbconvert import HTMLExporter
    proc, bad = Path(cfg.config_path / '_proc'), []
    rel = lambda p: p.relative_to(proc).as_posix()
    pages = {rel(p): p for p in sorted(proc.rglob('*.ipynb'))}
    files = {rel(p) for p in proc.rglob('*') if p.is_file()}
    want = {p.relative_to(cfg.nbs_path).as_posix() for p in Path(cfg.nbs_path).rglob('*.ipynb')
            if not any(o[0] in '_.' for o in p.relative_to(cfg.nbs_path).parts)}
    bad += [f'{n}: not built' for n in sorted(want - set(pages))]
    # configuration and navigation
    q, nbdev, side = (
        yaml.safe_load((proc / f).read_text(encoding='utf-8'))
        for f in ('_quarto.yml', 'nbdev.yml', 'sidebar.yml')
    )
    html, web = q['format']['html'], q['website']
    named = [*q['metadata-files'], html['css'], web['image']]
    bad += [f'_quarto.yml: {f} does not exist' for f in named if f not in files]
    if web['navbar']['right'][0]['href'] != nbdev['website']['repo-url']:
        bad.append('_quarto.yml: the Source link is not settings.ini\'s git_url')
    listed = list(hrefs(side['website']['sidebar']['contents']))
    menus = {i['text']: list(hrefs(i['menu'])) for i in web['navbar']['left']}
    bad += [
        f'sidebar.yml: {n} is listed {listed.count(n)} times'
        for n in sorted(set(listed))
        if listed.count(n) > 1
    ] + [f'sidebar.yml: {n} is missing' for n in sorted(want - set(listed))]
    for name, entries in {
        'sidebar.yml': listed,
        **{f'_quarto.yml, {k}': v for k, v in menus.items()},
    }.items():
        bad += [f'{name}: {n} does not exist' for n in entries if n not in pages]
    for k, pattern in dict(Guides='guides/*', Reports='2*').items():
        bad += [
            f'_quarto.yml, {k}: {n} is missing'
            for n in sorted(want)
            if fnmatch(n, pattern) and n not in menus[k]
        ]
    # addresses
    heads, where = {}, {}
    for n, p in pages.items():
        heads[n] = f = front(p)
        bad += [f'{n}: no {k}' for k in ('title', 'description', 'output-file') if not f.get(k)]
        a = posixpath.join(posixpath.dirname(n), f.get('output-file') or n[:-5] + 'html')
        if a in where or a in files:
            bad.append(f'{n}: its address {a} is taken by {where.get(a, a)}')
        where[a] = n
        raw = [c for c in cells(p) if c['cell_type'] == 'raw']
        if any(isinstance(c['source'], str) for c in raw):
            bad.append(f'{n}: front matter in one string')
    for n in sorted(want): bad += lost_introduction(n, Path(cfg.nbs_path) / n)
    # contents
    # highlighting the code takes half the time and has no links
    export = HTMLExporter(template_name='basic', exclude_anchor_links=True, exclude_input=True)
    seen = {}
    for n, p in pages.items():
        seen[n] = Page(
            re.sub(r'data:[\w/+.;=-]+;base64,[\w+/=\s]+', 'data:,', export.from_filename(str(p))[0])
        )
        blank = sum(
            'show_doc(' in src(c) and not c.get('outputs') for c in cells(p) if c['cell_type'] == 'code'
        )
        if blank:
            print(
                f'note: {n} shows nothing for {blank} exported names: `skip_showdoc` keeps show_doc from '
                'running'
            )
        for i, c in enumerate(cells(p)):
            if c['cell_type'] != 'code': continue
            bad += [
                f'{n}, cell {i}: directive left: {d}'
                for d in re.findall(r'(?m)^#\|\s*(?:export\w*|default_exp|hide)\b.*$', src(c))
            ] + [f'{n}, cell {i}: an output holds {m}' for t in texts(c) for m in machine.findall(t)]
    for f in files:
        if not f.endswith(('.json', '.html')): continue
        text = re.sub(r'base64,[\w+/=]+', '', (proc / f).read_text(encoding='utf-8'))
        bad += [f'{f}: holds {m}' for m in machine.findall(text)]
    # links
    base, repo = cfg.doc_host + cfg.doc_baseurl, f'{cfg.git_url}/blob/{cfg.branch}/'
    known = {
        v[0]
        for m in runpy.run_path(str(cfg.lib_path / '_modidx.py'))['d']['syms'].values()
        for v in m.values()
    }
    count = 0
    for n, page in seen.items():
        for tag, link in page.links:
            u = urlsplit(link)
            path, anchor = unquote(u.path), unquote(u.fragment)
            inside = link.startswith(base)
            count += 1
            if (
                link.startswith(repo)
                and not (cfg.config_path / path.split(f'/blob/{cfg.branch}/')[1]).exists()
            ):
                bad.append(f'{n}: {link}: no such file in the repository')
            if (u.scheme or u.netloc) and not inside: continue
            f = (
                path.split(cfg.doc_baseurl, 1)[1].strip('/') or 'index.html'
                if inside
                else posixpath.normpath(posixpath.join(posixpath.dirname(n), path))
                if path
                else n
            )
            to = f if f in pages else where.get(f)
            if to is None:
                if f not in files: bad.append(f'{n}: {link}: no such page or file')
                elif tag != 'img' and not any(fnmatch(f, g) for g in q['project']['resources']):
                    bad.append(
                        f'{n}: {link}: exists, but no pattern of `resources` in _quarto.yml takes it to '
                        'the site'
                    )
            elif anchor and anchor not in seen[to].ids and f'{f}#{anchor}' not in known:
                bad.append(
                    f'{n}: {link}: {to} has no heading with that anchor; nearest: '
                    f'{" ".join(get_close_matches(anchor, seen[to].ids)) or "none"}'
                )
    return list(dict.fromkeys(bad)), len(pages), count

if __name__ == '__main__':  # nbdev's workers spawn
    from nbdev.config import get_config
    cfg = get_config()
    '--check' in sys.argv or build(cfg)
    bad, n, links = check(cfg)
    print(*bad, sep='\n')
    if bad: sys.exit(f'{len(bad)} faults in the site')
    print(n, 'pages,', links, 'links')
