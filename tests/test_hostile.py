"Untrusted input and the network: downloads, archives, folders of strangers, their adapters, their sounds."
import gzip, hashlib, http.server, io, json, multiprocessing, os, pickle, shutil, socket, stat, struct, sys
import threading, time, zipfile
from pathlib import Path
from xml.etree import ElementTree

import ipywidgets as W, numpy as np, pandas as pd, pytest, soundfile as sf, torch
from safetensors.torch import load_file, save_file
from transformers import CsmForConditionalGeneration
from typer.testing import CliRunner

from browser import browser, need_browser
from run_folders import ROOT, run_folder
from csm_expressive_nb import cli
from csm_expressive_nb.core.config import EmotionConfig, make_config
from csm_expressive_nb.core.files import assets, read_json, write_json
from csm_expressive_nb.core.run import Run
from csm_expressive_nb.core.runs import read_run
from csm_expressive_nb.data import download, readers
from csm_expressive_nb.data.dataset import open_dataset
from csm_expressive_nb.evaluation import listening, listening_analysis
from csm_expressive_nb.model import lora
from csm_expressive_nb.model.csm import load_csm
from csm_expressive_nb.pipelines.evaluate_folder import read_sounds
from csm_expressive_nb.report.dashboard import dashboard
from csm_expressive_nb.report.evaluation_page import write_evaluation_page
from csm_expressive_nb.report.explorer import RunExplorer
from csm_expressive_nb.report.html import write_html
from csm_expressive_nb.report.listening_page import listening_page
from csm_expressive_nb.report.pages import write_figures, write_page
from csm_expressive_nb.speech.speaker import Speaker
from csm_expressive_nb.speech.voice import load_voice

RESULTS = ROOT / 'nbs/results'

# ---- a server that misbehaves ------------------------------------------------------------------------------

CONTENT = np.random.default_rng(0).bytes(400_000)
OTHER = np.random.default_rng(1).bytes(400_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
LOGIN = b'\n<!DOCTYPE html><html><title>Log in</title></html>'

class Request(http.server.BaseHTTPRequestHandler):
    "Answers as the server's `behave` says"
    def log_message(self, *_): pass

    def do_GET(self):
        start = int((self.headers.get('Range') or 'bytes=0-')[6:-1])
        self.server.starts.append(start)
        self.server.behave(self, start, len(self.server.starts))

    do_POST = do_GET

    def answer(self, status, body=b'', end=None, **headers):
        "Headers for all of `body`, and as much of it as `end` says"
        self.send_response(status)
        for name, value in (dict(Content_Length=len(body)) | headers).items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        self.wfile.write(body[:end])
        self.server.sent += len(body[:end])
        self.close_connection = True

    def send_part(self, start, end=None, body=CONTENT, **headers):
        "What a well-behaved server sends from `start` on"
        if not start: return self.answer(200, body, end, **headers)
        place = f'bytes {start}-{len(body) - 1}/{len(body)}'
        self.answer(206, body[start:], end, Content_Range=place, **headers)

@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Request) as server:
        server.starts, server.sent = [], 0
        server.url = f'http://127.0.0.1:{server.server_port}/f.zip'
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()

def fetch(server, folder, **options):
    "The file from the server"
    settings = dict(pause=0.002, show=False) | options
    return download.fetch(server.url, folder / 'f.zip', f'md5:{MD5}', **settings)

def refuse(server, folder, *words, **options):
    "The download ends in one line with these words, and nothing has the final name"
    with pytest.raises(download.DownloadError) as error: fetch(server, folder, **options)
    message = str(error.value)
    assert '\n' not in message
    for word in (server.url, 'download it by hand', *words): assert word in message, message
    assert not (folder / 'f.zip').exists()
    return message

def part_size(folder) -> int:
    part = folder / 'f.zip.part'
    return part.stat().st_size if part.exists() else -1

def cut(request, start, n): request.send_part(start, 150_000)

def reset(request, start, n):
    request.send_part(start, 150_000)
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    request.wfile.flush()
    request.connection.close()

def busy_at_first(request, start, n):
    if n < 3: request.answer(503, Retry_After='0')
    else: request.send_part(start)

def gzip_once(request, start, n):
    request.answer(200, gzip.compress(CONTENT), Content_Encoding='gzip')

# behaviour: where the requests begin, None where that depends on buffers
RECOVERED = {cut: [0, 150_000, 300_000], reset: None, busy_at_first: [0, 0, 0], gzip_once: [0]}

@pytest.mark.parametrize('behave', RECOVERED, ids=lambda behave: behave.__name__)
def test_a_download_ends_with_the_published_bytes_and_none_comes_twice(behave, server, tmp_path):
    server.behave = behave
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ['f.zip']
    expected = RECOVERED[behave]
    if expected:
        assert server.starts == expected
        assert server.sent <= len(CONTENT) + 1_000
    fetch(server, tmp_path)
    assert server.starts == (expected or server.starts)         # a whole file is not asked for again

def test_a_server_that_ignores_ranges_is_read_from_the_start(server, tmp_path):
    def behave(request, start, n): request.answer(200, CONTENT, 100_000 if n == 1 else None)
    server.behave = behave
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.starts == [0, 100_000]

def test_a_file_that_changes_between_two_parts_is_fetched_anew(server, tmp_path):
    def behave(request, start, n):
        if n == 1: request.send_part(0, 100_000, OTHER, ETag='"old"')
        else: request.send_part(start, ETag='"new"')
    server.behave = behave
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.starts == [0, 100_000, 0]

def test_a_range_that_does_not_exist_ends_in_a_new_start(server, tmp_path):
    (tmp_path / 'f.zip.part').write_bytes(CONTENT + b'more')
    def behave(request, start, n):
        if start: request.answer(416)
        else: request.send_part(0)
    server.behave = behave
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.starts == [len(CONTENT) + 4, 0]

