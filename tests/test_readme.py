"""The README: short enough to be read, and every number in it comes from a committed result"""
import configparser, json, re, struct
from pathlib import Path

import pandas as pd, pytest

import test_guides
from csm_expressive_nb.core.files import assets, read_json
from csm_expressive_nb.report.pages import markdown_table
from csm_expressive_nb.report.retention_page import conclusion
from csm_expressive_nb.report.verdict import (
    MOST_FORGOTTEN, MOST_UNTAGGED, RECALL_SHARE, WORD_SHARE, verdict_rows, verdicts_of,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'nbs/results'
TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')
EMOTIONS = 'sad', 'angry', 'happy'
REPORTS = {emotion: read_json(RESULTS / f'{emotion}.json') for emotion in EMOTIONS}
RETENTION = read_json(RESULTS / 'retention.json')
TIMES = read_json(RESULTS / 'times.json')
WORDS = dict(one=1, two=2, three=3, four=4, five=5, six=6, seven=7, eight=8, nine=9, ten=10, twenty=20)

# ---- what the results say ----------------------------------------------------------------------------------

def count_parameters(file: Path) -> int:
    "Of the model in a safetensors file, without its codec, from the header"
    with open(file, 'rb') as opened:
        header = json.loads(opened.read(struct.unpack('<Q', opened.read(8))[0]))
    total = 0
    for name, tensor in header.items():
        if name == '__metadata__' or name.startswith('codec_model'): continue
        size = 1
        for length in tensor['shape']: size *= length
        total += size
    return total

def one_value(values) -> int:
    "The value that all of them have"
    (value,) = set(values)
    return value

def memory_table() -> str:
    rows = pd.DataFrame(read_json(RESULTS / 'memory.json')['rows']).query("run == 'emotion'")
    peaks = rows.assign(peak=rows.peaks.map(lambda stages: max(stages.values()))).groupby('memory').peak.max()
    return markdown_table([
        {'GPU': 'peak, GiB'} | {f'{size} GB': f'{peak:.1f}' for size, peak in peaks.items()}
    ])

def retention_sentence() -> str:
    table = pd.DataFrame(RETENTION['table']).T
    by_nll = table.assign(above=pd.Series(RETENTION['above_by_nll']))
    return conclusion(by_nll, 'fall').split(' Gain above')[0]

def python_versions() -> tuple[str, str]:
    "The oldest and the newest that is tested"
    settings = configparser.ConfigParser(delimiters=['='])
    settings.read(ROOT / 'settings.ini')
    workflow = (ROOT / '.github/workflows/ci.yml').read_text(encoding='utf-8')
    tested = json.loads(re.search(r'python: (\[.*\])', workflow)[1])
    return settings['DEFAULT']['min_python'], max(tested, key=lambda text: int(text.split('.')[1]))

def limits() -> tuple:
    shares = RECALL_SHARE, MOST_UNTAGGED, WORD_SHARE, MOST_FORGOTTEN
    return tuple(f'{limit:g}'.lstrip('0') for limit in shares)

def n_sentences() -> int:
    return one_value(report['target_emotion_accuracy']['adapter']['n'] for report in REPORTS.values())

def n_voices() -> int: return one_value(len(report['voices']) for report in REPORTS.values())

def many_emotions() -> str:
    many = verdicts_of(read_json(RESULTS / 'expressive.json'))[0]
    return f'{many.adapter}, {many.state}.'

# of a phrase of the README, in which {} are numbers: what the numbers have to be
TRACES = {
    '`nano` ({} million parameters)': lambda: [
        round(count_parameters(assets('nano/model.safetensors')) / 1e6)
    ],
    'Python {} to {}, no GPU': python_versions,
    'About {} minutes after the installation': lambda: [TIMES['main_job_minutes']],
    'about {} minutes:': lambda: [TIMES['checks_minutes']],
    'for {} emotions (happy: `-p steps 800 -p batch 8`)': lambda: [len(REPORTS)],
    '{} sentences in {} voices, all unseen': lambda: [n_sentences(), n_voices()],
    "({} of the classifier's recall; {}; {} of the base; {})": limits,
    '{} seed; the classifier knows these {} voices': lambda: [
        len({report['config']['seed'] for report in REPORTS.values()}), n_voices()
    ],
    '{} optimizer steps, {} seeds:': lambda: [RETENTION['config']['steps'], RETENTION['config']['seeds']],
}
# names that hold a digit, and numbers that are no result
NO_RESULT = re.compile(
    r'csm-1b|csm_1b|Apache-2\.0|`[^`]*`|## Two commands|with one small adapter|trains one small|with one GPU|'
    r'\[one emotion\]|One sentence by|One adapter for all|of two sentences|'
    r'[\w./-]+\.(?:ipynb|svg|png|mp3)'
)

# ---- tests -------------------------------------------------------------------------------------------------

def test_it_is_short():
    words = len(TEXT.split())
    print(words, 'words')
    assert words <= 1000

@pytest.mark.parametrize('phrase', TRACES)
def test_a_number_is_that_of_the_results(phrase):
    pattern = re.escape(phrase).replace(re.escape('{}'), r'([\w.]+)')
    found = re.search(pattern, TEXT)
    assert found, f'{phrase!r} is not in README.md: change the phrase here with the text'
    written = [str(WORDS.get(text.lower(), text)) for text in found.groups()]
    assert written == [str(value) for value in TRACES[phrase]()]

def verdict_table() -> str: return markdown_table(verdict_rows(REPORTS))

@pytest.mark.parametrize('make', [memory_table, verdict_table, retention_sentence, many_emotions])
def test_a_generated_part_is_that_of_the_results(make):
    assert make() in TEXT, 'run .ci/readme'

def test_the_happy_run_had_the_settings_that_are_named():
    for emotion, report in REPORTS.items():
        wanted = (800, 8) if emotion == 'happy' else (400, 6)
        assert (report['config']['steps'], report['config']['batch']) == wanted

def test_the_verdict_of_real_speech_is_undecided_on_sad():
    paired = read_json(RESULTS / 'evaluation_sad.json')['paired']['sad']
    difference = paired['adapter - base']['judged_cremad']
    assert difference['low'] < 0 < difference['high']
    assert 'trained on real speech (CREMA-D) is undecided on sad' in TEXT

def test_no_method_is_above_by_the_classifier():
    assert not [verdict for verdict in RETENTION['verdicts'].values() if verdict.startswith('above')]
    assert 'By the emotion classifier none is' in TEXT

def untraced(text: str) -> list[str]:
    "Numbers, in digits or words, that no trace covers"
    text = re.sub(r'```.*?```', '', text, flags=re.S)
    for part in (memory_table(), verdict_table(), retention_sentence(), many_emotions()):
        text = text.replace(part, '')
    for phrase in TRACES:
        text = re.sub(re.escape(phrase).replace(re.escape('{}'), r'[\w.]+'), '', text)
    text = re.sub(r'\]\([^)]*\)', ']', text)
    text = NO_RESULT.sub('', text)
    words = '|'.join(WORDS)
    return re.findall(rf'(?i)\b(?:{words})\b|[\d.]*\d+(?:\.\d+)?\S*', text)

def test_every_number_is_traced():
    assert untraced(TEXT) == []

def test_an_untraced_number_is_seen():
    assert untraced(TEXT + '\nIt is 7.5 times faster and needs two cores.') == ['7.5', 'two']

def test_every_command_is_one_that_exists():
    fences = re.findall(r'```bash\n(.*?)```', TEXT, re.S)
    lines = [line for fence in fences for line in fence.splitlines()]
    ours = []
    for line in lines:
        ours += [words for words in test_guides.split_commands(line) if words[0] == 'csm_expressive']
    ours += [test_guides.split_commands(text)[0] for text in re.findall(r'`(csm_expressive [^`]*)`', TEXT)]
    assert len(ours) >= 6
    for words in ours: assert test_guides.parse_command(words) is not None
