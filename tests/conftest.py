"Shared by the tests"
import os, shutil

import pytest

os.environ['LOKY_MAX_CPU_COUNT'] = '1'  # xdist runs as many tests as there are cores: each stays on one

def pytest_configure(config):
    config.addinivalue_line(
        'markers', 'slow: takes more than about five seconds alone; `pytest -m "not slow"` leaves it out'
    )
    config.addinivalue_line('markers', 'long: minutes; run once per issue by .ci/long')

def pytest_collection_modifyitems(config, items):
    "Long tests run where `-m` names them; elsewhere they are left out, and counted as such"
    if 'long' in config.getoption('markexpr'): return
    long = [item for item in items if item.get_closest_marker('long')]
    items[:] = [item for item in items if item not in set(long)]
    if long: config.hook.pytest_deselected(items=long)

@pytest.fixture
def short_speech(monkeypatch):
    """Runs of this process say ten frames per sentence, and eight of their own: for tests of what a run does,
    not of how it sounds"""
    from csm_expressive_nb.pipelines import preparation
    from csm_expressive_nb.speech import generation
    monkeypatch.setattr(generation, 'longest_speech', lambda text: 10)
    monkeypatch.setattr(preparation, 'OWN_CLIPS', 8)

@pytest.fixture(scope='session')
def few_clips(tmp_path_factory) -> str:
    """A prepared dataset of six speakers, neutral, happy, sad and angry, four clips each: for tests of
    what a run does, not of how well"""
    from csm_expressive_nb.core.files import assets
    from csm_expressive_nb.data import dataset
    folder = tmp_path_factory.mktemp('few')
    for speaker in ('01', '02', '03', '04', '05', '06'):
        actor = f'Actor_{speaker}'
        (folder / 'in' / actor).mkdir(parents=True)
        for emotion in ('01', '03', '04', '05'):
            clips = sorted((assets('corpus') / actor).glob(f'03-01-{emotion}-*.flac'))
            for clip in clips[:4]: shutil.copy(clip, folder / 'in' / actor)
    for table in ('corpus.csv', 'statements.csv'):
        shutil.copy(assets('corpus') / table, folder / 'in')
    return str(dataset.prepare(folder / 'in', folder / 'out', shares=(0.34, 0.33, 0.33)).folder)
