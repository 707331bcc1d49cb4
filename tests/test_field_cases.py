"""Every field case for real: its make.py, its run.sh with the command line of this environment, and what its
expect.md says of the outcome. Minutes each where it trains; the cases lie beside the checkout."""
import csv, json, os, re, shutil, stat, subprocess, sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FIELD = ROOT.parent / 'shared/data/field'
CASES = sorted(path.name for path in FIELD.glob('[0-9]*')) if FIELD.is_dir() else []
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CASES, reason=f'the field cases do not lie beside the checkout ({FIELD})'),
]
NOTEBOOK = ROOT / 'nbs/20_emotion.ipynb'
# make.py of two cases calls functions by names that moved
OLD_NAMES = """
import runpy, sys, types
import csm_expressive_nb.core as core
from csm_expressive_nb.core.files import assets
from csm_expressive_nb.data.folders import read_corpus
core.assets = assets
corpora = types.ModuleType('csm_expressive_nb.corpora')
corpora.read_corpus = read_corpus
sys.modules[corpora.__name__] = corpora
runpy.run_path(sys.argv.pop(1))
"""

# ---- helpers -----------------------------------------------------------------------------------------------

class Result(NamedTuple):
    "What a case printed, and the folder it ran in"
    folder: Path
    code: int
    output: str

@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Path:
    "A folder that counts as a project: the cases share its cache"
    folder = tmp_path_factory.mktemp('field')
    (folder / 'settings.ini').write_text('[DEFAULT]\n', encoding='utf-8')
    return folder

def environment(folder: Path) -> dict[str, str]:
    "The variables that every run.sh reads"
    python = f'{sys.executable} -W ignore'
    names = dict(CE=f'{python} -m csm_expressive_nb.cli', PY=python, SITE=sys.prefix, PYTHONPATH=str(ROOT))
    names['PM'] = f'{python} -m papermill --no-progress-bar {NOTEBOOK} {folder}/out.ipynb'
    return os.environ | names | dict(OMP_NUM_THREADS='1', PYTHONUNBUFFERED='1')

def copy_case(project: Path, number: str) -> Path:
    "A case in a folder of its own, with its input"
    source = next(FIELD / name for name in CASES if name.startswith(f'{number}_'))
    folder = project / source.name
    folder.mkdir()
    for file in source.iterdir(): shutil.copyfile(file, folder / file.name)
    if (folder / 'make.py').exists() and number != '27':
        made = [sys.executable, '-c', OLD_NAMES, 'make.py']
        subprocess.run(made, cwd=folder, env=environment(folder), check=True, capture_output=True)
    return folder

def run_case(project: Path, number: str, **variables) -> Result:
    "A case by its run.sh; no output may hold a traceback of the command line"
    folder = copy_case(project, number)
    return run_script(folder, **variables)

def run_script(folder: Path, **variables) -> Result:
    job = ['bash', 'run.sh']
    end = subprocess.run(job, cwd=folder, env=environment(folder) | variables, capture_output=True)
    output = (end.stdout + end.stderr).decode('utf-8', 'replace').replace('\r', '\n')
    if 'papermill' not in output: assert 'Traceback' not in output, output
    return Result(folder, end.returncode, output)

def facts(folder: Path) -> dict:
    "What a dataset says of itself"
    return json.loads((folder / 'dataset.json').read_text(encoding='utf-8'))

def reasons(folder: Path) -> list[str]:
    with open(folder / 'rejected.csv', newline='', encoding='utf-8') as file:
        return [row['reason'] for row in csv.DictReader(file)]

def assert_prepared(result: Result, clips: int, *words: str, out: str = 'out'):
    "A whole dataset of so many clips, nothing of them lost"
    assert result.code == 0, result.output
    assert f'{clips} clips in {out} (' in result.output
    assert facts(result.folder / out)['complete']
    assert facts(result.folder / out)['clips'] == clips
    for word in words: assert word in result.output, result.output

def error_lines(result: Result) -> list[str]:
    return [line.strip() for line in result.output.split('\n') if 'error: ' in line]

def assert_refused(result: Result, *words: str):
    "One line with these words, and no dataset"
    (line,) = error_lines(result)
    for word in words: assert word in line, line
    assert result.code == 1
    assert not list(result.folder.glob('out*/data/*'))

