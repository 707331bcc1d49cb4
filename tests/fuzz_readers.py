"""Damaged recordings and tables, thrown at everything that reads them: `python tests/fuzz_readers.py
--minutes 10 --seed 1 --out FOLDER`.

Each input is a real file with a few bytes, fields or lines changed. A finding is an exception that is no
`AudioError` or `CorpusError`, more than five seconds of work, more than a gigabyte, sound that is no number,
or a length that contradicts the file. Inputs are read in child processes; every distinct finding is kept in
FOLDER as the bytes that cause it, beside `findings.json`. Exit status 1 where there is one."""
import argparse, hashlib, io, json, os, random, re, resource, signal, struct, sys, tempfile, time, traceback
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path, PurePosixPath

import numpy as np, soundfile as sf

from csm_expressive_nb.core.files import DamagedFile, read_json_lines
from csm_expressive_nb.data import audio, corpora, folders, readers, tables
from csm_expressive_nb.evaluation.listening import ANSWER_COLUMNS, read_answer_rows
from csm_expressive_nb.speech.script import read_script
from csm_expressive_nb.speech.text import split_sentences

SECONDS, GIGABYTE = 5, 2**30
BATCH = 100              # inputs per child
EXPECTED = audio.AudioError, tables.CorpusError
FORMATS = [
    ('WAV', name) for name in
    'PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW IMA_ADPCM MS_ADPCM GSM610 G721_32'.split()
]
FORMATS += [('WAVEX', 'PCM_24'), ('WAVEX', 'FLOAT'), ('RF64', 'PCM_16'), ('FLAC', 'PCM_16')]
FORMATS += [('FLAC', 'PCM_24'), ('OGG', 'VORBIS'), ('OGG', 'OPUS'), ('MP3', 'MPEG_LAYER_III')]
FORMATS += [('AIFF', 'PCM_16'), ('AU', 'ULAW'), ('CAF', 'ALAC_16'), ('W64', 'PCM_16'), ('NIST', 'PCM_16')]
FORMATS += [('VOC', 'PCM_16'), ('XI', 'DPCM_16')]
# sizes, rates and numbers of channels that a damaged header may claim
NUMBERS = 0, 1, 2, 3, 7, 255, 1024, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63
LETTERS = '"\'\\,;|\t\n\r\x00\x0b\x0c\x1c\x1e\x85\u2028\u2029\ufeff\u200b\u200f\u0301\xa0é漢😀=[{:.-0١'
VALUES = ('', '"', '""', 'nan', 'NA', '-1', '1e400', '9' * 5000, 'a' * 140_000, '../x.wav', '\x00', 'x' * 300,
          '[' * 2000, '\\ud800', '/', '.', '..', '*', '~')

class Finding(Exception):
    "What a reader returned contradicts its input"

# ---- recordings --------------------------------------------------------------------------------------------

def make_sound(kind: str, subtype: str, channels: int = 1, seconds: float = 0.25, **options) -> bytes:
    "A tone and some noise as a file"
    rate = 44_100 if kind == 'XI' else 8000 if subtype in ('GSM610', 'G721_32') else 16_000
    times = np.arange(int(seconds * rate)) / rate
    noise = 0.01 * np.random.default_rng(0).standard_normal((len(times), channels))
    file = io.BytesIO()
    sound = 0.3 * np.sin(2 * np.pi * 220 * times)[:, None] + noise
    sf.write(file, sound, rate, format=kind, subtype=subtype, **options)
    return file.getvalue()

def wav_chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack('<I', len(content)) + content + b'\0' * (len(content) % 2)

def make_broadcast_wave() -> bytes:
    "A WAV with chunks before and behind its samples"
    plain = make_sound('WAV', 'PCM_16')
    before = wav_chunk(b'bext', b'x' * 603) + wav_chunk(b'junk', b'\0' * 29)
    behind = wav_chunk(b'LIST', b'INFOISFT' + struct.pack('<I', 4) + b'test')
    body = plain[12:36] + before + plain[36:] + behind
    return b'RIFF' + struct.pack('<I', 4 + len(body)) + b'WAVE' + body

