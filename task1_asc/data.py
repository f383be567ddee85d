"""The TAU Urban Acoustic Scenes layout: tables, verification, hold-out, batches.

Flow: meta.csv + split list → **rows of a split** → cache → **batches**.
Run:  python -m task1_asc.data --config FILE --data FOLDER --cache FOLDER      verify the tables, decode the clips once

Layout (section "Data" of the README): meta.csv (TAB: filename, scene_label, identifier, source_label), audio/, and
the split lists (TAB: filename, scene_label) in split_setup/ or beside meta.csv. Classes and devices come from
meta.csv, so any data in this layout work.
Source: DCASE 2024 / 2025 Task 1; data set TAU Urban Acoustic Scenes 2022 Mobile, Zenodo 6337421.
"""
import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.audio.cache import ClipCache, ClipFormat, build_cache
from common.data.manifest import DataError, Report, manifest_hash, read_table
from common.files import write_text
from common.results.compare import PUBLISHED_DATA
from common.training.sampling import BatchSampler

META_COLUMNS = ("filename", "scene_label", "identifier", "source_label")
TAU_NAME = PUBLISHED_DATA["task1_asc"]
STEPS_OF_SPLIT100 = 546
COUNTS = Path(__file__).parent / "tau2022_counts.csv"


@dataclass
class DataConfig:
    """Which clips train and which test.

    Args:
        max_clips: use at most so many clips of each list, spread over it (--smoke); 0 = all.
        subset: per cent of the training clips: 5, 10, 25, 50 or 100 name the list split<subset>.csv.
        format: what a clip must be, see common/audio/cache.py.
        holdout_fraction: share of the training clips kept out of training to choose things on (0 = none, as
            published; otherwise the nearest of 1/2, 1/3, 1/4, …). Whole locations, stratified by device and class.
            The test list never chooses anything.
        device_groups: named groups of devices for the tables; devices in no group are put into `seen` or `unseen`
            by whether they have training clips.
        resident: keep all training clips on the training device (25 %: 6.2 GB as float32) instead of copying
            batches.
    """

    max_clips: int = 0
    subset: int = 25
    format: ClipFormat = field(default_factory=ClipFormat)
    holdout_fraction: float = 0.0
    device_groups: dict[str, list[str]] = field(default_factory=lambda: {
        "real": ["a", "b", "c"], "seen": ["s1", "s2", "s3"], "unseen": ["s4", "s5", "s6"]})
    resident: bool = False

    def __post_init__(self):
        if self.subset not in (5, 10, 25, 50, 100):
            raise ValueError(f"data.subset is {self.subset}, expected 5, 10, 25, 50 or 100.")
        if not 0 <= self.holdout_fraction <= 0.5:
            raise ValueError(f"data.holdout_fraction is {self.holdout_fraction}, expected 0 up to 0.5.")


@dataclass
class SceneData:
    """A data set in the TAU layout: its folder, name, and all rows of meta.csv."""

    root: Path
    name: str
    meta: pd.DataFrame

    @property
    def class_names(self) -> list[str]:
        """Scene labels in index order (alphabetical, over the whole meta.csv)."""
        return sorted(self.meta.scene_label.unique())

    def split(self, name: str) -> pd.DataFrame:
        """Return the rows of meta.csv that the list `name` ("split25", "test") holds, in the order of meta.csv.

        Raises:
            DataError: no such list; a list row that meta.csv does not have; a label that differs.
        """
        path = self.list_path(name)
        listed = read_table(path, ("filename", "scene_label"))
        rows = self.meta[self.meta.filename.isin(listed.filename)].reset_index(drop=True)
        unknown = listed[~listed.filename.isin(self.meta.filename)]
        if len(unknown):
            raise DataError(f"{path}: {len(unknown)} of {len(listed)} files are not in meta.csv, the first is "
                            f"{unknown.filename.iloc[0]}; list and meta.csv must be of the same data set.")
        labels = listed.set_index("filename").scene_label.loc[rows.filename].to_numpy()
        differ = rows.scene_label.to_numpy() != labels
        if differ.any():
            raise DataError(f"{path}: {rows.filename[differ].iloc[0]} is {labels[differ][0]!r} here and "
                            f"{rows.scene_label[differ].iloc[0]!r} in meta.csv; get both again.")
        return rows

    def list_path(self, name: str) -> Path:
        inside, beside = self.root / "split_setup" / f"{name}.csv", self.root / f"{name}.csv"
        return inside if inside.is_file() or not beside.is_file() else beside

    def labels(self, rows: pd.DataFrame) -> np.ndarray:
        return label_indices(rows, self.class_names)


