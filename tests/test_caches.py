"Caches: their limit, what is in use, and what the doctor does with them"
import gc, os, subprocess, sys, time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from csm_expressive_nb import cli
from csm_expressive_nb.core import caches

ROOT = Path(__file__).parents[1]

@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    "An empty cache"
    monkeypatch.setenv('CSM_EXPRESSIVE_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'

def store(kind: str, name: str, n_bytes: int = 1000, age: float = 0.0):
    "An entry that was last used `age` seconds ago"
    with caches.CacheEntry(kind, name) as path: path.write_bytes(bytes(n_bytes))
    os.utime(path, (time.time() - age,) * 2)

def names() -> list[str]:
    return [entry.name for entry in caches.stored_entries()]

HOLD = """
import sys, time
from csm_expressive_nb.core.caches import CacheEntry
entry = CacheEntry('fisher', 'held.safetensors')
print('held', flush=True)
time.sleep(60)
"""

@pytest.fixture
def holder(cache):
    "Another process that works with an entry"
    store('fisher', 'held.safetensors', age=1000)
    process = subprocess.Popen([sys.executable, '-c', HOLD], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait()

def test_what_another_process_works_with_is_not_removed(holder, capsys):
    store('fisher', 'newer.safetensors')
    assert [entry.name for entry in caches.trim_cache(0)] == ['newer']
    assert names() == ['held']
    assert 'fisher/newer removed' in capsys.readouterr().out
    result = CliRunner().invoke(cli.app, ['doctor', '--clear', 'fisher'])
    assert result.exit_code == 0
    assert 'in use, not removed: fisher/held' in result.output

def test_a_process_that_was_killed_protects_nothing(holder):
    holder.kill()
    holder.wait()
    assert [entry.name for entry in caches.trim_cache(0)] == ['held']
    assert names() == []

def test_what_was_used_last_stays_and_downloads_do_too(cache):
    store('downloads', 'archive.zip', 5000, age=9999)
    store('fisher', 'old.safetensors', age=300)
    store('prosody', 'older.json', age=400)
    store('rehearsal', 'used.safetensors', age=500)
    store('rehearsal', 'used.csv', age=500)
    with caches.CacheEntry('rehearsal', 'used.safetensors'): pass       # reading it is a use
    removed = caches.trim_cache(2500 / 1e9)
    assert [entry.name for entry in removed] == ['older', 'old']
    assert sorted(names()) == ['archive', 'used']
    assert caches.trim_cache(2500 / 1e9) == []

def test_unfinished_files_and_locks_go_with_their_entry(cache):
    store('datasets', 'own-1')
    for name in ('.own-1.lock', '.own-1.x7.tmp'): (cache / 'datasets' / name).touch()
    assert names() == ['own-1']
    caches.clear_cache('datasets')
    assert list((cache / 'datasets').iterdir()) == []

def test_a_link_in_a_cache_is_removed_and_its_target_is_not(cache, tmp_path):
    (tmp_path / 'recordings').mkdir()
    (tmp_path / 'recordings/a.wav').touch()
    caches.cache_folder('datasets')
    (cache / 'datasets/linked').symlink_to(tmp_path / 'recordings')
    caches.clear_cache('datasets')
    assert (tmp_path / 'recordings/a.wav').exists()
    assert names() == []

def test_a_dataset_that_is_open_stays_and_one_that_is_closed_goes(cache, few_clips, monkeypatch):
    from csm_expressive_nb.data import dataset
    recordings = Path(few_clips).parent / 'in'
    opened = dataset.open_dataset(recordings)
    assert caches.trim_cache(0) == []
    assert len(opened.clips) == len(dataset.open_dataset(recordings).clips)
    assert opened.audio(opened.clips[0]).size
    del opened
    gc.collect()
    (removed,) = caches.trim_cache(0)
    assert removed.kind == 'datasets'

def test_the_limit_removes_the_datasets_of_recordings_that_have_changed(cache, few_clips, monkeypatch):
    from csm_expressive_nb.data import dataset
    recordings = Path(few_clips).parent / 'in'
    monkeypatch.setenv('CSM_EXPRESSIVE_CACHE_GB', '0')
    for seconds in (1000, 2000):
        os.utime(next(recordings.glob('*/*.flac')), (seconds, seconds))
        opened = dataset.open_dataset(recordings)
        assert len(names()) == 1       # the open one: the one before was closed
        del opened
        gc.collect()
    caches.trim_cache()
    assert names() == []

@pytest.mark.parametrize('limit', ['much', '-1', 'nan'])
def test_a_limit_that_is_no_size_is_named_before_the_work(cache, monkeypatch, limit):
    monkeypatch.setenv('CSM_EXPRESSIVE_CACHE_GB', limit)
    with pytest.raises(ValueError, match=f'CSM_EXPRESSIVE_CACHE_GB = {limit}: write'):
        caches.CacheEntry('fisher', 'x.safetensors')
    assert not cache.exists()
    result = CliRunner().invoke(cli.app, ['doctor'])
    assert 'problem  cache limit: CSM_EXPRESSIVE_CACHE_GB' in result.output

def test_the_doctor_fails_where_other_commands_would(cache, monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('CSM_EXPRESSIVE_CACHE', str(tmp_path / 'file'))
    result = CliRunner().invoke(cli.app, ['doctor'])
    assert result.exit_code == 1
    assert 'file is not a folder' in result.output
    assert 'set CSM_EXPRESSIVE_CACHE' in result.output
    assert result.output.rstrip().endswith('cache')

def test_an_unknown_cache_is_named_and_nothing_is_removed(cache):
    store('prosody', 'x.json')
    with pytest.raises(ValueError, match='no cache fischer: there are datasets'):
        CliRunner().invoke(cli.app, ['doctor', '--clear', 'fischer'], catch_exceptions=False)
    assert names() == ['x']
