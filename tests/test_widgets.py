"""The studio as its readers meet it: through papermill, as a stored page, and in JupyterLab, driven by a
browser."""
import json, os, re, shutil, signal, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat, pytest
from nbconvert import HTMLExporter

sys.path.insert(0, str(Path(__file__).parent))
from browser import browser, need_browser

ROOT = Path(__file__).parents[1]
STUDIO = ROOT / 'nbs/28_studio.ipynb'
VIEW = 'application/vnd.jupyter.widget-view+json'
WIDGETS = ['SpeakPanel', 'RunExplorer', 'DatasetBrowser']
HOSTILE = '<img src=x onerror="window.broken = 1">'
# a folder for screenshots, to be looked at
SHOTS = Path(os.environ['SHOTS']) if 'SHOTS' in os.environ else None
ENV = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')

# the address of the sound in the panel, and what is heard there: [seconds, highest sample]
SOUND_SOURCE = '() => document.querySelector(".jp-OutputArea audio").src'
SOUND = '''async () => {
  const source = document.querySelector(".jp-OutputArea audio").src;
  const bytes = await (await fetch(source)).arrayBuffer();
  const decoded = await new OfflineAudioContext(1, 1, 24000).decodeAudioData(bytes);
  return [decoded.duration, Math.max(...decoded.getChannelData(0))];
}'''

def outputs(notebook: Path) -> list:
    "What its cells display"
    shown = ('execute_result', 'display_data')
    cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == 'code']
    return [output for cell in cells for output in cell.outputs if output.output_type in shown]

@pytest.mark.slow
def test_papermill_runs_the_studio_without_any_run(tmp_path):
    (tmp_path / 'empty').mkdir()
    notebook = tmp_path / 'out.ipynb'
    command = [sys.executable, '-m', 'papermill', str(STUDIO), str(notebook), '-p', 'reports',
               str(tmp_path / 'empty')]
    result = subprocess.run(command, cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    # a progress bar has a view, too
    displayed = [output.data for output in outputs(notebook)]
    widgets = [data for data in displayed if VIEW in data and 'text/html' in data]
    assert [data['text/plain'] for data in widgets] == WIDGETS
    pages = [data['text/html'] for data in widgets]
    assert all(0 < len(page) < 60_000 for page in pages)
    assert 'csm_expressive train sad' in pages[0] and 'data:audio/mpeg' in pages[0]
    assert 'No runs below' in pages[1] and 'data:image/png' in pages[2]

def test_the_stored_studio_shows_its_fallback_and_no_place_of_this_machine():
    text = STUDIO.read_text(encoding='utf-8')
    assert STUDIO.stat().st_size < 300_000 and VIEW not in text and '"widgets"' not in text
    assert not any(path in text for path in ('/work', '/tmp', '/home', str(ROOT)))
    assert [output.data['text/plain'] for output in outputs(STUDIO)] == WIDGETS
    page = HTMLExporter().from_filename(str(STUDIO))[0]
    assert page.count('src="data:audio/mpeg') == 2
    assert page.count('alt="waveform, spectrogram and pitch"') == 2
    assert 'No runs below' in page and 'widget-view' not in page

def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]

def lab_environment(folder: Path) -> dict:
    "Environment variables of a JupyterLab whose settings lie in `folder`, with the news turned off"
    home = folder / '.home'
    news = home / 'config/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}', encoding='utf-8')
    return ENV | dict(
        HOME=str(home),
        JUPYTER_CONFIG_DIR=str(home / 'config'),
        JUPYTER_DATA_DIR=str(home / 'data'),
        JUPYTER_RUNTIME_DIR=str(home / 'runtime'),
        IPYTHONDIR=str(home / 'ipython'),
        JUPYTER_PREFER_ENV_PATH='1',
    )

def lab_command(folder: Path, port: int) -> list[str]:
    options = (
        f'--no-browser --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0 --IdentityProvider.token= '
        '--ServerApp.disable_check_xsrf=True --allow-root --LabApp.news_url= '
        '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'
    )
    return [sys.executable, '-m', 'jupyterlab', *options.split(), f'--ServerApp.root_dir={folder}']

def wait_for_lab(server: subprocess.Popen, url: str, log: Path):
    for _ in range(240):
        if server.poll() is not None:
            raise RuntimeError(log.read_text(encoding='utf-8')[-2000:])
        try:
            urllib.request.urlopen(f'{url}/api', timeout=2)
            return
        except OSError: time.sleep(0.25)

def end_lab(server: subprocess.Popen, url: str):
    "Its kernels first, then the server and whatever it started"
    try:
        for session in json.load(urllib.request.urlopen(f'{url}/api/sessions', timeout=5)):
            address = f"{url}/api/sessions/{session['id']}"
            urllib.request.urlopen(urllib.request.Request(address, method='DELETE'), timeout=10)
    except (OSError, ValueError): pass
    try:
        os.killpg(server.pid, signal.SIGTERM)
    except ProcessLookupError: pass
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()

