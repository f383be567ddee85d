"""Published weights: what exists, where it comes from, and how it gets into our networks.

Flow: checkpoint file → `load_state_dict_file` → key map → **`load_published`** → network + report.

Nothing is downloaded unless asked for, and no file may run code while it is read.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.files import sha256


class WeightsError(ValueError):
    """A checkpoint cannot be read or does not belong to the network it was given to."""


@dataclass(frozen=True)
class PublishedWeights:
    """One published checkpoint.

    Attributes:
        architecture: the class (and settings) it loads into.
        source: the repository it belongs to.
        file: path of the file within `source`, where known.
        url: address of the file itself; None where only the repository is known: fetch it there by hand.
        sha256: of the file, where known.
        licence: what the repository says about using it.
        key_map: name in `KEY_MAPS`.
        note: what else one has to know to use it.
    """

    architecture: str
    source: str
    licence: str
    file: str | None = None
    url: str | None = None
    sha256: str | None = None
    key_map: str = "dcase_baseline"
    note: str = ""


@dataclass(frozen=True)
class KeyMap:
    """How the names in a published state dict become ours.

    Args:
        prefixes: (published, ours) pairs; the first that fits a name replaces its beginning. Other names
            stay.
        ignore: beginnings of names that no network needs, such as the buffers of a front end.
    """

    prefixes: tuple[tuple[str, str], ...] = ()
    ignore: tuple[str, ...] = ()

    def apply(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Return the renamed entries and the names left out."""
        mapped, ignored, origin = {}, [], {}
        for name, tensor in state.items():
            if name.startswith(self.ignore):
                ignored.append(name)
                continue
            ours = next((new + name[len(old) :] for old, new in self.prefixes if name.startswith(old)), name)
            if ours in mapped:
                raise WeightsError(
                    f"{origin[ours]} and {name} both become {ours}: this key map does not fit the file."
                )
            mapped[ours], origin[ours] = tensor, name
        return mapped, ignored


KEY_MAPS = {
    "same names": KeyMap(),
    # Lightning modules of the DCASE baselines: a front end called mel, and the network or the container of
    # networks.
    "dcase_baseline": KeyMap(prefixes=(("multi_device_model.", ""), ("model.", "")), ignore=("mel.",)),
}

_EFFICIENT_AT = "https://github.com/fschmid56/EfficientAT"
_RELEASE = _EFFICIENT_AT + "/releases/download/v0.0.1/"
_NONE_STATED = "none stated: ask the authors before use beyond research"

