"""Download TAU Urban Acoustic Scenes 2022 Mobile (development set) and the challenge's split lists.

Flow: dcase_util's package list + split lists → **downloads/** → unpacked data folder (meta.csv, audio/, split_setup/).
Run:  python -m task1_asc.download --data FOLDER          about 28 GB of archives, 31 GB unpacked; goes on after a kill
Licence: Tampere University, non-commercial with attribution; see the data set's page, https://zenodo.org/records/6337421.
"""
import argparse
import contextlib
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from common.data.download import RemoteFile, fetch, unpack_zip

SPLIT_LISTS = "https://github.com/CPJKU/dcase2024_task1_baseline/releases/download/files/"
SPLIT_NAMES = ("split5.csv", "split10.csv", "split25.csv", "split50.csv", "split100.csv", "test.csv")
# Of the other lists no checksum is published; `verify` compares their counts.
CHECKSUMS = {"test.csv": "sha256:efe84eb90ebe11931f93f0877f8b3405d7684652cd3d2e2784e95ec39d8888a8"}


def package_list() -> tuple[list[RemoteFile], str]:
    """Return dcase_util's archives of the data set (URL, size, MD5) and the folder inside them."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore", UserWarning)  # pkg_resources is deprecated, dcase_util still needs it
        import dcase_util

        dataset = dcase_util.datasets.TAUUrbanAcousticScenes_2022_Mobile_DevelopmentSet(
            data_path=scratch, included_content_types=["all"])
        files = [RemoteFile(package["remote_file"], Path(package["filename"]).name, package["remote_bytes"],
                            f"md5:{package['remote_md5']}") for package in dataset.package_list]
    return files, dataset.storage_name


def download(folder: Path, keep_archives: bool = False) -> None:
    """Fetch, check and unpack archive after archive; one that is unpacked leaves a note and is not fetched again."""
    archives, inside = package_list()
    for archive in archives:
        note = folder / "downloads" / f"{archive.name}.unpacked"
        if note.is_file():
            continue
        path = fetch(archive, folder / "downloads")
        unpack_zip(path, folder, strip=inside)
        note.touch()
        if not keep_archives:
            path.unlink()
    for name in SPLIT_NAMES:
        fetch(RemoteFile(SPLIT_LISTS + name, name, checksum=CHECKSUMS.get(name)), folder / "split_setup")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder to put the data set into")
    parser.add_argument("--keep-archives", action="store_true", help="keep the zip files after unpacking")
    parser.add_argument("--list", action="store_true", help="print what would be fetched, and stop")
    args = parser.parse_args(argv)
    if args.list:
        for archive in package_list()[0]:
            print(f"{archive.size / 1e6:9.1f} MB  {archive.checksum}  {archive.url}")
        print(*(SPLIT_LISTS + name for name in SPLIT_NAMES), sep="\n")
        return
    try:
        download(args.data, args.keep_archives)
    except OSError as error:  # DownloadError, or a folder that cannot be written
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
