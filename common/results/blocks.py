"""Keep the generated tables of the READMEs current.

Flow: tables → **marked blocks** of README.md and task*/README.md.
Run:  python -m common.results update      python -m common.results check

A block is a line `<!-- table:NAME -->`, the generated text, and a line `<!-- /table -->`; NAME is a key of
`common.results.tables.TABLES`. What stands between the two lines is overwritten by `update`; nothing else is
touched.
"""

import re
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

from common.files import write_text

BLOCK = re.compile(
    r"^<!-- table:(?P<name>\S+) -->\n(?P<body>(?:(?!<!-- table:).*\n)*?)<!-- /table -->[ \t]*$", re.MULTILINE
)
OPENING = re.compile(r"^<!-- table:(\S+) -->", re.MULTILINE)


class BlockError(ValueError):
    """A block that is never closed, or whose name no table has."""


def readmes(root: str | Path) -> list[Path]:
    """Return README.md and the README.md of every task folder, those that exist."""
    root = Path(root)
    return [path for path in (root / "README.md", *sorted(root.glob("task*/README.md"))) if path.is_file()]


def render(text: str, build: Callable[[str], str | None], where: str) -> str:
    """Return `text` with every block filled by `build(name)`.

    `build` returns None for a name that no table has.

    Raises:
        BlockError: a block without end, or a name that no table has.
    """
    opened, closed = OPENING.findall(text), [match["name"] for match in BLOCK.finditer(text)]
    for name in opened:
        if opened.count(name) != closed.count(name):
            raise BlockError(
                f"{where}, block {name}: has no `<!-- /table -->` line of its own; add it below the table."
            )

    def fill(match: re.Match) -> str:
        table = build(match["name"])
        if table is None:
            raise BlockError(
                f"{where}, block {match['name']}: no table has this name; "
                "`python -m common.results table` lists the names."
            )
        return f"<!-- table:{match['name']} -->\n\n{table}\n\n<!-- /table -->"

    return BLOCK.sub(fill, text)


def update(root: str | Path, build: Callable[[str], str | None]) -> list[Path]:
    """Rewrite the blocks of all READMEs, each file whole or not at all; return the files that changed."""
    new = {}
    for path in readmes(root):
        text = path.read_text(encoding="utf-8")
        rendered = render(text, build, str(path.relative_to(root)))
        if rendered != text:
            new[path] = rendered
    for path, text in new.items():
        write_text(path, text)
    return list(new)


def check(root: str | Path, build: Callable[[str], str | None]) -> list[str]:
    """Return one sentence per block that is not what `update` would write, naming file, block and line."""
    problems = []
    for path in readmes(root):
        where, text = str(path.relative_to(root)), path.read_text(encoding="utf-8")
        try:
            rendered = render(text, build, where)
        except BlockError as error:
            problems.append(str(error))
            continue
        for found, wanted in zip(BLOCK.finditer(text), BLOCK.finditer(rendered), strict=True):
            if found[0] != wanted[0]:
                first_line = text[: found.start()].count("\n") + 1
                problems.append(
                    f"{where}, block {found['name']}, {_first_difference(found[0], wanted[0], first_line)}"
                )
    return problems


def _first_difference(found: str, wanted: str, first_line: int) -> str:
    pairs = enumerate(zip_longest(found.split("\n"), wanted.split("\n"), fillvalue="(nothing)"), first_line)
    line, (has, needs) = next((line, pair) for line, pair in pairs if pair[0] != pair[1])
    return (
        f"line {line}: is `{' '.join(has.split())}`, but results/ gives `{' '.join(needs.split())}`; blocks "
        "are generated: correct results/ if that is wrong, then run `python -m common.results update`."
    )