def test_another_place_than_asked_for_is_not_appended(server, tmp_path):
    def behave(request, start, n):
        if n == 2: request.answer(206, CONTENT[7:], Content_Range=f'bytes 7-{len(CONTENT) - 1}')
        else: request.send_part(start, 100_000 if n == 1 else None)
    server.behave = behave
    assert fetch(server, tmp_path).read_bytes() == CONTENT

def circle(request, start, n): request.answer(302, Location='/f.zip')
def to_file(request, start, n): request.answer(302, Location='file:///etc/passwd')
def to_nonsense(request, start, n): request.answer(302, Location='http://[::')
def login_page(request, start, n): request.answer(200, LOGIN)
def wrong(request, start, n): request.answer(200, OTHER)
def cut_gzip(request, start, n):
    request.answer(200, gzip.compress(CONTENT)[:-90_000], Content_Encoding='gzip')

def no_gzip(request, start, n): request.answer(200, CONTENT, Content_Encoding='gzip')

def answer_with(status, **headers):
    def behave(request, start, n): request.answer(status, b'no', **headers)
    return behave

REFUSED = dict(  # behaviour, words, how often it was asked
    unknown=(answer_with(404), 'answered 404', 1),
    forbidden=(answer_with(403), 'answered 403', 1),
    no_range=(answer_with(416), 'answered 416', 1),
    broken=(answer_with(500), 'the server answered 500', 5),
    closed_for_long=(answer_with(503, Retry_After='7200'), 'run the same command again in 120 minutes', 1),
    circle=(circle, 'is redirected in a circle', 21),
    to_file=(to_file, 'is not a web address, or is redirected to something that is not one', 1),
    to_nonsense=(to_nonsense, 'no connection, or a broken one', 5),
    login_page=(login_page, 'the server sent a web page, perhaps one to log in at', 2),
    wrong=(wrong, f'published {MD5}', 2),
    cut_gzip=(cut_gzip, f'published {MD5}', 2),
    no_gzip=(no_gzip, 'DecodingError', 5),
)

@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_had_is_one_line(case, server, tmp_path):
    server.behave, words, requests = REFUSED[case]
    refuse(server, tmp_path, words)
    assert len(server.starts) == requests
    server.behave = lambda request, start, n: request.send_part(start)
    assert fetch(server, tmp_path).read_bytes() == CONTENT          # the same command again

def test_a_busy_server_is_waited_for_as_it_asks(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, 'sleep', pauses.append)
    server.behave = answer_with(503, Retry_After='90')
    refuse(server, tmp_path, 'the server answered 503. Run it again')
    assert pauses == [90.0] * 4

def drip(request, start, n):
    "A few bytes now and then, for half a minute"
    request.send_part(start, 10)
    for _ in range(600):
        try:
            request.wfile.write(b'?')
        except OSError: return
        if request.server.stopped.wait(0.02): return

def test_a_slow_drip_is_broken_off_and_what_came_before_stays(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'STALL', (0.1, 4096))
    server.stopped = threading.Event()
    server.behave = lambda request, start, n: cut(request, start, n) if n == 1 else drip(request, start, n)
    refuse(server, tmp_path, 'ReadTimeout', 'Run it again to continue', tries=2)
    server.stopped.set()
    assert server.starts[1] == 150_000
    assert len(server.starts) == 3
    assert part_size(tmp_path) >= 150_000

def test_an_endless_answer_fills_no_disk(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'LARGEST_DOWNLOAD', 1 << 20)
    server.behave = answer_with(200, Content_Length=1 << 40)
    server.behave = lambda request, start, n: request.answer(200, bytes(4 << 20))
    refuse(server, tmp_path, 'sends more than 1 MiB')
    assert part_size(tmp_path) == -1
    bomb = gzip.compress(bytes(64 << 20))
    server.behave = lambda request, start, n: request.answer(200, bomb, Content_Encoding='gzip')
    refuse(server, tmp_path, 'sends more than 1 MiB')

def test_without_a_connection_the_part_stays_and_is_continued(server, tmp_path, monkeypatch):
    server.behave = cut
    (tmp_path / 'f.zip.part').write_bytes(CONTENT[:100_000])
    url, server.url = server.url, 'http://127.0.0.1:9/f.zip'
    refuse(server, tmp_path, 'ConnectError', 'Run it again to continue')
    server.url = 'http://no-such-host.invalid/f.zip'
    message = refuse(server, tmp_path, 'ConnectError')
    assert 'a proxy is set' not in message
    monkeypatch.setenv('HTTP_PROXY', 'http://user:secret@127.0.0.1:9')
    message = refuse(server, tmp_path, 'a proxy is set, look at the variables ALL_PROXY, HTTP_PROXY')
    assert 'secret' not in message
    monkeypatch.delenv('HTTP_PROXY')
    server.url = url
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.starts == [100_000, 250_000]

@pytest.mark.parametrize('name, value', [
    ('ALL_PROXY', 'gopher://a'), ('HTTPS_PROXY', 'http://[::'), ('SSL_CERT_FILE', '/nowhere/ca.pem'),
])
def test_variables_that_make_no_sense_are_named(name, value, server, tmp_path, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(download.DownloadError, match='look at the variables ALL_PROXY'):
        fetch(server, tmp_path)
    with pytest.raises(download.DownloadError, match='or name a folder with --source'):
        readers.CremaD.download(tmp_path)

def download_ravdess(folder, mirror, md5):
    readers.Ravdess.download(folder, mirror, md5=md5, show=False, pause=0.01)

def test_two_processes_that_download_one_corpus_fetch_it_once(server, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w') as archive: archive.writestr('Actor_01/a.wav', CONTENT)
    body = packed.getvalue()
    server.behave = lambda request, start, n: request.send_part(start, 150_000, body)
    job = tmp_path, server.url.rsplit('/', 1)[0], hashlib.md5(body).hexdigest()
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=download_ravdess, args=job) for _ in range(2)]
    for process in processes: process.start()
    for process in processes: process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert server.starts == [0, 150_000, 300_000]
    assert (tmp_path / 'ravdess/Actor_01/a.wav').read_bytes() == CONTENT

