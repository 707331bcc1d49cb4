"""Whatever is written reads back as it was, or is an error that names file and line: tables, file names,
logs, sound and splits under random inputs, and each input that `fuzz_readers.py` found a fault with."""
import csv, io, json, os, re, shutil, struct, time, unicodedata
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np, pandas as pd, pytest, soundfile as sf, yaml
from hypothesis import HealthCheck, assume, given, settings, strategies as st

import fuzz_readers
from csm_expressive_nb.core.config import EMOTIONS, EmotionConfig, load_config
from csm_expressive_nb.core.files import atomic_write, read_json, read_json_lines, write_json
from csm_expressive_nb.data import audio, corpora, dataset, folders, readers, splits, tables
from csm_expressive_nb.data.audio import AudioError
from csm_expressive_nb.data.tables import CorpusError
from csm_expressive_nb.evaluation import listening, listening_analysis
from csm_expressive_nb.speech.script import read_script
from csm_expressive_nb.speech.text import MAX_CHARACTERS, check_text, split_sentences

settings.register_profile('properties', derandomize=True, database=None, deadline=None, max_examples=60,
                          suppress_health_check=list(HealthCheck))
PROPERTY = settings(settings.get_profile('properties'))
slowly = partial(settings, PROPERTY)

# ---- tables ------------------------------------------------------------------------------------------------

# what breaks readers of text: separators, quotes, line ends that are none in a table, marks, two forms of é
HARD = '"\',;|\t\\ab \x0b\x0c\x1c\x85\u2028\u2029\ufeff\u200b\u200f\u202eé\u0301שلí漢😀\xa0=0'
a_letter = st.one_of(st.sampled_from(HARD), st.characters(exclude_categories=['Cs', 'Cc']))
a_text = st.text(a_letter, max_size=12)
some_rows = st.lists(st.tuples(a_text, a_text, a_text), min_size=1, max_size=5)
COLUMNS = ['file', 'text', 'emotion']
DIALECTS = [(separator, line_end) for separator in ',;\t|' for line_end in ('\n', '\r\n', '\r')]

def csv_text(rows, separator, line_end) -> str:
    "A table as Python's csv writes it"
    buffer = io.StringIO(newline='')
    csv.writer(buffer, delimiter=separator, lineterminator=line_end).writerows([COLUMNS, *rows])
    return buffer.getvalue()

def strip_rows(rows) -> list[list[str]]:
    "Rows as they must be read: no blanks around values, no empty rows"
    values = [[value.strip() for value in row] for row in rows]
    return [row for row in values if any(row)]

def read_back(path, data, separator=',') -> list[list[str]]:
    "The rows of a table from its bytes"
    path.write_bytes(data)
    text, _ = tables.read_text_file(path)
    columns, rows = tables.parse_csv(path, text, separator)
    assert columns == COLUMNS
    return [[*row.values()] for _, row in rows]

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('properties')

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'cp1252'])
@slowly(max_examples=50)
@given(rows=some_rows, dialect=st.sampled_from(DIALECTS))
def test_a_table_reads_back_as_its_rows_whatever_program_wrote_it(encoding, rows, dialect, folder):
    separator, line_end = dialect
    text = csv_text(rows, separator, line_end)
    if encoding == 'cp1252': text = text.encode('cp1252', 'replace').decode('cp1252')
    data = text.encode(encoding)
    # bytes in cp1252 that are right UTF-8 as well, or a stranger's alphabet, cannot be told
    assume(encoding != 'cp1252' or tables.detect_encoding(data) == 'cp1252' or text.isascii())
    expected = strip_rows([*csv.reader(io.StringIO(text, newline=''), delimiter=separator)][1:])
    assert read_back(folder / 'metadata.csv', data, separator) == expected

@PROPERTY
@given(rows=some_rows, separator=st.sampled_from(',;\t|'))
def test_a_table_of_pandas_reads_back_as_its_rows(rows, separator, folder):
    text = pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, sep=separator)
    assert read_back(folder / 'metadata.csv', text.encode(), separator) == strip_rows(rows)

@PROPERTY
@given(rows=some_rows)
def test_json_lines_read_back_as_their_rows(rows, folder):
    lines = [json.dumps(dict(zip(COLUMNS, row)), ensure_ascii=len(rows) % 2 == 0) for row in rows]
    (folder / 'm.jsonl').write_text('\n'.join(lines), encoding='utf-8')
    text, _ = tables.read_text_file(folder / 'm.jsonl')
    _, read = tables.parse_json_lines(folder / 'm.jsonl', text)
    assert [[*row.values()] for _, row in read] == [[value.strip() for value in row] for row in rows]

