"""The words that a user reads: strings of the package, the help of its commands, pages, guides and reports
use the field's terms. What a word of this project's earlier versions is called now stands in `WORDS`."""
import ast, json, re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'csm_expressive_nb'

@dataclass
class Word:
    "A word or phrase that is not written"
    pattern: str
    instead: str
    example: str        # the pattern finds it

    def hits(self, text: str) -> list[str]:
        return [match[0] for match in re.finditer(self.pattern, text, re.IGNORECASE)]

WORDS = [
    Word(r'\bjudged as asked\b', 'target-emotion accuracy (SER)', 'judged as asked: 0.95'),
    Word(r'\bjudged\b', 'classified as', 'judged as the emotion'),
    Word(r'\bjudges?\b(?! (of real speech|the|it|them|by)\b)', 'emotion classifier (SER)',
         'the judge finds 1.00'),
    Word(r'\bjudges? of real speech\b', 'SER trained on CREMA-D', 'arousal: judge of real speech'),
    Word(r"\bjudge's (own )?recall\b", 'classifier recall (held-out speakers)', "judge's own recall"),
    Word(r"'s (own )?card\b|\bsee its cards\b", 'classifier performance', "the classifier's card"),
    Word(r'\bshare of the way\b', 'prosody transfer ratio', 'F0, share of the way'),
    Word(r'\bleaks? (in)?to\b|\bthe leak\b', 'prosody shift of untagged text',
         'what leaks into neutral text'),
    Word(r'\byardstick\b', 'reference', 'the yardstick'),
    Word(r'\bthe mark\b', 'control token', 'the mark alone'),
    Word(r'\bunmarked\b', 'untagged', 'unmarked text'),
    Word(r'\bwhat (the base|it) lost\b', 'forgetting on neutral speech (Delta NLL)', 'what the base lost'),
    Word(r'\bdrift\b', 'forgetting (Delta NLL of neutral speech)', 'gain against drift'),
    Word(r'\b(stop|stopp|end)(s|ed)? by (it|them)sel(f|ves)\b', 'EOS rate, or: generation terminated',
         'stopped by itself'),
    Word(r'\brecogni[sz]ed among\b', 'closed-set sentence accuracy', 'sentence recognised among 112'),
    Word(r'\bphoneme errors\b', 'phoneme error rate (PER)', 'phoneme errors'),
    Word(r'\bspeaker, cosine\b|\bsimilarity, cosine\b', 'speaker similarity (SECS)', 'speaker, cosine'),
    Word(r'(?<!RMS )\blevel, dB\b(?! re)', 'RMS level, dB', 'level, dB'),
    Word(r'(?<!speaking )\brate, log2\b', 'speaking rate, log2 (or letters/s)', 'rate, log2'),
    Word(r'\bF0, semitones:? \d', 'median F0 in Hz', 'F0, semitones 86.89'),
    Word(r'\bembedded recordings\b|\brecordings of the embedded\b', 'synthetic reference clips',
         'the embedded recordings'),
    Word(r'\bbase, adapter and recordings\b', 'base, adapter and reference clips',
         'base, adapter and recordings'),
    Word(r'\bagainst people\b', 'prosody shift vs reference clips', 'Prosody against people'),
    Word(r'\bdial rises\b', 'scale-intensity Spearman rho', 'dial rises, rank correlation'),
    Word(r'\bNot there: ', 'Missing results', 'Not there: 2'),
    Word(r'\bthe same, base\b', 'baseline accuracy', 'the same, base'),
    Word(r'\bneutral NLL rise\b', 'Delta NLL neutral, nats/frame', 'neutral NLL rise'),
    Word(r'\bc\d+-\d+\b', 'codebooks_1_7', 'NLL of c1-7'),
    Word(r'\bupdates?\b', 'optimizer steps', '400 updates of 6 clips'),
    Word(r'\brounds? of the data\b|\bpass(es)? over (the|its|them)\b', 'epochs', '200.0 rounds of the data'),
    Word(r'\bgeneral stage\b', 'multi-emotion adapter', 'the general stage'),
    Word(r'\bkilled at any\b', 'resumable', 'Killed at any point, run it again'),
    Word(r'\bpassed over\b', 'skipped', 'what is finished is passed over'),
    Word(r'\bsound to codes\b', 'tokenize audio with the codec', 'Sound to codes, once'),
    Word(r'\bquarantined?\b|\bset aside\b', 'rejected files (rejected.csv)', 'quarantine.csv'),
    Word(r'\bis no folder\b', 'not found', "source 'x' is no folder"),
    Word(r"\bnobody's layout\b", 'unrecognized dataset layout', "is in nobody's layout"),
    Word(r'\bwhose codec\b', 'codec checkpoint', 'Whose codec'),
    Word(r'\bchanges (are|is) dear\b', 'penalised by Fisher information', 'where changes are dear'),
    Word(r'\bdear(er|est)?\b(?!,)|\bsturd(y|ier)\b', 'expensive, slow; more reliable', 'dearer and sturdier'),
    Word(r'\b(base.s|its|own) own (neutral )?speech\b|\bown (neutral )?speech\b|\bspeech of the base\b',
         'self-generated speech', 'own neutral speech'),
    Word(r'\barms?\b', 'methods', 'above the line: 3 of 16 arms'),
    Word(r'(?<!LoRA-)\bscaling line\b', 'LoRA-scaling baseline', 'above the scaling line'),
    Word(r'(?<!speech )\bgates?\b', 'target (not met)', 'exact, bf16: gate missed'),
    Word(r'\bthe road\b', 'pipeline', 'the road to an adapter'),
    Word(r'(?<!fine-)\btuned\b', 'adapter', 'base and tuned'),
    Word(r'\bdoses?\b', 'adapter scale', 'dose and response'),
    Word(r'\bfigures of prosody\b', 'prosodic features', 'six figures of prosody'),
    Word(r'\bturned down\b', 'scaled', 'the adapter turned down'),
    Word(r'\bfree alternative\b', 'zero-cost baseline', 'a free alternative'),
    Word(r'\b(as|are|is) (the|a) ceiling\b', 'topline', 'recordings are the ceiling'),
    Word(r'\bstrangers? to\b', 'disjoint from', 'strangers to the adapter'),
    Word(r'\bheard as wanted\b', 'identified as the target emotion', 'share heard as wanted'),
    Word(r'\brobot speech\b', 'synthetic speech', 'trained on robot speech'),
    Word(r'\bcsm_expressive (prepare|merge|encode|corpora|emotion|finetune|evaluate|intensity)\b',
         'the command of today (cli.OLD_NAMES)', 'run csm_expressive evaluate RUN'),
]

