"""A progress bar where somebody looks, a line every half minute where the output goes to a file."""

import sys

from tqdm import tqdm


def progress(items=None, **settings) -> tqdm:
    """Return tqdm over `items` (or a bar to update by hand) with `settings` of tqdm: total, desc, unit, …"""
    return tqdm(items, mininterval=1 if sys.stderr.isatty() else 30, **settings)
