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

# for expressions that measure a page: `contrast(element)`, of its text with what lies behind it (WCAG 2.2);
# opacity of the element and of those around it counts, and a background may let the one behind it through
CONTRAST = """
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
  const parse = colour => {
    canvas.clearRect(0, 0, 1, 1)
    canvas.fillStyle = colour
    canvas.fillRect(0, 0, 1, 1)
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data
    return [r, g, b, a / 255]
  }
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1)
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  const luminance = colour => {
    const [r, g, b] = colour.slice(0, 3).map(v => linear(v / 255))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const background = element => {
    if (!element) return [255, 255, 255, 1]
    const own = parse(getComputedStyle(element).backgroundColor)
    return own[3] === 1 ? own : over(own, background(element.parentElement))
  }
  const contrast = element => {
    const behind = background(element), colour = parse(getComputedStyle(element).color)
    for (let e = element; e; e = e.parentElement) colour[3] *= Number(getComputedStyle(e).opacity)
    const [low, high] = [behind, over(colour, behind)].map(luminance).sort((a, b) => a - b)
    return (high + 0.05) / (low + 0.05)
  }
"""

@contextmanager
def browser():
    "A playwright `Browser`, closed on leaving"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield chromium
        finally: chromium.close()
