"""The dashboard, the pages of a run and the listening test in a real browser: players play, headings sort,
charts draw what the JSON says, nothing leaves the machine."""
import json, re, shutil, subprocess, sys
from pathlib import Path

import pytest, soundfile as sf

from browser import browser, need_browser
from run_folders import HOSTILE, ROOT, SAMPLE_RATE, run_folder
from csm_expressive_nb.core.files import read_json
from csm_expressive_nb.core.config import make_config
from csm_expressive_nb.core.run import Run
from csm_expressive_nb.report.dashboard import dashboard
from csm_expressive_nb.data.dataset import open_dataset

EMOTIONS = 'sad', 'happy', 'angry'

@pytest.fixture(scope='module')
def comparison(tmp_path_factory):
    "(what `dashboard` returns, the folder of its runs)"
    folder = tmp_path_factory.mktemp('runs')
    n_clips = dict(sad=1000, happy=4, angry=4)
    runs = [run_folder(folder / emotion, emotion, n_clips[emotion]) for emotion in EMOTIONS]
    (folder / 'angry/intensity.json').unlink()
    return dashboard(runs, folder / 'dashboard.html', show=False), folder

@pytest.fixture(scope='module')
def chrome():
    with browser() as chromium: yield chromium

def until(page, expression: str, seconds: float = 10):
    """Wait for a JavaScript expression; playwright's own way evaluates strings in the page, which its
    security policy forbids"""
    for _ in range(int(seconds * 20)):
        if page.evaluate(expression): return
        page.wait_for_timeout(50)
    raise AssertionError(f'{expression} did not become true in {seconds} s')

def open_page(chrome, path, **options):
    "A page with everything that must not happen collected in `errors`"
    page = chrome.new_page(viewport=dict(width=1300, height=900), **options)
    page.errors = []

    def on_console(message):
        if message.type in ('error', 'warning'):
            page.errors.append(f'{message.type}: {message.text}')

    def on_dialog(dialog):
        page.errors.append('dialog')
        dialog.dismiss()

    def on_request(request):
        is_local = request.url.startswith(('file:', 'blob:', 'data:'))
        if not is_local: page.errors.append(f'asked for {request.url}')

    page.on('console', on_console)
    page.on('pageerror', lambda error: page.errors.append(str(error)))
    page.on('dialog', on_dialog)
    page.on('request', on_request)
    page.goto(Path(path).as_uri())
    return page

@pytest.fixture(scope='module')
def page(comparison, chrome):
    "The dashboard; at the end nothing may have gone wrong"
    page = open_page(chrome, comparison[0]['path'])
    yield page
    assert page.errors == []
    page.close()

def accuracies(folder: Path) -> list[float]:
    "Of every run, as its report says"
    reports = [read_json(folder / emotion / 'report.json') for emotion in EMOTIONS]
    return [report['target_emotion_accuracy']['adapter']['value'] for report in reports]

@need_browser
def test_a_heading_sorts_and_sorts_back(comparison, page):
    heading = page.locator('table.sort thead [data-column=judged]')

    def column():
        return [float(cell.get_attribute('data-v'))
                for cell in page.locator('table.sort tbody [data-column=judged]').all()]

    heading.get_by_role('button').click()
    assert column() == sorted(accuracies(comparison[1]), reverse=True)
    heading.get_by_role('button').click()
    assert column() == sorted(accuracies(comparison[1])) and heading.get_attribute('aria-sort') == 'ascending'

@need_browser
def test_what_was_not_measured_stays_last(page):
    heading = page.locator('table.sort thead [data-column=rises]')
    for _ in range(2):
        heading.get_by_role('button').click()
        assert page.locator('table.sort tbody tr').last.locator('th').inner_text().startswith('angry')

@need_browser
def test_rows_are_filtered(page):
    page.fill('#filter', 'happy')
    assert page.locator('table.sort tbody tr:visible').count() == 1
    page.fill('#filter', '')
    assert page.locator('table.sort tbody tr:visible').count() == 3

@need_browser
def test_columns_are_picked_and_empty_ones_left_out(page):
    headings = page.locator('table.sort thead th[data-column]')
    assert headings.locator('visible=true').count() < headings.count()
    assert not page.locator('[data-column=per]').count()                       # no run has it
    assert 'phoneme error rate' in page.locator('body').inner_text()           # and that is said
    page.click('.picker summary')
    page.check('.picker input[data-column=recall]')
    assert page.locator('thead [data-column=recall]').is_visible()
    page.uncheck('.picker input[data-column=drift]')
    page.uncheck('.picker input[data-column=untagged]')
    assert not page.locator('[data-group=Forgetting]').is_visible()
    page.check('.picker input[data-column=drift]')
    assert page.locator('[data-group=Forgetting]').get_attribute('colspan') == '1'
    page.check('.picker input[data-column=untagged]')
    page.click('.picker summary')

