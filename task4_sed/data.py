"""The data sets of DESED and MAESTRO Real: tables, audio, what is missing; one manifest for each.

Flow: label tables + audio folders → **manifest** → targets (labels.py) and decoded audio (clip_audio.py) → batches.
Run:  python -m task4_sed.data --data FOLDER [--set NAME …]      check tables against the disk and published counts

Where each set lies in the data folder, and its published counts, are in sets.csv. A clip is taken from the 16 kHz
folder, or, where that does not have it, from its twin at 44.1 kHz (resampled when it is decoded). MAESTRO's crops are
taken from the challenge's crop folder, or cut from the long recordings in maestro_real/ (see maestro.py). Clips without
a file are listed and left out: YouTube loses some every month.

A count of MAESTRO's crops holds for one hop from crop to crop (column hop_s): the 16 recordings for validation give 718
at the challenge's 5 s. The 3,474 that the winner's README gives are those of a hop of 1 s (--hop 1).

Source: DCASE 2024 task 4.
"""
import argparse
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from common.data.events import SOFT_COLUMNS, Crop, clip_name
from common.data.manifest import DataError, Report, manifest_hash
from common.metrics.sed_scores import read_durations
from task4_sed import maestro, tables
from task4_sed.labels import EventArrays, aliases, class_mask, sound_classes, with_aliases

PUBLISHED_DATA = "DESED and MAESTRO Real 2024"
SETS = Path(__file__).parent / "sets.csv"
WEAK_TRAIN, SPLIT_SEED = 0.9, 42


@dataclass(frozen=True)
class SetInfo:
    """One row of sets.csv.

    Attributes:
        kind: strong (events), soft (events with confidence), weak (classes of a clip), unlabeled.
        source: desed, maestro or mixed; use: train, validation or test. They decide the class mask.
        audio, audio_44k, table, durations, exclude: paths in the data folder, "" where there is none. exclude lists the
            clips that the external strong set has too.
        whole, part: of which set it is the fit (0.9) or held_out (0.1) part.
        hop_s: of MAESTRO's crops, s, those with a published count.
        clips: published number of clips, for each hop if there are any; empty if unknown.
        clips_with_events, events: published numbers; None if unknown.
    """

    name: str
    kind: str
    source: str
    use: str
    audio: str = ""
    audio_44k: str = ""
    table: str = ""
    durations: str = ""
    exclude: str = ""
    whole: str = ""
    part: str = ""
    hop_s: tuple[float, ...] = ()
    clips: tuple[int, ...] = ()
    clips_with_events: int | None = None
    events: int | None = None

    @property
    def folders(self) -> list[str]:
        """Folders that may hold the audio, the preferred one first."""
        return [folder for folder in (self.audio, self.audio_44k) if folder]

    def n_clips(self, hop_s: float | None = None) -> int | None:
        """Return the published number of clips, of MAESTRO's crops for a hop; None if none is known."""
        if self.hop_s:
            return dict(zip(self.hop_s, self.clips)).get(hop_s)
        return self.clips[0] if self.clips else None


@lru_cache
def set_infos() -> dict[str, SetInfo]:
    """Return all sets by name."""
    infos = {}
    for row in pd.read_csv(SETS, dtype=str, keep_default_na=False).to_dict("records"):
        several = {key: tuple(map(kind, row[key].split(" or "))) if row[key] else ()
                   for key, kind in (("hop_s", float), ("clips", int))}
        one = {key: int(row[key]) if row[key] else None for key in ("clips_with_events", "events")}
        infos[row["name"]] = SetInfo(**row | several | one)
    return infos


def set_info(name: str) -> SetInfo:
    if name not in set_infos():
        near = get_close_matches(name, set_infos(), n=1, cutoff=0.3)
        raise DataError(f"there is no data set {name!r}" + (f", did you mean {near[0]!r}" if near else "") +
                        f"; known are {', '.join(set_infos())}.")
    return set_infos()[name]


