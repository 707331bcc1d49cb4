"""The dashboard, the pages of a run and the listening test in a real browser: players play, headings sort,
charts draw what the JSON says, nothing leaves the
machine."""
import json, shutil
from pathlib import Path

import numpy as np, pytest, soundfile as sf, yaml

from browser import browser, need_browser
from csm_expressive_nb.core import EmotionConfig, make_config, read_json, write_json
from csm_expressive_nb.dashboard import dashboard
from csm_expressive_nb.dataset import dataset_of

ROOT = Path(__file__).parents[1]
EVIL = '<img src=x onerror="alert(1)">'

def run_folder(folder: Path, emotion: str, clips: int) -> Path:
    """A run folder around a committed report, with recordings of the corpus for its sound and `clips`
    clips of an evaluation"""
    report = read_json(ROOT / f'nbs/results/{emotion}.json')
    folder.mkdir()
    (folder / 'config.yaml').write_text(
        yaml.safe_dump(make_config(EmotionConfig, **report['config'] | dict(out='')).model_dump())
    )
    ds = dataset_of()
    sounds = [ds.audio(c)[:12_000] for c in ds.select(emotion=emotion)[:20]]
    for d in ('samples', 'evaluation/audio', 'intensity/audio'):
        (folder / d).mkdir(parents=True)
    for i, s in enumerate(report['samples']):
        s['text'] = f'{EVIL} {i}'
        for k in ('base', emotion):
            sf.write(folder / s[k]['file'], sounds[i] * (0.5 if k == 'base' else 1), 24_000)
    rows = ['file,system,emotion,text,voice,seed']
    for i in range(clips):
        f = f'audio/{i:04}.flac'
        sf.write(folder / 'evaluation' / f, np.roll(sounds[i % 20], i), 24_000)
        rows.append(
            f'{f},{"base" if i % 2 else "adapter"},{"" if i % 2 else emotion},Sentence '
            f'{i // 2}.,{i // 2 % 4},0'
        )
    (folder / 'evaluation/clips.csv').write_text('\n'.join(rows) + '\n')
    write_json(folder / 'report.json', report)
    write_json(folder / 'ended.json', dict(best_update=None))
    v = lambda x: dict(value=x, low=x - 0.1, high=x + 0.1, n=4)
    scales = [0.0, 1.0]
    shots = []
    for i, s in enumerate(scales):
        sf.write(folder / f'intensity/audio/{i}.flac', sounds[i], 24_000)
        shots.append(
            dict(file=f'audio/{i}.flac', emotion=emotion, scale=s, text='The dial.', voice='1', ended=True)
        )
    write_json(
        folder / 'intensity.json',
        dict(
            scales=scales,
            clips=shots,
            emotions={
                emotion: dict(
                    scales=scales,
                    rises=v(0.8),
                    values=dict(judged=dict(label='judged as asked', at=[v(0.1), v(0.9)])),
                )
            },
        ),
    )
    (folder / 'metrics.jsonl').write_text(
        ''.join(
            json.dumps(
                dict(
                    step=i,
                    loss=6 - i / 10,
                    c0=2 - i / 20,
                    depth=4.0,
                    codebooks=[2.0 - i / 20, 4.0, 3.0],
                    lr=1e-3,
                    grad_norm=1.0,
                )
            )
            + '\n'
            for i in range(20)
        )
    )
    return folder

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    d = tmp_path_factory.mktemp('runs')
    runs = [run_folder(d / e, e, n) for e, n in (('sad', 1000), ('happy', 4), ('angry', 4))]
    (d / 'angry/intensity.json').unlink()
    return dashboard(runs, d / 'dashboard.html', show=False), d

@pytest.fixture(scope='module')
def chrome():
    with browser() as b: yield b

def until(p, expression: str, seconds: float = 10):
    """Wait for a JavaScript expression; playwright's own way evaluates strings in the page, which its
    security policy forbids"""
    for _ in range(int(seconds * 20)):
        if p.evaluate(expression): return
        p.wait_for_timeout(50)
    raise AssertionError(f'{expression} did not become true in {seconds} s')