@need_browser
def test_the_first_sentence_plays_in_the_table(page):
    button = page.locator('table.sort tbody tr').first.locator('.play').last
    button.click()
    until(page, 'player.currentTime > .05')
    assert button.inner_text().split()[1] in EMOTIONS

@need_browser
def test_charts_draw_what_the_reports_say(comparison, page):
    chart = page.locator('.multiples[data-charts=charts] > div', has_text='target-emotion accuracy')
    chart.scroll_into_view_if_needed()
    chart.locator('.main-svg').first.wait_for()
    plot = f"document.getElementById('{chart.locator('.chart').get_attribute('id')}')"
    drawn = page.evaluate(f'{plot}.data.map(trace => [trace.meta, trace.y[0], trace.x[0]])')
    expected = [list(pair) for pair in zip(EMOTIONS, accuracies(comparison[1]))]
    assert [[name, value] for system, name, value in drawn if system == 'adapter'] == expected
    assert sum(system == 'base' for system, *_ in drawn) == 3
    page.uncheck('#bases')
    assert not page.evaluate(f"{plot}.data.filter(trace => trace.meta === 'base').length")
    assert not page.locator('td .base').first.is_visible()
    page.check('#bases')

@need_browser
def test_curves_are_smoothed_as_far_as_the_slider_says(page):
    training = page.locator('#plot-training')
    training.scroll_into_view_if_needed()
    training.locator('.main-svg').first.wait_for()
    first = "document.getElementById('plot-training').data[0]"
    page.select_option('#curve', 'codebook 0, nats per frame')
    for n in (1, 4):
        page.evaluate(f"byId('smoothing').value = {n}; byId('smoothing').oninput()")
        raw = [2 - i / 20 for i in range(20)]
        assert abs(page.evaluate(f'{first}.y[19]') - sum(raw[-n:]) / n) < 1e-9
    page.select_option('#curve', 'every codebook: sad')
    assert page.evaluate(f'{first}.type') == 'heatmap'

@need_browser
def test_sounds_play_and_pause(comparison, page):
    assert comparison[0]['clips'] == 1000 + 8 + 3 * 8 + 4
    button = page.locator('#clips .play').first
    button.click()
    until(page, 'player.currentTime > .05')
    assert 'on' in button.get_attribute('class')
    assert abs(page.evaluate('player.duration') - 0.5) < 0.01
    until(page, 'player.ended')
    assert 'on' not in button.get_attribute('class')
    scaled = page.locator('#dials .play').nth(1)
    scaled.click()
    until(page, '!player.paused && player.currentTime > .05')
    scaled.click()
    assert page.evaluate('player.paused')
    assert page.evaluate("document.getElementById('note').textContent") == ''

@need_browser
def test_clips_are_found(page, tmp_path):
    page.select_option('#origin', 'evaluation')
    assert page.locator('#clips tr').count() == 50 and '500 rows' in page.locator('#count').inner_text()
    page.click('#more')
    assert page.locator('#clips tr').count() == 100
    page.fill('#find', 'sentence 499.')
    assert page.locator('#clips tr').count() == 1
    page.screenshot(path=tmp_path / 'light.png', full_page=True)

@need_browser
def test_what_is_missing_is_said_and_text_stays_text(page):
    page.click('#missing summary')
    assert 'no intensity.json' in page.locator('#missing').inner_text()
    assert HOSTILE in page.evaluate("data.clips.find(clip => clip.origin === 'samples').text")
    assert not page.locator('img').count()

@need_browser
def test_a_thousand_clips_stay_usable(comparison, chrome):
    page = open_page(chrome, comparison[0]['path'])
    timing = 'performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart'
    ready = page.evaluate(timing)
    print(f'{comparison[0]["megabytes"]} MB, {comparison[0]["clips"]} clips: ready after {ready} ms')
    assert ready < 15_000 and page.evaluate('document.querySelectorAll("audio").length') == 0
    page.select_option('#origin', 'evaluation')
    draw_all = (
        '(() => { const start = performance.now(); rowLimit = 1000; listen(); '
        'return performance.now() - start; })()'
    )
    milliseconds = page.evaluate(draw_all)
    print(f'1000 buttons drawn in {milliseconds:.0f} ms')
    assert page.locator('#clips .play').count() >= 990 and milliseconds < 3000
    page.close()