# ---- addresses that a server of Git LFS sends

LFS_ANSWERS = dict(
    no_json=b'<html>', a_list=b'[1]', no_objects=b'{"a": 1}', no_address=b'{"objects": [{"oid": "%s"}]}',
    no_link=b'{"objects": [{"oid": "%s", "actions": {}}]}',
    others=b'{"objects": [{"oid": "x", "actions": {"download": {"href": "http://a"}}}]}',
)

@pytest.mark.parametrize('case', LFS_ANSWERS)
def test_an_lfs_server_that_sends_something_else_is_one_line(case, server):
    sha = '0' * 64
    body = LFS_ANSWERS[case].replace(b'%s', sha.encode())
    server.behave = lambda request, start, n: request.answer(200, body)
    with download.open_client() as client, pytest.raises(download.DownloadError) as error:
        download.resolve_lfs_urls(client, server.url, [(sha, 1)], pause=0.01)
    assert 'clone the repository with git-lfs' in str(error.value)

# ---- archives ----------------------------------------------------------------------------------------------

def packed(folder, *members, compression=zipfile.ZIP_STORED) -> Path:
    "A zip of (name or ZipInfo, bytes)"
    path = folder / 'a.zip'
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, data in members: archive.writestr(name, data)
    return path

def member(name, mode=0, **fields) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    for field, value in fields.items(): setattr(info, field, value)
    return info

OUTSIDE = ('../evil', 'a/../../evil', '/tmp/evil', 'C:/evil', 'C:evil', '..\\evil', '\\\\host\\share\\evil')
SPECIAL = dict(link=stat.S_IFLNK, fifo=stat.S_IFIFO, device=stat.S_IFCHR, socket=stat.S_IFSOCK)
CLASHES = (('a.wav', 'a.wav'), ('a.wav', 'A.WAV'), ('a.wav', './a.wav'), ('é.wav', 'e\u0301.wav'))

def never(folder, archive, words):
    "Nothing is unpacked, and the reason has these words"
    with pytest.raises(download.DownloadError) as error: download.unzip(archive, folder / 'out')
    assert words in str(error.value), str(error.value)
    assert str(error.value).startswith('a.zip')
    assert not (folder / 'out').exists()
    assert not (folder / 'evil').exists()

@pytest.mark.parametrize('name', OUTSIDE)
def test_no_member_leaves_the_folder(name, tmp_path):
    never(tmp_path, packed(tmp_path, ('fine', b'x'), (name, b'x')), 'would leave the folder')

@pytest.mark.parametrize('kind', SPECIAL)
def test_no_special_file_is_unpacked(kind, tmp_path):
    special = member('l', SPECIAL[kind] | 0o777)
    never(tmp_path, packed(tmp_path, ('fine', b'x'), (special, b'/etc/passwd')), 'is no ordinary file')

@pytest.mark.parametrize('names', CLASHES)
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_two_members_that_would_be_one_file_are_refused(names, tmp_path):
    never(tmp_path, packed(tmp_path, *((name, b'x') for name in names)), 'would be one file')

def test_a_member_cannot_be_a_file_and_a_folder(tmp_path):
    never(tmp_path, packed(tmp_path, ('a', b'x'), ('A/b/c', b'y')), "'a' is a file, and a folder of 'A/b/c'")

@pytest.mark.parametrize('name', ['a\x07.wav', 'a\n.wav', './', '.'])
def test_names_that_no_file_can_have_are_refused(name, tmp_path):
    if name.endswith('/'): archive = packed(tmp_path, ('fine', b'x'), ('.', b'x'))
    else: archive = packed(tmp_path, ('fine', b'x'), (name, b'x'))
    never(tmp_path, archive, 'has a name that no file can have')

def changed(path, old, new, count=-1):
    "The archive with other bytes in it"
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new, count))
    return path

def test_a_name_with_nul_and_one_that_is_no_unicode_are_refused(tmp_path):
    never(tmp_path, changed(packed(tmp_path, ('a.wav_b', b'x')), b'wav_b', b'wav\0b'), 'no file can have')
    archive = changed(packed(tmp_path, ('é.wav', b'x')), 'é'.encode(), b'\xff\xfe')
    never(tmp_path, archive, 'is no zip file that can be read')

def test_encrypted_members_and_unknown_compressions_are_named(tmp_path):
    archive = packed(tmp_path, ('a.wav', b'x'))
    data = bytearray(archive.read_bytes())
    data[data.index(b'PK\1\2') + 8] |= 1
    archive.write_bytes(data)
    never(tmp_path, archive, "the member 'a.wav' is encrypted")
    archive = packed(tmp_path, ('a.wav', b'x'))
    data = bytearray(archive.read_bytes())
    data[data.index(b'PK\1\2') + 10] = 97
    archive.write_bytes(data)
    with pytest.raises(download.DownloadError, match='cannot be unpacked .*compression'):
        download.unzip(archive, tmp_path / 'out')
    assert [path for path in (tmp_path / 'out').rglob('*')] == []

def test_a_damaged_member_is_named_and_whole_ones_are_kept(tmp_path):
    members = [(f'{i}.wav', f'sound {i}'.encode()) for i in range(4)]
    archive = changed(packed(tmp_path, *members), b'sound 2', b'SOUND 2')
    with pytest.raises(download.DownloadError, match="'2.wav' cannot be unpacked .*CRC.*are kept"):
        download.unzip(archive, tmp_path / 'out')
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['0.wav', '1.wav']
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'out').iterdir()}
    download.unzip(packed(tmp_path, *members), tmp_path / 'out')             # the right archive
    assert (tmp_path / 'out/2.wav').read_bytes() == b'sound 2'
    assert {name: (tmp_path / 'out' / name).stat().st_mtime_ns for name in times} == times