# what a pattern finds and may stay, with the reason
ALLOWED = {
    'driver singer judge pilot': 'a word list of the nano corpus',
    'rehearsal of own speech': 'the name of a method in settings and stored results',
}
ALLOWED_FILES = {
    ('evaluation/judge.py', 'level, dB'): 'names of features, stored in fitted classifiers',
}

def docstrings(tree: ast.Module) -> set[int]:
    "The docstrings of a module, by the id of their nodes"
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node, False)]
    return {id(node.body[0].value) for node in nodes}

def joined(node: ast.JoinedStr) -> str:
    "An f-string with {} for its values"
    return ''.join(part.value if isinstance(part, ast.Constant) else '{}' for part in node.values)

def is_command(path: Path) -> bool:
    return path.parent.name == 'commands' or path.name == 'cli.py'

def python_texts(path: Path) -> list[str]:
    "Strings with a space; docstrings only where they are the help of a command"
    tree = ast.parse(path.read_text(encoding='utf-8'))
    skipped = set() if is_command(path) else docstrings(tree)
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            texts.append(joined(node))
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts += [node.value for node in constants if isinstance(node.value, str) and id(node) not in skipped]
    return [' '.join(text.split()) for text in texts if ' ' in text.strip()]

QUOTED = re.compile(r"""'([^'\n]*)'|"([^"\n]*)"|`([^`]*)`""")

def quoted_texts(code: str) -> list[str]:
    "String literals with a space, of JavaScript or of a Jinja expression"
    texts = [''.join(groups) for groups in QUOTED.findall(code)]       # one of them is not empty
    return [re.sub(r'\$\{[^}]*\}', '{}', text) for text in texts if ' ' in text.strip()]

def page_texts(path: Path) -> list[str]:
    "What a template shows: its text, attributes that are read, and the strings in its expressions"
    page = re.sub(r'\{#.*?#\}', '', path.read_text(encoding='utf-8'), flags=re.S)
    expressions = re.findall(r'\{\{.*?\}\}|\{%.*?%\}', page, re.S)
    texts = [text for expression in expressions for text in quoted_texts(expression)]
    page = re.sub(r'\{%.*?%\}', ' ', re.sub(r'\{\{.*?\}\}', '{}', page, flags=re.S), flags=re.S)
    page = re.sub(r'<(script|style)\b.*?</\1>', '', page, flags=re.S)
    texts += re.findall(r'\b(?:alt|title|aria-label|placeholder)="([^"]+)"', page)
    page = re.sub(r'</?(a|b|code|em|i|small|span|strong)\b[^>]*>', '', page)
    texts += re.split(r'\n\s*\n', re.sub(r'<[^>]*>', '\n\n', page))
    return [' '.join(text.split()) for text in texts if re.search('[a-z]', text, re.IGNORECASE)]

