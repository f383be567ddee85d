"""Reading published checkpoints and fitting them into our networks."""

import argparse
import pickle

import pytest
import torch

from common.nn.weights import (
    KEY_MAPS,
    REGISTRY,
    KeyMap,
    WeightsError,
    check_sha256,
    container_devices,
    load_published,
    load_state_dict_file,
    published_file,
)
from task1_asc.model import CPMobile, DeviceModels, from_published

WINNER = "karasin_jku_2025_system4"


class RunsCode:
    """What a malicious checkpoint would hold."""

    def __reduce__(self):
        return (open, ("was_run", "w"))


def lightning_checkpoint(network, prefix):
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    return {"epoch": 3, "state_dict": {"mel.0.kernel": torch.zeros(3), **state}}


def test_general_checkpoint_round_trip(tmp_path):
    original = CPMobile()
    torch.save(lightning_checkpoint(original, "model."), tmp_path / "last.ckpt")
    network, report = from_published(load_state_dict_file(tmp_path / "last.ckpt"))
    assert isinstance(network, CPMobile)
    assert (report.loaded, report.ignored, report.missing) == (126, ("mel.0.kernel",), ())
    assert all(torch.equal(t, original.state_dict()[name]) for name, t in network.state_dict().items())


def test_container_checkpoint_brings_its_devices(tmp_path):
    original = DeviceModels(CPMobile(), ["c", "s2", "a"])
    torch.save(lightning_checkpoint(original, "multi_device_model."), tmp_path / "last.ckpt")
    state = load_state_dict_file(tmp_path / "last.ckpt")
    assert container_devices(state) == ["c", "s2", "a"]
    network, report = from_published(state)
    assert network.devices == ["c", "s2", "a"]
    assert report.loaded == 4 * 126


def test_bare_state_dict_and_half_precision(tmp_path):
    torch.save(CPMobile().half().state_dict(), tmp_path / "model_state_dict.pt")
    network, _ = from_published(load_state_dict_file(tmp_path / "model_state_dict.pt"))
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_checkpoint_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hidden": RunsCode()}, "evil.ckpt")
    with pytest.raises(WeightsError) as error:
        load_state_dict_file("evil.ckpt")
    assert "evil.ckpt needs code to be read (io.open) and is refused" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: torch.save({"a": argparse.Namespace()}, p), "argparse.Namespace"),
        (lambda p: p.write_bytes(pickle.dumps({"a": RunsCode()}, protocol=2)), "refused"),
        (lambda p: p.write_text("no checkpoint"), "cannot be read"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
        (lambda p: p.write_bytes(b"PK\x03\x04 truncated archive"), "cannot be read"),
        (lambda p: torch.save([1, 2], p), "holds no state dict"),
        (lambda p: None, "does not exist"),
    ],
)
def test_unusable_files_get_one_sentence(tmp_path, write, message):
    path = tmp_path / "file.pt"
    write(path)
    with pytest.raises(WeightsError, match=message) as error:
        load_state_dict_file(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_network_names_the_first_differences():
    state = CPMobile().state_dict()
    with pytest.raises(WeightsError, match=r"12 missing in the file \(stages.s1.b1.after_block_norm.gamma"):
        load_published(CPMobile(grn=True), state)
    with pytest.raises(
        WeightsError, match=r"block.2.0.weight is \(56, 64, 1, 1\) in the file and \(72, 64, 1, 1\)"
    ):
        load_published(CPMobile(channels_multiplier=2.3), state, strict=False)
    with pytest.raises(WeightsError, match=r"1 left over \(extra\)"):
        load_published(CPMobile(), {**state, "extra": torch.zeros(1)})
    with pytest.raises(WeightsError, match="no name in common"):
        load_published(CPMobile(), {"extra": torch.zeros(1)}, strict=False)


def test_refused_weights_leave_the_network_alone():
    network = CPMobile()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items() if "feed_forward" not in name}
    with pytest.raises(WeightsError):
        load_published(network, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_not_strict_reports_what_was_left_out():
    state = {n: t for n, t in CPMobile().state_dict().items() if not n.startswith("feed_forward")}
    report = load_published(CPMobile(), {**state, "extra": torch.zeros(1)}, strict=False)
    assert report.missing[0] == "feed_forward.0.weight"
    assert report.unexpected == ("extra",)


def test_key_map_that_joins_two_names_is_refused():
    with pytest.raises(WeightsError, match=r"a\.x and b\.x both become x"):
        KeyMap(prefixes=(("a.", ""), ("b.", ""))).apply({"a.x": torch.zeros(1), "b.x": torch.zeros(1)})


def test_registry_entries_are_complete():
    for name, entry in REGISTRY.items():
        assert entry.key_map in KEY_MAPS, name
        assert entry.source.startswith("https://"), name
        assert entry.url is None or entry.url.startswith(entry.source), name
        assert entry.licence, name


def test_nothing_is_downloaded_unasked(tmp_path):
    with pytest.raises(WeightsError, match="allow the download"):
        published_file("mn10_as", folder=tmp_path)
    with pytest.raises(WeightsError, match="no direct address"):
        published_file(WINNER, folder=tmp_path, download=True)
    with pytest.raises(WeightsError, match="neither a file nor a registered name"):
        published_file("mn99", folder=tmp_path)


def test_checksum(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(WeightsError, match="was published"):
        check_sha256(path, "0" * 64)
    check_sha256(path, None)


def test_winner_checkpoint(shared):
    path = shared / "data" / "checkpoints" / "task1" / "karasin_jku_task1_4.ckpt"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    check_sha256(path, REGISTRY[WINNER].sha256)
    network, report = from_published(load_state_dict_file(path))
    assert network.devices == ["a", "b", "c", "s1", "s2", "s3"]
    assert (report.loaded, len(report.ignored)) == (882, 3)
    base, s2 = network.base_model.state_dict(), network.device_models["s2"].state_dict()
    assert all(torch.equal(base[name], s2[name]) for name in base)