def test_what_is_no_whole_zip_is_one_line(tmp_path):
    archive = packed(tmp_path, ('a.wav', bytes(1000)))
    data = archive.read_bytes()
    for broken in (data[:-10], data[:500], LOGIN, b''):
        archive.write_bytes(broken)
        never(tmp_path, archive, 'is no zip file that can be read')

def test_bombs_are_refused_before_they_burst(tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'MOST_MEMBERS', 1_000)
    bomb = packed(tmp_path, ('a.wav', bytes(8 << 20)), compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10_000
    with pytest.raises(download.DownloadError, match='would unpack to more than 0.0039 GiB'):
        download.unzip(bomb, tmp_path / 'out', limit=4 << 20)
    # a size that is a lie: no more is written than it says
    lie = changed(bomb, struct.pack('<I', 8 << 20), struct.pack('<I', 1 << 10))
    with pytest.raises(download.DownloadError, match='cannot be unpacked'):
        download.unzip(lie, tmp_path / 'out')
    assert not list((tmp_path / 'out').iterdir())
    (tmp_path / 'out').rmdir()
    crowd = packed(tmp_path, *((f'{i}', b'') for i in range(1_001)))
    never(tmp_path, crowd, 'it has more than 1,000 members')
    # a zip within the zip stays a file
    inner = packed(tmp_path, ('../evil', b'x')).read_bytes()
    download.unzip(packed(tmp_path, ('inner.zip', inner)), tmp_path / 'out')
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['inner.zip']

def test_members_that_share_their_bytes_do_not_multiply(tmp_path):
    "Overlapping entries (Fifield 2019): every entry of the directory points at the same member"
    archive = packed(tmp_path, ('a.wav', bytes(1000)), ('b.wav', bytes(1000)))
    data = archive.read_bytes()
    second = data.rindex(b'PK\1\2')
    archive.write_bytes(data[: second + 42] + struct.pack('<I', 0) + data[second + 46 :])
    with pytest.raises(download.DownloadError, match='cannot be unpacked'):
        download.unzip(archive, tmp_path / 'out')

def test_a_link_that_lies_in_the_folder_is_not_followed_out_of_it(tmp_path):
    (tmp_path / 'out').mkdir()
    os.symlink(tmp_path, tmp_path / 'out/sub')
    with pytest.raises(download.DownloadError, match='would leave the folder'):
        download.unzip(packed(tmp_path, ('sub/evil', b'x')), tmp_path / 'out')
    assert not (tmp_path / 'evil').exists()

@pytest.mark.long
def test_a_hundred_thousand_members_are_looked_at_in_time(tmp_path):
    members = [(f'{i % 100}/{i}', b'') for i in range(download.MOST_MEMBERS)]
    archive, started = packed(tmp_path, *members, ('../evil', b'x')), time.perf_counter()
    never(tmp_path, archive, 'has more than 100,000 members')
    assert time.perf_counter() - started < 20
    archive, started = packed(tmp_path, *members[1:], ('../evil', b'x')), time.perf_counter()
    never(tmp_path, archive, 'would leave the folder')
    assert time.perf_counter() - started < 60

# ---- adapters of strangers ---------------------------------------------------------------------------------

class Trap:
    "A pickle that writes a file when it is loaded"
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)

class Adapters:
    "A speaker, a good adapter, and changed copies of it"

    def __init__(self, folder):
        self.folder, self.number = folder, 0
        self.speaker = Speaker('nano')
        self.weights = lora.weights_hash(self.speaker.model)
        lora.save_adapter(lora.add_lora(load_csm('nano')[0], 2), folder / 'good', 'nano')
        self.description = read_json(folder / 'good/adapter_config.json')
        self.tensors = load_file(folder / 'good/adapter_model.safetensors')

    def copy(self, tensors=None, content=None, text=None, **fields) -> Path:
        "A copy with other tensors, another file of weights, another description"
        self.number += 1
        folder = Path(shutil.copytree(self.folder / 'good', self.folder / f'a{self.number}'))
        if tensors is not None: save_file(tensors, folder / 'adapter_model.safetensors')
        if content is not None: (folder / 'adapter_model.safetensors').write_bytes(content)
        text = text or json.dumps(self.description | fields)
        (folder / 'adapter_config.json').write_text(text, encoding='utf-8')
        return folder

    def map(self, change) -> dict:
        return {name: change(tensor) for name, tensor in self.tensors.items()}

    def refuse(self, folder, *words):
        "The adapter is refused in one line, and the speaker is as before"
        with pytest.raises((ValueError, FileNotFoundError)) as error: self.speaker.add_adapter(folder)
        message = str(error.value)
        assert '\n' not in message
        assert len(message) < 700
        for word in (folder.name, *words): assert word in message, message
        assert not self.speaker.emotions
        assert isinstance(self.speaker.model, CsmForConditionalGeneration)
        assert not [name for name, _ in self.speaker.model.named_parameters() if 'lora' in name]
        assert lora.weights_hash(self.speaker.model) == self.weights

@pytest.fixture(scope='module')
def adapters(tmp_path_factory): return Adapters(tmp_path_factory.mktemp('adapters'))

def with_header(header, data=b'0000') -> bytes:
    "A safetensors file"
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(content)) + content + data

def entry(shape=(1,), dtype='F32', end=4) -> dict:
    return dict(dtype=dtype, shape=list(shape), data_offsets=[0, end])

NO_SAFETENSORS = dict(
    nothing=b'', length=struct.pack('<Q', 1 << 60) + b'{}', no_json=with_header(b'nonsense'),
    outside=with_header(dict(a=entry(end=400))), overlapping=with_header(dict(a=entry(), b=entry())),
    dtype=with_header(dict(a=entry(dtype='Q7'))), huge=with_header(dict(a=entry((10**9, 10**9)))),
    pickle=pickle.dumps(dict(a=1)), deep=with_header(b'[' * 100_000),
)