@PROPERTY
@given(rows=some_rows, breaks=st.lists(st.sampled_from(['\n', '\r', '\r\n']), min_size=1, max_size=2),
       separator=st.sampled_from(',;'))
def test_a_line_end_in_a_field_is_an_error_and_never_another_row(rows, breaks, separator, folder):
    broken = [(f'a.wav{breaks[0]}b', f'x{breaks[-1]}y', 'sad'), *rows]
    # Python 3.11 leaves a field with \r alone without quotes: its row is too short
    words = r'metadata.csv, line \d: (a field that begins here ends in|\d fields)'
    with pytest.raises(CorpusError, match=words):
        read_back(folder / 'metadata.csv', csv_text(broken, separator, '\n').encode(), separator)

VALID = fuzz_readers.table_text(',').encode()

@slowly(max_examples=150)
@given(kind=st.sampled_from('delete insert flip cut'.split()), position=st.integers(0, len(VALID) - 1),
       byte=st.integers(0, 255))
def test_a_damaged_table_is_an_error_with_its_name_or_every_line_is_a_row(kind, position, byte, folder):
    changes = dict(delete=VALID[:position] + VALID[position + 1 :], cut=VALID[:position],
                   insert=VALID[:position] + bytes([byte]) + VALID[position:],
                   flip=VALID[:position] + bytes([VALID[position] ^ (byte or 1)]) + VALID[position + 1 :])
    path = folder / 'metadata.csv'
    path.write_bytes(changes[kind])
    try:
        text, _ = tables.read_text_file(path)
        columns, rows = tables.parse_csv(path, text)
    except CorpusError as error:
        assert 'metadata.csv' in str(error)
        return
    lines = text.split('\n')
    with_content = [i for i, line in enumerate(lines, 1) if line.replace(',', '').strip()]
    assert [line for line, _ in rows] == with_content[1:]
    for line, row in rows:
        forms = lines[line - 1], lines[line - 1].replace('""', '"')
        assert all(value in forms[0] or value in forms[1] for value in row.values())

# each table with a line that is wrong: the reader, its other files, the table, and what is said of it
ESD_LINES = '0011_000001\tThe eggs.\tNeutral\n0011_000001\tThe legs.\tNeutral\n'
ACTORS, VOTES = fuzz_readers.CREMAD_FILES
WRONG_LINES = [
    (readers.CremaD, ACTORS, ('1002,21', '1001,21'), "line 3: ActorID '1001' is in line 2 as well"),
    (readers.CremaD, ACTORS, (',21,', ',inf,'), "line 3: Age 'inf' is no whole number"),
    (readers.CremaD, ACTORS, ('"Female"', '""'), "line 3: Sex '' is neither Male nor Female"),
    (readers.CremaD, VOTES, ('"100001",9', '"100001",'), "line 2: A '' is no whole number"),
    (readers.CremaD, VOTES, ('0,5,0,0,5,0', '0,0,0,0,0,0'), 'line 4: no votes'),
    (readers.CremaD, VOTES, ('"D:N"', '"X"'), "line 4: emoVote 'X' is no emotion"),
    (readers.CremaD, VOTES, ('"200001"', '"100009"'), "line 3: fileName '1001_IEO_ANG_HI' is in line 2"),
    (readers.ESD, '0011/0011.txt', ESD_LINES, 'line 2: 0011_000001 has another text in an earlier line'),
    (readers.LJSpeech, 'metadata.csv', 'LJ001-0001|A\n\nLJ001-0001|B\n', 'line 3: LJ001-0001 has another'),
    (readers.Ravdess, 'statements.csv', 'code,text\n03,\n', 'line 2: no text'),
    (readers.Ravdess, 'statements.csv', 'code,text\n03,A\n03,B\n', "line 3: code '03' is in line 2 as well"),
    (readers.Ravdess, 'corpus.csv', 'key,value\nname,\nlicence,CC0\n', 'corpus.csv has no row name'),
]

@pytest.mark.parametrize('cls, table, text, message', WRONG_LINES, ids=[row[3][:40] for row in WRONG_LINES])
def test_a_wrong_value_in_a_publishers_table_is_named_with_its_line(cls, table, text, message, tmp_path):
    files = dict(fuzz_readers.CREMAD_FILES)
    files[table] = files[table].replace(*text) if isinstance(text, tuple) else text
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding='utf-8')
    with pytest.raises(CorpusError) as error: cls(tmp_path)
    assert message in str(error.value) and Path(table).name in str(error.value)