def luminance(colour: str) -> float:
    "Of an sRGB colour as browsers write it"
    channels = [int(text) / 255 for text in colour[colour.index('(') + 1 : -1].split(',')[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

@need_browser
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_and_charts_are_readable(comparison, chrome, scheme):
    page = open_page(chrome, comparison[0]['path'], color_scheme=scheme)
    page.locator('#plot-charts-0').scroll_into_view_if_needed()
    page.locator('#plot-charts-0 .main-svg').first.wait_for()
    text, background, tick = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor, "
        "getComputedStyle(document.querySelector('#plot-charts-0 .xtick text')).fill]"
    )
    for colour in (text, tick):
        darker, lighter = sorted((luminance(colour), luminance(background)))
        assert (lighter + 0.05) / (darker + 0.05) > 7
    assert (luminance(background) > 0.9) == (scheme == 'light') and page.errors == []
    page.close()

@need_browser
def test_a_runs_own_page_plays(chrome, comparison, tmp_path):
    from csm_expressive_nb.report.pages import write_page
    folder = shutil.copytree(comparison[1] / 'sad', tmp_path / 'sad')
    report = read_json(folder / 'report.json')
    cfg = make_config(**report['config'] | dict(out=''))
    (folder / 'figures').mkdir()
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0h9v9"/></svg>'
    for name in ('before_after', 'gap', 'profile', 'judge', 'training', 'intensity', 'evaluation'):
        (folder / f'figures/{name}.svg').write_text(drawing)
    page = open_page(chrome, write_page(Run.open(folder, cfg), report))
    page.evaluate("document.querySelector('audio').play()")
    until(page, "document.querySelector('audio').currentTime > .05")
    images = "[...document.images].filter(image => !image.src.endsWith('/x'))"
    assert page.evaluate(f'{images}.every(image => image.naturalWidth > 0)') and page.errors == []
    page.close()

def rate_trial(page):
    "Hear both sounds of a trial, answer with the keyboard, and wait for the next one"
    progress = page.locator('#progress').inner_text()
    assert page.locator('#choose button').first.is_disabled()
    page.keyboard.press('a')
    until(page, 'heard[0] > 0')
    page.keyboard.press('b')
    page.locator('#choose button:enabled').first.wait_for()
    page.keyboard.press('5')
    until(page, f'document.getElementById("progress").innerText !== {json.dumps(progress)}')

@need_browser
def test_the_listening_test_is_taken(chrome, tmp_path):
    from csm_expressive_nb.evaluation.listening import make_checker, make_test, read_answer_rows, render_test
    from csm_expressive_nb.report.listening_page import listening_page
    ds = open_dataset()
    clips = []
    for i, clip in enumerate(ds.select(emotion='neutral')[:4]):
        for system, gain in (('base', 1), ('adapter', 0.5)):
            file = tmp_path / f'{i}_{system}.wav'
            sf.write(file, ds.audio(clip)[:8_000] * gain, SAMPLE_RATE)
            clips.append(dict(file=str(file), system=system, emotion='sad', text=clip.text,
                              voice=clip.speaker, seed='0'))
    plan, key = make_test(clips, kinds=('cmos',), n=3)
    render_test(plan, key, tmp_path / 't', tmp_path / 'key.json')
    page = open_page(chrome, listening_page(plan, tmp_path / 't', tmp_path / 't/index.html'))
    page.fill('#rater', 'ann')
    page.get_by_role('button', name='Start').click()
    for _ in plan['trials']: rate_trial(page)
    with page.expect_download() as download: page.get_by_role('button', name='Download').click()
    download.value.save_as(tmp_path / 'ann.csv')
    rows = read_answer_rows(tmp_path / 'ann.csv')
    check = make_checker(plan)
    assert len(rows) == len(plan['trials']) and {check(row) for row in rows} == {''} and page.errors == []
    page.close()

@pytest.mark.slow
def test_the_comparison_runs_as_a_notebook(comparison, tmp_path):
    folder = comparison[1]
    runs = f"runs: [{folder / 'happy'}, {folder / 'angry'}]"
    page, notebook = tmp_path / 'd.html', tmp_path / 'o.ipynb'
    command = [sys.executable, '-m', 'papermill', str(ROOT / 'nbs/24_compare.ipynb'), str(notebook),
               '-y', runs, '-p', 'out', str(page), '-p', 'sound', 'mp3']
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    text = notebook.read_text()
    assert re.search(r'csm_expressive scale-sweep \S*angry', text) and 'not measured' in text
    assert text.count('image/png') >= 4 and page.stat().st_size > 4e6
