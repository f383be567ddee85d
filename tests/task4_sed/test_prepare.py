"""Preparing a chain: all sets checked and decoded, an identity of what can be used, what is missing said."""

import pytest

from task4_sed import prepare
from tests.task4_sed.conftest import write_audio, write_table
from tests.task4_sed.tiny_sets import write_sets

DEVTEST = "metadata/validation/validation.tsv"


@pytest.fixture
def root(tmp_path):
    data = write_sets(tmp_path / "data")
    for name in ("weak", "unlabeled", "audioset_strong"):
        write_table(data / f"resources/{name}_exclude.tsv", "filename", [("none.wav",)])
    rows = [(f"{n}.wav", 0.2, 0.9, "Dog") for n in range(2)]
    write_table(data / DEVTEST, "filename onset offset event_label", rows)
    for name, *_ in rows:
        write_audio(data / "audio/validation/validation_16k" / name, 1.0)
    return data


def prepared(root, *more) -> dict[str, str]:
    """Return set → hash of what can be used."""
    words = ["--data", root, "--cache", root.parent / "cache", "--identity", root.parent / "identity"]
    prepare.main([str(word) for word in (*words, "--config", "builtin/pretrain", "builtin/it1_stage1", *more)])
    return dict(line.split() for line in (root.parent / "identity").read_text().splitlines())


def test_all_sets_once_and_what_is_not_there(root, capsys):
    found = prepared(root)
    assert set(found) == {"maestro_real_fit", "strong_train", "synth_train", "weak_train", "unlabeled_train",
                          "maestro_real_val", "synth_val", "devtest"}  # fmt: skip
    shown = capsys.readouterr().out
    assert shown.count("devtest (strong, test)") == shown.count("synth_train (strong, train)") == 1
    for name in ("eval_public", "maestro_real_dev", "external_strong_train"):
        assert f"{name}: not there, left out." in shown


def test_identity_follows_clips_and_labels_not_pseudo_labels(root):
    first = prepared(root)
    assert prepared(root, "--pseudo-labels") == first
    (root / "audio/train/weak_16k/weak0.wav").unlink()
    table = root / DEVTEST
    table.write_text(table.read_text().replace("0.9", "0.8"))
    second = prepared(root)
    assert {name for name in first if first[name] != second[name]} <= {"weak_train", "devtest"}
    assert first["devtest"] != second["devtest"]


def test_broken_audio_is_left_out_and_named(root, capsys):
    first = prepared(root)
    (root / "audio/validation/validation_16k/1.wav").write_bytes(b"no sound")
    assert prepared(root)["devtest"] != first["devtest"]
    assert "broken: 1 files" in capsys.readouterr().out


@pytest.mark.parametrize("table, sentence", [(DEVTEST, "has the label 'Dgo'"),
                                             ("metadata/train/weak.tsv", "no such table")])  # fmt: skip
def test_what_is_there_must_be_usable_and_what_is_needed_there(root, table, sentence):
    path = root / table
    path.write_text(path.read_text().replace("Dog", "Dgo")) if table == DEVTEST else path.unlink()
    with pytest.raises(SystemExit, match=sentence):
        prepared(root)