def test_a_transcript_line_with_more_tabs_is_noted_and_not_cut_short(tmp_path):
    lines = '0011_000001\tThe\teggs.\tNeutral\n0011_000002\tThe nine.\tNeutral\n'
    (tmp_path / '0011.txt').write_text(lines, encoding='utf-8')
    esd = readers.ESD(tmp_path)
    assert esd.texts == {'0011_000002': 'The nine.'}
    assert esd.notes == ['0011.txt: no transcript in 1 lines (first: line 1)']

def test_json_that_python_cannot_hold_is_named_with_its_line():
    cases = {'[' * 100_000: 'recursion', '{"a": ' + '1' * 5000 + '}': 'limit',
             '{"a": "\\ud800"}': 'half of a', '{"a": 1, " a": 2}': 'a name stands twice',
             '{"a": 1, "a": 2}': 'a name stands twice'}
    for content, words in cases.items():
        with pytest.raises(CorpusError, match=f'm.jsonl, line 2: .*{words}'):
            tables.parse_json_lines(Path('m.jsonl'), f'{{"a": "b"}}\n{content}\n')

def test_one_very_long_word_in_cp1252_is_read_at_once(tmp_path):
    "A search that began again at each letter took minutes"
    (tmp_path / 'a.csv').write_bytes(b'file,text\na.wav,' + b'a' * 150_000 + b' F\xfc\xdfe\xa0und\n')
    reader, start = corpora.Reader(tmp_path), time.process_time()
    assert reader.read_text(tmp_path / 'a.csv').endswith('Füße\xa0und\n')
    assert reader.cp1252_files == {'a.csv': 'Füße\xa0und'}
    assert time.process_time() - start < 1

# ---- file names --------------------------------------------------------------------------------------------

NAME_LETTERS = st.one_of(
    st.sampled_from([b'\n', b'\r', b'\t', b'\x1b', b'\xff', b'\xe9', b' ', b'.', b'-', b'~', b'"', b',']),
    st.sampled_from(['é', 'e\u0301', '\u2028', '\x85', '\u202e', '😀', '漢', '\u200d']).map(str.encode),
    st.integers(1, 255).map(lambda byte: bytes([byte])),
)

@st.composite
def file_name(draw) -> bytes:
    "Bytes that a file system takes as a name, not hidden, of a recording"
    stem = b''.join(draw(st.lists(NAME_LETTERS, min_size=1, max_size=8))).replace(b'/', b'_').lstrip(b'.')
    stem = draw(st.sampled_from([stem, stem * 60]))[:250] or b'x'
    return stem + draw(st.sampled_from([b'.wav', b'.WAV', b'.flac', b'.m4a', b'.wav ', b'']))

TONES = [fuzz_readers.make_sound('WAV', 'PCM_16', seconds=0.12 + i / 50) for i in range(6)]

def fill(folder, names: list[bytes]) -> int:
    "A recording under each name in a fresh folder; how many are recordings or other files that are looked at"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / 'sad').mkdir(parents=True)
    for sound, name in zip(TONES, names):
        with open(os.fsencode(folder / 'sad') + b'/' + name, 'wb') as file: file.write(sound)
    shown = [os.fsdecode(name) for name in os.listdir(os.fsencode(folder / 'sad'))]
    return sum(PurePosixPath(name).suffix.lower() not in corpora.Reader.documents for name in shown)

def assert_rejected_rows(corpus, path):
    "One line for each rejected file, without any character that a terminal obeys"
    corpus.write_quarantine(path)
    lines = path.read_text(encoding='utf-8').split('\n')
    assert len(lines) == len(corpus.quarantine) + 2
    rows = [*csv.reader(lines[:-1])][1:]
    assert sorted(row[0] for row in rows) == sorted(row.path for row in corpus.quarantine)
    categories = {unicodedata.category(letter) for letter in ''.join(lines)}
    assert not categories & {'Cc', 'Cs', 'Zl', 'Zp'}