@cache
def sound_seeds() -> list[tuple[str, bytes]]:
    seeds = [(f'{kind}-{subtype}', make_sound(kind, subtype)) for kind, subtype in FORMATS]
    seeds += [(f'{kind}-stereo', make_sound(kind, 'PCM_16', 2)) for kind in ('WAV', 'FLAC')]
    seeds += [('RIFX', make_sound('WAV', 'PCM_16', endian='BIG')), ('BWF', make_broadcast_wave())]
    return seeds

def put_number(data: bytearray, rng: random.Random, end: int):
    "One of `NUMBERS` over two to eight bytes"
    order, size = rng.choice('<>'), rng.choice((2, 4, 4, 4, 8))
    position = rng.randrange(max(1, end - size))
    number = rng.choice(NUMBERS) % 2 ** (8 * size)
    data[position : position + size] = struct.pack(order + {2: 'H', 4: 'I', 8: 'Q'}[size], number)

def put_floats(data: bytearray, rng: random.Random):
    "A sample that is no number, or an impossible one"
    value = rng.choice((float('nan'), float('inf'), -float('inf'), 3e38, -3e38, 1e30, 1e-40))
    position = rng.randrange(max(1, len(data) - 8)) // 4 * 4
    data[position : position + 4] = struct.pack('<f', value)

def change_bytes(data: bytes, rng: random.Random) -> bytes:
    "One change of any kind, more often in the header"
    data, kind = bytearray(data), rng.randrange(10)
    end = len(data) if rng.random() < 0.3 else min(len(data), 64)
    if not data: return bytes(data)
    position = rng.randrange(end)
    if kind == 0: data[position] ^= 1 << rng.randrange(8)
    elif kind == 1: data[position] = rng.randrange(256)
    elif kind in (2, 3, 4): put_number(data, rng, end)
    elif kind == 5: del data[rng.randrange(len(data)) :]
    elif kind == 6: del data[position : position + rng.randrange(1, 9)]
    elif kind == 7: data[position:position] = rng.randbytes(rng.randrange(1, 9))
    elif kind == 8: put_floats(data, rng)
    else: data += rng.choice(sound_seeds())[1][rng.choice((0, 0, 12, 44)) :]
    return bytes(data)

def sound_input(rng: random.Random) -> tuple[str, bytes]:
    name, data = rng.choice(sound_seeds())
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        data = change_bytes(data, rng)
    return f'sound {name}', data

def pcm_frames(data: bytes) -> int | None:
    "Frames that a WAV of plain samples holds by its own header; None for other files"
    order = {b'RIFF': '<', b'RIFX': '>'}.get(data[:4])
    position, block = 12, None
    while order and position + 8 <= len(data):
        size = struct.unpack(f'{order}I', data[position + 4 : position + 8])[0]
        if data[position : position + 4] == b'fmt ' and position + 24 <= len(data):
            header = struct.unpack(f'{order}HHIIHH', data[position + 8 : position + 24])
            code, channels, _, _, align, bits = header
            plain = code in (1, 3) and bits in (8, 16, 24, 32, 64) and align == channels * bits // 8
            block = align if plain else None
        if data[position : position + 4] == b'data': return size // block if block else None
        position += 8 + size + size % 2
    return None

def check_sound(data: bytes, folder: Path):
    "The product's readers of a sound; `Finding` where the result contradicts the file"
    samples, info = audio.decode(data)
    if not np.isfinite(samples).all(): raise Finding('samples that are no numbers')
    if not np.isfinite([info['peak'], info['seconds']]).all(): raise Finding('facts that are no numbers')
    if abs(len(samples) / info['rate'] - info['seconds']) > 1e-6: raise Finding('seconds and samples differ')
    claimed = pcm_frames(data)
    if claimed is not None and claimed != len(samples):
        raise Finding('another number of samples than the header says')
    if info['seconds'] > 60: return
    sound = audio.trim(audio.resample(samples, info['rate']))
    if not len(sound) or not np.isfinite(sound).all(): raise Finding('no numbers after resampling')

def check_file(data: bytes, folder: Path):
    "A recording among others"
    (folder / 'sad').mkdir(exist_ok=True)
    (folder / 'sad/a.wav').write_bytes(data)
    corpus = corpora.scan_folder(folders.Folder(folder))
    if len(corpus.clips) + len(corpus.quarantine) != 1: raise Finding('a file is neither a clip nor rejected')
    corpus.write_quarantine(folder / 'rejected.csv')

