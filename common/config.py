"""Typed configs: a YAML file per table row, `inherits`, and `--a.b value` overrides.

Flow: configs/*.yaml (+ overlay, + overrides) → merged dict → checked against a dataclass → **config object**.
Run:  python -m common.config show task1_asc/configs/dcase2025/general.yaml     (the merged YAML)

Each task declares one dataclass; jsonargparse checks types and builds classes named by `class_path`. This
module adds inheritance, a hash, and a sentence with the nearest name for a key that nobody reads.
"""
import argparse
import collections.abc
import copy
import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
import re
import sys
import typing
from pathlib import Path

import yaml

PLAIN = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list",
         dict: "a mapping"}


REPOSITORY = Path(__file__).resolve().parents[1]


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
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader) or {}
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{path}: not valid YAML ({line}{error.problem}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML text ({str(error).splitlines()[0]}).") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(content).__name__}.")
    return content


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key may stand once in a mapping; YAML itself would take the last and drop the others."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key `{key_node.value}` stands twice, put both into one", key_node.start_mark)
            if key_node.tag != "tag:yaml.org,2002:merge":
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


LEVELS = 2  # of inheritance: ours use one, so that a reader opens two files; yours may stand on one of ours


def read_merged(path: str | Path, *overlays: str | Path) -> dict:
    """Return the YAML at `path` merged over the file its `inherits` names, then the overlays on top.

    `inherits` is relative to the file that says it, or to the repository.
    """
    merged = _inherited(Path(path), LEVELS)
    for overlay in overlays:
        merged = merge(merged, read_yaml(overlay))
    return merged


def _inherited(path: Path, levels: int) -> dict:
    top = read_yaml(path)
    parent = top.pop("inherits", None)
    if parent is None:
        return top
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: `inherits` is {parent!r}, expected the name of one file.")
    if levels == 0:
        raise ConfigError(f"{path}: inherits {parent}, one level too many: {LEVELS} are the limit.")
    beside = path.parent / parent
    try:
        below = _inherited(beside if beside.is_file() else REPOSITORY / parent, levels - 1)
    except ConfigError as error:
        raise ConfigError(f"{path} inherits a file that cannot be used: {error}") from None
    return merge(below, top)


def importable(folder: str | Path) -> None:
    """Let `class_path` name modules that lie in `folder` (last on the search path: nothing of ours is hidden)."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def config_hash(config: dict) -> str:
    """Return 12 hex digits that change when any value of the merged config changes, but not its comments."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:12]


def build(config_class: type, values: dict, overrides: typing.Sequence[str] = (), where: str = "config"):
    """Check `values` and `--a.b value` overrides against a dataclass.

    Returns:
        (config object, resolved dict): classes given by `class_path` become factories; the dict is plain and
        complete.
    Raises:
        ConfigError: unknown key (with the nearest known one), wrong type, unknown class.
    """
    import jsonargparse  # imports slowly; reading YAML alone must stay quick

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config_class, None)
    kinds = {name: typing.get_origin(kind) for name, kind in typing.get_type_hints(config_class).items()}
    overrides = [(f"{name}.class_path" if kinds.get(name) is collections.abc.Callable else name, value)
                 for name, value in split_overrides(overrides)]  # --model=a.B is short for --model.class_path=a.B
    refuse_unknown_keys(values, config_class, where)
    merged = values
    for name, value in overrides:
        merged = merge(merged, _nest(name.split("."), value))
        refuse_unknown_keys(merged, config_class, f"--{name}")
    try:
        namespace = parser.parse_object(values)
        namespace = parser.parse_args([f"--{name}={value}" for name, value in overrides], namespace=namespace)
        config = config_class(**vars(parser.instantiate(namespace)))
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {_short(error)}") from None
    return config, json.loads(parser.dump(namespace, format="json"))


def split_overrides(words: typing.Sequence[str]) -> list[tuple[str, str]]:
    """Return (name, value) of `--a.b value` and `--a.b=value`.

    Raises:
        ConfigError: a word that belongs to no name, or a name without a value.
    """
    pairs, words = [], list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"`{word}` belongs to no option; a config value is changed by --a.b=value.")
        name, sign, value = word[2:].partition("=")
        if not sign:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"{word}: no value given; write {word}=value.")
            value = words.pop(0)
        pairs.append((name, value))
    return pairs