@slowly(max_examples=50)
@given(names=st.lists(file_name(), min_size=1, max_size=6, unique=True), listed=st.booleans())
def test_every_file_is_a_clip_or_a_row_whatever_its_name(names, listed, folder):
    n_files = fill(folder / 'in', names)
    if listed:  # a table of names as far as JSON holds them, and one that is not there
        known = [name.decode('utf-8', 'replace') for name in names[::2]]
        known += ['nowhere.wav', '../x.wav']
        lines = [json.dumps(dict(file=f'sad/{name}', emotion='sad')) for name in known]
        (folder / 'in/metadata.jsonl').write_text('\n'.join(lines), encoding='utf-8')
    reader = folders.Folder(folder / 'in')
    corpus = corpora.scan_folder(reader)
    extra = {path for path in reader.rows or () if not os.path.isfile(folder / 'in' / path)}
    assert len(corpus.clips) + len(corpus.quarantine) == n_files + len(extra)
    assert len({clip.id for clip in corpus.clips}) == len(corpus.clips)
    for clip in corpus.clips: clip.id.encode()
    assert_rejected_rows(corpus, folder / 'rejected.csv')

def test_a_dataset_of_odd_names_opens_again(tmp_path):
    names = [b'a\rb\nc.wav', b'caf\xe9.wav', 'Zoe\u0301.wav'.encode(), 'Zoé.wav'.encode(), b'-rf .wav']
    names.append(b'x' * 251 + b'.wav')
    assert fill(tmp_path / 'in', names) == 6
    prepared = dataset.prepare(tmp_path / 'in', tmp_path / 'out', max_rejected=0.5)
    assert len(dataset.Dataset(tmp_path / 'out').clips) == len(prepared.clips) == 5
    lines = (tmp_path / 'out/rejected.csv').read_text(encoding='utf-8').split('\n')
    assert lines[1:] == [r'sad/caf\xe9.wav,wrong_name,,the name is not UTF-8: rename the file', '']
    with pytest.raises(CorpusError, match=r'sad/caf\\xe9.wav \(the name is not UTF-8: rename the file\)'):
        dataset.prepare(tmp_path / 'in', tmp_path / 'strict')

FOREIGN_DIGITS = ['03-01-05-01-01-01-٠١.wav', '1001_IEO_ANG_HI.wav\n', '001١_000351.wav', '0٣a01Fa.wav',
                  'LJ00١-0001.wav']
NAME_PARTS = '03 01 05 06 1001 IEO ANG XX HI 0011 000351 a01 F a LJ001 0001 - _ . .wav .WAV ٠١ é'.split()
path_names = st.one_of(
    st.lists(st.sampled_from([*NAME_PARTS, '\n']), max_size=16).map(''.join), st.text(max_size=12),
    st.sampled_from([*FOREIGN_DIGITS, '03-01-05-01-01-01-01.wav', '03a01Fa.wav', '0011_000351.WAV']),
).filter(lambda name: '/' not in name and name not in ('', '.', '..'))

@pytest.fixture(scope='module')
def all_readers(folder):
    "Each publisher's reader over small tables"
    for name, text in fuzz_readers.CREMAD_FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding='utf-8')
    (folder / 'esd/0011').mkdir(parents=True)
    (folder / 'esd/0011/0011.txt').write_text(fuzz_readers.ESD_TEXT, encoding='utf-8')
    (folder / 'lj').mkdir()
    (folder / 'lj/metadata.csv').write_text(fuzz_readers.LJ_TEXT, encoding='utf-8')
    return [readers.Ravdess(folder), readers.CremaD(folder), readers.ESD(folder / 'esd'),
            readers.EmoDB(folder), readers.LJSpeech(folder / 'lj'), folders.Folder(folder / 'esd')]

@slowly(max_examples=150)
@given(name=path_names, parent=st.sampled_from(['', 'Actor_01', 'Angry', '0011/Angry', 'sad']))
def test_a_name_is_parsed_or_an_audio_error(name, parent, all_readers):
    for reader in all_readers:
        try:
            facts = reader.parse(PurePosixPath(parent, name))
        except AudioError: continue
        assert facts['emotion'] in EMOTIONS and facts['speaker'].isascii()

def test_digits_of_other_alphabets_are_no_speaker(all_readers):
    for reader, name in zip(all_readers, FOREIGN_DIGITS):
        with pytest.raises(AudioError, match='wrong_name'): reader.parse(PurePosixPath(name))

