"""Every kind of page, measured in a real browser at the widths of a desk and of a phone, light and dark:
nothing is cut off, players can be used, text can be read"""
import shutil
from pathlib import Path

import pandas as pd, pytest, soundfile as sf

from browser import CONTRAST, browser, need_browser
from run_folders import ROOT, SAMPLE_RATE, run_folder
from csm_expressive_nb.core.config import EmotionConfig, ExpressiveConfig, RetentionConfig, make_config
from csm_expressive_nb.core.files import atomic_write, read_json
from csm_expressive_nb.core.run import Run
from csm_expressive_nb.core.runs import read_run
from csm_expressive_nb.data.dataset import open_dataset
from csm_expressive_nb.evaluation.listening import make_test, render_test
from csm_expressive_nb.report.dashboard import dashboard
from csm_expressive_nb.report.evaluation_figures import dose_figure, evaluation_figure
from csm_expressive_nb.report.evaluation_page import write_evaluation_page
from csm_expressive_nb.report.figures import save_figure
from csm_expressive_nb.report.listening_page import listening_page
from csm_expressive_nb.report.pages import write_figures, write_page
from csm_expressive_nb.report.retention_page import retention_page, save_retention_figure

RESULTS = ROOT / 'nbs/results'
PAGES = 'report', 'many_emotions', 'evaluation', 'dashboard', 'comparison', 'listening', 'studio'

def write_report(folder: Path) -> Path:
    report = read_json(folder / 'report.json')
    run = Run.open(folder, make_config(EmotionConfig, **report['config'] | dict(out='')))
    write_figures(run, report)
    responses = read_json(folder / 'intensity.json')['emotions']
    save_figure(dose_figure(responses), folder / 'figures/intensity.svg')
    return write_page(run, report)

def write_many_emotions(folder: Path) -> Path:
    report = read_json(RESULTS / 'expressive.json')
    run = Run(folder, make_config(ExpressiveConfig, **report['config'] | dict(out='')))
    write_figures(run, report)
    return write_page(run, report)

def write_evaluation(folder: Path) -> Path:
    "The committed evaluation, with four spoken sentences"
    result = read_json(RESULTS / 'evaluation_sad.json')
    rows = []
    for i in range(4):
        for system, emotion in (('base', ''), ('adapter', 'sad')):
            rows.append(dict(file=f'audio/{i}_{system}.flac', system=system, emotion=emotion, seed=0,
                             text=f'The sentence of number {i} is spoken.'))
    save_figure(evaluation_figure(result), folder / 'figures/evaluation.svg')
    return write_evaluation_page(folder, result, rows)

def write_comparison(folder: Path) -> Path:
    report = read_json(RESULTS / 'retention.json')
    table = pd.DataFrame(report['table']).T
    cfg = make_config(RetentionConfig, **report['config'] | dict(out=''))
    by_nll = table.assign(above=pd.Series(report['above_by_nll']))
    save_retention_figure(cfg, table, by_nll, folder / 'figures/retention.svg')
    retention_page(folder / 'index.html', cfg, table, report['verdicts_by_nll'], report['sequences'])
    return folder / 'index.html'

def write_listening(folder: Path) -> Path:
    dataset, clips = open_dataset(), []
    for i, clip in enumerate(dataset.select(emotion='neutral')[:3]):
        for system, gain in (('base', 1), ('adapter', 0.5)):
            file = folder / f'{i}_{system}.wav'
            sf.write(file, dataset.audio(clip)[:8_000] * gain, SAMPLE_RATE)
            clips.append(dict(file=str(file), system=system, emotion='sad', text=clip.text,
                              voice=clip.speaker, seed='0'))
    plan, key = make_test(clips, n=3)
    render_test(plan, key, folder / 'test', folder / 'key.json')
    return listening_page(plan, folder / 'test', folder / 'index.html')