@dataclass
class Manifest:
    """One data set as it is on disk.

    Attributes:
        info: what it is. root: data folder.
        clips: filename, path (relative to `root`), start_s (where in that file), duration (s, NaN if no table says it),
            has_events. Clips without events are here too: scoring needs to know of them, and the published training
            leaves them out (`with_events`).
        events: as in the table, without aliases; for weak labels onset and offset are NaN.
        class_mask: bool (K,), see labels.class_mask; alias_pairs: what targets add, see labels.aliases.
        report: what is missing, extra, odd, or differs from the published counts.
    """

    info: SetInfo
    root: Path
    clips: pd.DataFrame
    events: pd.DataFrame
    class_mask: np.ndarray
    alias_pairs: list[tuple[str, str]] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    report: Report = field(default_factory=Report)

    def __len__(self) -> int:
        return len(self.clips)

    def select(self, keep: np.ndarray) -> "Manifest":
        """Return the clips that `keep` names: a mask (n,), or their numbers."""
        clips = self.clips[keep] if np.asarray(keep).dtype == bool else self.clips.iloc[keep]
        events = self.events[self.events.filename.isin(clips.filename)]
        return replace(self, clips=clips.reset_index(drop=True), events=events.reset_index(drop=True))

    def with_events(self) -> "Manifest":
        """Return the clips that have events, as the published training takes them."""
        return self.select(self.clips.has_events.to_numpy(bool))

    def event_arrays(self) -> EventArrays:
        """Return the events with their aliases, ready to be encoded batch by batch, in the order of `clips`."""
        return EventArrays.of(with_aliases(self.events, self.alias_pairs), self.clips.filename, self.class_names)

    def durations(self) -> dict[str, float]:
        """Return clip name → duration in s, read from the audio file where no table says it; NaN if that is broken."""
        known = dict(zip(self.clips.filename.map(clip_name), self.clips.duration))
        for filename, path, duration in zip(self.clips.filename, self.clips.path, self.clips.duration):
            if np.isnan(duration):
                with suppress(soundfile.LibsndfileError):  # the decoder says what is wrong with it
                    info = soundfile.info(self.root / path)
                    known[clip_name(filename)] = info.frames / info.samplerate
        return known

    def sha256(self) -> str:
        """Return the identity of the clips and labels that are used."""
        return manifest_hash(pd.concat([self.clips[["filename"]], self.events]))


# ---------------------------------------------------------------- loading


def load_set(root: str | Path, name: str, *, recipe: str = "winner", exclude_overlap: bool = True,
             allow_unknown_labels: bool = False, need_audio: bool = True, hop_s: float | None = None) -> Manifest:
    """Return the manifest of a data set.

    Args:
        root: data folder. name: a set of sets.csv.
        recipe: "winner" or "baseline"; they differ in aliases and class masks.
        exclude_overlap: leave out, in training sets, what the external strong set has too (lists of the release).
        allow_unknown_labels: leave out rows with labels that are no class, instead of an error.
        need_audio: leave out clips without a file; otherwise the disk is not looked at.
        hop_s: from one of MAESTRO's crops to the next where they are cut from recordings; None: 1 s for training, 5 s
            for the challenge's validation. Crops that are files must have it.
    Raises:
        DataError: what is wrong with the tables, or that there is nothing to use.
    """
    info, root = set_info(name), Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such data folder; give the one that holds metadata/ and audio/ (--data FOLDER).")
    report = Report()
    if info.source == "maestro" and _only_recordings(root, info, need_audio):
        clips, labels, hop_s = _cut_clips(root, info, report, hop_s, allow_unknown_labels)
    else:
        clips, labels = _listed_clips(root, info, report, allow_unknown_labels, need_audio)
        hop_s = _hop_of_files(root, info, clips, hop_s) if info.source == "maestro" else None
        clips = _part(clips, info) if info.part else clips
    clips["has_events"] = clips.filename.isin(labels.events.filename)
    n_listed, n_with_events = len(clips), int(clips.has_events.sum())
    events = labels.events[labels.events.filename.isin(clips.filename)].reset_index(drop=True)
    if exclude_overlap and info.exclude and info.use == "train":
        clips = _without_external(clips, info, root / info.exclude, report)
    missing = clips.path.isna()
    if missing.any():
        folder, _ = audio_folder(root, info)
        report.missing = [f"{folder}/{filename}" for filename in clips.filename[missing]]
    clips = clips[~missing].reset_index(drop=True)
    _require_something(root, info, clips)
    report.notes = labels.notes + report.notes
    counts = {"clips": n_listed, "clips_with_events": n_with_events, "events": len(events)}
    _compare_counts(root, info, counts, report, hop_s, n_on_disk=len(clips) if need_audio else None)
    manifest = Manifest(info, root, clips, events, class_mask(info.source, info.use, recipe),
                        aliases(info.source, info.use, recipe), sound_classes().names, report)
    return manifest.select(np.ones(len(clips), bool))  # events of missing clips go too


