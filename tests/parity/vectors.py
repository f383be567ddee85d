"""Find the vectors of a folder.

A vector is one NAME.json, NAME.npz or both. Where a folder has a README.json, its entry NAME describes
NAME.npz.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

DESCRIPTIONS = "README.json"
SHARED = Path(__file__).parents[3] / "shared"  # beside the repository, where there is one


@dataclass(frozen=True)
class Vector:
    """One vector.

    Attributes:
        folder: where its files are.
        name: file name without ending.
    """

    folder: Path
    name: str

    @cached_property
    def spec(self) -> Any:
        """What its json says; a string (from README.json) or None where it has no json of its own."""
        path = self.folder / f"{self.name}.json"
        if path.is_file():
            return json.loads(path.read_text())
        described = self.folder / DESCRIPTIONS
        return json.loads(described.read_text()).get(self.name) if described.is_file() else None

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The expected arrays of its npz; empty where it has none."""
        path = self.folder / f"{self.name}.npz"
        if not path.is_file():
            return {}
        with np.load(path) as file:
            return {name: file[name] for name in file}

    def field(self, name: str, default: Any = None) -> Any:
        """Return one entry of the json, or `default`."""
        return self.spec.get(name, default) if isinstance(self.spec, dict) else default

    def exists(self) -> bool:
        return any((self.folder / f"{self.name}{ending}").is_file() for ending in (".json", ".npz"))

    def sibling(self, name: str) -> "Vector | None":
        """Return the vector `name` of the same folder, or None."""
        other = Vector(self.folder, name)
        return other if other.exists() else None


def find_vectors(root: Path) -> list[Vector]:
    """Return all vectors of `root` and the folders below it, in the order of their paths."""
    files = [p for p in root.rglob("*") if p.suffix in (".json", ".npz") and p.name != DESCRIPTIONS]
    return sorted({Vector(p.parent, p.stem) for p in files}, key=lambda v: (v.folder, v.name))
