"A headless Chromium for tests, from the system; nothing is downloaded"
import importlib.util, shutil
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
MISSING = [
    w
    for w, there in (
        ('a system chromium (apt install chromium)', CHROMIUM),
        ('playwright (pip install playwright)', importlib.util.find_spec('playwright')),
    )
    if not there
]
ARGS = (
    '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
    '--disable-component-update --disable-sync'
).split()
need_browser = pytest.mark.skipif(bool(MISSING), reason=f'needs {" and ".join(MISSING)}')

@contextmanager
def browser():
    "A playwright `Browser`, closed on leaving"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        try:
            yield b
        finally: b.close()
