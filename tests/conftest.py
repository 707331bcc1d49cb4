"Shared by the tests"
import os
from functools import partial

import pytest

os.cpu_count = lambda: 1          # xdist runs as many tests as there are cores: metrics start no processes of their own

@pytest.fixture
def short_speech(monkeypatch):
    "Runs of this process say ten frames per sentence: for tests of what a run does, not of how it sounds"
    from csm_expressive_nb import expressive, protocol, road
    short = partial(road.speak, max_frames=10); [monkeypatch.setattr(m, 'speak', short) for m in (road, expressive, protocol)]
