"Shared by the tests"
import os, shutil
from functools import partial

import pytest

os.environ['LOKY_MAX_CPU_COUNT'] = '1'  # xdist runs as many tests as there are cores: each stays on one

def pytest_configure(config):
    config.addinivalue_line(
        'markers', 'slow: takes more than about five seconds alone; `pytest -m "not slow"` leaves it out'
    )

@pytest.fixture
def short_speech(monkeypatch):
    "Runs of this process say ten frames per sentence: for tests of what a run does, not of how it sounds"
    from csm_expressive_nb import expressive, protocol, road, speak
    short = partial(speak.speak, max_frames=10)
    for module in (road, expressive, protocol):
        monkeypatch.setattr(module, 'speak', short)

@pytest.fixture(scope='session')
def few_clips(tmp_path_factory) -> str:
    """A prepared dataset of six speakers, neutral, happy, sad and angry, four clips each: for tests of
    what a run does, not of how well"""
    from csm_expressive_nb import dataset
    from csm_expressive_nb.core import assets
    folder = tmp_path_factory.mktemp('few')
    for speaker in ('01', '02', '03', '04', '05', '06'):
        (folder / f'in/Actor_{speaker}').mkdir(parents=True)
        for emotion in ('01', '03', '04', '05'):
            for clip in sorted((assets('corpus') / f'Actor_{speaker}').glob(f'03-01-{emotion}-*.flac'))[:4]:
                shutil.copy(clip, folder / f'in/Actor_{speaker}')
    for table in ('corpus.csv', 'statements.csv'):
        shutil.copy(assets('corpus') / table, folder / 'in')
    return str(dataset.prepare(folder / 'in', folder / 'out', shares=(0.34, 0.33, 0.33)).folder)
