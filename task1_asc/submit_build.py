"""Write the inference package of DCASE 2025 Task 1 from runs: sources, checkpoints, resources.

Flow: run folders → **package folder** → checks (task1_asc/submit_check.py) → zip (task1_asc/submit.py).

Sources are the repository's own files with their imports rewritten; the scripts and the interface of a system
lie in task1_asc/inference_package/. Equal runs give equal files.
"""

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch

from common.audio.cache import ClipFormat
from common.config import build, importable
from common.data.synth import name_rng, noise
from common.files import sha256, write_atomically, write_json, write_text
from common.metrics.classification import classification_scores
from common.nn.weights import KEY_MAPS, container_devices, load_state_dict_file
from common.submission import (
    REPOSITORY,
    SubmissionError,
    copy_modules,
    local_imports,
    module_file,
    requirements,
    rewrite_imports,
)
from common.training.runs import read_log
from task1_asc.config import Task1Config
from task1_asc.data import SceneData, label_indices
from task1_asc.evaluate import read_predictions

PARTS = Path(__file__).parent / "inference_package"
SYSTEM = "task1_asc.inference_package.system"
ROOT_FILES = {  # module → its name at the root of the package
    "common.complexity": "complexity",
    "task1_asc.inference_package.test_complexity": "test_complexity",
    "task1_asc.inference_package.evaluate_submission": "evaluate_submission",
}


@dataclass
class System:
    """One run that becomes a submitted system.

    Attributes:
        name: its label, Team_INST_task1_<index>; title: what its meta file calls it; run: its folder.
        config: resolved; clip_format: of its clips; devices: those with a network of their own.
        rows, logits, class_names: of the run's predictions.csv (test split); scores: of these.
    """

    name: str
    title: str
    run: Path
    config: dict
    clip_format: ClipFormat
    devices: list[str]
    rows: pd.DataFrame
    logits: np.ndarray
    class_names: list[str]
    scores: dict = field(init=False)

    def __post_init__(self):
        self.scores = self.score(self.logits)

    @property
    def described(self) -> dict:
        """Return {"model", "front_end"}: class path and arguments of each."""
        return {part: self.config[part] for part in ("model", "front_end")}

    def score(self, logits: np.ndarray) -> dict:
        """Return the scores of logits (N, K) for the clips of `rows`."""
        labels = label_indices(self.rows, self.class_names)
        return classification_scores(logits, labels, self.rows.source_label, self.class_names, {})


def read_system(run: Path, name: str, title: str | None, data: SceneData) -> System:
    """Return the system of a run folder that was predicted on the test split of `data`.

    Raises:
        SubmissionError, DataError: no predictions, of another split or other weights, or of other classes.
    """
    weights, about_file = run / "weights.pt", run / "predictions.json"
    if not about_file.is_file():
        raise SubmissionError(
            f"{run}: predictions.json is missing; train, then run `python -m task1_asc.evaluate predict`."
        )
    about = json.loads(about_file.read_text(encoding="utf-8"))
    if about["split"] != "test":
        raise SubmissionError(
            f"{run}: its predictions are of {about['split']}; predict the test split again."
        )
    if not weights.is_file() or sha256(weights) != about["weights"]["sha256"]:
        raise SubmissionError(
            f"{run}: predictions.csv was not made with the weights.pt that is there now; predict again, or "
            f"put the file it was made with ({about['weights']['file']}) there under that name."
        )
    rows, logits, class_names = read_predictions(run / "predictions.csv")
    if class_names != data.class_names:
        raise SubmissionError(
            f"{run}: predicts the classes {class_names}, {data.root} has {data.class_names}; give the data "
            "folder that the run was tested on."
        )
    importable(about.get("config_folder") or ".")
    config, resolved = build(Task1Config, about["config"], where=str(about_file))
    recipe = read_log(run).get("recipe", run.name)
    devices = container_devices(load_state_dict_file(weights))
    return System(
        name, title or recipe, run, resolved, config.data.format, devices, rows, logits, class_names
    )


def build_package(package: Path, systems: list[System], data: SceneData) -> None:
    """Write the package folder anew; what another program put under that name is not deleted."""
    if package.exists() and any(package.iterdir()) and not (package / package.name).is_dir():
        raise SubmissionError(
            f"{package}: exists and is no package of this command; give another --out or --name."
        )
    being_built = package.with_name(f".{package.name}.tmp")
    shutil.rmtree(being_built, ignore_errors=True)
    inside = being_built / package.name
    write_sources(being_built, inside, systems)
    for system in systems:
        write_checkpoint(inside / "ckpts", system)
    write_resources(inside / "resources", systems, data)
    shutil.rmtree(package, ignore_errors=True)
    being_built.rename(package)