@pytest.mark.parametrize('case', NO_SAFETENSORS)
def test_weights_that_are_no_safetensors_are_named(case, adapters):
    folder = adapters.copy(content=NO_SAFETENSORS[case])
    adapters.refuse(folder, 'adapter_model.safetensors is no whole safetensors file')

def twice(header=json.dumps(entry())): return with_header(f'{{"a": {header}, "a": {header}}}'.encode())

def test_tensors_that_are_not_those_of_the_adapter_are_named(adapters):
    adapters.refuse(adapters.copy(content=twice()), 'does not fit')
    adapters.refuse(adapters.copy({}), '112 tensors differ')
    adapters.refuse(adapters.copy(adapters.map(lambda _: torch.zeros(3, 5))), '112 tensors differ')
    adapters.refuse(adapters.copy(adapters.map(lambda _: torch.zeros(0, 5))), '112 tensors differ')
    more = adapters.tensors | dict(more=torch.zeros(1))
    adapters.refuse(adapters.copy(more), '1 tensors differ, first more')
    adapters.refuse(adapters.copy(adapters.map(lambda x: x.to(torch.int32))), 'holds I32')
    for value in (float('nan'), float('inf')):
        adapters.refuse(adapters.copy(adapters.map(lambda x: x + value)), 'numbers that are not finite')

DESCRIPTIONS = [
    dict(peft_type='EVIL'), dict(peft_type='PREFIX_TUNING'), dict(peft_type='IA3'), dict(peft_type=None),
    dict(r=10**9), dict(r=0), dict(r=-3), dict(r='x'), dict(r=10**400), dict(lora_alpha='x'),
    dict(lora_alpha=float('nan')), dict(lora_alpha=float('inf')), dict(target_modules=5),
    dict(target_modules=r'(([a-z_.0-9])+)+$X'), dict(target_modules='(((' ), dict(target_modules='.*' * 5),
    dict(target_modules=['(a|a)*b']), dict(rank_pattern={r'((\w)+)+X': 4}), dict(alpha_pattern=dict(a='x')),
    dict(megatron_config=dict(a=1)), dict(layer_replication=[[0, 10**7]]), dict(init_lora_weights='pissa'),
    dict(init_lora_weights='eva'), dict(modules_to_save=['lm_head']), dict(use_dora=True), dict(evil=1),
    dict(bias='all'), dict(trainable_token_indices=[1]),
]

@pytest.mark.parametrize('fields', DESCRIPTIONS, ids=lambda fields: f'{fields}'[:40])
def test_a_description_of_something_else_than_plain_lora_names_the_field(fields, adapters):
    (name,) = fields
    started = time.perf_counter()
    adapters.refuse(adapters.copy(**fields), 'adapter_config.json', name)
    assert time.perf_counter() - started < 5

def test_a_description_that_is_none_is_named(adapters):
    for text in ('nonsense', '[1]', 'null', '[' * 100_000, ' ' * (2 << 20)):
        adapters.refuse(adapters.copy(text=text), 'adapter_config.json')
    adapters.refuse(adapters.copy(target_modules=[]), 'does not fit')
    adapters.refuse(adapters.copy(target_modules='all-linear'), 'does not fit')
    adapters.refuse(adapters.copy(r=3), 'does not fit')

def test_pickles_are_never_loaded(adapters, tmp_path):
    folder = adapters.copy()
    torch.save(Trap(tmp_path / 'pwned'), folder / 'adapter_model.bin')
    loaded = lora.load_adapter(load_csm('nano')[0], folder)
    assert lora.active_adapters(loaded) == ['default']
    (folder / 'adapter_model.safetensors').unlink()
    adapters.refuse(folder, 'has no adapter_model.safetensors')
    with pytest.raises(FileNotFoundError): lora.load_adapter(load_csm('nano')[0], folder)
    assert not (tmp_path / 'pwned').exists()
    with pytest.raises(AttributeError): torch.load(folder / 'adapter_model.bin', weights_only=False).x
    assert (tmp_path / 'pwned').exists()                              # the trap works

def test_a_base_or_a_module_that_an_adapter_names_is_not_fetched(adapters, server):
    server.behave = answer_with(200)
    folder = adapters.copy(
        base_model_name_or_path=server.url,
        auto_mapping=dict(parent_library='antigravity', base_model_class='x'),
    )
    modules = set(sys.modules)
    loaded = lora.load_adapter(load_csm('nano')[0], folder)
    assert 'antigravity' not in set(sys.modules) - modules
    assert not server.starts
    assert lora.active_adapters(loaded) == ['default']

NO_WORDS = '[1]', 'nonsense', '{}', '{"a": 1}', '{"\\u001b[31m": "~"}', f'{{"a": "{"x" * 100}"}}'

@pytest.mark.parametrize('text', NO_WORDS)
def test_emotions_of_an_adapter_are_words(text, adapters):
    folder = adapters.copy()
    (folder / 'emotions.json').write_text(text, encoding='utf-8')
    adapters.refuse(folder, 'emotions.json must hold emotions and their tokens')

def test_special_files_in_the_place_of_an_adapter_are_not_waited_for(adapters):
    for name in ('adapter_config.json', 'adapter_model.safetensors'):
        folder = adapters.copy()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        adapters.refuse(folder, f'has no {name}')

def test_after_all_that_a_good_adapter_is_loaded_and_speaks(adapters):
    speaker = Speaker('nano')
    with pytest.raises(ValueError): speaker.add_adapter(adapters.copy(r=10**9))
    assert speaker.add_adapter(adapters.copy()) == {f'a{adapters.number}': f'a{adapters.number}'}
    assert len(speaker.say('Good.', seed=1).audio)

# ---- checkpoints of strangers

