"""Typed configs: a YAML file per table row, one level of `inherits`, and `--a.b value` overrides.

Flow: configs/*.yaml (+ overlay, + overrides) → merged dict → checked against a dataclass → **config object**.
Run:  python -m common.config show task1_asc/configs/dcase2025/general.yaml     (the merged YAML)

Each task declares one dataclass; jsonargparse checks types, builds classes named by `class_path`, and refuses keys
that nobody reads. This module adds inheritance, the nearest name for a typo, and a hash.
"""
import argparse
import copy
import dataclasses
import difflib
import hashlib
import json
import re
import typing
from pathlib import Path

import yaml


class ConfigError(ValueError):
    """A config that cannot be used; the message says which key, where, and what mends it."""


def merge(base: dict, top: dict) -> dict:
    """Return `base` updated with `top`, dictionaries merged key by key, everything else replaced."""
    merged = copy.deepcopy(base)
    for key, value in top.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and "class_path" not in value:
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def read_yaml(path: str | Path) -> dict:
    """Read a YAML file that holds a mapping, with a sentence for what can go wrong."""
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        raise ConfigError(f"{path}: no such config" + (f"; did you mean {near[0]}?" if near else "."))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({str(error).splitlines()[0]}).") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(content).__name__}.")
    return content


def read_merged(path: str | Path, *overlays: str | Path) -> dict:
    """Return the YAML at `path` merged over the file its `inherits` names, then the overlays (smoke.yaml) on top.

    `inherits` is relative to the file that says it and goes one level deep, so that a reader opens two files at most.
    """
    path = Path(path)
    top = read_yaml(path)
    parent = top.pop("inherits", None)
    merged = top
    if parent is not None:
        below = read_yaml(path.parent / parent)
        if "inherits" in below:
            raise ConfigError(f"{path}: inherits {parent}, which itself inherits; one level is the limit.")
        merged = merge(below, top)
    for overlay in overlays:
        merged = merge(merged, read_yaml(overlay))
    return merged


def config_hash(config: dict) -> str:
    """Return 12 hex digits that change when any value of the merged config changes, but not its comments."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:12]


def build(config_class: type, values: dict, overrides: typing.Sequence[str] = (), where: str = "config"):
    """Check `values` and `--a.b value` overrides against a dataclass.

    Returns:
        (config object, resolved dict): classes given by `class_path` become factories; the dict is plain and complete.
    Raises:
        ConfigError: unknown key (with the nearest known one), wrong type, unknown class.
    """
    import jsonargparse  # imports slowly; reading YAML alone must stay quick

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config_class, None)
    refuse_unknown_keys(values, config_class, where)
    overrides = [word for item in overrides for word in item.split("=", 1)]
    for name in (word[2:] for word in overrides if word.startswith("--")):
        refuse_unknown_keys(_nest(name.split(".")), config_class, f"--{name}")
    try:
        namespace = parser.parse_object(values)
        namespace = parser.parse_args(list(overrides), namespace=namespace)
        config = config_class(**vars(parser.instantiate(namespace)))
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {_short(error)}") from None
    return config, json.loads(parser.dump(namespace, format="json"))


def refuse_unknown_keys(values: dict, config_class: type, where: str, prefix: str = "") -> None:
    """Raise ConfigError for a key that the dataclass does not have, naming the nearest one that it has."""
    types = typing.get_type_hints(config_class)
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1, cutoff=0.5)
            hint = f"did you mean `{prefix}{near[0]}`?" if near else f"known here: {', '.join(types)}."
            raise ConfigError(f"{where}: unknown key `{prefix}{key}`; {hint}")
        if isinstance(value, dict) and dataclasses.is_dataclass(types[key]):
            refuse_unknown_keys(value, types[key], where, f"{prefix}{key}.")


def _nest(parts: list[str]) -> dict:
    return {parts[0]: _nest(parts[1:]) if len(parts) > 1 else None}


def _short(error: Exception) -> str:
    """The useful lines of a jsonargparse message: the key and what was expected, without the union boilerplate."""
    text = re.sub(r"Namespace\((.*)\)", r"\1", str(error))
    lines = [line.strip(" -") for line in text.splitlines()]
    noise = ("Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Given value")
    return " ".join(line for line in lines if line and not line.startswith(noise))


def dump_yaml(config: dict) -> str:
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def main(argv: typing.Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("show", "get", "hash"))
    parser.add_argument("config", type=Path)
    parser.add_argument("key", nargs="?", help="for `get`: a dotted key; prints nothing where it is not set")
    parser.add_argument("--overlay", type=Path, action="append", default=[], help="merged on top (smoke.yaml)")
    parser.add_argument("--salt", default="", help="for `hash`: text that belongs to the key (overrides, data folder)")
    args = parser.parse_args(argv)
    try:
        values = read_merged(args.config, *args.overlay)
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    if args.what == "show":
        print(dump_yaml(values), end="")
    elif args.what == "hash":
        print(config_hash({"config": values, "salt": args.salt}))
    else:
        for part in args.key.split("."):
            values = values.get(part) if isinstance(values, dict) else None
        print("" if values is None else values)


if __name__ == "__main__":
    main()
