"""Downloads go on where they broke off and end as the right file or as a sentence; archives stay inside the folder."""

import errno
import hashlib
import io
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import common.data.download as download_module
from common.data.download import DownloadError, RemoteFile, fetch, fetch_all, unpack_zip

REPOSITORY = Path(__file__).parents[2]
CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Server(ThreadingHTTPServer):
    """Serves CONTENT under every name.

    Attributes:
        ranges: answers requests for a part of the file; otherwise sends all of it.
        stop_after: bytes after which the connection is cut, once; None: never.
        announces_length: sends Content-Length, without which a cut connection looks like the end.
        requests: (path, Range header) of every request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.stop_after, self.announces_length, self.requests = True, None, True, []
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if self.path == "/absent":
            return self.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if start >= len(CONTENT):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if server.announces_length:
            self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = len(CONTENT)
        if server.stop_after is not None:
            end, server.stop_after = start + server.stop_after, None
        self.wfile.write(CONTENT[start:end])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def remote(server) -> RemoteFile:
    return RemoteFile(server.url + "a.zip", "a.zip", len(CONTENT), MD5)


def test_whole_file_then_nothing(server, remote, tmp_path):
    path = fetch(remote, tmp_path / "downloads")
    assert path.read_bytes() == CONTENT and server.requests == [("/a.zip", None)]
    assert fetch(remote, tmp_path / "downloads") == path
    assert len(server.requests) == 1
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["a.zip"]


def test_goes_on_after_a_kill(server, remote, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:1_000_000])
    assert fetch(remote, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/a.zip", "bytes=1000000-")]


def test_starts_over_where_the_server_sends_no_parts(server, remote, tmp_path):
    server.ranges = False
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:1_000_000])
    assert fetch(remote, tmp_path).read_bytes() == CONTENT


def test_killed_between_last_byte_and_renaming(server, remote, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    assert fetch(remote, tmp_path).read_bytes() == CONTENT
    assert not server.requests


def test_killed_before_renaming_and_size_unknown(server, tmp_path):
    (tmp_path / "list.csv.part").write_bytes(CONTENT)
    assert fetch(RemoteFile(server.url + "list.csv", "list.csv"), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/list.csv", f"bytes={len(CONTENT)}-"), ("/list.csv", None)]


@pytest.mark.parametrize("announces_length", [True, False])
def test_lost_connection_keeps_what_arrived_and_goes_on(server, remote, tmp_path, announces_length):
    server.stop_after, server.announces_length = 1_500_000, announces_length
    with pytest.raises(DownloadError, match="a.zip.*What has arrived is kept; run the same command to go on"):
        fetch(remote, tmp_path)
    arrived = (tmp_path / "a.zip.part").stat().st_size
    assert 0 < arrived <= 1_500_000 and not (tmp_path / "a.zip").exists()
    assert fetch(remote, tmp_path).read_bytes() == CONTENT
    assert server.requests[1] == ("/a.zip", f"bytes={arrived}-")


def test_wrong_checksum_is_removed(server, tmp_path):
    wrong = RemoteFile(server.url + "a.zip", "a.zip", len(CONTENT), "md5:" + "0" * 32)
    sentence = r"a.zip: md5 is [0-9a-f]{32}, expected 0{32}; .*removed, run the command again"
    with pytest.raises(DownloadError, match=sentence):
        fetch(wrong, tmp_path)
    assert not list(tmp_path.iterdir())


def test_damaged_part_is_found_out(server, remote, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError, match="md5 is"):
        fetch(remote, tmp_path)
    assert fetch(remote, tmp_path).read_bytes() == CONTENT


def test_too_much_without_a_checksum_is_removed(server, tmp_path):
    with pytest.raises(DownloadError, match=f"size is {len(CONTENT)}, expected 1000"):
        fetch(RemoteFile(server.url + "a.zip", "a.zip", 1000), tmp_path)
    assert not list(tmp_path.iterdir())


def test_absent_file_and_absent_server(server, tmp_path):
    with pytest.raises(DownloadError, match="404"):
        fetch(RemoteFile(server.url + "absent", "absent"), tmp_path)
    with pytest.raises(DownloadError, match="refused"):
        fetch(RemoteFile("http://127.0.0.1:9/a", "a"), tmp_path)


def test_no_room_is_said_before_anything_is_asked_for(server, remote, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda folder: usage(10**9, 0, 2_000_000))
    with pytest.raises(DownloadError, match="a.zip needs 0.00 GB more in .*0.00 GB are free; make room or give"):
        fetch(remote, tmp_path)
    assert not server.requests
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:1_500_000])  # what is there already needs no more room
    assert fetch(remote, tmp_path).read_bytes() == CONTENT


def test_disk_that_fills_up_keeps_what_arrived(server, remote, tmp_path, monkeypatch):
    class FullDisk(io.FileIO):
        def write(self, chunk):
            if self.tell() >= download_module.CHUNK_BYTES:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(chunk)

    monkeypatch.setattr(download_module, "open", FullDisk, raising=False)
    with pytest.raises(DownloadError, match="No space left on device.*What has arrived is kept"):
        fetch(remote, tmp_path)
    monkeypatch.undo()
    assert fetch(remote, tmp_path).read_bytes() == CONTENT
    assert server.requests[1] == ("/a.zip", f"bytes={download_module.CHUNK_BYTES}-")


def test_several_files(server, tmp_path):
    files = [RemoteFile(f"{server.url}{name}", name, len(CONTENT), MD5) for name in ("a.zip", "b.zip")]
    assert [path.name for path in fetch_all(files, tmp_path)] == ["a.zip", "b.zip"]


# ---------------------------------------------------------------- unpacking


def make_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


FILES = {f"TAU/audio/{i}.wav": bytes([i]) * 1000 for i in range(5)} | {"TAU/meta.csv": b"filename\n"}


def test_second_unpacking_writes_nothing(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {**FILES, "TAU/empty/": b""})
    assert unpack_zip(archive, tmp_path / "data", strip="TAU") == 6
    assert (tmp_path / "data/audio/3.wav").read_bytes() == FILES["TAU/audio/3.wav"]
    assert unpack_zip(archive, tmp_path / "data", strip="TAU") == 0
    (tmp_path / "data/audio/3.wav").unlink()
    (tmp_path / "data/audio/4.wav").write_bytes(b"half")
    assert unpack_zip(archive, tmp_path / "data", strip="TAU") == 2
    assert (tmp_path / "data/audio/4.wav").read_bytes() == FILES["TAU/audio/4.wav"]


def test_without_the_leading_folder_nothing_is_stripped(tmp_path):
    unpack_zip(make_zip(tmp_path / "a.zip", {"meta.csv": b"x", "TAUX/b": b"y"}), tmp_path / "data", strip="TAU")
    assert {path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*")} == {
        "meta.csv", "TAUX", "TAUX/b"}  # fmt: skip


@pytest.mark.parametrize("name", ["../outside", "TAU/../../outside", "/etc/outside", "..\\outside", "C:/outside"])
def test_member_that_points_outside_is_refused_before_anything_is_written(tmp_path, name):
    archive = make_zip(tmp_path / "a.zip", {"good": b"x", name: b"y"})
    with pytest.raises(DownloadError, match="points outside the folder; the archive is not trusted"):
        unpack_zip(archive, tmp_path / "data", strip="TAU")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_file_that_is_no_zip(tmp_path):
    (tmp_path / "a.zip").write_text("<html>not found</html>")
    with pytest.raises(DownloadError, match="a.zip: not a sound zip file .*remove it and run the command again"):
        unpack_zip(tmp_path / "a.zip", tmp_path / "data")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_member_is_not_left_under_its_name(tmp_path, compression):
    content = np.random.default_rng(1).bytes(5000)
    archive = make_zip(tmp_path / "a.zip", {"first": b"x", "second": content}, compression)
    damaged = bytearray(archive.read_bytes())
    (name_length,) = struct.unpack_from("<H", damaged, damaged.rindex(b"PK\x03\x04", 0, 200) + 26)
    start = damaged.rindex(b"PK\x03\x04", 0, 200) + 30 + name_length
    damaged[start : start + 100] = bytes(100)
    archive.write_bytes(damaged)
    with pytest.raises(DownloadError, match="not a sound zip file"):
        unpack_zip(archive, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["first"]


def test_no_room_to_unpack(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "a.zip", FILES)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda folder: usage(10**9, 0, 100))
    with pytest.raises(DownloadError, match="a.zip needs 0.00 GB more"):
        unpack_zip(archive, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_unpacking_killed_half_way_is_completed(tmp_path):
    members = {f"audio/{i}.wav": bytes([i]) * 200_000 for i in range(40)}
    archive = make_zip(tmp_path / "a.zip", members, zipfile.ZIP_STORED)
    slow = (
        "import shutil, sys, time\nimport common.data.download as module\n"
        "def copy(source, file):\n"
        "    for chunk in iter(lambda: source.read(20_000), b''):\n"
        "        file.write(chunk); file.flush(); time.sleep(0.001)\n"
        "module.shutil.copyfileobj = copy\n"
        "module.unpack_zip(sys.argv[1], sys.argv[2])"
    )
    process = subprocess.Popen([sys.executable, "-c", slow, archive, tmp_path / "data"], cwd=REPOSITORY,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "data/audio/9.wav").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = list((tmp_path / "data/audio").glob("*.wav"))
    assert 10 <= len(there) < 40
    assert all(path.read_bytes() == members[f"audio/{path.name}"] for path in there)  # none is half written
    assert unpack_zip(archive, tmp_path / "data") == 40 - len(there)
    for name, content in members.items():
        assert (tmp_path / "data" / name).read_bytes() == content