def assert_trained(folder: Path, steps: int = 2):
    "A finished run with every step once"
    lines = (folder / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    numbers = [json.loads(line)['step'] for line in lines if 'loss' in json.loads(line)]
    assert numbers == list(range(steps))
    for name in ('report.json', 'index.html', 'adapter/adapter_model.safetensors'):
        assert (folder / name).stat().st_size

# ---- tables and recordings ---------------------------------------------------------------------------------

def test_every_case_has_a_test():
    tests = [name for name in globals() if re.match(r'test_\d\d', name)]
    numbers = {number for name in tests for number in re.findall(r'(?<=_)\d\d(?=_)', name)}
    assert numbers == {name[:2] for name in CASES}

def test_01_a_quote_that_swallows_rows(project):
    assert_refused(run_case(project, '01'), 'metadata.csv, line 6', 'begins with a quote')

def test_03_cp1252(project):
    result = run_case(project, '03')
    assert_prepared(result, 24, "note: not UTF-8", 'cp1252', 'metadata.csv', "if 'Straße' is not")
    card = (result.folder / 'out/README.md').read_text(encoding='utf-8')
    assert not re.search('[\u4e00-\u9fff]', result.output + card)

def test_04_line_ends_of_a_mac(project):
    assert_prepared(run_case(project, '04'), 24)

def test_05_bars_between_columns(project):
    result = run_case(project, '05')
    assert_prepared(result, 24, out='out2')
    (line,) = error_lines(result)
    assert "metadata.csv has LJSpeech's layout" in line
    assert 'make its first line file|text|normalized' in line

def test_06_07_names_typed_otherwise(project):
    assert_prepared(run_case(project, '06'), 24, r'(first: wavs\00.wav is wavs/00.wav)')
    assert_prepared(run_case(project, '07'), 24, '(first: 00 is 00.wav)')

def test_08_blanks_in_the_header(project):
    result = run_case(project, '08')
    assert_prepared(result, 24)
    assert 'without a text' not in result.output
    assert 'one speaker' not in result.output

def test_10_a_broken_line_of_json(project):
    assert_refused(run_case(project, '10'), 'metadata.jsonl, line 8: no JSON')

def test_11_a_header_without_a_length(project):
    result = run_case(project, '11')
    assert_refused(result, 'does not say how long it is', 'convert it to WAV or FLAC')
    assert 'truncated' not in result.output

def test_13_formats_that_are_not_read(project):
    result = run_case(project, '13')
    causes = '24 files are .m4a', '24 files are .aiff', '12 of 24 recordings'
    for line, words in zip(error_lines(result), causes, strict=True):
        assert words in line
        assert 'convert to WAV or FLAC' in line
    assert not list(result.folder.glob('out*/data/*'))

def test_14_a_file_name_in_latin_1(project):
    result = run_case(project, '14')
    if result.code: return assert_refused(result, 'rename')
    assert_prepared(result, 23)
    assert len(reasons(result.folder / 'out')) == 1

def test_15_links_that_lead_back(project):
    assert_prepared(run_case(project, '15'), 24)

def test_16_suffixes_in_capitals(project):
    assert_prepared(run_case(project, '16'), 8)

def test_17_emodb_as_published(project):
    result = run_case(project, '17')
    assert '454 clips in ' in result.output
    assert '81 unknown_emotion' in result.output
    for line in error_lines(result): assert 'has no option --own' in line   # which no message offered
    assert 'rejected as' not in result.output

def test_19_channels_that_cancel_each_other(project):
    result = run_case(project, '19')
    if result.code: assert_refused(result, 'channel')
    else: assert_prepared(result, 24)
    assert 'digital silence' not in result.output

def test_20_one_speaker_in_three_spellings(project):
    assert_prepared(run_case(project, '20'), 24, "'Ann' (also 'ANN', 'ann')")

def test_21_a_chapter_among_sentences(project):
    result = run_case(project, '21')
    for model, seconds in (('nano', 81), ('csm-1b', 163)):
        assert f'too long for {model}, which takes {seconds} s: chapter.flac (400 s)' in result.output
    (line,) = error_lines(result)
    assert line.startswith('error: chapter.flac (400 s): longer than the 82 s')
    assert 'encode' not in result.output
    assert 'positions does not fit' not in result.output

def test_37_38_kinds_of_wav_and_leftovers(project):
    result = run_case(project, '37')
    assert_prepared(result, 24, '0 files rejected')
    result = run_case(project, '38')
    assert_prepared(result, 24)
    assert set(reasons(result.folder / 'out')) <= {'not_audio'}

# ---- machines ----------------------------------------------------------------------------------------------

def test_22_no_git(project):
    result = run_case(project, '22')
    assert result.code == 0
    assert json.loads((result.folder / 'run/environment.json').read_text('utf-8'))['commit'] == 'no git'
    assert_trained(result.folder / 'run')

def test_23_variables_of_a_proxy(project):
    socks, invalid = error_lines(run_case(project, '23'))
    for word in ('ALL_PROXY', 'httpx[socks]', '--source'): assert word in socks
    for word in ('NO_PROXY', 'Invalid port', '--source'): assert word in invalid

needs_root = pytest.mark.skipif(
    not shutil.which('unshare') or os.name != 'posix' or os.geteuid() != 0, reason='needs root and `unshare`'
)

@needs_root
def test_24_a_home_that_cannot_be_written(project, tmp_path):
    assert_prepared(run_case(project, '24', HOME=str(tmp_path)), 24)

@pytest.mark.skipif(not shutil.which('localedef'), reason='needs `localedef`')
def test_26_a_chinese_locale(project, tmp_path):
    made = ['localedef', '-i', 'zh_CN', '-f', 'GBK', '--no-archive', str(tmp_path / 'zh_CN.GBK')]
    subprocess.run(made, capture_output=True)
    if not (tmp_path / 'zh_CN.GBK').exists(): pytest.skip('this machine has no zh_CN.GBK')
    result = run_case(project, '26', LOCPATH=str(tmp_path))
    assert_prepared(result, 22, '2 unknown_emotion')
    assert '开心' in (result.folder / 'out/rejected.csv').read_text(encoding='utf-8')

# ---- runs --------------------------------------------------------------------------------------------------

def test_27_run_all_twice(project, tmp_path):
    script = tmp_path / 'python.sh'      # run.sh names no notebook, make.py wants one
    script.write_text(f'exec {sys.executable} "$@" {NOTEBOOK}\n', encoding='utf-8')
    result = run_case(project, '27', PY=f'bash {script}')
    assert result.code == 0
    assert [line for line in result.output.split('\n') if line.endswith(' ok')] == ['sad ok', 'happy ok']

def test_28_a_failed_start(project):
    result = run_case(project, '28')
    (line,) = error_lines(result)
    assert "source 'nowhere' not found" in line
    assert result.code == 0
    assert_trained(result.folder / 'run')

def test_29_two_runs_in_one_folder(project):
    result = run_case(project, '29')
    logs = [(result.folder / name).read_text(encoding='utf-8') for name in ('a.log', 'b.log')]
    refused = [log for log in logs if re.search(r'error: process \d+ is training in run: wait', log)]
    assert len(refused) == 1
    assert_trained(result.folder / 'run', 6)

@needs_root
@pytest.mark.parametrize('size', ['4m', '1m'])          # 4 MB hold a whole run by now
def test_31_a_full_disk(size, project):
    folder = copy_case(project, '31')
    script = (folder / 'run.sh').read_text(encoding='utf-8').replace('size=4m', f'size={size}')
    (folder / 'run.sh').write_text(script, encoding='utf-8')
    result = run_script(folder)
    shutil.rmtree(folder)
    assert result.code == 0
    assert 'report: t/run/report.json' in result.output
    for line in error_lines(result):
        assert 'make room, then run the same command again; it resumes' in line
        assert 't/run' in line
    assert len(error_lines(result)) == (size == '1m')

def test_32_another_working_directory(project):
    result = run_case(project, '32')
    assert result.code == 0
    assert not error_lines(result)
    assert (result.folder / 'run/intensity.json').exists()

def test_33_34_an_adapter_that_is_passed_on(project):
    result = run_case(project, '33')
    for file in (result.folder / 'run/adapter').iterdir(): assert stat.S_IMODE(file.stat().st_mode) == 0o644
    result = run_case(project, '34')
    assert '"base_model_name_or_path": "nano"' in result.output

def test_35_values_of_papermill(project):
    result = run_case(project, '35')
    assert 'ValueError: out = 202405: Input should be a valid string; papermill' in result.output
    assert '`-r out 2024_05`' in result.output
    assert "ValueError: emotion = 'Sad': lower-case: sad" in result.output
    assert not (result.folder / 'run').exists()

def test_36_a_name_on_the_hub(project):
    result = run_case(project, '36')
    (line,) = error_lines(result)
    assert 'unknown model' not in line
    assert 'csm-1b' in result.output or 'validate_every' in line      # its settings: taken for the preset
    assert not (result.folder / 'run').exists()                       # the corrected command may use it