@contextmanager
def lab(folder: Path):
    "JupyterLab on a free port of this machine, without a token; killed on leaving, with its kernels"
    port, log = free_port(), folder / 'lab.log'
    url = f'http://127.0.0.1:{port}'
    with open(log, 'w', encoding='utf-8') as file:
        server = subprocess.Popen(lab_command(folder, port), env=lab_environment(folder), stdout=file,
                                  stderr=file, start_new_session=True)
        try:
            wait_for_lab(server, url, log)
            yield url
        finally: end_lab(server, url)

def make_adapter(folder: Path):
    """A run folder with an adapter that was never trained: random numbers, which is enough to hear that
    strength matters"""
    from csm_expressive_nb.core.config import make_config
    from csm_expressive_nb.core.run import Run
    from csm_expressive_nb.model.csm import load_csm
    from csm_expressive_nb.model.lora import add_lora, trainable_parameters
    Run(folder, make_config(emotion='sad', rank=4))
    lora = add_lora(load_csm()[0], 4)
    for name, parameter in trainable_parameters(lora).items():
        if 'lora_B' in name: parameter.data.normal_(0, 0.02)
    lora.save_pretrained(folder / 'adapter')

@pytest.fixture
def project(tmp_path) -> Path:
    "A folder with the studio, a run and a folder of hostile name"
    folder = tmp_path / 'project'
    (folder / '_reports' / HOSTILE.replace('/', '_')).mkdir(parents=True)
    (folder / 'settings.ini').write_text('[DEFAULT]\n', encoding='utf-8')
    shutil.copy(STUDIO, folder / 'studio.ipynb')
    make_adapter(folder / '_reports/sad')
    return folder

def take_shot(page, name: str):
    if SHOTS: page.screenshot(path=SHOTS / f'{name}.png')

def run_all_cells(page, url: str):
    page.goto(f'{url}/lab/tree/studio.ipynb?reset', wait_until='domcontentloaded')
    page.locator('.jp-CodeCell').first.wait_for(timeout=60_000)
    # asked to run before, JupyterLab runs nothing
    page.get_by_text('Python 3 (ipykernel) | Idle').wait_for(timeout=60_000)
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_text('Run All Cells', exact=True).click()
    page.locator('.jp-OutputArea .widget-tab').nth(0).wait_for(timeout=90_000)

def find_button(page, text: str):
    return page.locator('button.widget-button', has_text=re.compile(rf'^\s*{text}\s*$'))

def choose_sad_at_90_percent(page):
    sentence = page.locator('.widget-text', has_text='sentence').locator('input')
    sentence.fill('Seven green lamps by the window.')
    slider = page.locator('.widget-slider', has_text='intensity')
    page.locator('.widget-toggle-buttons button', has_text='sad').click()
    slider.locator('.noUi-target:not([disabled])').wait_for(timeout=20_000)
    slider.locator('.noUi-handle').focus()
    page.keyboard.press('ArrowLeft')
    page.keyboard.press('ArrowLeft')
    slider.get_by_text('0.90').wait_for(timeout=20_000)

def speak_and_check(page):
    "Press Speak, and look at the sound and the text that appear"
    previous = page.evaluate(SOUND_SOURCE)
    speak = find_button(page, 'Speak')
    speak.scroll_into_view_if_needed()
    speak.click()
    page.locator('button.widget-button', has_text='Speaking').wait_for(timeout=20_000)
    page.wait_for_function(f'source => ({SOUND_SOURCE})() !== source', arg=previous, timeout=60_000)
    speak.wait_for(timeout=20_000)
    seconds, peak = page.evaluate(SOUND)
    assert seconds > 0.5 and peak > 0.01
    text = page.locator('.jp-OutputArea', has=page.locator('audio')).first.inner_text()
    for words in ('sad', '0.90', 'Seven green lamps', 'Compare'): assert words in text

@pytest.mark.slow
@need_browser
def test_jupyterlab_shows_the_widgets_and_they_speak(project):
    messages = []
    with lab(project) as url, browser() as chromium:
        page = chromium.new_page(viewport=dict(width=1280, height=1400))
        page.on('console', lambda message: messages.append((message.type, message.text)))
        page.on('pageerror', lambda error: messages.append(('pageerror', str(error))))
        run_all_cells(page, url)
        find_button(page, 'Speak').wait_for(timeout=60_000)
        take_shot(page, '1_ready')
        choose_sad_at_90_percent(page)
        speak_and_check(page)
        take_shot(page, '2_spoken')
        for tab in ('Settings', 'Samples', 'Counts', 'Rejected files', 'Clips'):
            page.locator('.jp-OutputArea .lm-TabBar-tab', has_text=tab).first.click()
        page.locator('button[title="play this clip"]').nth(2).click()
        page.locator('.widget-image').last.wait_for(timeout=30_000)
        page.wait_for_timeout(1500)
        take_shot(page, '3_clip')
        assert page.evaluate('window.broken') is None, 'markup from a folder name ran'
    errors = [entry for entry in messages if entry[0] in ('error', 'pageerror')]
    assert not errors, errors