def prose(text: str) -> list[str]:
    "Lines of Markdown without code and addresses"
    text = re.sub(r'^( *)(```|~~~).*?^\1\2', '', text, flags=re.S | re.M)
    text = re.sub(r'`[^`\n]*`', '`code`', re.sub(r'\]\([^)]*\)', ']', text))
    return [line.strip() for line in text.splitlines() if line.strip()]

def markdown_texts(path: Path) -> list[str]:
    if path.suffix == '.md': return prose(path.read_text(encoding='utf-8'))
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    sources = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown']
    return [line for source in sources for line in prose(source)]

READERS = {'.py': python_texts, '.html': page_texts, '.md': markdown_texts, '.ipynb': markdown_texts}

def texts_of(path: Path) -> list[str]:
    if path.suffix == '.js': return quoted_texts(path.read_text(encoding='utf-8'))
    return READERS[path.suffix](path)

def places() -> list[Path]:
    "Every file whose words a user reads"
    modules = sorted(path for path in PACKAGE.rglob('*.py') if path.name != '_modidx.py')
    web = sorted((PACKAGE / 'assets/web').glob('*.html')) + sorted((PACKAGE / 'assets/web').glob('*.js'))
    notebooks = sorted((ROOT / 'nbs').glob('2*.ipynb')) + sorted((ROOT / 'nbs/guides').glob('*.ipynb'))
    return [*modules, *web, ROOT / 'README.md', *notebooks]

PLACES = places()

def without_names(text: str) -> str:
    "A text without code in backticks and file names, which keep their names; rejected.csv has a new one"
    text = re.sub(r'`[^`]*`', lambda code: code[0] if 'csm_expressive' in code[0] else '', text)
    return re.sub(r'[\w/.*-]+\.(json|png|py|ipynb|safetensors)\b', '', text)

def findings(text: str, place: str) -> list[str]:
    "What of a text is to be written otherwise"
    text = without_names(text)
    for phrase in ALLOWED: text = text.replace(phrase, '')
    for file, phrase in ALLOWED_FILES:
        if place.endswith(file): text = text.replace(phrase, '')
    return [f'{hit!r}: write {word.instead}' for word in WORDS for hit in word.hits(text)]

@pytest.mark.parametrize('path', PLACES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_words_are_those_of_the_field(path):
    place = path.relative_to(ROOT).as_posix()
    messages = [
        f'{place}: {finding}\n    {text[:160]}'
        for text in texts_of(path)
        for finding in findings(text, place)
    ]
    assert not messages, '\n'.join(dict.fromkeys(messages))

@pytest.mark.parametrize('word', WORDS, ids=lambda word: word.example)
def test_each_pattern_finds_its_word(word):
    assert word.hits(without_names(word.example))
    assert findings(word.example, '')
    assert not word.hits(word.instead), 'the replacement is what is not to be written'

def test_every_exception_is_in_use():
    texts = {path.relative_to(ROOT).as_posix(): texts_of(path) for path in PLACES}
    for phrase in ALLOWED:
        assert any(phrase in text for lines in texts.values() for text in lines), phrase
    for file, phrase in ALLOWED_FILES:
        lines = [text for place, lines in texts.items() if place.endswith(file) for text in lines]
        assert any(phrase in text for text in lines), (file, phrase)

def test_the_readers_see_what_a_user_sees(tmp_path):
    "Strings of each kind of file, and nothing of its code"
    (tmp_path / 'a.py').write_text(
        'def arm(x):\n    "An arm of it"\n    return f"the arm {x} is" " dear"\n', encoding='utf-8')
    assert python_texts(tmp_path / 'a.py') == ['the arm {} is dear']
    (tmp_path / 'commands').mkdir()
    (tmp_path / 'commands/a.py').write_text('def run():\n    "An arm of it"\n', encoding='utf-8')
    assert python_texts(tmp_path / 'commands/a.py') == ['An arm of it']
    (tmp_path / 'a.html').write_text(
        '{# an arm #}<p title="two arms">{{ arms }} of <b>them</b></p>{{ picture("x", "all the arms") }}'
        '<script>let arms = 1</script>', encoding='utf-8')
    assert page_texts(tmp_path / 'a.html') == ['all the arms', 'two arms', '{} of them']
    (tmp_path / 'a.js').write_text("arms.map(x => say('two arms'), `${x} arms`)", encoding='utf-8')
    assert texts_of(tmp_path / 'a.js') == ['two arms', '{} arms']
    assert prose('An `arm` in [words](arms.html)\n```bash\narms\n```\nend') == ['An `code` in [words]', 'end']
