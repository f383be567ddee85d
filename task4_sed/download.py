"""Download what has a public archive, and say what must be fetched by hand.

Flow: Zenodo, GitHub releases, Google's AudioSet tables → **downloads/** → unpacked data folder.
Run:  python -m task4_sed.download --data FOLDER [PART …]      goes on after a kill
      python -m task4_sed.download --data FOLDER --list        print what would be fetched and what is by hand
Licences: see the page of each part; MAESTRO Real and the AudioSet tables (CC BY 4.0) may be used with attribution,
audio of AudioSet and DESED belongs to those who put it on YouTube.
"""
import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.download import RemoteFile, fetch, unpack_zip

ZENODO = "https://zenodo.org/records/"
CPJKU = "https://github.com/CPJKU/cpjku_dcase24/releases/download/files/"
DESED_TASK = "https://raw.githubusercontent.com/DCASE-REPO/DESED_task/c6bcb45b8b986ccde5c56bb86eefaf9d19b2320c/"
RECIPE = DESED_TASK + "recipes/dcase2024_task4_baseline/dprep/"
AUDIOSET = "https://storage.googleapis.com/us_audioset/youtube_corpus/strong/"
RECORDING_LENGTHS = "https://raw.githubusercontent.com/marmoi/dcase2023_task4b_baseline/main/metadata/"


@dataclass(frozen=True)
class Part:
    """Files that belong together.

    Attributes:
        what: for the terminal. page: where it is described.
        files: (file, folder in the data folder); archives (.zip) are unpacked there.
    """

    what: str
    page: str
    files: tuple[tuple[RemoteFile, str], ...]


def _files(address: str, folder: str, *names: str) -> tuple[tuple[RemoteFile, str], ...]:
    return tuple((RemoteFile(address + name, name), folder) for name in names)


def parts() -> dict[str, Part]:
    """Return what can be fetched, by name. No checksums are published for these files beside them."""
    lists = _files(RECIPE, "metadata", "train_split.csv", "validation_split.csv")
    lengths = RemoteFile(f"{RECORDING_LENGTHS}development_metadata.csv", "maestro_real_durations.tsv")
    external = [f"external_audioset_strong_{part}.tsv" for part in ("train", "eval", "dur")]
    exclude = [f"{name}_exclude.tsv" for name in ("audioset_strong", "weak", "unlabeled")]
    return {
        "maestro_real": Part(
            "MAESTRO Real: long recordings, soft labels, the baseline's lists", f"{ZENODO}7244360",
            _files(f"{ZENODO}7244360/files/", "maestro_real", "development_audio.zip", "development_annotation.zip")
            + lists + ((lengths, "metadata"),)),
        "external_strong": Part(
            "tables of the external strong set, and what other sets have in common with it",
            "https://github.com/CPJKU/cpjku_dcase24",
            _files(CPJKU, "resources/external_strong_split", *external) + _files(CPJKU, "resources", *exclude)),
        "pseudo_labels": Part(
            "the winner's pseudo-labels and device impulse responses", "https://github.com/CPJKU/cpjku_dcase24",
            _files(CPJKU, "resources", "pseudo-labels.zip", "dirs.zip")),
        "audioset_strong": Part(
            "tables of AudioSet with strong labels (no audio)",
            "https://research.google.com/audioset/download_strong.html",
            _files(AUDIOSET, "audioset_strong", "audioset_train_strong.tsv", "audioset_eval_strong.tsv",
                   "mid_to_display_name.tsv")),
        "baseline_weights": Part(
            "the baseline's checkpoint", f"{ZENODO}11280943",
            _files(f"{ZENODO}11280943/files/", "weights", "baseline_pretrained_2024.zip")),
    }


BY_HAND = {
    "DESED development set": (
        "run generate_dcase_task4_2024.py of https://github.com/DCASE-REPO/DESED_task: it writes audio/, metadata/ and "
        "dcase_synth/ into one folder, which is the data folder here. Its folder missing_files lists the clips that "
        "YouTube has lost; the organisers send them to those who mail them that list."),
    "DESED public evaluation set": (
        "get it as that repository says and unpack it so that eval/desed_public_eval/audio/eval/public/ and "
        "eval/desed_public_eval/metadata/eval/public.tsv are in the data folder."),
    "evaluation set of the challenge": (
        f"get the files of {ZENODO}11425124 and put the clips into eval/eval24/audio/ of the data folder."),
    "AudioSet audio": (
        "the external strong set goes into audio/external_strong_16k/ of the data folder, AudioSet-strong's clips into "
        "audioset_strong/audio/; both come from YouTube, Google gives tables only."),
    "ensemble logits for AudioSet-strong": f"get the hdf5 files of {ZENODO}14626113 into audioset_strong/.",
    "MAESTRO Synthetic (baseline only)": f"get {ZENODO}5126478; nothing here reads it.",
}


def download(folder: Path, names: Sequence[str], keep_archives: bool = False) -> None:
    """Fetch and unpack parts; an archive that is unpacked leaves a note and is not fetched again."""
    for name in names:
        for file, place in parts()[name].files:
            if not file.name.endswith(".zip"):
                fetch(file, folder / place)
                continue
            note = folder / "downloads" / f"{file.name}.unpacked"
            if note.is_file():
                continue
            archive = fetch(file, folder / "downloads")
            unpack_zip(archive, folder / place)
            note.touch()
            if not keep_archives:
                archive.unlink()


def overview() -> str:
    """Return what can be fetched, and what must be fetched by hand."""
    lines = []
    for name, part in parts().items():
        lines.append(f"{name}: {part.what} ({part.page})")
        lines += [f"  {file.url}  ->  {place}/" for file, place in part.files]
    lines += ["", "By hand:", *(f"  {what}: {how}" for what, how in BY_HAND.items())]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts())}; default: maestro_real")
    parser.add_argument("--data", type=Path, help="data folder")
    parser.add_argument("--keep-archives", action="store_true", help="keep the zip files after unpacking")
    parser.add_argument("--list", action="store_true", help="print what would be fetched, and stop")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.parts if name not in parts()]:
        parser.error(f"no part {unknown[0]!r}; known are {', '.join(parts())}.")
    if args.list:
        print(overview())
        return
    if args.data is None:
        parser.error("--data FOLDER is needed: where the data set is to go.")
    try:
        download(args.data, args.parts or ["maestro_real"], args.keep_archives)
    except OSError as error:  # DownloadError, or a folder that cannot be written
        raise SystemExit(str(error)) from None
    print("By hand:\n" + "\n".join(f"  {what}: {how}" for what, how in BY_HAND.items()))


if __name__ == "__main__":
    main()