def test_a_listed_name_that_no_disk_takes_is_missing(tmp_path):
    (tmp_path / 'sad').mkdir()
    (tmp_path / 'sad/a.wav').write_bytes(TONES[0])
    rows = f'file,emotion\nsad/a.wav,sad\n{"x" * 300}.wav,sad\n'
    (tmp_path / 'metadata.csv').write_text(rows, encoding='utf-8')
    assert corpora.scan_folder(folders.Folder(tmp_path)).reasons() == dict(missing=1)

@pytest.fixture
def another_user():
    "Not root, who may read everything"
    if os.geteuid(): return (yield)
    os.seteuid(65_534)
    yield
    os.seteuid(0)

@pytest.fixture
def closed_folder(tmp_path):
    "Recordings in a folder and beside it, of which one file and one folder cannot be opened"
    folder = Path('/tmp') / f'closed_{os.getpid()}_{tmp_path.name}'
    for i, name in enumerate(('sad/a.wav', 'sad/b.wav', 'sad/closed/c.wav')):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(TONES[i])
    for path in (folder / 'sad/b.wav', folder / 'sad/closed'): path.chmod(0)
    yield folder
    (folder / 'sad/closed').chmod(0o700)
    shutil.rmtree(folder)

def test_what_cannot_be_opened_is_named_and_nothing_else_is_lost(closed_folder, another_user):
    corpus = corpora.scan_folder(folders.Folder(closed_folder))
    assert [clip.source for clip in corpus.clips] == ['sad/a.wav']
    assert corpus.quarantine == [('sad/b.wav', 'unreadable', '', 'Permission denied')]
    assert corpus.notes == ['sad/closed: nothing in this folder was read (Permission denied)']

def test_a_table_of_the_mac_is_not_a_second_table(tmp_path):
    for name in ('data.csv', '._data.csv'): (tmp_path / name).write_bytes(b'file,emotion\na.wav,sad\n')
    assert [path.name for path in folders.Folder.tables(tmp_path)] == ['data.csv']

# ---- sound -------------------------------------------------------------------------------------------------

def overwrite(data: bytes, position: int, form: str, *values) -> bytes:
    "The bytes with other values at a position"
    packed = struct.pack(form, *values)
    return data[:position] + packed + data[position + len(packed) :]

WAV, FLAC = fuzz_readers.make_sound('WAV', 'PCM_16'), fuzz_readers.make_sound('FLAC', 'PCM_16')
RIFX, OGG = fuzz_readers.make_sound('WAV', 'PCM_16', endian='BIG'), fuzz_readers.make_sound('OGG', 'VORBIS')
FLOATS = fuzz_readers.make_sound('WAV', 'FLOAT', 2)
FIRST = FLOATS.index(b'data') + 8
DAMAGED = dict(
    ogg_ends_in_a_mark=(OGG[: OGG.rfind(b'OggS') + 4], 'truncated: the last Ogg page is missing'),
    ogg_page_is_cut=(OGG[:-1], 'truncated: the last Ogg page is missing'),
    rifx_is_cut=(RIFX[:6000], 'truncated: 5956 of 8000 bytes'),
    flac_of_2_36_frames=(overwrite(FLAC, 21, '>BI', 0xFF, 2**32 - 1), 'too_long: 68719476735 frames'),
    flac_of_no_length=(overwrite(FLAC, 21, '>BI', FLAC[21] & 0xF0, 0), 'wrong_format: its header'),
    wav_from_a_pipe=(overwrite(WAV, 40, '<I', 2**32 - 1), 'wrong_format: its header does not say how long'),
    wav_at_1_hz=(overwrite(WAV, 24, '<I', 1), 'decode_error: a sampling rate of 1 Hz'),
    wav_at_2_31_hz=(overwrite(WAV, 24, '<I', 2**31), 'decode_error: Internal error'),
    floats_at_3e38=(overwrite(FLOATS, FIRST, '<4000f', *[3e38, -3e38] * 2000), 'decode_error: samples of'),
    float_is_no_number=(overwrite(FLOATS, FIRST, '<f', float('nan')), 'decode_error: NaN or Inf'),
    container_that_hides_a_cut=(fuzz_readers.make_sound('XI', 'DPCM_16'), 'wrong_format: XI does not show'),
    sphere=(fuzz_readers.make_sound('NIST', 'PCM_16')[:6000], 'wrong_format: NIST does not show'),
)

