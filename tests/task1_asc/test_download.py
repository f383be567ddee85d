"""The data set's download, against a server on this machine; nothing is fetched from outside."""

import functools
import hashlib
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.data.download import RemoteFile
from common.files import sha256
from task1_asc import download as command

INSIDE = "TAU-urban-acoustic-scenes-2022-mobile-development"


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path.rpartition("/")[2])
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Two archives and six lists, named as those of the data set are."""
    remote, archives = tmp_path / "remote", []
    remote.mkdir()
    contents = {"meta.zip": {"meta.csv": "rows"}, "audio.1.zip": {"audio/a.wav": "a", "audio/b.wav": "b"}}
    for name, members in contents.items():
        with zipfile.ZipFile(remote / name, "w") as archive:
            for member, content in members.items():
                archive.writestr(f"{INSIDE}/{member}", content)
    for name in command.SPLIT_NAMES:
        (remote / name).write_text(f"filename\tscene_label\n{name}\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=remote)) as server:
        server.asked, url = [], f"http://127.0.0.1:{server.server_port}/"
        for path in sorted(remote.glob("*.zip")):
            checksum = f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
            archives.append(RemoteFile(url + path.name, path.name, path.stat().st_size, checksum))
        monkeypatch.setattr(command, "package_list", lambda: (archives, INSIDE))
        monkeypatch.setattr(command, "SPLIT_LISTS", url)
        monkeypatch.setattr(command, "CHECKSUMS", {"test.csv": f"sha256:{sha256(remote / 'test.csv')}"})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


EXPECTED = {"meta.csv", "audio/a.wav", "audio/b.wav", *(f"split_setup/{name}" for name in command.SPLIT_NAMES)}


def test_archives_are_unpacked_taken_away_and_not_fetched_again(server, tmp_path):
    command.main(["--data", str(tmp_path / "tau")])
    notes = {"downloads/meta.zip.unpacked", "downloads/audio.1.zip.unpacked"}
    assert files_in(tmp_path / "tau") == EXPECTED | notes
    assert (tmp_path / "tau/audio/b.wav").read_text() == "b"
    assert sorted(server.asked) == sorted(["meta.zip", "audio.1.zip", *command.SPLIT_NAMES])
    command.main(["--data", str(tmp_path / "tau")])
    assert len(server.asked) == 8


def test_archives_can_be_kept(server, tmp_path):
    command.main(["--data", str(tmp_path / "tau"), "--keep-archives"])
    assert {"downloads/meta.zip", "downloads/audio.1.zip"} < files_in(tmp_path / "tau")


def test_goes_on_where_it_failed(server, tmp_path):
    list_file = tmp_path / "remote/split25.csv"
    content = list_file.read_text()
    list_file.unlink()
    with pytest.raises(SystemExit, match="split25.csv: 404"):
        command.main(["--data", str(tmp_path / "tau")])
    list_file.write_text(content)
    server.asked.clear()
    command.main(["--data", str(tmp_path / "tau")])
    assert server.asked == ["split25.csv", "split50.csv", "split100.csv", "test.csv"]
    assert files_in(tmp_path / "tau") >= EXPECTED


def test_wrong_test_list_is_refused(server, tmp_path):
    (tmp_path / "remote/test.csv").write_text("<html>moved</html>")
    with pytest.raises(SystemExit, match="test.csv: sha256 is .* expected"):
        command.main(["--data", str(tmp_path / "tau")])
    assert not (tmp_path / "tau/split_setup/test.csv").exists()


def test_folder_that_cannot_be_written_is_a_sentence(server, tmp_path):
    (tmp_path / "tau").write_text("a file")
    with pytest.raises(SystemExit, match="tau"):
        command.main(["--data", str(tmp_path / "tau")])


def test_package_list_is_that_of_dcase_util(capsys):
    archives, inside = command.package_list()
    assert inside == INSIDE and len(archives) == 18
    assert all(len(archive.checksum) == 36 and archive.checksum.startswith("md5:") for archive in archives)
    assert all(archive.url.startswith("https://zenodo.org/") and archive.size > 0 for archive in archives)
    assert len({archive.name for archive in archives}) == 18
    assert capsys.readouterr().out == ""
    command.main(["--data", "anywhere", "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 18 + 6 and lines[-1].endswith("/test.csv")


def test_checksum_of_the_real_test_list(shared):
    assert command.CHECKSUMS["test.csv"] == f"sha256:{sha256(shared / 'data/metadata/tau2022/test_split.csv')}"
    assert set(command.CHECKSUMS) <= set(command.SPLIT_NAMES)
