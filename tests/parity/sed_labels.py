"""Vectors of task 4 without a network: label encoder, class masks, splits, and the median filter."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from common.data.events import Crop
from task4_sed.data import SPLIT_SEED, split_weak
from task4_sed.labels import (
    AUDIOSET_GRID,
    FrameGrid,
    aliases,
    class_mask,
    decode,
    encode,
    sound_classes,
    with_aliases,
)
from task4_sed.maestro import split_recordings
from task4_sed.postprocess import median_filter
from tests.parity.checks import Check, DifferenceError, compare, equal, handles
from tests.parity.vectors import Vector

EXACT = 0.0
CROP_S = 1.337  # in the names of the vectors: …_crop1337ms


@handles(lambda v: v.name == "label_encoder")
def check_label_encoder(vector: Vector) -> Iterable[Check]:
    """Targets of small tables, whole and cropped, masks, frame times, and runs of frames as events."""
    expected, classes, grid = vector.arrays, sound_classes(), FrameGrid()
    _same("class names", list(classes.names), vector.field("labels"))
    _same("evaluated classes", sorted(classes.where(classes.maestro_evaluated)), vector.field("maestro_eval"))
    for source, pairs in vector.field("alias").items():
        _same(f"aliases of {source}", aliases(source), list(map(tuple, pairs.items())))
        events = pd.DataFrame(vector.field("events")[source])
        filenames = sorted(events.filename.unique())
        for what, crop_s in ((source, 0.0), (f"{source}_crop1337ms", CROP_S)):
            yield _targets(what, events, filenames, expected[what], pairs.items(), crop_onset_s=crop_s)
    events = pd.DataFrame(vector.field("events")["desed"])
    desed = classes.where(classes.desed)
    filenames = sorted(events.filename.unique())
    for_250 = {"grid": AUDIOSET_GRID, "class_names": desed}
    yield _targets("desed_40ms", events, filenames, expected["desed_40ms"], (), **for_250)

    yield compare("frame_to_time", grid.boundaries_s, expected["frame_to_time"], absolute=1e-12)
    yield compare("frame_to_time_40ms", AUDIOSET_GRID.boundaries_s, expected["frame_to_time_40ms"], absolute=1e-12)
    yield equal("mask_desed_train", class_mask("desed", "train"), expected["mask_desed_train"])
    yield equal("mask_desed_eval", class_mask("desed", "test"), expected["mask_desed_eval"])
    for use in ("train", "test"):
        yield equal(f"mask_maestro ({use})", class_mask("maestro", use), expected["mask_maestro"])

    active, clips = expected["decode_in"], [str(i) for i in range(len(expected["decode_in"]))]
    found = decode(active, grid.boundaries_s, classes.names, filenames=clips)
    replaced = decode(~active, grid.boundaries_s, classes.names, filenames=clips)
    for clip, rows in zip(clips, vector.field("decoded")):
        mine, other = (table[table.filename == clip] for table in (found, replaced))
        _same(f"labels decoded of clip {clip}", list(mine.event_label), [label for label, *_ in rows])
        n_rows = min(len(mine), len(other))
        times, others = (table[["onset", "offset"]].to_numpy() for table in (mine, other))
        yield compare(f"decoded of clip {clip}", times, [span for _, *span in rows], absolute=1e-9,
                      replaced=np.concatenate([others[:n_rows], times[n_rows:]]))  # fmt: skip


def _targets(what: str, events: pd.DataFrame, filenames: list[str], expected: np.ndarray, pairs, **how) -> Check:
    """Compare targets; the input is replaced by the same events, all moved by 0.4 s."""
    moved = events.assign(onset=events.onset + 0.4, offset=events.offset + 0.4)
    found, replaced = (
        encode(with_aliases(table, pairs), filenames, overlap="overwrite", **how) for table in (events, moved)
    )
    return compare(what, found, expected, absolute=EXACT, replaced=replaced)


@handles(lambda v: v.name == "median_filter")
def check_median_filter_and_splits(vector: Vector) -> Iterable[Check]:
    """Scores filtered with the published windows and with 9 frames, and the splits that stand in the same file."""
    expected = vector.arrays
    windows = sound_classes().median_frames
    yield equal("windows", windows, vector.field("windows"))
    for what, lengths in (("y", windows), ("med9", 9)):
        found, replaced = (median_filter(x, lengths) for x in (expected["x"], expected["x"][::-1].copy()))
        yield compare(what, found, expected[what], absolute=EXACT, replaced=replaced)

    recordings = list(dict.fromkeys(Crop.parse(name).recording for name in vector.field("maestro_rows")))
    train, validation = split_recordings(recordings, seed=vector.field("split_seed"))
    _same("maestro_train", sorted(train), sorted(vector.field("maestro_train")))
    _same("maestro_valid", sorted(validation), sorted(vector.field("maestro_valid")))
    rows = pd.DataFrame({"filename": range(vector.field("weak_n"))})
    _same("split_seed", SPLIT_SEED, vector.field("split_seed"))
    yield equal("weak_train", split_weak(rows, "fit").filename[:20], vector.field("weak_train_first20"))
    yield equal("weak_valid", split_weak(rows, "held_out").filename, vector.field("weak_valid"))


def _same(what: str, found, expected) -> None:
    if found != expected:
        raise DifferenceError(f"{what}: {found}, expected {expected}")
