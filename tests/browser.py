"A headless Chromium for tests, from the system; nothing is downloaded"
import importlib.util, shutil
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
MISSING = []
if not CHROMIUM: MISSING.append('a system chromium (apt install chromium)')
if not importlib.util.find_spec('playwright'):
    MISSING.append('playwright (pip install playwright)')
ARGUMENTS = (
    '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
    '--disable-component-update --disable-sync'
).split()
need_browser = pytest.mark.skipif(bool(MISSING), reason=f'needs {" and ".join(MISSING)}')

@contextmanager
def browser():
    "A playwright `Browser`, closed on leaving"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield chromium
        finally: chromium.close()