def _listed_clips(root: Path, info: SetInfo, report: Report, allow_unknown: bool,
                  need_audio: bool) -> tuple[pd.DataFrame, tables.LabelTable]:
    """Return the clips of the label table (or folder) with their files, and the labels."""
    files = audio_folder(root, info)[1] if need_audio or info.kind == "unlabeled" else {}
    labels = _read_labels(root, info, files, allow_unknown)
    durations = read_durations(root / info.durations) if (root / info.durations).is_file() else {}
    names, listed = labels.filenames, set(map(clip_name, labels.filenames))
    if need_audio:  # clips without any label that are nevertheless part of the set
        if info.source == "maestro":
            recordings = {Crop.parse(name).recording for name in names}
            also = [name for name in files if name not in listed and maestro.recording_of(name) in recordings]
        else:
            also = [name for name in durations if name not in listed and name in files and info.use != "train"]
        names, listed = names + [Path(files[name]).name for name in also], listed.union(also)
        report.extra = [path for name, path in files.items() if name not in listed]
    clips = pd.DataFrame({"filename": names, "start_s": 0.0})
    stems = clips.filename.map(clip_name)
    clips["duration"] = stems.map(durations).astype(float)
    if info.source == "maestro":
        clips["duration"] = clips.duration.fillna(clips.filename.map(lambda name: Crop.parse(name).duration_s))
    clips.insert(1, "path", stems.map(files) if need_audio else f"{info.audio}/" + clips.filename)
    if info.kind == "strong" and len(late := tables.past_the_end(labels.events, dict(zip(stems, clips.duration)))):
        report.notes.append(f"{root / info.table}: {len(late)} events end up to {late.late_s.max():.3g} s after their "
                            "clip's end; targets are clipped.")
    return clips, labels


def _read_labels(root: Path, info: SetInfo, files: dict[str, str], allow_unknown: bool) -> tables.LabelTable:
    path, names = root / info.table, sound_classes().names
    if info.kind in ("strong", "soft"):
        return tables.read_events(path, names, info.kind == "soft", allow_unknown)
    if info.kind == "weak":
        return tables.read_weak(path, names, allow_unknown)
    nothing = pd.DataFrame({column: [] for column in SOFT_COLUMNS}).astype({"filename": str, "event_label": str})
    for listing in (info.table, info.durations):
        if listing and (root / listing).is_file():
            return tables.LabelTable(tables.read_list(root / listing), nothing)
    return tables.LabelTable([Path(path).name for path in files.values()], nothing)


def _only_recordings(root: Path, info: SetInfo, need_audio: bool) -> bool:
    """Return whether MAESTRO's long recordings are there, but no crops of them."""
    has_crops = (root / info.table).is_file() and (not need_audio or bool(audio_folder(root, info)[1]))
    return (root / maestro.RECORDINGS).is_dir() and not has_crops


