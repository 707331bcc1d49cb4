"""The studio as its readers meet it: through papermill, as a stored page, and in JupyterLab, driven by a
browser."""
import json, os, re, shutil, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat, pytest
from nbconvert import HTMLExporter

sys.path.insert(0, str(Path(__file__).parent))
from browser import browser, need_browser

ROOT = Path(__file__).parents[1]
STUDIO = ROOT / 'nbs/28_studio.ipynb'
VIEW = 'application/vnd.jupyter.widget-view+json'
HOSTILE = '<img src=x onerror="window.broken = 1">'
# a folder for screenshots, to be looked at
SHOTS = Path(os.environ['SHOTS']) if 'SHOTS' in os.environ else None
ENV = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')

SRC = '() => document.querySelector(".jp-OutputArea audio").src'
HEARD = (
    'async () => { const c = new OfflineAudioContext(1, 1, 24000), d = await c.decodeAudioData(await '
    '(await fetch(document.querySelector(".jp-OutputArea audio").src)).arrayBuffer()); return [d.duration, '
    'Math.max(...d.getChannelData(0))] }'
)

def outputs(p):
    return [
        o
        for c in nbformat.read(p, 4).cells
        if c.cell_type == 'code'
        for o in c.outputs
        if o.output_type in ('execute_result', 'display_data')
    ]

@pytest.mark.slow
def test_papermill_runs_the_studio_without_any_run(tmp_path):
    (tmp_path / 'empty').mkdir()
    out = tmp_path / 'out.ipynb'
    r = subprocess.run(
        [sys.executable, '-m', 'papermill', str(STUDIO), str(out), '-p', 'reports', str(tmp_path / 'empty')],
        cwd=tmp_path,
        env=ENV,
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stderr[-3000:]
    # a progress bar has a view, too
    got = [o.data for o in outputs(out) if VIEW in o.data and 'text/html' in o.data]
    assert [d['text/plain'] for d in got] == ['SpeakPanel', 'RunExplorer', 'DatasetBrowser'] and all(
        0 < len(d['text/html']) < 60_000 for d in got
    )
    assert (
        'csm_expressive emotion sad' in got[0]['text/html']
        and 'data:audio/mpeg' in got[0]['text/html']
        and 'No runs below' in got[1]['text/html']
        and 'data:image/png' in got[2]['text/html']
    )

def test_the_stored_studio_shows_its_fallback_and_no_place_of_this_machine():
    text = STUDIO.read_text(encoding='utf-8')
    assert (
        STUDIO.stat().st_size < 300_000
        and VIEW not in text
        and '"widgets"' not in text
        and not any(p in text for p in ('/work', '/tmp', '/home', str(ROOT)))
    )
    assert [o.data['text/plain'] for o in outputs(STUDIO)] == ['SpeakPanel', 'RunExplorer', 'DatasetBrowser']
    page = HTMLExporter().from_filename(str(STUDIO))[0]
    assert (
        page.count('src="data:audio/mpeg') == 2
        and page.count('alt="waveform, spectrogram and pitch"') == 2
        and 'No runs below' in page
        and 'widget-view' not in page
    )

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@contextmanager
def lab(folder: Path):
    "JupyterLab on a free port of this machine, without a token; killed on leaving, with its kernels"
    port = free_port()
    url = f'http://127.0.0.1:{port}'
    home = folder / '.home'
    news = home / 'config/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}', encoding='utf-8')
    log = open(folder / 'lab.log', 'w', encoding='utf-8')
    env = ENV | dict(
        HOME=str(home),
        JUPYTER_CONFIG_DIR=str(home / 'config'),
        JUPYTER_DATA_DIR=str(home / 'data'),
        JUPYTER_RUNTIME_DIR=str(home / 'runtime'),
        IPYTHONDIR=str(home / 'ipython'),
        JUPYTER_PREFER_ENV_PATH='1',
    )
    p = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'jupyterlab',
            '--no-browser',
            '--ip=127.0.0.1',
            f'--port={port}',
            '--ServerApp.port_retries=0',
            '--IdentityProvider.token=',
            '--ServerApp.disable_check_xsrf=True',
            '--allow-root',
            f'--ServerApp.root_dir={folder}',
            '--LabApp.news_url=',
            '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate',
        ],
        env=env,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        for _ in range(240):
            if p.poll() is not None:
                raise RuntimeError((folder / 'lab.log').read_text(encoding='utf-8')[-2000:])
            try:
                urllib.request.urlopen(f'{url}/api', timeout=2)
                break
            except OSError: time.sleep(0.25)
        yield url
    finally:
        try:
            for s in json.load(urllib.request.urlopen(f'{url}/api/sessions', timeout=5)):
                urllib.request.urlopen(
                    urllib.request.Request(f"{url}/api/sessions/{s['id']}", method='DELETE'), timeout=10
                )
        except (OSError, ValueError): pass
        try:
            os.killpg(p.pid, 15)
        except ProcessLookupError: pass
        try:
            p.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, 9)
            p.wait()
        log.close()