REGISTRY: dict[str, PublishedWeights] = {
    "karasin_jku_2025_system4": PublishedWeights(
        architecture="task1_asc DeviceModels of CPMobile()",
        source="https://github.com/turquenite/dcase2025_task1_inference",
        licence=_NONE_STATED,
        sha256="2c60c0869049ca216abe6d946ea3a58210d2040a2f85eece197dfb193ada5be0",
        note="Winner of DCASE 2025 task 1: base network and one each for a, b, c, s1, s2, s3 (s2 = base).",
    ),
    "li_ntu_2025_system1": PublishedWeights(
        architecture="task1_asc CPMobile(grn=True, strides={'b2': (2, 2), 'b4': (2, 1)})",
        source="https://github.com/HaoWLee/dcase2025_task1_inference",
        file="predictions/Li_NTU_task1_1/model_state_dict.pt",
        licence=_NONE_STATED,
        note="fp16, 61,160 parameters; needs the Kaldi front end of 2023.",
    ),
    "li_ntu_2025_system2": PublishedWeights(
        architecture="task1_asc CPMobile(grn=True, strides={'b2': (2, 2), 'b4': (2, 1)})",
        source="https://github.com/HaoWLee/dcase2025_task1_inference",
        file="predictions/Li_NTU_task1_2/model_state_dict.pt",
        licence=_NONE_STATED,
        note="fp16, 61,160 parameters; needs the Kaldi front end of 2023.",
    ),
    "cpjku_2023_cp_mobile": PublishedWeights(
        architecture="task1_asc CPMobile(channels_multiplier=2.3, expansion_rate=3.0, grn=True, "
        "strides={'b2': (2, 2), 'b4': (2, 1)})",
        source="https://github.com/fschmid56/cpjku_dcase23",
        file="DCASE23_Task1/c0a7nzin/checkpoints/epoch=149-step=81900.ckpt",
        licence=_NONE_STATED,
        note="126,952 parameters; needs the Kaldi front end of 2023.",
    ),
    "li_ntu_2025_cp_resnet_teacher": PublishedWeights(
        architecture="task1_asc CPResNet()",
        source="https://github.com/HaoWLee/dcase2025_task1_Li_NTU",
        file="teacher_ckpt/via2gkii/checkpoints/epoch=149-step=20550.ckpt",
        licence=_NONE_STATED,
        note="Teacher trained on the 25 % split; needs the Kaldi front end of 2023 with hop 750.",
    ),
    "mn04_as": PublishedWeights(
        architecture="MobileNet(width=0.4)",
        source=_EFFICIENT_AT,
        url=_RELEASE + "mn04_as_mAP_432.pt",
        licence="MIT",
        key_map="same names",
        note="AudioSet tagger, mAP 43.2.",
    ),
    "mn10_as": PublishedWeights(
        architecture="MobileNet(width=1.0)",
        source=_EFFICIENT_AT,
        url=_RELEASE + "mn10_as_mAP_471.pt",
        licence="MIT",
        key_map="same names",
        note="AudioSet tagger, mAP 47.1.",
    ),
    "dymn10_as": PublishedWeights(
        architecture="DyMN(width=1.0)",
        source=_EFFICIENT_AT,
        url=_RELEASE + "dymn10_as.pt",
        licence="MIT",
        key_map="same names",
        note="AudioSet tagger, mAP 47.7. Call set_temperature(1) after loading.",
    ),
}


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's entries: `loaded`, `ignored` by the key map, `missing`, `unexpected`."""

    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def published_file(
    name_or_path: str | Path, folder: str | Path = "downloads", download: bool = False
) -> Path:
    """Return the local file behind a path or a name of the registry.

    Args:
        folder: where downloads are kept.
        download: fetch a file that is not there yet.

    Raises:
        WeightsError: neither a file nor a registered name; not downloaded yet; no address known; wrong
        checksum.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if str(name_or_path) not in REGISTRY:
        raise WeightsError(f"{name_or_path} is neither a file nor a registered name ({', '.join(REGISTRY)}).")
    entry = REGISTRY[str(name_or_path)]
    if entry.url is None:
        inside = f" (there: {entry.file})" if entry.file else ""
        raise WeightsError(
            f"{name_or_path} has no direct address: fetch it from {entry.source}{inside}, give its path."
        )
    path = Path(folder) / entry.url.rsplit("/", 1)[-1]
    if not path.is_file() and not download:
        raise WeightsError(
            f"{path} does not exist: allow the download, or fetch {entry.url} and give its path."
        )
    if not path.is_file():
        import pooch  # only here: nothing else needs it

        pooch.retrieve(entry.url, entry.sha256, fname=path.name, path=path.parent)
    check_sha256(path, entry.sha256)
    return path


def check_sha256(path: Path, expected: str | None) -> None:
    """Compare a file with its published checksum; None = none is known, nothing to compare."""
    if expected is None:
        return
    found = sha256(path)
    if found != expected:
        raise WeightsError(
            f"{path} has SHA-256 {found}, but {expected} was published: delete it and fetch it again."
        )


def load_state_dict_file(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict, or the one inside a Lightning checkpoint, without running any code from the file.

    Raises:
        WeightsError: the file is missing, damaged, needs code to be read, or holds no tensors.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
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
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict of tensors: give a checkpoint or a saved state dict.")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def load_published(
    model: nn.Module, state: Mapping[str, Tensor], key_map: KeyMap | str = "same names", strict: bool = True
) -> LoadReport:
    """Copy a published state dict into `model`.

    Args:
        state: entries under their published names.
        key_map: a KeyMap or its name in KEY_MAPS.
        strict: refuse missing and left-over entries. A shape that differs is refused always.

    Raises:
        WeightsError: naming the first differences; the model is then unchanged.
    """
    mapped, ignored = (KEY_MAPS[key_map] if isinstance(key_map, str) else key_map).apply(state)
    own = model.state_dict()
    missing = [name for name in own if name not in mapped]
    unexpected = [name for name in mapped if name not in own]
    shared = [name for name in own if name in mapped]
    different = [
        f"{name} is {tuple(mapped[name].shape)} in the file and {tuple(own[name].shape)} in the network"
        for name in shared
        if mapped[name].shape != own[name].shape
    ]
    problems = []
    if different:
        problems.append(f"{len(different)} of another shape ({_first(different)})")
    if strict and missing:
        problems.append(f"{len(missing)} missing in the file ({_first(missing)})")
    if strict and unexpected:
        problems.append(f"{len(unexpected)} left over ({_first(unexpected)})")
    if problems or not shared:
        what = "; ".join(problems) or "no name in common"
        raise WeightsError(
            f"These weights do not fit {type(model).__name__} with {len(own)} entries: {what}. "
            "Check network and key map."
        )
    model.load_state_dict({name: mapped[name] for name in shared}, strict=False)
    return LoadReport(len(shared), tuple(missing), tuple(unexpected), tuple(ignored))


def container_devices(state: Mapping[str, Tensor], key_map: KeyMap | str = "dcase_baseline") -> list[str]:
    """Return the devices with a network of their own in a file, in its order; [] if it holds one network."""
    mapped, _ = (KEY_MAPS[key_map] if isinstance(key_map, str) else key_map).apply(state)
    return list(dict.fromkeys(name.split(".")[1] for name in mapped if name.startswith("device_models.")))


def _first(names: list[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (", …" if len(names) > n else "")