# ---- tables ------------------------------------------------------------------------------------------------

ROWS = [('a.wav', 'sad', 'We cleaned it, twice.', 'ann'),
        ('b.wav', 'happy', 'Füße "und" Hände; 窓', 'bob'),
        ('c.wav', 'neutral', 'It rained.', 'ann')]
COLUMNS = 'file', 'emotion', 'text', 'speaker'

def table_text(separator: str) -> str:
    quoted = [['"' + value.replace('"', '""') + '"' for value in row] for row in ROWS]
    return '\n'.join(separator.join(row) for row in [COLUMNS, *quoted]) + '\n'

def write_recordings(folder: Path, names: list[str]):
    "A tone for each name, at the rate of ESD and CREMA-D"
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(make_sound('WAV', 'PCM_16', seconds=0.2 + i / 100))

def check_folder(data: bytes, folder: Path, name: str = 'metadata.csv'):
    "Recordings of one's own and their table"
    write_recordings(folder, [row[0] for row in ROWS])
    (folder / name).write_bytes(data)
    reader = folders.Folder(folder, emotion='sad')
    corpus = corpora.scan_folder(reader)
    corpus.write_quarantine(folder / 'rejected.csv')
    if len(corpus.clips) + len(corpus.quarantine) != len(reader.files()): raise Finding('a file is lost')
    corpus.accept(1)

def check_reader(data: bytes, folder: Path, cls, table: str, names: list[str]):
    "Recordings under a publisher's names, with one of his tables"
    write_recordings(folder, names)
    for path, text in CREMAD_FILES.items():
        if cls is not readers.CremaD: break
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding='utf-8')
    (folder / table).parent.mkdir(parents=True, exist_ok=True)
    (folder / table).write_bytes(data)
    corpus = corpora.scan_folder(cls(folder), 'off')
    if len(corpus.clips) + len(corpus.quarantine) != len(names): raise Finding('a file is lost')
    corpus.accept(1)

def check_answers(data: bytes, folder: Path):
    (folder / 'answers.csv').write_bytes(data)
    read_answer_rows(folder / 'answers.csv')

def check_script(data: bytes, folder: Path, suffix: str = '.csv'):
    (folder / f'script{suffix}').write_bytes(data)
    for line in read_script(folder / f'script{suffix}'):
        if any(character.isalnum() for character in line.request.text): split_sentences(line.request.text)

def check_log(data: bytes, folder: Path):
    (folder / 'log.jsonl').write_bytes(data)
    read_json_lines(folder / 'log.jsonl')

CREMAD_FILES = {
    'VideoDemographics.csv': '"ActorID","Age","Sex","Race","Ethnicity"\n'
    '1001,51,"Male","Caucasian","Not Hispanic"\n'
    '1002,21,"Female","Caucasian","Not Hispanic"\n',
    'processedResults/tabulatedVotes.csv': '"","A","D","F","H","N","S","fileName","numResponses","agreement",'
    '"emoVote","meanEmoResp","meanAngerResp"\n"100001",9,0,0,0,1,0,"1001_IEO_ANG_HI",10,0.9,"A",60.1,61\n'
    '"200001",9,0,0,0,1,0,"1001_IEO_ANG_HI",10,0.9,"A",60.1,61\n'
    '"100002",0,5,0,0,5,0,"1002_DFA_DIS_XX",10,0.5,"D:N",50.5,0\n',
}
CREMAD_NAMES = ['AudioWAV/1001_IEO_ANG_HI.wav', 'AudioWAV/1002_DFA_DIS_XX.wav']
ESD_TEXT = '0011_000001\tThe nine eggs.\tNeutral\n0011_000351  I’ve kept them. Angry\n'
ESD_NAMES = ['0011/Neutral/0011_000001.wav', '0011/Angry/0011_000351.wav']
LJ_TEXT = 'LJ001-0001|"No," he said in 1891.|"No," he said in eighteen ninety-one.\nLJ001-0002|Yes.|Yes.\n'
JSON_LINES = '\n'.join(json.dumps(dict(zip(COLUMNS, row)), ensure_ascii=False) for row in ROWS) + '\n'
ANSWERS = ','.join(ANSWER_COLUMNS) + '\n0123456789ab,ann,t001,cmos,c001.wav,c002.wav,2,3.41,2,'
ANSWERS += '2026-01-01T00:00:00.000Z\n'
SCRIPT = 'text,emotion,intensity,seed,file\n"It rained, twice.",sad,1.5,3,a.wav\nDone.,,,,\n'
STATEMENTS = 'code,text\n03,"Seven, or eight."\n04,Guest\n'
RAVDESS_NAMES = ['Actor_01/03-01-01-01-03-01-01.wav', 'Actor_02/03-01-04-02-04-02-02.wav']