def opened(chrome, path, **kw):
    "A page with everything that must not happen collected in `wrong`"
    p = chrome.new_page(viewport=dict(width=1300, height=900), **kw)
    p.wrong = []
    p.on(
        'console', lambda m: p.wrong.append(f'{m.type}: {m.text}') if m.type in ('error', 'warning') else None
    )
    p.on('pageerror', lambda e: p.wrong.append(str(e)))
    p.on('dialog', lambda d: (p.wrong.append('dialog'), d.dismiss()))
    p.on(
        'request',
        lambda r: (
            p.wrong.append(f'asked for {r.url}')
            if not r.url.startswith(('file:', 'blob:', 'data:'))
            else None
        ),
    )
    p.goto(Path(path).as_uri())
    return p

@need_browser
def test_the_dashboard_works(made, chrome, tmp_path):
    info, d = made
    assert info['clips'] == 1000 + 8 + 3 * 8 + 4
    p = opened(chrome, info['path'])
    head = p.locator('table.sort th', has_text='judged as asked')
    order = lambda: [
        x.get_attribute('data-v') for x in p.locator('table.sort tbody tr td:nth-child(4)').all()
    ]
    head.get_by_role('button').click()
    down = order()
    head.get_by_role('button').click()
    up = order()
    want = sorted(
        read_json(d / e / 'report.json')['judged_as_target']['adapter']['value']
        for e in ('sad', 'happy', 'angry')
    )
    assert (
        [float(x) for x in up] == want and down == up[::-1] and head.get_attribute('aria-sort') == 'ascending'
    )
    # not measured: last, both ways
    rises = p.locator('table.sort th', has_text='dial rises')
    rises.get_by_role('button').click()
    assert p.locator('table.sort tbody tr').last.locator('td').first.inner_text() == 'angry'
    rises.get_by_role('button').click()
    assert p.locator('table.sort tbody tr').last.locator('td').first.inner_text() == 'angry'
    p.fill('#filter', 'happy')
    assert p.locator('table.sort tbody tr:visible').count() == 1
    p.fill('#filter', '')
    p.locator('#plot-charts .main-svg').first.wait_for()
    drawn = p.evaluate("document.getElementById('plot-charts').data.map(t => [t.name, t.y[0]])")
    assert drawn == [
        [e, read_json(d / e / 'report.json')['judged_as_target']['adapter']['value']]
        for e in ('sad', 'happy', 'angry')
    ]
    p.select_option('[data-chart=training]', 'every codebook: sad')
    p.locator('#plot-training').scroll_into_view_if_needed()
    p.locator('#plot-training .main-svg').first.wait_for()
    assert p.evaluate("document.getElementById('plot-training').data[0].type") == 'heatmap'
    play = p.locator('#clips .play').first
    play.click()
    until(p, 'player.currentTime > .05')
    assert 'on' in play.get_attribute('class')
    assert abs(p.evaluate('player.duration') - 0.5) < 0.01
    until(p, 'player.ended')
    assert 'on' not in play.get_attribute('class')
    other = p.locator('#dials .play').nth(1)
    other.click()
    until(p, '!player.paused && player.currentTime > .05')
    other.click()
    assert p.evaluate('player.paused') and p.evaluate("document.getElementById('note').textContent") == ''
    p.select_option('#origin', 'evaluation')
    assert p.locator('#clips tr').count() == 50 and '500 rows' in p.locator('#count').inner_text()
    p.click('#more')
    assert p.locator('#clips tr').count() == 100
    p.fill('#find', 'sentence 499.')
    assert p.locator('#clips tr').count() == 1
    p.click('#lacks summary')
    assert (
        'no intensity.json' in p.locator('#lacks').inner_text()
        and EVIL in p.evaluate("D.clips.find(c => c.origin === 'samples').text")
        and not p.locator('img').count()
    )
    assert p.wrong == []
    p.screenshot(path=tmp_path / 'light.png', full_page=True)
    p.close()

@need_browser
def test_a_thousand_clips_stay_usable(made, chrome):
    p = opened(chrome, made[0]['path'])
    t = p.evaluate('performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart')
    print(f'{made[0]["megabytes"]} MB, {made[0]["clips"]} clips: ready after {t} ms')
    assert t < 15_000 and p.evaluate('document.querySelectorAll("audio").length') == 0
    p.select_option('#origin', 'evaluation')
    ms = p.evaluate(
        '(() => { const t = performance.now(); shown = 1000; listen(); return performance.now() - t; })()'
    )
    print(f'1000 buttons drawn in {ms:.0f} ms')
    assert p.locator('#clips .play').count() >= 990 and ms < 3000
    p.close()

