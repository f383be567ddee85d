"""What is fetched and where it lands; nothing is fetched from outside."""

import zipfile

import pytest

from common.data.download import DownloadError
from task4_sed import download as command
from task4_sed.data import set_infos
from task4_sed.maestro import ANNOTATION, AUDIO, LISTS, RECORDINGS


@pytest.fixture
def fetched(monkeypatch):
    """Names of the files that were asked for; each appears with some content."""
    asked = []

    def fetch(remote, folder):
        asked.append(remote.name)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / remote.name
        if remote.name.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(f"{remote.name[:-4]}/a.txt", "a")
        else:
            path.write_text("filename\n")
        return path

    monkeypatch.setattr(command, "fetch", fetch)
    return asked


def test_parts_land_where_the_sets_look_for_them():
    places = {f"{place}/{file.name}" for part in command.parts().values() for file, place in part.files}
    lists = {path for path, _ in LISTS.values()}
    assert lists | {f"{RECORDINGS}/{AUDIO}.zip", f"{RECORDINGS}/{ANNOTATION}.zip"} <= places
    wanted = [info.exclude for info in set_infos().values()]
    wanted += [path for info in set_infos().values() if info.name.startswith("external") for path in
               (info.table, info.durations)]  # fmt: skip
    assert set(filter(None, wanted)) <= places


def test_every_address_is_whole():
    for part in command.parts().values():
        assert part.page.startswith("https://")
        for file, _ in part.files:
            assert file.url.startswith("https://") and file.url.count("//") == 1


def test_archives_are_unpacked_once(fetched, tmp_path):
    command.main(["--data", str(tmp_path)])
    assert (tmp_path / "maestro_real/development_audio/a.txt").is_file()
    assert (tmp_path / "metadata/train_split.csv").is_file()
    assert not list((tmp_path / "downloads").glob("*.zip"))
    fetched.clear()
    command.download(tmp_path, ["maestro_real"])
    assert not [name for name in fetched if name.endswith(".zip")]


def test_list_and_unknown_part(tmp_path, capsys):
    command.main(["--data", str(tmp_path), "--list"])
    out = capsys.readouterr().out
    assert "zenodo.org/records/7244360/files/development_audio.zip" in out and "By hand:" in out and "11425124" in out
    with pytest.raises(SystemExit):
        command.main(["--data", str(tmp_path), "desed"])
    assert "no part 'desed'; known are maestro_real" in capsys.readouterr().err


def test_failed_download_is_one_sentence(monkeypatch, tmp_path):
    def fail(*_):
        raise DownloadError("https://there: no answer.")

    monkeypatch.setattr(command, "fetch", fail)
    with pytest.raises(SystemExit, match="^https://there: no answer.$"):
        command.main(["--data", str(tmp_path), "external_strong"])