def folder_targets() -> list[tuple]:
    "Tables of recordings of one's own: (name, text, check)"
    dialects = {'metadata.csv': ',', 'semicolons.csv': ';', 'metadata.tsv': '\t', 'bars.csv': '|'}
    targets = [
        (f'folder {name}', table_text(separator), partial(check_folder, name=name))
        for name, separator in dialects.items()
    ]
    return [*targets, ('folder jsonl', JSON_LINES, partial(check_folder, name='metadata.jsonl'))]

def reader_targets() -> list[tuple]:
    "Tables of the publishers: (name, text, check)"
    check = lambda cls, table, names: partial(check_reader, cls=cls, table=table, names=names)
    targets = [(f'cremad {name}', text, check(readers.CremaD, name, CREMAD_NAMES))
               for name, text in CREMAD_FILES.items()]
    lj_names = ['wavs/LJ001-0001.wav', 'wavs/LJ001-0002.wav']
    return [
        *targets,
        ('esd', ESD_TEXT, check(readers.ESD, '0011/0011.txt', ESD_NAMES)),
        ('ljspeech', LJ_TEXT, check(readers.LJSpeech, 'metadata.csv', lj_names)),
        ('ravdess statements', STATEMENTS, check(readers.Ravdess, 'statements.csv', RAVDESS_NAMES)),
        ('ravdess corpus', 'key,value\nname,x\nlicence,CC0\n',
         check(readers.Ravdess, 'corpus.csv', ['Actor_01/03-01-01-01-01-01-01.wav'])),
    ]

@cache
def table_targets() -> list[tuple]:
    scripts = [
        ('script csv', SCRIPT, check_script),
        ('script txt', 'It rained.\n\nDone, twice.\n', partial(check_script, suffix='.txt')),
        ('script jsonl', '{"text": "It rained.", "seed": 3}\n', partial(check_script, suffix='.jsonl')),
    ]
    log = '{"step": 1, "loss": 2.5}\n{"step": 2, "text": "é\u2028"}\n'
    return [*folder_targets(), *reader_targets(), *scripts, ('answers', ANSWERS, check_answers),
            ('log', log, check_log)]

def change_text(text: str, rng: random.Random) -> str:
    "One change of a table: a letter, a field, a line"
    kind, lines = rng.randrange(6), text.split('\n')
    i, position = rng.randrange(len(lines)), rng.randrange(len(text) + 1)
    if kind == 0: return text[:position] + rng.choice(LETTERS) + text[position:]
    if kind == 1: return text[:position] + text[position + 1 :]
    if kind == 2: lines[i] = lines[rng.randrange(len(lines))]
    elif kind == 3: del lines[i]
    elif kind == 4: lines[i] = lines[i][: rng.randrange(len(lines[i]) + 1)]
    else:
        fields = re.split(r'([,;|\t])', lines[i])
        fields[rng.randrange(len(fields))] = rng.choice(VALUES)
        lines[i] = ''.join(fields)
    return '\n'.join(lines)

def table_input(rng: random.Random) -> tuple[str, bytes]:
    name, text, _ = rng.choice(table_targets())
    for _ in range(rng.choice((1, 1, 2, 3))):
        text = change_text(text, rng)
    data = text.encode(rng.choice(('utf-8',) * 6 + ('utf-8-sig', 'utf-16', 'cp1252')), 'replace')
    return name, change_bytes(data, rng) if rng.random() < 0.3 else data

# ---- one input, one batch ----------------------------------------------------------------------------------

def make_input(seed: int, number: int) -> tuple[str, bytes]:  # (target, bytes), always the same
    rng = random.Random(f'{seed}/{number}')
    return sound_input(rng) if number % 2 else table_input(rng)