def label_indices(rows: pd.DataFrame, class_names: Sequence[str]) -> np.ndarray:
    """Return the index of each row's scene in `class_names`, int64 (N,)."""
    return rows.scene_label.map({name: i for i, name in enumerate(class_names)}).to_numpy(np.int64)


def open_data(root: str | Path) -> SceneData:
    """Open a folder in the TAU layout. A dataset.json with a `name` names it; TAU itself is known by its row count.

    Raises:
        DataError: no such folder, or a meta.csv or dataset.json that cannot be used.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such data folder; give the one that holds meta.csv (--data FOLDER).")
    meta = read_table(root / "meta.csv", META_COLUMNS)
    card = root / "dataset.json"
    if card.is_file():
        try:
            name = str(json.loads(card.read_text(encoding="utf-8"))["name"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{card}: expected {{\"name\": \"…\"}}; mend it or take it away.") from None
    else:
        name = TAU_NAME if len(meta) == published_counts()["meta"]["all"] else root.resolve().name
    return SceneData(root, name, meta)


def published_counts() -> dict[str, dict[str, int]]:
    """Clips of TAU 2022 Mobile by list: in all, per device and, where known, per class, as in the split lists."""
    table = pd.read_csv(COUNTS, index_col="list")
    return {name: {key: int(value) for key, value in row.dropna().items()} for name, row in table.iterrows()}


def verify(data: SceneData, split_names: Sequence[str]) -> Report:
    """Compare tables and disk: missing and extra files, counts per device and class, published counts for TAU.

    Damaged files show when they are decoded (build_cache); `Report.broken` is filled by `prepare`.
    """
    report = Report()
    on_disk = {p.relative_to(data.root).as_posix() for p in (data.root / "audio").rglob("*") if p.is_file()}
    report.extra = sorted(on_disk - set(data.meta.filename))
    needed: set[str] = set()
    for name in split_names:
        rows = data.split(name)
        needed |= set(rows.filename)
        counts = pd.crosstab(rows.scene_label, rows.source_label, margins=True)
        report.counts[f"{name}: {len(rows)} clips"] = counts
        report.differences += count_differences(data, name)
    report.missing = sorted(name for name in needed - on_disk if not (data.root / name).is_file())
    return report


def count_differences(data: SceneData, list_name: str) -> list[str]:
    """Return a sentence for each count of a list that is not the published one; none for other data than TAU's."""
    if data.name != TAU_NAME:
        return []
    rows, expected = data.split(list_name), published_counts().get(list_name, {})
    found = {"all": len(rows), **rows.source_label.value_counts(), **rows.scene_label.value_counts()}
    differences = [f"{list_name}: {found.get(key, 0)} clips of {key}, published {count}"
                   for key, count in expected.items() if found.get(key, 0) != count]
    if list_name == "split100" and -(-len(rows) // 256) != STEPS_OF_SPLIT100:  # its counts are not published
        differences.append(f"split100: {len(rows)} clips are not the baseline's {STEPS_OF_SPLIT100} batches of 256")
    return differences


def hold_out(rows: pd.DataFrame, fraction: float, seed: int = 0) -> np.ndarray:
    """Return bool (N,): the clips held out of training; whole locations, near `fraction` of every device and class.

    Raises:
        DataError: too few locations, or too few clips of every device and class.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if fraction <= 0:
        return np.zeros(len(rows), bool)
    n_folds = max(2, round(1 / fraction))
    strata = (rows.source_label + "/" + rows.scene_label).to_numpy()
    for count, what in ((rows.identifier.nunique(), "locations"),
                        (rows.groupby(strata).size().max(), "clips of a device and class")):
        if count < n_folds:
            raise DataError(f"data.holdout_fraction {fraction:g} needs {n_folds} {what}, the training list has "
                            f"{count}; raise it, or set 0 for no hold-out.")
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a device and class with fewer clips than folds is no fault here
        warnings.simplefilter("ignore", UserWarning)
        _, held = next(folds.split(rows, strata, groups=rows.identifier))
    mask = np.zeros(len(rows), bool)
    mask[held] = True
    return mask


class Clips(Dataset):
    """Decoded clips with label and device; an item is a whole batch, read at once.

    Args:
        rows: their rows of meta.csv; cache: their waveforms, in the same order; labels: (N,).
        resident: leave the waveforms to the training device; a batch then holds row numbers only.
    """

    def __init__(self, rows: pd.DataFrame, cache: ClipCache, cache_rows: np.ndarray, labels: np.ndarray,
                 resident: bool = False):
        self.rows, self.cache, self.cache_rows, self.resident = rows, cache, cache_rows, resident
        self.labels = torch.from_numpy(labels)
        self.devices = rows.source_label.to_numpy()

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, keep: np.ndarray, resident: bool | None = None) -> "Clips":
        """Return the clips where `keep` (N,) is true; `resident` as here if not given."""
        keep = np.flatnonzero(keep)
        return Clips(self.rows.iloc[keep].reset_index(drop=True), self.cache, self.cache_rows[keep],
                     self.labels.numpy()[keep], self.resident if resident is None else resident)

    def waveforms(self, items: Sequence[int]) -> Tensor:
        """Return waveforms (B, 1, T), float32, full scale ±1."""
        return torch.from_numpy(self.cache.read(self.cache_rows[items]))[:, None]

    def __getitems__(self, places: list[tuple[int, int, int]]) -> dict:
        """Return a batch from (row, position in the whole batch, clips in the whole batch): see BatchSampler."""
        items = [row for row, _, _ in places]
        batch = {"item": torch.tensor(items), "label": self.labels[items], "device": list(self.devices[items]),
                 "position": torch.tensor([position for _, position, _ in places]), "n_clips": places[0][2]}
        if not self.resident:
            batch["waveform"] = self.waveforms(items)
        return batch

    def loader(self, batch_size: int, shuffle: bool = False, seed: int = 0, rank: int = 0, world_size: int = 1,
               n_workers: int = 0) -> DataLoader:
        """Return a loader of whole batches; see common/training/sampling.py for what makes it repeatable."""
        sampler = BatchSampler(len(self), batch_size, seed, shuffle, rank, world_size)
        return DataLoader(self, batch_sampler=sampler, collate_fn=_as_is, num_workers=n_workers,
                          persistent_workers=n_workers > 0,
                          pin_memory=torch.cuda.is_available() and not self.resident)


def _as_is(batch: dict) -> dict:
    return batch


def load_clips(data: SceneData, split_name: str, config: DataConfig, cache_root: str | Path) -> Clips:
    """Decode a split (once) and return its usable clips; `clips.cache.problems` names the others.

    Raises:
        DataError: no clip is usable.
    """
    rows = data.split(split_name)
    if config.max_clips and len(rows) > config.max_clips:
        spread = np.linspace(0, len(rows) - 1, config.max_clips).round().astype(int)
        rows = rows.iloc[spread].reset_index(drop=True)
    cache = build_cache(cache_root, data.root, list(rows.filename), config.format, title=f"decode {split_name}")
    if not cache.usable.any():
        raise DataError(f"{data.root}: none of the {len(rows)} clips of {split_name} can be used; the first: "
                        f"{next(iter(cache.problems.values()))}")
    kept = np.flatnonzero(cache.usable)
    rows = rows.iloc[kept].reset_index(drop=True)
    return Clips(rows, cache, kept, data.labels(rows), config.resident)


def dataset_card(data: SceneData, clips: dict[str, Clips], lists: dict[str, str]) -> dict:
    """Return the `dataset` part of a result file: name, hash, expected and found counts, differences, skipped files.

    Args:
        clips: usable clips by part ("train", "test"); lists: the list each part was taken from ("split25").
    """
    published = published_counts() if data.name == TAU_NAME else {}
    expected = {part: published[lists[part]]["all"] if lists[part] in published else len(data.split(lists[part]))
                for part in clips}  # the 100 % list has no published count
    skipped = {file: reason for part in clips.values() for file, reason in part.cache.problems.items()}
    rows = pd.concat([data.split(lists[part]) for part in clips])
    differences = [sentence for part in clips for sentence in count_differences(data, lists[part])]
    return {"name": data.name, "manifest_sha256": manifest_hash(rows), "expected": expected, "differences": differences,
            "found": {part: len(part_clips) for part, part_clips in clips.items()},
            "skipped": {file: reason.replace(str(data.root), "DATA") for file, reason in skipped.items()}}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that holds meta.csv and audio/")
    parser.add_argument("--cache", required=True, help="folder for decoded clips")
    parser.add_argument("--config", required=True, help="YAML whose data section applies")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--identity", type=Path, help="file to write the hash of the usable clips to")
    args, overrides = parser.parse_known_args(argv)
    from task1_asc.config import load_config

    try:
        config = load_config(args.config, overrides, args.smoke)[0].data
        data = open_data(args.data)
        splits = (f"split{config.subset}", "test")
        report = verify(data, splits)
        usable = []
        for name in splits:
            clips = load_clips(data, name, config, args.cache)
            usable.append(manifest_hash(clips.rows))
            problems = clips.cache.problems
            report.broken |= {file: why for file, why in problems.items() if file not in report.missing}
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(f"{data.name} in {data.root}\n{report.text()}")
    if args.identity:
        write_text(args.identity, "\n".join(usable))
    if not report.complete:
        print("The data are not complete: the run goes on with what is there, and every result says `partial data`.")


if __name__ == "__main__":
    main()