def checkpoint(folder, name='c', **files) -> Path:
    "The shipped checkpoint with other files"
    folder = folder / name
    shutil.copytree(assets('nano'), folder)
    for file, content in files.items():
        file = file.replace('__', '.')
        (folder / file).unlink(missing_ok=True)
        if content is not None: (folder / file).write_bytes(content)
    return folder

def changed_config(**fields) -> bytes:
    return json.dumps(read_json(assets('nano/config.json')) | fields).encode()

CHECKPOINTS = dict(
    no_json=dict(config__json=b'nonsense'), a_list=dict(config__json=b'[1]'),
    no_weights=dict(model__safetensors=None),
    no_safetensors=dict(model__safetensors=NO_SAFETENSORS['length']),
    pickle=dict(model__safetensors=None, pytorch_model__bin=pickle.dumps(1)),
    negative=dict(config__json=changed_config(hidden_size=-1)),
    word=dict(config__json=changed_config(num_hidden_layers='many')),
    codec=dict(config__json=changed_config(codec_config=dict(model_type='evil'))),
    processor=dict(tokenizer__json=b'nonsense'),
)

@pytest.mark.parametrize('case', CHECKPOINTS)
def test_a_checkpoint_that_is_none_is_one_line_with_its_folder(case, tmp_path):
    folder = checkpoint(tmp_path, **CHECKPOINTS[case])
    with pytest.raises((OSError, ValueError)) as error: load_csm(str(folder))
    assert 'could not be loaded. The folder is no whole checkpoint' in str(error.value)
    assert str(folder) in str(error.value)
    assert '\n' not in str(error.value)

def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path):
    code = f'import os\nos.mkdir({str(tmp_path / "pwned")!r})\nclass X: pass\n'.encode()
    mapping = dict(AutoConfig='evil.X', AutoModel='evil.X', AutoProcessor='evil.X', AutoTokenizer='evil.X')
    folder = checkpoint(tmp_path, evil__py=code, config__json=changed_config(auto_map=mapping))
    for name in ('processor_config.json', 'tokenizer_config.json', 'preprocessor_config.json'):
        path = folder / name
        if path.exists(): path.write_text(json.dumps(read_json(path) | dict(auto_map=mapping)))
    try:
        load_csm(str(folder))
    except OSError as error: assert 'could not be loaded' in str(error)
    assert not (tmp_path / 'pwned').exists()

# ---- run folders, plans and scripts of strangers -----------------------------------------------------------

def result_of(*arguments) -> str:
    "What a command says, in the one line that the program prints for an error"
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exit_code == 0: return result.output
    line = cli.explain_failure(result.exception)
    assert line, f'a traceback: {result.exception!r}'
    return line

LAUGHS = 'a0: &a0 [x, x]\n' + ''.join(f'a{i}: &a{i} [{f"*a{i - 1}, " * 9}]\n' for i in range(1, 12))
CONFIGURATIONS = dict(
    object='emotion: !!python/object/apply:os.mkdir ["{pwned}"]', laughs=LAUGHS + 'emotion: *a11',
    nul='a: \0', deep='[' * 1_500, digits='steps: ' + '9' * 6_000, negative='steps: -1', a_list='- a',
    large='a: ' + 'x' * (2 << 20), latin='emotion: \xff'.encode('latin-1'),
)

def stranger(folder, **files) -> Path:
    "A run folder with these files; __ stands for a point"
    folder = folder / 'run'
    folder.mkdir(exist_ok=True)
    for name, content in (dict(config__yaml='emotion: sad\n', report__json='{"a": 1}') | files).items():
        content = content.encode() if isinstance(content, str) else content
        (folder / name.replace('__', '.')).write_bytes(content)
    return folder

@pytest.mark.parametrize('case', CONFIGURATIONS)
def test_settings_of_a_stranger_are_plain_values_or_an_error_with_the_file(case, tmp_path):
    text = CONFIGURATIONS[case]
    if isinstance(text, str): text = text.replace('{pwned}', str(tmp_path / 'pwned'))
    run = stranger(tmp_path, config__yaml=text)
    (run / 'adapter').mkdir()
    for name in ('adapter_config.json', 'adapter_model.safetensors'): (run / 'adapter' / name).touch()
    commands = [
        ('eval', run), ('speak', 'Hi.', '--adapter', run), ('dashboard', run, '--out', tmp_path / 'd.html'),
        ('train', 'sad', '--config', run / 'config.yaml', '--out', tmp_path / 'out', '--dry-run'),
    ]
    for command in commands:
        started = time.perf_counter()
        line = result_of(*command)
        assert 'config.yaml' in line
        if 'page: ' not in line: assert len(line) < 500
        assert time.perf_counter() - started < 20
    assert not (tmp_path / 'pwned').exists()
    assert not (tmp_path / 'out').exists()

SAMPLES = dict(sad=dict(file='/etc/passwd'), base=dict(file='../../x.wav'), seed=0, text='a', speaker='b')
REPORTS = ['{"a":' * 100_000, '[1]', '{"samples": 5}', '{"samples": [{"speaker": 1}]}', 'null', '{"a": NaN}',
           '{"loss": ' + '9' * 5_000 + '}', b'\xff\xfe', json.dumps(dict(samples=[SAMPLES]))]

@pytest.mark.parametrize('report', REPORTS, ids=range(len(REPORTS)))
def test_reports_of_a_stranger_leave_a_page_that_says_what_is_wrong(report, tmp_path):
    files = dict.fromkeys(('report__json', 'evaluation__json', 'intensity__json', 'ended__json'), report)
    run = stranger(tmp_path, **files)
    record = read_run(run)
    assert not record.playable_clips
    line = result_of('dashboard', run, '--out', tmp_path / 'd.html')
    assert 'missing: run' in line
    assert (tmp_path / 'd.html').exists()

