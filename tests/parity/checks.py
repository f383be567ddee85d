"""What a handler returns, and how handlers are found.

A handler knows one kind of vector: it builds our network (or front end, or formula), feeds it the inputs the
json names and yields one `Check` per expected array. Handlers register themselves with `@handles`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from tests.parity.vectors import Vector

# An output counts as depending on its input if replacing the input moves it by this many tolerances: then an
# error of 1 % anywhere on the way from input to output would have been seen.
MOVING_TOLERANCES = 100


class NotCoveredError(Exception):
    """No handler knows this vector or case, or a file it needs is not here."""


class DifferenceError(Exception):
    """Names, shapes or counts differ: there are no numbers to compare."""


@dataclass(frozen=True)
class Check:
    """One array beside what it should be.

    Attributes:
        what: name of the array.
        error: largest absolute difference.
        tolerance: largest difference allowed, in the same unit.
        moves: how far the array moves, in the same unit, when the input is replaced by other noise; None for
            what has no input (constants, schedules, parameter counts).
    """

    what: str
    error: float
    tolerance: float
    moves: float | None = None

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance  # False for NaN

    @property
    def still(self) -> bool:
        return self.moves is not None and not self.moves >= MOVING_TOLERANCES * self.tolerance


def compare(
    what: str, found, expected, *, relative: float | None = None, absolute: float | None = None, replaced=None
):
    """Return the Check of `found` against `expected`.

    Args:
        relative: tolerance in units of the largest absolute value expected.
        absolute: tolerance itself; the larger one holds if both are given.
        replaced: the same array computed from other input.
    """
    found, expected = _array(found), _array(expected)
    if found.shape != expected.shape:
        raise DifferenceError(f"{what} has shape {found.shape}, expected {expected.shape}")
    tolerance = max(absolute or 0.0, (relative or 0.0) * float(abs(expected).max(initial=0)))
    moves = None if replaced is None else float(abs(_array(replaced) - found).max(initial=0))
    return Check(what, float(abs(found - expected).max(initial=0)), tolerance, moves)


def equal(what: str, found, expected) -> Check:
    """Return a Check that allows no difference, for counts and indices."""
    return compare(what, found, expected, absolute=0.0)


def _array(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


@dataclass(frozen=True)
class Handler:
    """One kind of vector: which ones, which cases they have, how one is checked, who shows the path."""

    matches: Callable[[Vector], bool]
    run: Callable[..., Iterable[Check]]
    cases: Callable[[Vector], list[str]] | None
    signal_path_from: Callable[[Vector], list[str]] | None


HANDLERS: list[Handler] = []


def handles(
    matches: Callable[[Vector], bool],
    cases: Callable[[Vector], list[str]] | None = None,
    signal_path_from: Callable[[Vector], list[str]] | None = None,
):
    """Register a function (vector) -> checks; (vector, case) -> checks if `cases` names several in a file.

    Args:
        matches: whether the function knows a vector, by what its files hold.
        cases: the cases of a vector, each printed and counted on its own.
        signal_path_from: names of vectors with the same network whose output does depend on the input. One of
            them has to hold before a vector that stays still is counted.
    """

    def register(run):
        HANDLERS.append(Handler(matches, run, cases, signal_path_from))
        return run

    return register


def handler_of(vector: Vector) -> Handler:
    """Return the first handler that knows `vector`."""
    for handler in HANDLERS:
        if handler.matches(vector):
            return handler
    raise NotCoveredError("no handler knows this kind of vector")
