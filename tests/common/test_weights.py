"""Reading published checkpoints and fitting them into our networks."""

import argparse
import dataclasses
import http.server
import pickle
import re
import threading
import zipfile

import numpy as np
import pytest
import torch

from common.files import sha256
from common.nn.key_maps import KEY_MAPS, KeyMap, WeightsError
from common.nn.published import REGISTRY, check_sha256, published_file
from common.nn.weights import container_devices, load_published, load_state_dict_file
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


def test_numpy_numbers_beside_the_weights_are_harmless(tmp_path):
    said = {"best": np.float64(0.3), "step": np.int64(3), "dtype": np.dtype("float32"), "name": np.str_("a")}
    torch.save({"state_dict": {"a": torch.ones(1)}, **said}, tmp_path / "last.ckpt")
    assert load_state_dict_file(tmp_path / "last.ckpt") == {"a": torch.ones(1)}
    # Before NumPy 2 the same function had another name.
    with zipfile.ZipFile(tmp_path / "last.ckpt") as new, zipfile.ZipFile(tmp_path / "old.ckpt", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"))
    assert (tmp_path / "old.ckpt").read_bytes().count(b"cnumpy.core.multiarray") == 1
    assert load_state_dict_file(tmp_path / "old.ckpt") == {"a": torch.ones(1)}


def test_advice_on_files_that_hold_code_works(tmp_path):
    path = tmp_path / "stage.ckpt"
    settings = argparse.Namespace(lr=1)
    torch.save({"hyper_parameters": settings, "student": {"a": torch.ones(1)}, "cfg": {"b": settings}}, path)
    with pytest.raises(WeightsError, match="needs code to be read .argparse.Namespace. and is refused") as error:
        load_state_dict_file(path)
    advice = re.search(r"Python: (import torch; .*\))", str(error.value))[1]
    exec(advice, {})
    assert load_state_dict_file(tmp_path / "stage.tensors.ckpt") == {"a": torch.ones(1)}


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


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    network = CPMobile()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first, second = [name for name, tensor in state.items() if tensor.is_floating_point()][3:5]
    state[first].view(-1)[0] = state[second].view(-1)[-1] = bad
    before = next(network.parameters()).clone()
    with pytest.raises(WeightsError, match=f"2 with NaN or infinite numbers.*{re.escape(first)}"):
        load_published(network, state, strict=False)
    assert torch.equal(before, next(network.parameters()))


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


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Quiet(*a, directory=folder)) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_download(tmp_path, server, monkeypatch):
    folder, address = server
    torch.save({"a": torch.ones(1)}, folder / "net+a.pt")
    entry = dataclasses.replace(REGISTRY["mn10_as"], url=f"{address}/net+a.pt", sha256=sha256(folder / "net+a.pt"))
    monkeypatch.setitem(REGISTRY, "here", entry)
    path = published_file("here", tmp_path / "downloads", download=True)
    assert load_state_dict_file(path) == {"a": torch.ones(1)}
    (folder / "net+a.pt").unlink()
    assert published_file("here", tmp_path / "downloads", download=True) == path


def test_downloads_that_fail_are_one_sentence_with_the_address(tmp_path, server, monkeypatch):
    folder, address = server
    (folder / "net.pt").write_bytes(b"something else")
    (tmp_path / "a file").touch()
    entries = {
        "absent": (f"{address}/absent.pt", None, tmp_path / "a", "404"),
        "damaged": (f"{address}/net.pt", "0" * 64, tmp_path / "b", "sha256 is"),
        "offline": ("http://127.0.0.1:9/net.pt", None, tmp_path / "c", "refused"),
        "no folder": (f"{address}/net.pt", None, tmp_path / "a file", "a file"),
    }
    for name, (url, checksum, where, reason) in entries.items():
        monkeypatch.setitem(REGISTRY, name, dataclasses.replace(REGISTRY["mn10_as"], url=url, sha256=checksum))
        with pytest.raises(WeightsError, match=reason) as error:
            published_file(name, where, download=True)
        assert f"fetch {url} by hand" in str(error.value)
        assert "\n" not in str(error.value)
        assert not list(where.glob("*.pt"))


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