@need_browser
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_and_charts_are_readable(made, chrome, scheme):
    p = opened(chrome, made[0]['path'], color_scheme=scheme)
    p.locator('#plot-charts').scroll_into_view_if_needed()
    p.locator('#plot-charts .main-svg').first.wait_for()
    text, ground, chart = p.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor, "
        "getComputedStyle(document.querySelector('#plot-charts .xtick text')).fill]"
    )

    def light(c):
        v = [int(x) / 255 for x in c[c.index('(') + 1 : -1].split(',')[:3]]
        return sum(
            w * (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4)
            for w, x in zip((0.2126, 0.7152, 0.0722), v)
        )

    for c in (text, chart):
        a, b = sorted((light(c), light(ground)))
        assert (b + 0.05) / (a + 0.05) > 7
    assert (light(ground) > 0.9) == (scheme == 'light') and p.wrong == []
    p.close()

@need_browser
def test_a_runs_own_page_plays(chrome, made, tmp_path):
    from csm_expressive_nb.core import Run
    from csm_expressive_nb.road import write_page
    f = shutil.copytree(made[1] / 'sad', tmp_path / 'sad')
    report = read_json(f / 'report.json')
    cfg = make_config(**report['config'] | dict(out=''))
    (f / 'figures').mkdir()
    for n in ('before_after', 'gap', 'profile', 'judge', 'training', 'intensity', 'evaluation'):
        shutil.copy(ROOT / 'nbs/images/retention.png', f / f'figures/{n}.png')
    p = opened(chrome, write_page(cfg, Run.open(f, cfg), report))
    p.evaluate("document.querySelector('audio').play()")
    until(p, "document.querySelector('audio').currentTime > .05")
    assert (
        p.evaluate("[...document.images].filter(i => !i.src.endsWith('/x')).every(i => i.naturalWidth > 0)")
        and p.wrong == []
    )
    p.close()

@need_browser
def test_the_listening_test_is_taken(chrome, tmp_path):
    from csm_expressive_nb.listening import checker, listening_page, make_test, read_rows, render_test
    ds = dataset_of()
    clips = []
    for i, c in enumerate(ds.select(emotion='neutral')[:4]):
        for k in ('base', 'adapter'):
            f = tmp_path / f'{i}_{k}.wav'
            sf.write(f, ds.audio(c)[:8_000] * (1 if k == 'base' else 0.5), 24_000)
            clips.append(dict(file=str(f), system=k, emotion='sad', text=c.text, voice=c.speaker, seed='0'))
    plan, key = make_test(clips, kinds=('cmos',), n=3)
    render_test(plan, key, tmp_path / 't', tmp_path / 'key.json')
    p = opened(chrome, listening_page(plan, tmp_path / 't', tmp_path / 't/index.html'))
    p.fill('#rater', 'ann')
    p.get_by_role('button', name='Start').click()
    for _ in plan['trials']:
        n = p.locator('#progress').inner_text()
        assert p.locator('#choose button').first.is_disabled()
        p.keyboard.press('a')
        until(p, 'heard[0] > 0')
        p.keyboard.press('b')
        p.locator('#choose button:enabled').first.wait_for()
        p.keyboard.press('5')
        until(p, f'document.getElementById("progress").innerText !== {json.dumps(n)}')
    with p.expect_download() as got: p.get_by_role('button', name='Download').click()
    got.value.save_as(tmp_path / 'ann.csv')
    rows = read_rows(tmp_path / 'ann.csv')
    wrong = checker(plan)
    assert len(rows) == len(plan['trials']) and {wrong(r) for r in rows} == {''} and p.wrong == []
    p.close()

@pytest.mark.slow
def test_the_comparison_runs_as_a_notebook(made, tmp_path):
    import subprocess, sys
    d = made[1]
    r = subprocess.run(
        [
            sys.executable,
            '-m',
            'papermill',
            str(ROOT / 'nbs/24_compare.ipynb'),
            str(tmp_path / 'o.ipynb'),
            '-y',
            f"runs: [{d / 'happy'}, {d / 'angry'}]",
            '-p',
            'out',
            str(tmp_path / 'd.html'),
            '-p',
            'sound',
            'mp3',
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stderr[-3000:]
    text = (tmp_path / 'o.ipynb').read_text()
    assert (
        'csm_expressive intensity angry' in text
        and 'not measured' in text
        and text.count('image/png') >= 4
        and (tmp_path / 'd.html').stat().st_size > 4e6
    )