def read_input(target: str, data: bytes, folder: Path):
    "Give an input to its reader; only what it must not raise gets out"
    checks = {name: check for name, _, check in table_targets()}
    by_sound = check_file if hashlib.sha256(data).digest()[0] < 16 else check_sound
    try:
        checks.get(target, by_sound)(data, folder)
    except EXPECTED as error:
        if re.search('MemoryError|allocate', str(error)): raise Finding(f'memory: {error}') from None
    except ValueError as error:
        # scripts and answers promise a ValueError that names the file
        named = re.search(r'script\.|answers\.csv|log\.jsonl', str(error))
        if type(error) not in (ValueError, DamagedFile) or not named: raise

def signature(error: Exception) -> str:
    "What makes findings the same: the error, and where in the product it came from"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if 'csm_expressive_nb' in frame.filename and 'fuzz_readers' not in frame.filename]
    function = f'{Path(frames[-1].filename).stem}.{frames[-1].name}' if frames else 'result'
    message = re.sub(r'0x[0-9a-f]+|\d+', 'N', str(error))[:80]
    return f'{type(error).__name__} in {function}: {message}'

def limit_child():
    "A gigabyte more than now, and no words"
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf('SC_PAGE_SIZE') + GIGABYTE,) * 2)
    for name in (signal.SIGALRM, signal.SIGPROF): signal.signal(name, signal.SIG_DFL)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)

def run_batch(seed: int, numbers: range, pipe: int):
    "In a child: read the inputs, and write a line before each one and for each finding"
    limit_child()
    with os.fdopen(pipe, 'w') as log:
        for number in numbers:
            print(json.dumps(dict(number=number)), file=log, flush=True)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)          # of this process, however busy the machine
            signal.alarm(20 * SECONDS)
            target, data = make_input(seed, number)
            try:
                with tempfile.TemporaryDirectory() as folder: read_input(target, data, Path(folder))
            except Exception as error:
                print(json.dumps(dict(number=number, signature=signature(error))), file=log, flush=True)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)

@dataclass
class Record:
    "What came of a run"
    seed: int
    out: Path
    n_inputs: int = 0
    findings: dict = field(default_factory=dict)     # signature: {target, number, count}

    def add(self, number: int, text: str):
        "Count a finding; the first of its kind is written down"
        target, data = make_input(self.seed, number)
        text = f'{target.split("-")[0].split()[0]}: {text}'
        row = self.findings.setdefault(text, dict(target=target, number=number, count=0))
        row['count'] += 1
        if row['count'] > 1: return
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f'{self.seed}-{number}.bin').write_bytes(data)
        print(f'\n{target}, input {number}: {text}', flush=True)

    def add_batch(self, numbers: range) -> int:  # the next input
        "Run a child over `numbers`; where it dies, the input it died of is a finding"
        source, sink = os.pipe()
        child = os.fork()
        if not child:
            os.close(source)
            try:
                run_batch(self.seed, numbers, sink)
            finally: os._exit(0)
        os.close(sink)
        with os.fdopen(source) as log: rows = [json.loads(line) for line in log]
        _, status = os.waitpid(child, 0)
        for row in rows:
            if 'signature' in row: self.add(row['number'], row['signature'])
        last = rows[-1]['number'] if rows else numbers[0]
        if os.WIFSIGNALED(status):
            self.add(last, f'the process died of {signal.Signals(os.WTERMSIG(status)).name}')
        self.n_inputs += last + 1 - numbers[0]
        return last + 1

def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--minutes', type=float, default=1)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--out', type=Path, required=True, help='folder for findings')
    options = parser.parse_args()
    record, number, start = Record(options.seed, options.out), 0, time.monotonic()
    make_input(options.seed, 0)
    check_sound(make_sound('WAV', 'PCM_16'), options.out)             # numba compiles once
    while time.monotonic() - start < 60 * options.minutes:
        number = record.add_batch(range(number, number + BATCH))
        seconds = time.monotonic() - start
        print(f'\r{record.n_inputs} inputs, {record.n_inputs / seconds:.0f}/s, '
              f'{len(record.findings)} findings, {seconds / 60:.1f} min', end='', flush=True)
    print()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = json.dumps(record.findings, indent=1, ensure_ascii=True)
    (options.out / 'findings.json').write_text(rows + '\n', encoding='utf-8')
    return 1 if record.findings else 0

if __name__ == '__main__': sys.exit(main())