def write_sources(root: Path, inside: Path, systems: list[System]) -> None:
    """Copy the files that inference needs, and the scripts around them, with their imports rewritten."""
    texts = {module: module_file(module).read_text(encoding="utf-8") for module in (*ROOT_FILES, SYSTEM)}
    modules = {path.rpartition(".")[0] for system in systems for path in class_paths(system.described)}
    own = {module for module in modules if is_own(module)}
    own |= {module for text in texts.values() for module in local_imports(text)} - set(texts)
    copied = copy_modules(own, inside / "models", f"{inside.name}.models")
    if (REPOSITORY / "LICENSE").is_file():
        shutil.copyfile(REPOSITORY / "LICENSE", inside / "models" / "LICENSE")

    def new_name(module: str) -> str:
        return ROOT_FILES.get(module, f"{inside.name}.models.{module}")

    for module, name in ROOT_FILES.items():
        write_text(root / f"{name}.py", rewrite_imports(texts[module], new_name, module))
    for system in systems:  # all the same text: a module finds its checkpoint by its own name
        write_text(inside / f"{system.name}.py", rewrite_imports(texts[SYSTEM], new_name, SYSTEM))
    (inside / "__init__.py").touch()
    shutil.copyfile(PARTS / "setup.py", root / "setup.py")
    files = [*copied.values(), *(module_file(module) for module in texts)]
    write_text(root / "requirements.txt", "\n".join(requirements(files, modules - own)) + "\n")


def is_own(module: str) -> bool:
    """Whether a module is the repository's (and not of an installed package)."""
    return module_file(module.split(".")[0]) is not None


def class_paths(described) -> set[str]:
    """Return all class paths in a described model or front end."""
    if isinstance(described, list):
        return {path for value in described for path in class_paths(value)}
    if not isinstance(described, Mapping):
        return set()
    found = {described["class_path"]} if "class_path" in described else set()
    return found.union(*(class_paths(value) for value in described.values()))


def with_dots(described):
    """Return `described` with a dot before class paths of the repository: a package has them inside."""
    if isinstance(described, list):
        return [with_dots(value) for value in described]
    if not isinstance(described, Mapping):
        return described
    return {
        key: f".{value}" if key == "class_path" and is_own(value) else with_dots(value)
        for key, value in described.items()
    }


def write_checkpoint(folder: Path, system: System) -> None:
    """Write the weights in fp16 and the settings of one system."""
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in load_state_dict_file(system.run / "weights.pt").items()
        if not name.startswith(KEY_MAPS["dcase_baseline"].ignore)
    }
    content = io.BytesIO()  # torch.save writes a file's name into the file
    torch.save({"state_dict": state, "class_names": system.class_names}, content)
    write_atomically(folder / f"{system.name}.pt", lambda path: path.write_bytes(content.getvalue()))
    settings = {"clip_format": asdict(system.clip_format), "class_names": system.class_names}
    write_json(folder / f"{system.name}.json", with_dots(system.described) | settings)


def write_resources(folder: Path, systems: list[System], data: SceneData) -> None:
    """Write the test list and the synthetic clip that complexity is measured with."""
    kept = set(systems[0].rows.filename)
    if other := [system.name for system in systems if set(system.rows.filename) != kept]:
        raise SubmissionError(
            f"{other[0]}: its run was tested on other clips than {systems[0].name}; predict both again."
        )
    header, *lines = data.list_path("test").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line.split("\t")[0] in kept]
    if n_left_out := len(lines) - len(listed):
        print(
            f"{n_left_out} of {len(lines)} clips of the test list are not among the run's predictions; "
            "resources/test.csv leaves them out."
        )
    write_text(folder / "test.csv", "\n".join([header, *listed]) + "\n")
    clip = systems[0].clip_format
    sound = noise(name_rng("dummy clip"), clip.n_samples, (50, 200, 2000, 16000), (-10.0, 0.0, -6.0, -30.0))

    def write(path: Path) -> None:
        soundfile.write(path, 0.1 * sound, clip.sample_rate, subtype="PCM_24", format="WAV")

    write_atomically(folder / "dummy.wav", write)