def _cut_clips(root: Path, info: SetInfo, report: Report, hop_s: float | None,
               allow_unknown: bool) -> tuple[pd.DataFrame, tables.LabelTable, float]:
    """Return crops of MAESTRO's long recordings, which are not written as files, their labels, and the hop."""
    part = "validation" if info.use == "test" else "train"
    path, column = maestro.LISTS[part]
    recordings = maestro.read_split_list(root / path, column)
    if info.part:
        recordings = _recordings_of_part(recordings, info)
    hop_s = maestro.HOPS_S[part] if hop_s is None else hop_s
    clips, labels, missing = maestro.cut_recordings(root / maestro.RECORDINGS, recordings, hop_s,
                                                    allow_unknown=allow_unknown)
    report.missing = [f"{maestro.RECORDINGS}/{file}" for file in missing]
    clips["path"] = maestro.RECORDINGS + "/" + clips.path
    return clips, labels, hop_s


def _hop_of_files(root: Path, info: SetInfo, clips: pd.DataFrame, wanted_s: float | None) -> float | None:
    """Return the hop of crops that are files; it must be the one that is wanted."""
    hop_s = maestro.hop_of(clips.filename)
    if None not in (wanted_s, hop_s) and wanted_s != hop_s:
        raise DataError(f"{root / info.table}: its crops start every {hop_s:g} s, not every {wanted_s:g} s; leave the "
                        "hop out, or write them anew (python -m task4_sed.maestro --hop).")
    return hop_s


def audio_folder(root: Path, info: SetInfo) -> tuple[str, dict[str, str]]:
    """Return the folder where a set's files belong, and clip name → path (in `root`) of those there are, by file name.

    They belong where files are, 16 kHz first. A clip is taken from the 16 kHz folder, if not there from its twin.
    """
    files = {folder: tables.audio_files(root / folder) for folder in info.folders}
    found = {name: f"{folder}/{file}" for folder in reversed(files) for name, file in files[folder].items()}
    home = next((folder for folder in files if files[folder]), info.audio)
    return home, dict(sorted(found.items(), key=lambda item: Path(item[1]).name))


def split_weak(clips: pd.DataFrame, part: str) -> pd.DataFrame:
    """Return 0.9 of the rows ("fit", in the order drawn) or the rest ("held_out"), as published."""
    fit = clips.sample(frac=WEAK_TRAIN, random_state=SPLIT_SEED)
    return (fit if part == "fit" else clips.drop(fit.index)).reset_index(drop=True)


def _part(clips: pd.DataFrame, info: SetInfo) -> pd.DataFrame:
    """Return the fit or held-out part, in the published order; decided on the whole table, whatever is missing."""
    if info.kind == "weak":
        return split_weak(clips, info.part)
    recording = clips.filename.map(maestro.recording_of)
    chosen = _recordings_of_part(recording, info)
    place = {scene: i for i, scene in enumerate(maestro.scenes(chosen))}
    scene = recording[recording.isin(chosen)].map(maestro.scene_of)
    return clips.loc[scene.map(place).sort_values(kind="stable").index].reset_index(drop=True)


def _recordings_of_part(recordings: Iterable[str], info: SetInfo) -> list[str]:
    """Return those of MAESTRO's recordings that belong to the part; `recordings` are all, present or not."""
    fit, held_out = maestro.split_recordings(recordings)
    chosen = fit if info.part == "fit" else held_out
    if not chosen:
        raise DataError(f"{info.name}: {len(fit) + len(held_out)} recordings leave none for this part; at least two "
                        "of a scene are needed.")
    return chosen


def _without_external(clips: pd.DataFrame, info: SetInfo, path: Path, report: Report) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: no such list of clips that the external strong set has too; get it (python -m "
                        "task4_sed.download), or set exclude_overlap=false (--no-exclude-overlap) if that set is not "
                        "used.")
    twice = clips.filename.map(clip_name).isin(tables.read_exclusions(path))
    if twice.all():
        raise DataError(f"{path}: leaves out all {len(clips)} clips of {info.name}; check the list, or set "
                        "exclude_overlap=false.")
    report.notes.append(f"{path}: {twice.sum()} clips left out that the external strong set has too.")
    return clips[~twice].reset_index(drop=True)