def write_studio(folder: Path, runs: Path) -> Path:
    "What the site shows of the studio's run browser, without a kernel"
    from csm_expressive_nb.report.explorer import RunExplorer
    from csm_expressive_nb.report.html import write_html
    explorer = RunExplorer(str(runs))
    return write_html(folder / 'index.html', 'Studio', '{{ still }}', still=explorer.static_html())

@pytest.fixture(scope='module')
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp('pages')
    for name in ('many', 'comparison', 'listening', 'studio', 'runs'): (folder / name).mkdir()
    runs = [run_folder(folder / f'runs/{emotion}', emotion, 8) for emotion in ('sad', 'angry')]
    report = write_report(runs[0])
    evaluation = write_evaluation(shutil.copytree(runs[1], folder / 'evaluated'))
    return dict(
        report=report,
        many_emotions=write_many_emotions(folder / 'many/run'),
        evaluation=evaluation,
        dashboard=dashboard(runs, folder / 'dashboard.html', show=False)['path'],
        comparison=write_comparison(folder / 'comparison'),
        listening=write_listening(folder / 'listening'),
        studio=write_studio(folder / 'studio', folder / 'runs'),
    )

@pytest.fixture(scope='module')
def chrome():
    with browser() as chromium: yield chromium

MEASURE = f"""() => {{{CONTRAST}""" + """
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest('svg, script, style, option')) continue;
    if (element.matches('button:disabled')) continue;
    const ratio = contrast(element);
    if (ratio < 4.5) faint.push([node.data.trim().slice(0, 40), Math.round(10 * ratio) / 10]);
  }
  const boxes = selector => [...document.querySelectorAll(selector)].filter(e => e.checkVisibility());
  return {
    width: document.documentElement.scrollWidth,
    cut: boxes('.wide').filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText.slice(0, 40)),
    narrowest: Math.min(1e4, ...boxes('audio').map(e => e.getBoundingClientRect().width)),
    unnamed: [...document.images].filter(e => !e.alt).length,
    broken: [...document.images].filter(e => !e.naturalWidth).map(e => e.src.slice(-40)),
    faint,
  };
}"""

@need_browser
@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('name', PAGES)
def test_a_page_fits_and_can_be_read(chrome, pages, name, width):
    page = chrome.new_page(viewport=dict(width=width, height=900), color_scheme='light')
    page.goto(pages[name].as_uri())
    for y in range(0, 9_000, 800):                      # charts are drawn when they come into sight
        page.evaluate(f'scrollTo(0, {y})')
        page.wait_for_timeout(15)
    faint = {}
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        measured = page.evaluate(MEASURE)
        faint[scheme] = measured['faint']
    page.close()
    print(f"{name}, {width} px: page {measured['width']}, narrowest player {measured['narrowest']:.0f}")
    assert measured['width'] <= width
    # ten columns of intervals: this table scrolls within itself where it is no list of cards
    if name != 'comparison': assert measured['cut'] == []
    assert measured['narrowest'] >= 160
    assert measured['unnamed'] == 0 and measured['broken'] == []
    assert faint == dict(light=[], dark=[])

@need_browser
def test_the_measure_sees_what_it_looks_for(chrome, tmp_path):
    page = chrome.new_page(viewport=dict(width=390, height=900))
    file = atomic_write(tmp_path / 'bad.html', """<!doctype html><body style="background:#fff">
<p style="color:#bbb">faint</p><p style="width:600px">wide</p><audio controls style="width:60px"></audio>
<img src="missing.png"><div class="wide" style="overflow:auto"><div style="width:900px">cut</div></div>""")
    page.goto(file.as_uri())
    measured = page.evaluate(MEASURE)
    page.close()
    assert measured['width'] > 390 and measured['narrowest'] < 160 and measured['unnamed'] == 1
    assert measured['broken'] and measured['cut'] and measured['faint'] == [['faint', 1.9]]

def test_a_report_opens_with_its_verdict(pages):
    text = pages['report'].read_text(encoding='utf-8')
    assert text.count('class="state"') == 4
    assert text.index('How much worse is neutral speech predicted?') < text.index('<audio')
    assert read_run(pages['report'].parent).report['judge']