def refuse_unknown_keys(values: dict, config_class: type, where: str, prefix: str = "") -> None:
    """Raise ConfigError for a key that the dataclass does not have, naming the nearest one that it has."""
    types = typing.get_type_hints(config_class)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in types:
            deeper = [f"{prefix}{group}.{key}" for group, kind in types.items()
                      if dataclasses.is_dataclass(kind) and key in typing.get_type_hints(kind)]
            raise ConfigError(f"{where}: unknown key `{name}`; {_nearest(key, types, prefix, deeper)}")
        kind = types[key]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: `{name}` is {'empty' if value is None else repr(value)}, expected keys "
                                  f"below it: {', '.join(typing.get_type_hints(kind))}.")
            refuse_unknown_keys(value, kind, where, f"{name}.")
        elif typing.get_origin(kind) is collections.abc.Callable:
            _refuse_unknown_class(value, where, name)
        elif isinstance(value, dict) and kind in PLAIN:
            raise ConfigError(f"{where}: `{name}` is {PLAIN[kind]}, it has no keys below it.")


def _refuse_unknown_class(spec: dict, where: str, name: str) -> None:
    """Raise ConfigError where class_path names no class, or init_args an argument that the class does not take."""
    parts = dict(spec) if isinstance(spec, dict) else {}
    class_path, arguments = parts.pop("class_path", None), parts.pop("init_args", None) or {}
    if parts or not isinstance(class_path, str) or "." not in class_path or not isinstance(arguments, dict):
        raise ConfigError(f"{where}: `{name}` is {spec}, expected class_path: package.module.Class and, where wanted, "
                          "init_args: {key: value}.")
    module_name, _, class_name = class_path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{where}: `{name}.class_path` is {class_path}: {error}.") from None
    if not hasattr(module, class_name):
        classes = [known for known, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError(f"{where}: `{name}.class_path` is {class_path}, but {module_name} has no {class_name}; "
                          f"{_nearest(class_name, classes, f'{module_name}.')}")
    parameters = inspect.signature(getattr(module, class_name)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in arguments:
        if key not in parameters:
            raise ConfigError(f"{where}: {class_name} has no argument `{name}.init_args.{key}`; "
                              f"{_nearest(key, parameters, f'{name}.init_args.')}")


def _nearest(key, known: typing.Iterable[str], prefix: str, deeper: typing.Sequence[str] = ()) -> str:
    near = [f"{prefix}{name}" for name in difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)]
    if near := [*deeper, *near]:
        return f"did you mean `{near[0]}`?"
    known = list(known)
    return f"known here: {', '.join(known[:12])}{', …' if len(known) > 12 else ''}."


def _nest(parts: list[str], value: str) -> dict:
    return {parts[0]: _nest(parts[1:], value) if len(parts) > 1 else value}


def _short(error: Exception) -> str:
    """The useful part of a jsonargparse message: the key, what it is and what was expected."""
    text = re.sub(r"Namespace\((.*)\)", r"\1", str(error))
    pattern = r'Parser key "([^"]+)":\s+Expected an? <class \'(\w+)\'>. Got value: (.*?)(\. Got value|$)'
    if wrong := re.search(pattern, text):
        outer = re.search(r'Parser key "([^"]+)"', text)[1]
        key = wrong[1] if wrong[1] == outer else f"{outer}.init_args.{wrong[1]}"
        expected = {kind.__name__: text for kind, text in PLAIN.items()}.get(wrong[2], wrong[2])
        return f"`{key}` is {wrong[3]}, expected {expected}."
    if missing := re.search(r"the following arguments are required: (.*)", text):
        return f"no value for {missing[1]}; add it, or the file that has it as `inherits: FILE`."
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
    if args.what == "get" and args.key is None:
        parser.error("get needs a key, as in: get CONFIG optim.lr")
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
