"""Configs: one level of inheritance, overlays, overrides, and a sentence with the nearest name for every mistake."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from common.config import (
    ConfigError,
    build,
    config_hash,
    dump_yaml,
    main,
    merge,
    read_merged,
    read_yaml,
    split_overrides,
)


class Gain:
    """A class that a config names."""

    def __init__(self, n_channels: int, level_db: float = 0.0, taps: Sequence[int] = (1,)):
        self.n_channels, self.level_db, self.taps = n_channels, level_db, taps


class AnyGain(Gain):
    def __init__(self, n_channels: int, **more):
        super().__init__(n_channels, **more)


@dataclasses.dataclass
class Format:
    sample_rate: int = 44100
    pad: bool = False


@dataclasses.dataclass
class Data:
    subset: int = 25
    format: Format = dataclasses.field(default_factory=Format)
    groups: dict[str, list[str]] = dataclasses.field(default_factory=lambda: {"real": ["a"]})

    def __post_init__(self):
        if self.subset > 100:
            raise ValueError(f"data.subset is {self.subset}, expected at most 100.")


@dataclasses.dataclass
class Optim:
    lr: float = 1e-3
    name: str = "adamw"


@dataclasses.dataclass
class Config:
    model: Callable[[int], Gain]
    data: Data = dataclasses.field(default_factory=Data)
    optim: Optim = dataclasses.field(default_factory=Optim)
    note: str = ""


MODEL = {"class_path": f"{__name__}.Gain", "init_args": {"level_db": -6.0}}


def built(values: dict | None = None, *overrides: str) -> Config:
    return build(Config, {"model": MODEL, **(values or {})}, overrides, where="my.yaml")[0]


def write(folder: Path, **files: str) -> list[Path]:
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content)
    return [folder / f"{name}.yaml" for name in files]


# ---------------------------------------------------------------- files


def test_merge_goes_key_by_key_and_leaves_its_arguments():
    base, top = {"a": {"x": 1, "y": [1, 2]}, "b": 1}, {"a": {"y": [3]}, "c": 2}
    assert merge(base, top) == {"a": {"x": 1, "y": [3]}, "b": 1, "c": 2}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 1} and top == {"a": {"y": [3]}, "c": 2}


def test_merge_replaces_another_class_with_its_arguments():
    base = {"model": {"class_path": "a.B", "init_args": {"x": 1, "y": 2}}}
    assert merge(base, {"model": {"init_args": {"x": 3}}})["model"]["init_args"] == {"x": 3, "y": 2}
    assert merge(base, {"model": {"class_path": "a.C"}}) == {"model": {"class_path": "a.C"}}


def test_inherits_one_level_then_overlays_in_order(tmp_path):
    write(tmp_path, base="optim: {lr: 1, name: adam}\nnote: base\n")
    (tmp_path / "sub").mkdir()
    top, first, second = write(tmp_path / "sub", top="inherits: ../base.yaml\noptim: {lr: 2}\n",
                               first="optim: {lr: 3}\nnote: first\n", second="note: second\n")  # fmt: skip
    assert read_merged(top) == {"optim": {"lr": 2, "name": "adam"}, "note": "base"}
    assert read_merged(top, first, second) == {"optim": {"lr": 3, "name": "adam"}, "note": "second"}
    assert read_merged(top, second, first)["note"] == "first"


def test_two_levels_are_the_limit(tmp_path):
    files = write(tmp_path, base="note: x\n", middle="inherits: base.yaml\n", top="inherits: middle.yaml\nmore: y\n",
                  roof="inherits: top.yaml\n")  # fmt: skip
    assert read_merged(files[2]) == {"note": "x", "more": "y"}
    with pytest.raises(ConfigError, match="one level too many: 2 are the limit"):
        read_merged(files[3])


def test_circle_is_refused(tmp_path):
    top, _ = write(tmp_path, top="inherits: other.yaml\n", other="inherits: top.yaml\n")
    with pytest.raises(ConfigError, match="one level too many"):
        read_merged(top)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("- a\n", "expected `key: value` lines, found list"),
        ("note: [a\n", r"not valid YAML \(line 2: expected ',' or ']'"),
        ("note: a\n\tlr: 3\n", r"not valid YAML \(line 2: found character '\\t'"),
        ("optim: {lr: 1}\nnote: x\noptim: {name: adam}\n", r"\(line 3: key `optim` stands twice"),
        ("optim: {lr: 1, lr: 2}\n", r"\(line 1: key `lr` stands twice"),
        ("inherits: absent.yaml\n", "inherits a file that cannot be used: .*absent.yaml: no such config"),
        ("inherits: [a, b]\n", r"`inherits` is \['a', 'b'\], expected the name of one file"),
    ],
)
def test_unusable_file(tmp_path, content, sentence):
    (path,) = write(tmp_path, mine=content)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_merged(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_file_that_is_no_text(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="mine.yaml: not a YAML text"):
        read_yaml(tmp_path / "mine.yaml")


def test_unknown_config_names_the_nearest(tmp_path):
    write(tmp_path, general="", split5="")
    with pytest.raises(ConfigError, match="generl.yaml: no such config; did you mean general.yaml?"):
        read_yaml(tmp_path / "generl.yaml")


def test_empty_file_is_an_empty_config(tmp_path):
    assert read_yaml(write(tmp_path, empty="# only a comment\n")[0]) == {}


def test_hash_follows_values_only(tmp_path):
    first, second, other = write(
        tmp_path,
        first="# a comment\noptim: {lr: 0.1, name: adam}\nnote: x\n",
        second="note: x\noptim:\n  name: adam   # another\n  lr: 1.0e-1\n",
        other="optim: {lr: 0.2, name: adam}\nnote: x\n",
    )
    hashes = [config_hash(read_merged(path)) for path in (first, second, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(hashes[0]) == 12


def test_dumped_yaml_reads_back(tmp_path):
    content = {"note": "Größe: 1", "data": {"groups": {"real": ["a", "b"]}}, "optim": {"lr": 1e-05}}
    (path,) = write(tmp_path, dumped=dump_yaml(content))
    assert read_yaml(path) == content


# ---------------------------------------------------------------- values


def test_defaults_values_and_factories():
    config, resolved = build(Config, {"model": MODEL, "optim": {"lr": 0.5}}, ("--data.format.pad=true",))
    assert (config.optim, config.data.format) == (Optim(lr=0.5), Format(pad=True))
    gain = config.model(2)  # what is left to say is given later
    assert (gain.n_channels, gain.level_db) == (2, -6.0)
    assert resolved["optim"] == {"lr": 0.5, "name": "adamw"}  # complete and plain
    assert resolved["data"]["format"] == {"sample_rate": 44100, "pad": True}
    assert resolved["model"]["class_path"] == f"{__name__}.Gain"
    assert build(Config, resolved)[1] == resolved


@pytest.mark.parametrize(
    "words",
    [
        ("--optim.lr", "5e-3", "--note", "a=b"),
        ("--optim.lr=5e-3", "--note=a=b"),
        ("--note=x", "--optim.lr=5e-3", "--note=a=b"),
    ],
)
def test_override_is_written_with_space_or_equals_sign(words):
    config = built({"optim": {"lr": 1.0}}, *words)
    assert (config.optim.lr, config.note) == (5e-3, "a=b")


def test_numbers_without_a_point_are_numbers(tmp_path):
    (path,) = write(tmp_path, mine="optim: {lr: 5e-3}\n")  # YAML 1.1 itself reads the text "5e-3"
    assert built(read_merged(path)).optim.lr == 5e-3


def test_negative_value():
    assert built(None, "--optim.lr", "-1").optim.lr == -1


def test_override_reaches_class_arguments_and_other_classes():
    assert built(None, "--model.init_args.level_db=3").model(1).level_db == 3
    other = built(None, f"--model={__name__}.AnyGain", "--model.init_args.level_db=2").model(1)
    assert type(other) is AnyGain and other.level_db == 2


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"optm": {}}, "unknown key `optm`; did you mean `optim`?"),
        ({"optim": {"lrr": 1}}, "unknown key `optim.lrr`; did you mean `optim.lr`?"),
        ({"data": {"format": {"sample_rat": 1}}}, "`data.format.sample_rat`; did you mean `data.format.sample_rate`?"),
        ({"subset": 5}, "unknown key `subset`; did you mean `data.subset`?"),
        ({"data": {"pad": True}}, "unknown key `data.pad`; did you mean `data.format.pad`?"),
        ({"xyz": 1}, "unknown key `xyz`; known here: model, data, optim, note."),
        ({True: 1}, "unknown key `True`"),
        ({"optim": None}, "`optim` is empty, expected keys below it: lr, name"),
        ({"optim": 3}, "`optim` is 3, expected keys below it: lr, name"),
        ({"optim": {"lr": "fast"}}, "`optim.lr` is fast, expected a number."),
        ({"data": {"subset": 2.5}}, "`data.subset` is 2.5, expected a whole number."),
        ({"data": {"format": {"pad": "maybe"}}}, "`data.format.pad` is maybe, expected true or false."),
        ({"note": 3}, "`note` is 3, expected a text."),
        ({"note": {"x": 3}}, "`note` is a text, it has no keys below it."),
        ({"data": {"groups": 3}}, "`data.groups` is 3, expected a mapping."),
        ({"data": {"subset": 200}}, "data.subset is 200, expected at most 100."),
        ({"model": None}, "`model` is None, expected class_path: package.module.Class"),
        ({"model": {"clas_path": "a.B"}}, "expected class_path: package.module.Class"),
        ({"model": {**MODEL, "init_args": 3}}, "expected class_path: package.module.Class"),
        ({"model": {"class_path": "Gain"}}, "expected class_path: package.module.Class"),
        ({"model": {"class_path": "nowhere.Gain"}}, "`model.class_path` is nowhere.Gain: No module named 'nowhere'."),
        ({"model": {"class_path": f"{__name__}.Gian"}}, f"has no Gian; did you mean `{__name__}.Gain`?"),
        (
            {"model": {**MODEL, "init_args": {"leveldb": 3}}},
            "Gain has no argument `model.init_args.leveldb`; did you mean `model.init_args.level_db`?",
        ),
        (
            {"model": {**MODEL, "init_args": {"level_db": "loud"}}},
            "`model.init_args.level_db` is loud, expected a number.",
        ),
    ],
)
def test_wrong_value_is_one_sentence(values, sentence):
    with pytest.raises(ConfigError) as caught:
        built(values)
    message = str(caught.value)
    assert message.startswith("my.yaml: ") and sentence in message and "\n" not in message


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--optim.lrr=1"], "--optim.lrr: unknown key `optim.lrr`; did you mean `optim.lr`?"),
        (["--optm.lr", "1"], "--optm.lr: unknown key `optm`; did you mean `optim`?"),
        (["--subset=5"], "--subset: unknown key `subset`; did you mean `data.subset`?"),
        (["--data=5"], "--data: `data` is '5', expected keys below it: subset"),
        (["--data.subset.x=5"], "`data.subset` is a whole number, it has no keys below it."),
        (["--optim.lr=fast"], "`optim.lr` is fast, expected a number."),
        (["--model.init_args.leveldb=3"], "did you mean `model.init_args.level_db`?"),
        (["--model.init_args.level_db=x"], "`model.init_args.level_db` is x, expected a number."),
        ([f"--model.class_path={__name__}.Gian"], f"did you mean `{__name__}.Gain`?"),
        ([f"--model={__name__}.Gian"], f"did you mean `{__name__}.Gain`?"),
        (["--optim.lr"], "--optim.lr: no value given; write --optim.lr=value."),
        (["--optim.lr", "--note=x"], "--optim.lr: no value given"),
        (["optim.lr=3"], "`optim.lr=3` belongs to no option; a config value is changed by --a.b=value."),
        (["--optim.lr", "1", "2"], "`2` belongs to no option"),
        (["--help"], "--help: no value given"),
    ],
)
def test_wrong_override_is_one_sentence(words, sentence):
    with pytest.raises(ConfigError) as caught:
        built(None, *words)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_what_has_no_default_must_be_there():
    with pytest.raises(ConfigError, match=r"my.yaml: no value for model; add it, or the file that has it as `inher"):
        build(Config, {"note": "x"}, where="my.yaml")


def test_split_overrides():
    assert split_overrides(["--a", "1", "--b.c=2=3", "--d="]) == [("a", "1"), ("b.c", "2=3"), ("d", "")]


# ---------------------------------------------------------------- command


def test_command_shows_gets_and_hashes(tmp_path, capsys):
    _, top = write(tmp_path, base="optim: {lr: 1, name: adam}\n", top="inherits: base.yaml\noptim: {lr: 2}\n")
    main(["show", str(top)])
    assert capsys.readouterr().out == "optim:\n  lr: 2\n  name: adam\n"
    for key, value in (("optim.lr", "2"), ("optim.none.deeper", ""), ("none", "")):
        main(["get", str(top), key])
        assert capsys.readouterr().out == f"{value}\n"
    hashes = []
    for salt in ("", "", "other data"):
        main(["hash", str(top), "--salt", salt])
        hashes.append(capsys.readouterr().out)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("words", "sentence"), [(["show", "absent.yaml"], "no such config"), (["get", "x.yaml"], "needs a key")]
)
def test_command_says_what_is_wrong(words, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code not in (0, None)
    assert sentence in f"{caught.value.code}{capsys.readouterr().err}"