def test_a_sound_of_a_run_is_not_a_link_out_of_it(tmp_path):
    sample = SAMPLES | dict(sad=dict(file='x.wav'), base=dict(file='x.wav'))
    run = stranger(tmp_path, report__json=json.dumps(dict(samples=[sample])))
    os.symlink('/etc/passwd', run / 'x.wav')
    record = read_run(run)
    assert not record.playable_clips
    assert '2 of 2 clips cannot be played, such as x.wav lies outside the run folder' in record.missing

PLAN = dict(made_by='x', kinds=[dict(kind='cmos', ask='?', options=[['0', 'a']])],
            trials=[dict(id='0' * 12, kind='cmos', clips=['1' * 12, '2' * 12], text='x')])
TRUTH = dict(kind='cmos', catch=False, pair=0, emotion='sad', text='x', voice='y', swapped=False)

def key_of(**fields) -> dict:
    names = dict(systems=['a', 'b'], emotions=['sad'], sounds={}, trials={'0' * 12: TRUTH})
    return names | dict(plan=listening.hash_plan(PLAN)) | fields

PLANS = [
    [1], 5, dict(trials=[]), dict(kinds=[], trials=[dict(id=5, clips=[])]), PLAN | dict(kinds=[]),
    PLAN | dict(trials=[dict(PLAN['trials'][0], id='../../../x')]),
    PLAN | dict(trials=[PLAN['trials'][0] | dict(clips=[])]),
]
KEYS = [[1], dict(plan=listening.hash_plan(PLAN)), key_of(trials={}), key_of(plan='another')]

@pytest.mark.parametrize('plan, key', [*((plan, {}) for plan in PLANS), *((PLAN, key) for key in KEYS)])
def test_plans_and_keys_that_are_none_are_one_line(plan, key, tmp_path):
    (tmp_path / 'test').mkdir()
    write_json(tmp_path / 'test/plan.json', plan)
    write_json(tmp_path / 'test.key.json', key)
    (tmp_path / 'a.csv').write_text(','.join(listening.ANSWER_COLUMNS) + '\n')
    line = result_of('listen', 'score', tmp_path / 'a.csv', '--test', tmp_path / 'test')
    assert 'not a plan of make_test' in line or 'key' in line
    assert not (tmp_path / 'test_results').exists()

def test_what_strangers_write_into_answers_is_no_formula(tmp_path):
    digest = listening.hash_plan(PLAN)
    row = f'{digest},{{}},{"0" * 12},cmos,{"1" * 12},{"2" * 12},0,1.0,1,2026-01-01T00:00:00.000Z'
    names = ('=cmd|1', '+1', '@SUM(1)', '-2', ' =1', '<script>')
    lines = [','.join(listening.ANSWER_COLUMNS), *(row.format(name) for name in names)]
    file = tmp_path / '=a.csv'
    file.write_text('\n'.join(lines) + '\n')
    answers, rejects = listening_analysis.read_answers(file, plan=PLAN, key=key_of())
    assert not len(answers)
    assert list(rejects['rater']) == ["'=cmd|1", "'+1", "'@SUM(1)", "'-2", "' =1", '<script>']
    assert set(rejects['file']) == {"'=a.csv"}

SCRIPTS = [('text,file\nhi,../x.wav\n', 'line 2: ../x.wav lies outside'),
           ('text,file\nhi,/tmp/x.wav\n', 'lies outside'),
           ('text,seed\na,' + '9' * 400 + '\n', 'write a number from 0'),
           ('text,intensity\na,nan\n', 'write a number')]

@pytest.mark.parametrize('text, words', SCRIPTS, ids=range(len(SCRIPTS)))
def test_a_script_of_a_stranger_writes_into_its_folder_alone(text, words, tmp_path):
    (tmp_path / 's.csv').write_text(text)
    assert words in result_of('speak', '--file', tmp_path / 's.csv', '--out', tmp_path / 'out')
    assert not (tmp_path / 'x.wav').exists()

# ---- sounds as a voice, and as a folder to measure ---------------------------------------------------------

def sound(path, samples, rate=24_000, subtype='FLOAT'):
    sf.write(path, samples, rate, subtype=subtype)
    path.with_suffix('.txt').write_text('A text.')
    return path

NOISE = 0.1 * np.random.default_rng(0).standard_normal(48_000)
SOUNDS = dict(
    hour=lambda path: sound(path, np.tile(NOISE[:8_000], 1_800), 4_000, 'PCM_16'),
    empty=lambda path: sound(path, NOISE[:0]), nan=lambda path: sound(path, NOISE * np.nan),
    infinite=lambda path: sound(path, NOISE + np.inf), silent=lambda path: sound(path, 0 * NOISE),
    channels=lambda path: sound(path, np.tile(NOISE[:2_000, None], 256)),
    rate=lambda path: sound(path, NOISE[:40], 1), text=lambda path: path.write_bytes(b'no sound'),
)

@pytest.mark.parametrize('case', SOUNDS)
def test_a_sound_that_is_no_voice_is_one_line_with_its_name(case, tmp_path):
    SOUNDS[case](tmp_path / 'v.wav')
    (tmp_path / 'v.txt').write_text('A text.')
    started = time.perf_counter()
    with pytest.raises(ValueError) as error: load_voice(tmp_path / 'v.wav')
    assert 'v.wav' in str(error.value)
    assert '\n' not in str(error.value)
    assert time.perf_counter() - started < 10

def test_sounds_that_cannot_be_measured_are_listed_with_their_reason(tmp_path):
    names = [name for name in SOUNDS if name not in ('hour', 'channels', 'rate')]
    for name in names: SOUNDS[name](tmp_path / f'{name}.wav')
    with pytest.raises(ValueError, match='its sounds cannot be read'): read_sounds(tmp_path)
    sound(tmp_path / 'good.wav', NOISE)
    rows, utterances, unreadable = read_sounds(tmp_path)
    assert [row['file'] for row in rows] == ['good.wav']
    assert unreadable.keys() == {f'{name}.wav' for name in names}
    assert all(unreadable.values())

