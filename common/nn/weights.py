"""Published weights: how a file of them gets into our networks.

Flow: name or path → `published_file` → `load_state_dict_file` → key map → **`load_published`** → network + report.
All of it in one call: `load_weights`. What exists: `common.nn.published`; whose names become which:
`common.nn.key_maps`.

Nothing is downloaded unless asked for, and no file may run code while it is read.
"""
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn

from common.files import sha256, write_atomically
from common.nn.key_maps import KEY_MAPS, PARTS, KeyMap, WeightsError
from common.nn.published import REGISTRY, PublishedWeights

# One weight-normed tensor under the names of torch.nn.utils.weight_norm and of its successor.
_WEIGHT_NORM = (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1"))


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's entries.

    Attributes:
        loaded: how many entries of the network come from the file.
        missing: entries of the network that the file lacks; they keep the values they had.
        unexpected: entries left over, under our names.
        ignored: entries known not to be needed, under their published names.
    """

    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the report as a paragraph, each list with its first names."""
        parts = [f"Loaded {self.loaded} entries."]
        for names, what in (
            (self.missing, "missing in the file, kept as they were"),
            (self.unexpected, "left over"),
            (self.ignored, "ignored"),
        ):
            if names:
                parts.append(f"{len(names)} {what}: {_first(names)}.")
        return " ".join(parts)


def load_weights(
    model: nn.Module,
    name_or_path: str | Path,
    key_map: KeyMap | str | None = None,
    inner: str | None = None,
    part: str | None = None,
    strict: bool = True,
    folder: str | Path = "downloads",
    download: bool = False,
) -> LoadReport:
    """Fill `model` from a name of the registry or a file.

    Args:
        key_map, inner: see `load_published`, `load_state_dict_file`; None = those of the registry, which also
            knows a file by its name.
        part: see `load_published`; None = the one of PARTS that has most names in common with `model`, so that a
            whole detector, its encoder or the bare network of that can be filled from the same file.
        strict: see `load_published`.
        folder, download: see `published_file`.

    Raises:
        WeightsError: the file cannot be had, read or fitted.
    """
    entry = registered(name_or_path)
    path = published_file(name_or_path, folder, download)
    if entry is not None:
        key_map, inner = key_map or entry.key_map, inner or entry.inner
    key_map = KEY_MAPS[key_map or "same names"] if not isinstance(key_map, KeyMap) else key_map
    state = load_state_dict_file(path, inner)
    if part is None:
        own, (names, _) = model.state_dict(), key_map.names(state)
        part = max(PARTS, key=lambda part: sum(part + name in names for name in own))
    return load_published(model, state, key_map, strict, part)


def registered(name_or_path: str | Path) -> PublishedWeights | None:
    """Return the registry's entry of that name, or of the file of that name; None if it knows neither."""
    if str(name_or_path) in REGISTRY:
        return REGISTRY[str(name_or_path)]
    file_name = Path(name_or_path).name
    return next((e for e in REGISTRY.values() if e.url is not None and e.file_name == file_name), None)


def published_file(
    name_or_path: str | Path, folder: str | Path = "downloads", download: bool = False
) -> Path:
    """Return the local file behind a path or a name of the registry.

    Args:
        folder: where downloads are kept.
        download: fetch a file that is not there yet.

    Raises:
        WeightsError: neither a file nor a registered name; not downloaded yet; no address known; wrong
            checksum; an archive without the file.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if str(name_or_path) not in REGISTRY:
        near = get_close_matches(str(name_or_path), REGISTRY, 3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "common/nn/published.py lists the names."
        raise WeightsError(f"{name_or_path} is neither a file nor a registered name: {hint}")
    entry = REGISTRY[str(name_or_path)]
    if entry.url is None:
        inside = f" (there: {entry.file})" if entry.file else ""
        raise WeightsError(
            f"{name_or_path} has no direct address: fetch it from {entry.source}{inside}, give its path."
        )
    path, fetched = Path(folder) / entry.file_name, Path(folder) / entry.url.rsplit("/", 1)[-1]
    if path.is_file() and path != fetched:
        return path  # unpacked before
    if not fetched.is_file() and not download:
        raise WeightsError(
            f"{fetched} does not exist: allow the download, or fetch {entry.url} and give its path."
        )
    if not fetched.is_file():
        import pooch  # only here: nothing else needs it

        pooch.retrieve(entry.url, entry.sha256, fname=fetched.name, path=fetched.parent)
    check_sha256(fetched, entry.sha256)
    if path != fetched:
        _unpack(fetched, path)
    return path


def _unpack(archive: Path, target: Path) -> None:
    """Write the member of `archive` called like `target`, from whatever folder it is in there."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = [name for name in content.namelist() if PurePosixPath(name).name == target.name]
            if not members:
                raise WeightsError(f"{archive} holds no {target.name}: fetch it again.")
            with content.open(members[0]) as source:
                write_atomically(target, lambda path: _copy(source, path))
    except zipfile.BadZipFile:
        raise WeightsError(f"{archive} is damaged or no zip archive: delete it and fetch it again.") from None


def _copy(source, path: Path) -> None:
    with open(path, "wb") as target:
        shutil.copyfileobj(source, target)


def check_sha256(path: Path, expected: str | None) -> None:
    """Compare a file with its published checksum; None = none is known, nothing to compare."""
    if expected is None:
        return
    found = sha256(path)
    if found != expected:
        raise WeightsError(
            f"{path} has SHA-256 {found}, but {expected} was published: delete it and fetch it again."
        )


def load_state_dict_file(path: str | Path, inner: str | None = None) -> dict[str, Tensor]:
    """Read a state dict, or one inside a checkpoint, without running any code from the file.

    Args:
        inner: which of several: the name of a dict of tensors in the file ("student", "teacher", "model"), or
            what the names in its "state_dict" begin with, up to the first dot. None = "state_dict", or the only
            one.

    Raises:
        WeightsError: the file is missing, damaged, needs code to be read, holds no tensors, no `inner`, or
            several state dicts to choose from.
    """
    path = Path(path)
    states = _state_dicts(_read(path))
    if not states:
        raise WeightsError(f"{path} holds no state dict of tensors: give a checkpoint or a saved state dict.")
    if inner is None:
        if not {"state_dict", ""} & states.keys() and len(states) > 1:
            raise WeightsError(f"{path} holds several state dicts ({', '.join(states)}): say which one to load.")
        return states.get("state_dict") or states.get("") or next(iter(states.values()))
    states = _groups(states.get("state_dict") or states.get("") or {}) | states
    if inner not in states:
        there = [name for name in states if name not in ("", "state_dict")]
        raise WeightsError(f"{path} holds no {inner!r}: choose one of those it holds ({', '.join(there)}).")
    return states[inner]


def _state_dicts(content) -> dict[str, dict[str, Tensor]]:
    """Return the dicts of tensors in a file by name; the file itself is one of name "" if it holds tensors."""
    if not isinstance(content, Mapping):
        return {}
    named = {"": content} | {name: value for name, value in content.items() if isinstance(value, Mapping)}
    tensors = {name: {k: v for k, v in values.items() if isinstance(v, Tensor)} for name, values in named.items()}
    return {name: values for name, values in tensors.items() if values}


def _groups(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the entries of a state dict by what their names begin with, names without that."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        first, dot, rest = name.partition(".")
        if dot:
            groups.setdefault(first, {})[rest] = tensor
    return groups


def _read(path: Path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist: give the path of a checkpoint.") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"needs code to be read ({named[1]})" if named else "cannot be read as tensors alone"
        raise WeightsError(
            f"{path} {found} and is refused: fetch it again, or ask its authors for a file with tensors only."
        ) from None
    except (RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = str(error).split(". ")[0] if isinstance(error, RuntimeError) else "not PyTorch's format"
        raise WeightsError(f"{path} cannot be read as a checkpoint ({reason}): fetch it again.") from None


def load_published(
    model: nn.Module,
    state: Mapping[str, Tensor],
    key_map: KeyMap | str = "same names",
    strict: bool = True,
    part: str = "",
) -> LoadReport:
    """Copy a published state dict into `model`.

    Weight-normed tensors may be called `weight_g`, `weight_v` or by the names of torch's parametrizations in
    the file and the other way in the network. A tensor that the network holds under several names needs one.

    Args:
        state: entries under their published names.
        key_map: a KeyMap or its name in KEY_MAPS.
        strict: refuse entries left over, and missing ones that the key map does not allow a file to lack. A
            shape that differs is refused always.
        part: what the key map's names begin with in the part that `model` is, e.g. "encoder.network." for a bare
            encoder; entries of other parts are ignored.

    Raises:
        WeightsError: naming the first differences; the model is then unchanged.
    """
    key_map = KEY_MAPS[key_map] if isinstance(key_map, str) else key_map
    names, ignored = key_map.names(state)
    ignored += [published for ours, published in names.items() if not ours.startswith(part)]
    own = model.state_dict(keep_vars=True)
    names = {ours.removeprefix(part): published for ours, published in names.items() if ours.startswith(part)}
    names = {_weight_norm_name(ours, own): published for ours, published in names.items()}

    unexpected = [name for name in names if name not in own]
    ignored += [names[name] for name in unexpected if (part + name).startswith(key_map.spare)]
    unexpected = [name for name in unexpected if not (part + name).startswith(key_map.spare)]
    shared = [name for name in own if name in names]
    filled = {id(own[name]) for name in shared}
    missing = [name for name, tensor in own.items() if id(tensor) not in filled]
    forbidden = [name for name in missing if not (part + name).startswith(key_map.may_lack)]
    different = [
        f"{name} is {tuple(state[names[name]].shape)} in the file and {tuple(own[name].shape)} in the network"
        for name in shared
        if state[names[name]].shape != own[name].shape
    ]
    problems = []
    if different:
        problems.append(f"{len(different)} of another shape ({_first(different)})")
    if strict and forbidden:
        problems.append(f"{len(forbidden)} missing in the file ({_first(forbidden)})")
    if strict and unexpected:
        problems.append(f"{len(unexpected)} left over ({_first(unexpected)})")
    if problems or not shared:
        what = "; ".join(problems) or "no name in common"
        raise WeightsError(
            f"These weights do not fit {type(model).__name__} with {len(own)} entries: {what}. "
            "Check network and key map."
        )
    model.load_state_dict({name: state[names[name]] for name in shared}, strict=False)
    return LoadReport(len(shared), tuple(missing), tuple(unexpected), tuple(ignored))


def _weight_norm_name(name: str, own: Mapping[str, Tensor]) -> str:
    """Return `name`, or the other name of the same weight-normed tensor if that is the network's."""
    if name not in own:
        for old, new in _WEIGHT_NORM:
            for this, other in ((old, new), (new, old)):
                if name.endswith(this) and name.removesuffix(this) + other in own:
                    return name.removesuffix(this) + other
    return name


def container_devices(state: Mapping[str, Tensor], key_map: KeyMap | str = "dcase_baseline") -> list[str]:
    """Return the devices with a network of their own in a file, in its order; [] if it holds one network."""
    mapped, _ = (KEY_MAPS[key_map] if isinstance(key_map, str) else key_map).apply(state)
    return list(dict.fromkeys(name.split(".")[1] for name in mapped if name.startswith("device_models.")))


def _first(names: Sequence[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (", …" if len(names) > n else "")