def _require_something(root: Path, info: SetInfo, clips: pd.DataFrame) -> None:
    if clips.empty:
        where = " nor in ".join(info.folders)
        raise DataError(f"{root}: {info.name} has no clip with a file in {where}; see python -m task4_sed.download, or "
                        "check the data folder.")
    if info.kind != "unlabeled" and not clips.has_events.any():
        raise DataError(f"{root / info.table}: no clip of {info.name} with a file has a label, so there is nothing to "
                        f"{'train with' if info.use == 'train' else 'score'}; get table and audio again.")


def _compare_counts(root: Path, info: SetInfo, counts: dict[str, int], report: Report, hop_s: float | None,
                    n_on_disk: int | None) -> None:
    published = {"clips": info.n_clips(hop_s), "clips_with_events": info.clips_with_events, "events": info.events}
    rows = {key: (count, published[key] or "–") for key, count in counts.items()}
    if n_on_disk is not None:
        rows["clips used"] = (n_on_disk, "–")
    hop = "" if hop_s is None else f", hop {hop_s:g} s"
    report.counts[f"{info.name} ({info.kind}, {info.use}{hop})"] = pd.DataFrame(
        rows.values(), index=list(rows), columns=["found", "published"])
    if dataset_name(root) == PUBLISHED_DATA:
        where = "" if hop_s is None else f" at a hop of {hop_s:g} s"
        report.differences += [f"{info.name}: {count} {key.replace('_', ' ')}, published {published[key]}{where}"
                               for key, count in counts.items() if published[key] and count != published[key]]


def dataset_name(root: str | Path) -> str:
    """Return the name in dataset.json, the published name where a table has the published number of clips, or the
    folder's."""
    root, card = Path(root), Path(root) / "dataset.json"
    if card.is_file():
        try:
            return str(json.loads(card.read_text(encoding="utf-8"))["name"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{card}: expected {{\"name\": \"…\"}}; mend it or take it away.") from None
    for info in map(set_info, ("devtest", "weak", "eval_public")):
        if (root / info.table).is_file() and len(_read_names(root / info.table)) in info.clips:
            return PUBLISHED_DATA
    return root.resolve().name


def _read_names(path: Path) -> set[str]:
    return {line.split("\t")[0] for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds metadata/ and audio/")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="default: all of sets.csv")
    parser.add_argument("--recipe", default="winner", choices=("winner", "baseline"))
    parser.add_argument("--exclude-overlap", action=argparse.BooleanOptionalAction, default=True,
                        help="leave out, in training sets, what the external strong set has too (default: yes)")
    parser.add_argument("--allow-unknown-labels", action="store_true")
    parser.add_argument("--hop", type=float, metavar="S", help="from one of MAESTRO's crops to the next; default: 1 s "
                        "for training, 5 s for the challenge's validation")
    parser.add_argument("--no-headers", action="store_true", help="do not open the audio files")
    args = parser.parse_args(argv)
    if not args.data.is_dir():
        raise SystemExit(f"{args.data}: no such data folder; give the one that holds metadata/ and audio/.")
    usable, problems = 0, {}  # parts of one set share their files
    for name in args.sets or set_infos():
        try:
            manifest = load_set(args.data, name, recipe=args.recipe, exclude_overlap=args.exclude_overlap,
                                allow_unknown_labels=args.allow_unknown_labels, hop_s=args.hop)
        except (DataError, OSError) as error:
            print(f"{name}: cannot be used. {error}\n")
            continue
        usable += 1
        files = list(dict.fromkeys(manifest.clips.path))
        if args.no_headers:
            manifest.report.notes.append("audio files were not opened (--no-headers): broken ones are not known.")
        else:
            problems |= tables.header_problems(args.data, [file for file in files if file not in problems])
            manifest.report.broken = {file: problems[file] for file in files if problems[file]}
        print(f"{manifest.report.text()}\n")
    if not usable:
        raise SystemExit(f"{args.data}: no data set can be used.")


if __name__ == "__main__":
    main()
