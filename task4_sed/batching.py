"""Batches of a fixed composition: so many clips of each data set, one set after the other.

Flow: manifests + decoded audio → **crop → wave mix → device response → batch** → front ends (system.py).

Every process gets the whole batch and the places of its own clips: front ends and augmentations cost little and are
then the same everywhere, networks see a process's own clips. What is drawn depends on (seed, epoch, batch, set) alone.

Source: DCASE 2024 task 4, system of CP-JKU: an epoch ends with the set that is used up first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.audio.augment import ImpulseResponse, load_responses
from common.data.manifest import DataError
from common.training.sampling import ORDER, BatchSampler, generator
from task4_sed.augment import RandomCrop, WaveMix
from task4_sed.clip_audio import SAMPLE_RATE, ClipAudio, open_audio
from task4_sed.config import DataConfig, SedConfig
from task4_sed.data import Manifest, audio_folder, load_set, set_info
from task4_sed.labels import EventArrays, FrameGrid, as_frames
from task4_sed.predictions import PredictionFile, open_pseudo_labels
from task4_sed.views import SETS

CLIPS = 2  # stream of random numbers, beside those of common.training.sampling
CROP = RandomCrop(sample_rate=SAMPLE_RATE)
WAVE_MIXED = ("maestro", "strong", "synth")
Place = tuple[int, int, dict[str, np.ndarray]]  # epoch, batch, clips of each set


# ---------------------------------------------------------------- sets of clips


@dataclass
class ClipSet:
    """One set of sets.csv, ready to be read.

    Attributes:
        manifest, audio, events: of the same clips, in the same order.
        pseudo: predictions that hold all of these clips, or None.
    """

    manifest: Manifest
    audio: ClipAudio
    events: EventArrays
    label_overlap: str
    pseudo: PredictionFile | None = None

    def __len__(self) -> int:
        return len(self.manifest)

    def first_samples(self, items: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return where the part of each clip begins that is used, int64 (b,); pseudo-labels are of its beginning."""
        if self.pseudo is not None:
            return np.zeros(len(items), np.int64)
        return np.array([CROP.draw(int(n), rng) for n in self.audio.n_samples[items]], np.int64)

    def waveforms(self, items: np.ndarray, first: np.ndarray) -> Tensor:
        """Return (b, 1, T), 10 s each."""
        return torch.from_numpy(self.audio.read(items, CROP.n_samples, first))[:, None]

    def targets(self, items: np.ndarray, first: np.ndarray) -> Tensor:
        """Return (b, K, N); those of weakly labelled clips stand in frame 0."""
        if self.manifest.info.kind == "weak":
            targets = as_frames(self.events.clip_labels(items), FrameGrid().n_frames)
        else:
            onset_s = [CROP.onset_s(n) for n in first]
            targets = self.events.encode(items, overlap=self.label_overlap, crop_onset_s=onset_s)
        return torch.from_numpy(targets).transpose(1, 2)

    def pseudo_labels(self, items: np.ndarray) -> Tensor:
        """Return probabilities (b, K, N)."""
        names = self.manifest.clips.filename.to_numpy()[items]
        return torch.from_numpy(self.pseudo.targets(list(names))).transpose(1, 2)


def open_set(root: Path, name: str, config: DataConfig, cache_root: Path, pseudo_labels: Path | None = None) -> ClipSet:
    """Return a data set, its audio decoded; labelled clips without events are left out, as published.

    Raises:
        DataError: the set cannot be used, or its pseudo-labels lack clips.
    """
    manifest = load_set(root, name, recipe=config.recipe, exclude_overlap=config.exclude_overlap)
    if config.max_clips:
        manifest = manifest if manifest.info.kind == "unlabeled" else manifest.with_events()
        n_clips = min(config.max_clips, len(manifest))
        manifest = manifest.select(np.linspace(0, len(manifest) - 1, n_clips).round().astype(int))
    audio = open_audio(manifest, cache_root, config.dtype)
    labelled = manifest.clips.has_events.to_numpy(bool) | (manifest.info.kind == "unlabeled")
    keep = audio.usable & labelled
    if not keep.any():
        why = next(iter(audio.problems.values()), "none has a label.")
        raise DataError(f"{root}: none of the {len(manifest)} clips of {name} can be used; the first: {why}")
    manifest = manifest.select(keep)
    audio = replace(audio, rows=audio.rows[keep], first=audio.first[keep], n_samples=audio.n_samples[keep],
                    usable=audio.usable[keep])  # fmt: skip
    clip_set = ClipSet(manifest, audio, manifest.event_arrays(), config.label_overlap)
    if pseudo_labels is not None:
        clip_set.pseudo = open_pseudo_labels(pseudo_labels, name)
        clip_set.pseudo.rows(manifest.clips.filename)  # says which clips it lacks
    return clip_set


def is_absent(root: Path, name: str) -> bool:
    """Return whether a data set's table or all its audio is missing."""
    info = set_info(name)
    return bool(info.table) and not (root / info.table).is_file() or not audio_folder(root, info)[1]