# ---- texts on pages ----------------------------------------------------------------------------------------

IMAGE, SCRIPT = '<img src=x onerror="window.pwned=1">', '<script>window.pwned=1</script>'
PAYLOAD = f'''"'>{IMAGE}</script>{SCRIPT}{{{{7*7}}}} $\\frac{{$ <b>'''
STRUCTURE = {
    'file', 'set', 'system', 'kind', 'value', 'version', 'adapter', 'of', 'hash', 'source', 'better',
    'config', 'emotions',
}

def poison(value, key=''):
    "Every text in a report, as a stranger may have changed it"
    if key in STRUCTURE: return value
    if isinstance(value, dict): return {name: poison(part, name) for name, part in value.items()}
    if isinstance(value, list): return [poison(part) for part in value]
    return value + PAYLOAD if isinstance(value, str) else value

def hostile_run(folder, name, emotion) -> Path:
    "A run whose name and whose texts are hostile"
    run = run_folder(folder / f'{name}<img src=x onerror=pwned=1>', emotion, 8)
    for file in ('report.json', 'intensity.json'):
        (run / file).write_text(json.dumps(poison(read_json(run / file))))
    clips = pd.read_csv(run / 'evaluation/clips.csv', keep_default_na=False, dtype=str)
    clips.assign(text=clips.text + PAYLOAD, voice=clips.voice + PAYLOAD).to_csv(
        run / 'evaluation/clips.csv', index=False)
    (run / 'evaluation.json').write_text(json.dumps(poison(read_json(RESULTS / 'evaluation_sad.json'))))
    return run

def write_report_page(run) -> Path:
    settings = read_json(RESULTS / 'sad.json')['config'] | dict(out='')
    opened = Run.open(run, make_config(EmotionConfig, **settings))
    write_figures(opened, read_json(run / 'report.json'))
    return write_page(opened, read_json(run / 'report.json'))

def write_listening(folder) -> Path:
    dataset, clips = open_dataset(), []
    for i, clip in enumerate(dataset.select(emotion='neutral')[:3]):
        for system, gain in (('base', 1), ('adapter', 0.5)):
            file = sound(folder / f'{i}_{system}.wav', dataset.audio(clip)[:8_000] * gain)
            clips.append(dict(file=str(file), system=system, emotion='sad', text=clip.text + PAYLOAD,
                              voice=clip.speaker, seed='0'))
    plan, key = listening.make_test(clips, n=3)
    listening.render_test(plan, key, folder / 'test', folder / 'key.json')
    return listening_page(plan, folder / 'test', folder / 'index.html')

@pytest.fixture(scope='module')
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp('pages')
    for name in ('runs', 'evaluation', 'listening', 'studio'): (folder / name).mkdir()
    runs = [hostile_run(folder / 'runs', name, name) for name in ('sad', 'angry')]
    rows = [dict(file='a.flac', system=system, emotion='sad' * (system != 'base'), seed=0, text='x' + PAYLOAD)
            for system in ('base', 'adapter')]
    evaluation = write_evaluation_page(folder / 'evaluation', read_json(runs[0] / 'evaluation.json'), rows)
    explorer = RunExplorer(str(folder / 'runs'))
    return dict(
        report=write_report_page(runs[0]),
        evaluation=evaluation,
        dashboard=dashboard(runs, folder / 'dashboard.html', show=False, title='T' + PAYLOAD)['path'],
        listening=write_listening(folder / 'listening'),
        studio=write_html(folder / 'studio/index.html', 'S', '{{ still }}', still=explorer.static_html()),
    )

INJECTED = """() => ({
  ran: typeof window.pwned,
  elements: document.querySelectorAll('img[src="x"], [onerror], [onload], a[href^="javascript:"]').length,
  scripts: [...document.scripts].filter(s => s.textContent.trim() === 'window.pwned=1').length,
  shown: document.body.innerText.includes('<img src=x onerror'),
})"""

@need_browser
@pytest.mark.long
def test_a_text_is_shown_as_it_was_typed_and_runs_on_no_page(pages):
    found = {}
    with browser() as chromium:
        for name, path in pages.items():
            page = chromium.new_page()
            page.goto(Path(path).as_uri())
            if name == 'listening':
                page.fill('#rater', 'anna')
                page.click('#start button')
            for y in range(0, 6_000, 1_000):
                page.evaluate(f'scrollTo(0, {y})')
                page.wait_for_timeout(20)
            found[name] = page.evaluate(INJECTED)
            page.close()
    clean = dict(ran='undefined', elements=0, scripts=0, shown=True)
    assert found == dict.fromkeys(pages, clean)

@need_browser
@pytest.mark.long
def test_the_check_sees_what_it_looks_for(tmp_path):
    page = tmp_path / 'a.html'
    page.write_text(f'<!doctype html><body>{PAYLOAD}</body>')
    with browser() as chromium:
        tab = chromium.new_page()
        tab.goto(page.as_uri())
        tab.wait_for_timeout(50)
        found = tab.evaluate(INJECTED)
    assert found['ran'] == 'number'
    assert found['elements'] and found['scripts'] and not found['shown']

@pytest.mark.long
def test_figures_are_xml_without_scripts_and_widgets_have_no_foreign_elements(pages):
    figures = list(pages['report'].parent.rglob('*.svg'))
    assert figures
    for figure in figures:
        names = {element.tag.rpartition('}')[2] for element in ElementTree.parse(figure).iter()}
        assert not names & {'script', 'img', 'foreignObject'}
    widgets = [widget for widget in W.Widget.widgets.values() if isinstance(widget, W.HTML)]
    texts = [str(widget.value) for widget in widgets]
    assert any('&lt;img src=x' in text for text in texts)
    assert not [text for text in texts if '<img src=x' in text or '<script>window' in text]