@pytest.mark.parametrize('case', DAMAGED)
def test_a_damaged_recording_is_a_rejection_with_its_reason(case, tmp_path):
    data, message = DAMAGED[case]
    with pytest.raises(AudioError) as error: audio.decode(data)
    assert str(error.value).startswith(message)
    assert '0x' not in str(error.value)                     # no address: rejected.csv is the same each time
    (tmp_path / 'sad').mkdir()
    (tmp_path / 'sad/a.wav').write_bytes(data)
    (tmp_path / 'sad/b.wav').write_bytes(WAV)
    corpus = corpora.scan_folder(folders.Folder(tmp_path))
    assert [clip.source for clip in corpus.clips] == ['sad/b.wav']
    assert corpus.quarantine[0].reason == message.split(':')[0]

def test_whatever_a_library_raises_is_the_verdict_on_one_file(tmp_path, monkeypatch):
    fill(tmp_path / 'in', [b'a.wav', b'b.wav', b'c.wav'])
    for error in (RuntimeError('Lpc failed'), RecursionError('too deep'), ZeroDivisionError('by zero')):
        read = sf.SoundFile.read

        def fail(self, *arguments, **options):
            if self.frames == len(TONES[1]) // 2 - 22: raise error
            return read(self, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(sf.SoundFile, 'read', fail)
            corpus = corpora.scan_folder(folders.Folder(tmp_path / 'in'))
        assert len(corpus.clips) == 2
        assert corpus.quarantine == [('sad/b.wav', 'decode_error', '', f'{type(error).__name__}: {error}')]

def test_a_clip_that_fails_while_it_is_processed_is_a_row_and_counts(tmp_path, monkeypatch):
    fill(tmp_path / 'in', [b'a.wav', b'b.wav', b'c.wav'])
    process = dataset.process

    def fail(clip, path):
        if clip.source == 'sad/b.wav': raise RuntimeError('soxr: out of range')
        return process(clip, path)

    monkeypatch.setattr(dataset, 'process', fail)
    prepared = dataset.prepare(tmp_path / 'in', tmp_path / 'out', max_rejected=0.5)
    assert [clip.source for clip in prepared.clips] == ['sad/a.wav', 'sad/c.wav']
    row = 'sad/b.wav,decode_error,,RuntimeError: soxr: out of range'
    assert row in (tmp_path / 'out/rejected.csv').read_text(encoding='utf-8').split('\n')
    with pytest.raises(CorpusError, match='1 of 3 recordings .* soxr: out of range'):
        dataset.prepare(tmp_path / 'in', tmp_path / 'strict')

@slowly(max_examples=120)
@given(number=st.integers(0, 10**6))
def test_damaged_sound_is_rejected_or_as_long_as_it_says(number, folder):
    _, data = fuzz_readers.sound_input(fuzz_readers.random.Random(number))
    try:
        fuzz_readers.check_sound(data, folder)
    except AudioError: pass

WHOLE = [(kind, subtype) for kind, subtype in fuzz_readers.FORMATS if kind in audio.CONTAINERS]

@pytest.mark.parametrize('kind, subtype', WHOLE)
def test_a_whole_recording_of_every_kind_is_read(kind, subtype):
    data = fuzz_readers.make_sound(kind, subtype)
    samples, info = audio.decode(data)
    assert 0.25 <= info['seconds'] < 0.35                   # blocks and pages are filled up
    assert 0.25 < info['peak'] < 0.7

# ---- logs, settings, answers, scripts ----------------------------------------------------------------------

numbers = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
values = st.recursive(
    st.one_of(st.none(), numbers, st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)
whole_text = st.text(st.characters(exclude_categories=['Cs']))
log_rows = st.lists(st.dictionaries(whole_text, values, max_size=3), max_size=4)

@PROPERTY
@given(value=values)
def test_json_reads_back_as_it_was_written(value, folder):
    assert read_json(write_json(folder / 'a.json', value)) == value

@PROPERTY
@given(rows=log_rows, cut=st.integers(0, 40))
def test_a_log_reads_back_but_for_a_last_line_that_is_torn(rows, cut, folder):
    try:
        lines = [json.dumps(row, ensure_ascii=False).encode() + b'\n' for row in rows]
    except UnicodeEncodeError: lines = [json.dumps(row).encode() + b'\n' for row in rows]
    torn = '{"text": "é\u2028漢'.encode()[:cut]
    (folder / 'log.jsonl').write_bytes(b''.join(lines) + torn)
    assert read_json_lines(folder / 'log.jsonl') == rows

def test_a_broken_line_within_a_log_is_named(folder):
    for line in (b'{"st', b'\xff', b'\0\0\0', b'[' * 100_000, b''):
        (folder / 'log.jsonl').write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
        with pytest.raises(ValueError, match='log.jsonl, line 2 is damaged, no JSON'):
            read_json_lines(folder / 'log.jsonl')

@PROPERTY
@given(out=whole_text, lr=st.floats(1e-6, 1e-2))
def test_settings_read_back_from_yaml(out, lr, folder):
    assume(out.strip())
    try:
        cfg = EmotionConfig(emotion='sad', out=out, lr=lr)
    except ValueError: return
    text = yaml.safe_dump(cfg.model_dump(mode='json'), sort_keys=False)
    atomic_write(folder / 'config.yaml', text)
    assert load_config(folder / 'config.yaml') == cfg

@pytest.fixture(scope='module')
def plan_and_key():
    "A small plan, its key, and a valid row for each trial"
    clips = []
    for i in range(8):
        for system in ('base', 'adapter'):
            facts = dict(emotion='sad', text=f'Sentence {i}.', voice='1', seed=0)
            clips.append(dict(file=f'{system}{i}.wav', system=system, **facts))
    plan, key = listening.make_test(clips, n=8, anchors=[])
    return plan, key, listening_analysis.simulate_answers(plan, key, raters=2)

@slowly(max_examples=60)
@given(line=st.integers(1, 12), position=st.integers(0, 90),
       junk=st.text(max_size=6) | st.sampled_from(['"', '"a', '\x00', '\n\n', ',,,', '9' * 5000]))
def test_a_damaged_answer_costs_its_own_line_only(line, junk, position, plan_and_key, folder):
    plan, key, rows = plan_and_key
    path = folder / 'answers.csv'
    listening_analysis.save_answers(rows, path)
    lines = path.read_text(encoding='utf-8').split('\n')
    lines[line] = lines[line][:position] + junk + lines[line][position:]
    path.write_bytes('\n'.join(lines).encode('utf-8', 'replace'))
    answers, rejected = listening_analysis.read_answers(path, plan=plan, key=key)
    untouched = [tuple(row[:3]) for i, row in enumerate(rows, 1) if i != line]
    assert {*untouched} <= {*answers[['plan', 'rater', 'trial']].itertuples(index=False, name=None)}
    assert len(answers) + len(rejected) >= len(rows)
    assert set(rejected.line) <= set(range(line + 1, line + 4))

@slowly(max_examples=100)
@given(text=st.text(st.one_of(st.sampled_from('ab ,.!?;:\n\t"é漢0'), st.characters()), max_size=300))
def test_no_word_of_a_text_is_lost_between_its_sentences(text):
    try:
        check_text(text)
    except ValueError: return
    sentences = split_sentences(text)
    spoken = ''.join(sentence.text for sentence in sentences)
    assert re.sub(r'[\W_]', '', spoken) == re.sub(r'[\W_]', '', text)
    for sentence in sentences:
        assert len(sentence.text) <= MAX_CHARACTERS and '\n' not in sentence.text
        assert ' '.join(text[sentence.start : sentence.end].split()) == sentence.text

TORN = 'x,"ann', '\n\nx', '\xff', '{},{},{},{},{},{},{},1.5,' + '9' * 5000 + ',{}'

@pytest.mark.parametrize('values', TORN, ids=['quote', 'blank lines', 'latin', 'digits'])
def test_a_torn_answer_takes_no_other_with_it(values, plan_and_key, folder):
    plan, key, rows = plan_and_key
    listening_analysis.save_answers(rows, folder / 'answers.csv')
    head, *lines = (folder / 'answers.csv').read_text(encoding='utf-8').split('\n')
    torn = values.format(*rows[0][:7], rows[0][9])
    content = '\n'.join([head, torn, *lines]).encode('latin-1')
    (folder / 'answers.csv').write_bytes(content)
    answers, rejected = listening_analysis.read_answers(folder / 'answers.csv', plan=plan, key=key)
    assert len(answers) == len(rows)
    assert rejected.line.tolist() == [2 + torn.count('\n')]

def test_a_text_of_another_encoding_is_refused_in_words():
    with pytest.raises(ValueError, match='Part of this text is not UTF-8'): split_sentences('caf\udce9 noir')

def test_a_script_is_read_whatever_its_suffix_and_one_sound_has_one_line(tmp_path):
    path = tmp_path / 'SCRIPT.CSV'
    path.write_text('text,file\nIt rained.,a.wav\nDone.,./a.wav\n', encoding='utf-8')
    with pytest.raises(CorpusError, match='SCRIPT.CSV, line 3: file ./a.wav is that of line 2 as well'):
        read_script(path)

def test_names_in_a_script_are_found_in_any_case_with_a_home_and_slashes_of_windows(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    for folder in ('home', 'voices'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'ann.wav').touch()
    path = tmp_path / 'script.csv'
    rows = 'Text,Voice,VOICE TEXT,Seed\nIt rained.,~/ann.wav,Yes.,3\nDone.,voices\\ann.wav,No.,\n'
    path.write_text(rows, encoding='utf-8')
    found = [(line.request.voice, line.request.voice_text, line.request.seed) for line in read_script(path)]
    assert found == [(tmp_path / 'home/ann.wav', 'Yes.', 3), (tmp_path / 'voices/ann.wav', 'No.', 0)]
    path.write_text('text,Text\nA.,B.\n', encoding='utf-8')
    with pytest.raises(CorpusError, match='the columns text, Text are the same'): read_script(path)
    path.write_text('texts,seed\nA.,3\n', encoding='utf-8')
    with pytest.raises(CorpusError, match='unknown column texts; there are text, '): read_script(path)

# ---- splits ------------------------------------------------------------------------------------------------

FORMS = [['Zoé said no.', 'Zoe\u0301 said no'], ['It rained.', 'it RAINED!'], ['Füße', 'Fu\u0308ße.']]
FORMS += [[f'Sentence {i}.'] * 2 for i in range(4)]
some_shares = st.tuples(*[st.floats(0.01, 1)] * 3)
SPEAKERS = 'Ann', 'ann', 'Zoé', 'Zoe\u0301', 'Bo', 'Cy'
clip_facts = st.tuples(st.integers(0, 6), st.booleans(), st.sampled_from(SPEAKERS),
                       st.sampled_from(['sad', 'neutral']))

def assert_one_split(clips, key):
    "All clips with one value of `key` are in one split"
    pairs = {(key(clip), clip.split) for clip in clips}
    assert len(pairs) == len({name for name, _ in pairs})

@slowly(max_examples=100)
@given(facts=st.lists(clip_facts, min_size=8, max_size=40), shares=some_shares,
       rng=st.randoms(use_true_random=False))
def test_a_sentence_and_a_person_are_in_one_split_in_every_form_and_order(facts, shares, rng):
    clips = [corpora.Clip(f'c/{i}', 'c', '', speaker, 'unknown', emotion, FORMS[sentence][form], str(i))
             for i, (sentence, form, speaker, emotion) in enumerate(facts)]
    assume(len({sentence for sentence, *_ in facts}) > 1)
    config = splits.DataConfig(shares=shares, sentence_disjoint=True)
    shuffled = rng.sample(clips, len(clips))
    try:
        accepted, rejected = splits.select_clips(clips, config)
    except CorpusError as error:
        assert 'nothing is left' in str(error)
        return
    reordered, _ = splits.select_clips(shuffled, config)
    assert {clip.id: clip.split for clip in reordered} == {clip.id: clip.split for clip in accepted}
    assert len(accepted) + len(rejected) == len(clips)
    assert_one_split(accepted, lambda clip: facts[int(clip.id[2:])][0])
    assert_one_split(accepted, lambda clip: unicodedata.normalize('NFC', clip.speaker).lower())

@PROPERTY
@given(names=st.lists(st.text(max_size=5), unique=True, max_size=60), shares=some_shares)
def test_shares_are_kept_to_a_name(names, shares):
    assigned = splits.assign_splits(names, shares)
    assert assigned == splits.assign_splits(names[::-1], shares)
    assert assigned.keys() == set(names)
    for split, share in zip(splits.SPLITS, shares):
        number = sum(value == split for value in assigned.values())
        assert abs(number - len(names) * share / sum(shares)) <= 1 + 1e-9

def test_one_text_in_two_unicode_forms_is_one_sentence_and_no_contradiction():
    clip = partial(corpora.Clip, 'c/1', 'c', '', 'Ann', 'female', 'sad', sentence='1')
    assert splits.sentence_key(clip('Zoé said.')) == splits.sentence_key(clip('Zoe\u0301 said'))
    labels = [dict(text=text, emotion='sad', speaker='a') for text in ('Zoé', 'Zoe\u0301')]
    files = [(name, 1, label, False) for name, label in zip('ab', labels)]
    assert [error.reason for error in corpora.find_label_conflicts(files).values()] == ['duplicate']
