"""Data set tables and what is wrong with them: missing, broken and extra files.

Flow: table on disk → **manifest** (one row a clip) → cache, dataset.
"""
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd


class DataError(ValueError):
    """A data set that cannot be used as it is; the message says what was found and what mends it."""


def read_table(path: str | Path, columns: Iterable[str], separator: str = "\t", may_be_empty: Iterable[str] = (),
               unique: bool = True, header: bool = True) -> pd.DataFrame:
    """Read a text table as strings and check that it has `columns`.

    Args:
        may_be_empty: columns whose cells may be empty.
        unique: whether a first cell may stand in one row only.
        header: whether the first line names the columns; without, the file has exactly `columns`, in this order.
    Raises:
        DataError: missing file, other separator, missing columns, no rows, empty cells, a first cell that stands
            twice.
    """
    path, columns = Path(path), list(columns)
    names = {"\t": "tabs", ",": "commas", ";": "semicolons"}
    if not path.is_file():
        raise DataError(f"{path}: no such table; check the data folder, or get the table again.")
    try:
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8",
                            header=0 if header else None)
    except pd.errors.EmptyDataError:
        raise DataError(f"{path}: is empty; get it again.") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a table ({str(error).strip()}); get it again.") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas would take the first column for row names
        raise DataError(f"{path}: rows have more cells than the header {list(table.columns)}; name every column.")
    if not header and len(table.columns) == len(columns):
        table.columns = columns
    table = table.rename(columns=lambda name: str(name).strip())
    missing = [column for column in columns if column not in table.columns]
    if missing and len(table.columns) == 1:
        line = table.columns[0] if header else table.iloc[0, 0]
        found = [name for sign, name in names.items() if sign != separator and sign in line]
        if found:
            raise DataError(f"{path}: columns are separated by {found[0]}, expected {names[separator]}; "
                            f"write it with {names[separator]}.")
    if missing and not header:
        raise DataError(f"{path}: {len(table.columns)} columns, expected {len(columns)} without a header line: "
                        f"{', '.join(columns)}.")
    if missing:
        raise DataError(f"{path}: column {missing[0]!r} is missing, found {list(table.columns)}; the first line must "
                        f"name the columns {', '.join(columns)}.")
    if table.empty:
        raise DataError(f"{path}: has a header but no rows; get it again.")
    table = table.apply(lambda column: column.str.strip())  # "bus " would be a class of its own
    empty = table[[name for name in columns if name not in set(may_be_empty)]].eq("").any(axis=1)
    if empty.any():
        raise DataError(f"{path}: empty cell in the row {list(table[columns][empty].iloc[0])}; fill it or take the row "
                        "out.")
    twice = table[columns[0]].duplicated()
    if unique and twice.any():
        raise DataError(f"{path}: {table[columns[0]][twice].iloc[0]!r} stands in two rows; take one out.")
    return table


def manifest_hash(rows: pd.DataFrame) -> str:
    """Return the SHA-256 of the rows' text: the identity of a data set as its tables give it."""
    return hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()


@dataclass
class Report:
    """What `verify` found.

    Attributes:
        missing: files in a table that are not on disk; broken: file → reason; extra: files in no table.
        counts: tables of counts to print, by title.
        differences: sentences on counts that differ from the published ones.
        notes: sentences on what else was left out or is odd; they do not make a data set incomplete.
    """

    missing: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    counts: dict[str, pd.DataFrame] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not (self.missing or self.broken or self.differences)

    def text(self, n_shown: int = 5) -> str:
        """Return the report for a terminal, at most `n_shown` names a list."""
        lines = []
        for title, table in self.counts.items():
            lines += [title, table.to_string(), ""]
        for title, names in (("missing", self.missing), ("extra", self.extra)):
            lines.append(f"{title}: {len(names)} files" + "".join(f"\n  {name}" for name in names[:n_shown]))
        lines.append(f"broken: {len(self.broken)} files")
        lines += [f"  {reason}" for reason in list(self.broken.values())[:n_shown]]
        lines += self.notes + self.differences
        return "\n".join(lines)
