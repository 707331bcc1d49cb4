"Shared by the tests"
from functools import partial

import pytest

@pytest.fixture
def short_speech(monkeypatch):
    "Runs of this process say ten frames per sentence: for tests of what a run does, not of how it sounds"
    from csm_expressive_nb import expressive, protocol, road
    short = partial(road.speak, max_frames=10); [monkeypatch.setattr(m, 'speak', short) for m in (road, expressive, protocol)]