@dataclass
class JoinedSet:
    """Sets that count as one: their clips one after the other."""

    parts: list[ClipSet]

    def __post_init__(self):
        self.starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def class_mask(self) -> Tensor:
        """Classes that its clips are annotated for, bool (K,)."""
        return torch.from_numpy(self.parts[0].manifest.class_mask)

    def read(self, items: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return waveform (b, 1, T), targets and, where there are any, pseudo (b, K, N) of random parts of clips."""
        which = np.searchsorted(self.starts, items, side="right") - 1
        found: dict[str, Tensor] = {}
        for k, part in enumerate(self.parts):
            rows = np.flatnonzero(which == k)
            if not len(rows):
                continue
            mine = items[rows] - self.starts[k]
            first = part.first_samples(mine, rng)
            values = {"waveform": part.waveforms(mine, first), "targets": part.targets(mine, first)}
            if part.pseudo is not None:
                values["pseudo"] = part.pseudo_labels(mine)
            for name, value in values.items():
                found.setdefault(name, value.new_zeros(len(items), *value.shape[1:]))[rows] = value
        return found


@dataclass
class TrainingSets:
    """All clips that a training uses.

    Attributes:
        root: data folder. sets: by name, in the order of a batch.
        hold_out: sets looked at during training, by their name in `data.validation`.
        absent: sentences on sets that are not on disk and not needed.
    """

    root: Path
    sets: dict[str, JoinedSet]
    hold_out: dict[str, ClipSet]
    absent: list[str]

    @property
    def clip_sets(self) -> list[ClipSet]:
        """All sets of sets.csv that are used, those for training first."""
        return [part for joined in self.sets.values() for part in joined.parts] + list(self.hold_out.values())


def open_training_sets(
    root: str | Path, config: DataConfig, cache_root: str | Path, pseudo_labels: Path | None = None
) -> TrainingSets:
    """Open (and decode, once) what `config` names.

    Args:
        root: data folder. pseudo_labels: folder of predictions, for all training clips.
    Raises:
        DataError: a set that is needed is missing, cannot be used or has fewer clips than its part of a batch.
    """
    root, cache_root, absent = Path(root), Path(cache_root), []
    if not root.is_dir():
        raise DataError(f"{root}: no such data folder; give the one that holds metadata/ and audio/ (--data FOLDER).")

    def there(names: Sequence[str]) -> Iterator[str]:
        for name in names:
            if name in config.optional_sets and is_absent(root, name):
                absent.append(f"{name}: not there, left out.")
            else:
                yield name

    sets = {}
    for part, size in config.sizes.items():
        parts = [open_set(root, name, config, cache_root, pseudo_labels) for name in there(config.sets[part])]
        joined = JoinedSet(parts)
        if len(joined) < size:
            names = ", ".join(config.sets[part])
            raise DataError(f"data.batch.{part} is {size}, but {names} have only {len(joined)} clips; lower it (0 = go "
                            "without), or get the clips.")  # fmt: skip
        sets[part] = joined
    named = {part: name for part, name in config.validation.items() if name}
    held = {part: open_set(root, name, config, cache_root) for part, name in named.items() if list(there([name]))}
    return TrainingSets(root, sets, held, absent)


# ---------------------------------------------------------------- training batches


class Epoch:
    """Which epoch it is; lightning tells it."""

    def __init__(self):
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class MixedBatchSampler:
    """Which clips form which batch: `sizes[name]` of each set, every set shuffled on its own.

    An epoch has as many batches as the set allows that is used up first; the rest of the others is dropped.

    Args:
        n_clips: clips of each set.

    Yields (epoch, batch, {set: its clips}).
    """

    def __init__(self, n_clips: Mapping[str, int], sizes: Mapping[str, int], seed: int):
        self.n_clips, self.sizes, self.seed, self.sampler = dict(n_clips), dict(sizes), seed, Epoch()

    def set_epoch(self, epoch: int) -> None:  # what lightning calls
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return min(self.n_clips[name] // size for name, size in self.sizes.items())

    def __iter__(self) -> Iterator[Place]:
        epoch = self.sampler.epoch
        orders = {
            name: generator(self.seed, ORDER, epoch, SETS.index(name)).permutation(self.n_clips[name])
            for name in self.sizes
        }
        for batch in range(len(self)):
            yield epoch, batch, {name: orders[name][batch * n : (batch + 1) * n] for name, n in self.sizes.items()}


class TrainingBatches(Dataset):
    """Reads, mixes and convolves the clips of a batch; an item is a batch.

    Args:
        rank, world_size: number of this process, number of processes.
    """

    def __init__(self, sets: TrainingSets, config: SedConfig, seed: int, rank: int = 0, world_size: int = 1):
        augment, self.sets, self.seed = config.augment, sets.sets, seed
        self.sizes, n_clips = config.data.sizes, config.data.n_clips
        if n_clips < world_size:
            raise ValueError(f"a batch of {n_clips} clips is too small for {world_size} processes; use fewer.")
        self.rows = torch.arange(rank, n_clips, world_size)
        self.wave_mix = WaveMix(augment.wave_mix_p, augment.wave_mix_alpha)
        self.response, self.responses = None, []
        if augment.response_p > 0:
            self.response = ImpulseResponse(augment.response_p, devices=None, centred=True)
            inside = sets.root / augment.response_folder
            folder = inside if inside.is_dir() else augment.response_folder
            self.responses = load_responses(folder, SAMPLE_RATE, "sinc_interp_kaiser")

    def __getitem__(self, place: Place) -> dict:
        epoch, batch, clips = place
        parts = []
        for name, items in clips.items():
            parts.append(self._part(name, items, generator(self.seed, CLIPS, epoch, batch, SETS.index(name))))
        found = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        return found | {"sizes": self.sizes, "n_clips": len(found["waveform"]), "rows": self.rows}

    def _part(self, name: str, items: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        joined = self.sets[name]
        part = joined.read(items, rng)
        if name in WAVE_MIXED:
            part = self._mix(joined, part, rng)
        if self.response:
            index = self.response.draw(len(items), len(self.responses), rng)
            part["waveform"] = self.response.apply(part["waveform"], index, self.responses)
        return part | {"class_mask": joined.class_mask.expand(len(items), -1)}

    def _mix(self, joined: JoinedSet, part: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        draws = [self.wave_mix.draw(len(joined), rng) for _ in range(len(part["waveform"]))]
        rows = [row for row, draw in enumerate(draws) if draw is not None]
        if not rows:
            return part
        partners = joined.read(np.array([draws[row][1] for row in rows]), rng)
        for i, row in enumerate(rows):
            for key, values in part.items():
                mix = self.wave_mix.apply if key == "waveform" else self.wave_mix.apply_labels
                values[row] = mix(values[row], partners[key][i], draws[row][0])
        return part


def training_loader(
    sets: TrainingSets, config: SedConfig, seed: int, rank: int = 0, world_size: int = 1
) -> DataLoader:
    """Return a loader of training batches: waveform (B, 1, T), targets (B, K, N), class_mask bool (B, K), pseudo
    (B, K, N) where there are pseudo-labels, sizes, n_clips B and rows, this process's places in the batch."""
    batches = TrainingBatches(sets, config, seed, rank, world_size)
    n_clips = {name: len(joined) for name, joined in sets.sets.items()}
    sampler = MixedBatchSampler(n_clips, config.data.sizes, seed)
    return _loader(batches, config.data.n_workers, sampler=sampler, batch_size=None)


# ---------------------------------------------------------------- hold-out batches


class HoldOutClips(Dataset):
    """The clips looked at during training, one set after the other; of too long ones always the same part."""

    def __init__(self, hold_out: Mapping[str, ClipSet], crop: bool):
        self.sets, self.names = list(hold_out.values()), list(hold_out)
        self.starts = np.cumsum([0, *map(len, self.sets)])
        self.first = []
        for k, clip_set in enumerate(self.sets):
            items = np.arange(len(clip_set))
            drawn = clip_set.first_samples(items, generator(0, CLIPS, k)) if crop else np.zeros(len(items), np.int64)
            self.first.append(drawn)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitems__(self, places: Sequence[tuple[int, int, int]]) -> dict:
        rows = np.array([row for row, _, _ in places])
        which = np.searchsorted(self.starts, rows, side="right") - 1
        items, found = rows - self.starts[which], []
        for k, item in zip(which, items):
            clip_set, one, first = self.sets[k], np.array([item]), self.first[k][[item]]
            mask = torch.from_numpy(clip_set.manifest.class_mask)[None]
            found.append((clip_set.waveforms(one, first), clip_set.targets(one, first), mask))
        waveform, targets, class_mask = (torch.cat(values) for values in zip(*found))
        return {"waveform": waveform, "targets": targets, "class_mask": class_mask, "n_clips": places[0][2],
                "set": [self.names[k] for k in which], "item": torch.from_numpy(items)}  # fmt: skip


def hold_out_loader(sets: TrainingSets, config: SedConfig, rank: int = 0, world_size: int = 1) -> DataLoader | None:
    """Return a loader of this process's share of the hold-out clips, or None where there are none: waveform, targets,
    class_mask as in training, set (a name per clip) and item (places in that set's manifest)."""
    clips = HoldOutClips(sets.hold_out, config.data.crop_validation)
    if not len(clips):
        return None
    batch_size = min(max(config.data.n_clips, world_size), len(clips))
    sampler = BatchSampler(len(clips), batch_size, rank=rank, world_size=world_size)
    return _loader(clips, config.data.n_workers, batch_sampler=sampler, collate_fn=_as_is)


def _loader(dataset: Dataset, n_workers: int, **how) -> DataLoader:
    return DataLoader(dataset, num_workers=n_workers, persistent_workers=n_workers > 0,
                      pin_memory=torch.cuda.is_available(), **how)  # fmt: skip


def _as_is(batch: dict) -> dict:
    return batch