def adapter(folder: Path):
    """A run folder with an adapter that was never trained: random numbers, which is enough to hear that
    strength matters"""
    from csm_expressive_nb.core import Run, make_config
    from csm_expressive_nb.model import add_lora, load_csm, trainable
    Run(folder, make_config(emotion='sad', rank=4))
    lora = add_lora(load_csm()[0], 4)
    for n, p in trainable(lora).items():
        p.data.normal_(0, 0.02) if 'lora_B' in n else None
    lora.save_pretrained(folder / 'adapter')

@pytest.mark.slow
@need_browser
def test_jupyterlab_shows_the_widgets_and_they_speak(tmp_path):
    work = tmp_path / 'project'
    work.mkdir()
    (work / 'settings.ini').write_text('[DEFAULT]\n', encoding='utf-8')
    (work / '_reports' / HOSTILE.replace('/', '_')).mkdir(parents=True)
    shutil.copy(STUDIO, work / 'studio.ipynb')
    adapter(work / '_reports/sad')
    shot = lambda page, name: SHOTS and page.screenshot(path=SHOTS / f'{name}.png')
    said = []
    with lab(work) as url, browser() as b:
        page = b.new_page(viewport=dict(width=1280, height=1400))
        page.on('console', lambda m: said.append((m.type, m.text)))
        page.on('pageerror', lambda e: said.append(('pageerror', str(e))))
        page.goto(f'{url}/lab/tree/studio.ipynb?reset', wait_until='domcontentloaded')
        cell = page.locator('.jp-CodeCell').first
        cell.wait_for(timeout=60_000)
        # asked to run before, JupyterLab runs nothing
        page.get_by_text('Python 3 (ipykernel) | Idle').wait_for(timeout=60_000)
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_text('Run All Cells', exact=True).click()
        page.locator('.jp-OutputArea .widget-tab').nth(0).wait_for(timeout=90_000)
        button = lambda text: page.locator('button.widget-button', has_text=re.compile(rf'^\s*{text}\s*$'))
        speak = button('Speak')
        speak.wait_for(timeout=60_000)
        page.locator('.widget-text', has_text='sentence').locator('input').fill(
            'Seven green lamps by the window.'
        )
        slider = page.locator('.widget-slider', has_text='intensity').locator('.noUi-handle')
        shot(page, '1_ready')
        page.locator('.widget-toggle-buttons button', has_text='sad').click()
        page.locator('.widget-slider', has_text='intensity').locator('.noUi-target:not([disabled])').wait_for(
            timeout=20_000
        )
        slider.focus()
        page.keyboard.press('ArrowLeft')
        page.keyboard.press('ArrowLeft')
        page.locator('.widget-slider', has_text='intensity').get_by_text('0.90').wait_for(timeout=20_000)
        before = page.evaluate(SRC)
        speak.scroll_into_view_if_needed()
        speak.click()
        page.locator('button.widget-button', has_text='Speaking').wait_for(timeout=20_000)
        page.wait_for_function(f's => ({SRC})() !== s', arg=before, timeout=60_000)
        speak.wait_for(timeout=20_000)
        seconds, peak = page.evaluate(HEARD)
        assert seconds > 0.5 and peak > 0.01
        text = page.locator('.jp-OutputArea', has=page.locator('audio')).first.inner_text()
        assert 'sad' in text and '0.90' in text and 'Seven green lamps' in text and 'Compare' in text
        shot(page, '2_spoken')
        for tab in ('Settings', 'Samples', 'Counts', 'Left out', 'Clips'):
            page.locator('.jp-OutputArea .lm-TabBar-tab', has_text=tab).first.click()
        page.locator('button[title="play this clip"]').nth(2).click()
        page.locator('.widget-image').last.wait_for(timeout=30_000)
        page.wait_for_timeout(1500)
        shot(page, '3_clip')
        assert page.evaluate('window.broken') is None, 'markup from a folder name ran'
    bad = [t for t in said if t[0] in ('error', 'pageerror')]
    assert not bad, bad
