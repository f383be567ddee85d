"""Submission packages: built from tiny untrained networks, tried away from the repository, refused when wrong."""

import importlib
import json
import runpy
import shutil
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml

from common.config import build, merge, read_yaml
from common.submission import SubmissionError, tree, write_zip
from task1_asc import evaluate, submit, submit_check
from task1_asc.config import CONFIGS, Task1Config
from task1_asc.data import open_data
from task1_asc.model import DeviceModels
from task1_asc.submit_build import build_package, read_system
from task1_asc.submit_check import check_package
from task1_asc.weights import save_network

NAME = "Muster_INST_task1"
CLASSES = ("bus", "park", "tram")
DEVICES = ("a", "b", "s5")
RATE = 44100
SMALL_CP_MOBILE = {"model": {"init_args": {"base_channels": 8}}}
SMALL_CP_RESNET = {
    "model": {
        "class_path": "task1_asc.cp_resnet.CPResNet",
        "init_args": {"base_channels": 16, "cut_channels_s3": 32, "pools": {0: [2, 2], 1: [2, 1], 2: [2, 1]}},
    },
    "front_end": {"class_path": "common.audio.frontends.KaldiLogMel", "init_args": {"n_mels": 128}},
    "data": {"format": {"dtype": "int16"}},
}
TOO_LARGE = {"model": {"init_args": {"base_channels": 64}}}


def write_clip(path, seed, rate=RATE, n_samples=RATE, n_channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tone = np.sin(2 * np.pi * rng.uniform(100, 8000) * np.arange(n_samples) / rate)[:, None]
    clip = 0.1 * tone + 0.02 * rng.standard_normal((n_samples, n_channels))
    soundfile.write(path, clip, rate, subtype="PCM_24")


def write_data(root):
    """Two test clips of every class and device, in the TAU layout."""
    rows = [
        (f"audio/{label}-oslo-1-{k}-0-{device}.wav", label, "oslo-1", device)
        for label in CLASSES
        for device in DEVICES
        for k in range(2)
    ]
    for seed, (name, *_) in enumerate(rows):
        write_clip(root / name, seed)
    meta = pd.DataFrame(rows, columns=["filename", "scene_label", "identifier", "source_label"])
    meta.to_csv(root / "meta.csv", sep="\t", index=False)
    (root / "split_setup").mkdir()
    shuffled = meta[["filename", "scene_label"]].sample(frac=1, random_state=0)
    shuffled.to_csv(root / "split_setup" / "test.csv", sep="\t", index=False)
    return root


def write_run(run, data, changes, devices=(), seed=0):
    """A run folder as training and `evaluate predict` leave it, with random weights."""
    values = merge(read_yaml(CONFIGS / "dcase2025" / "general.yaml"), changes)
    config, resolved = build(Task1Config, values)
    torch.manual_seed(seed)
    network = config.model(len(CLASSES))
    if devices:
        network = DeviceModels(network, devices)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.3)
            elif tensor.is_floating_point() and not name.endswith("running_var"):
                tensor.add_(0.2 * torch.randn_like(tensor))
    run.mkdir(parents=True)
    save_network(network, run / "weights.pt", list(CLASSES))
    log = {"config": resolved, "recipe": f"tiny/{run.name}", "seed": seed, "smoke": True}
    (run / "train.json").write_text(json.dumps(log))
    cache = run.parent / "cache"
    evaluate.main(["predict", "--run", str(run), "--data", str(data), "--cache", str(cache), "--device", "cpu"])
    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("tiny_scenes"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A container of device networks, and a general network of another kind with another front end."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run(folder / "devices", data, SMALL_CP_MOBILE, devices=("a", "b")),
        write_run(folder / "general", data, SMALL_CP_RESNET, seed=1),
    ]


@pytest.fixture(scope="module")
def systems(runs, data):
    return [read_system(run, f"{NAME}_{i}", None, open_data(data)) for i, run in enumerate(runs, start=1)]


@pytest.fixture
def package(systems, data, tmp_path):
    build_package(tmp_path / NAME, systems, open_data(data))
    return tmp_path / NAME


@pytest.fixture
def in_process(monkeypatch):
    """Run the package's scripts in this process: faster, for everything that does not need to be far away."""

    def run(script, arguments, site, cwd):
        forget_packages()
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "path", [str(script.parent), str(site), *sys.path])
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as stop:
            raise SubmissionError(str(stop.code)) from None

    def copy(package, site):
        shutil.copytree(package / package.name, site / package.name)

    monkeypatch.setattr(submit_check, "run_isolated", run)
    monkeypatch.setattr(submit_check, "install", copy)
    yield run
    forget_packages()


def forget_packages():
    for module in [name for name in sys.modules if name.split(".")[0] in (NAME, "complexity")]:
        del sys.modules[module]


def command(runs, data, out, *more):
    given = [word for run in runs for word in ("--run", str(run))]
    return [*given, "--data", str(data), "--out", str(out), "--name", NAME, "--device", "cpu", *more]


def test_package_works_away_from_the_repository(runs, data, tmp_path, capsys):
    submit.main(command(runs[:1], data, tmp_path))
    said = capsys.readouterr().out
    assert "all checks passed" in said
    assert "meta.yaml: still empty: submission.abbreviation, submission.authors[0].lastname" in said
    assert "no --eval-data was given" in said
    assert "for the 3 classes of tiny_scenes" in said


def test_what_a_package_holds(runs, data, systems, in_process, tmp_path):
    submit.main(command(runs, data, tmp_path))
    package = tmp_path / NAME
    for system in systems:
        folder = package / "predictions" / system.name
        found = json.loads((folder / "complexity.json").read_text())
        assert list(found["per_device"]) == ["a", "b", "c", *(f"s{i}" for i in range(1, 11))]
        state = torch.load(folder / "model_state_dict.pt", weights_only=True)
        assert found["max_Params"] == 2 * sum(p.numel() for name, p in state.items() if is_parameter(name))
        scores = json.loads((folder / "test_accuracy.json").read_text())
        assert scores["Test Accuracy"] == round(100 * system.scores["accuracy"], 2)
        assert scores["Macro Accuracy"] == round(100 * system.scores["macro_accuracy"], 2)
        table = pd.read_csv(folder / "output.csv", sep="\t")
        assert list(table.columns) == ["filename", "scene_label", *CLASSES]
        expected = torch.from_numpy(system.logits).softmax(1).numpy()
        np.testing.assert_allclose(table[list(CLASSES)], expected, atol=1e-5)
        meta = yaml.safe_load((folder / f"{system.name}.meta.yaml").read_text())
        assert meta["submission"]["label"] == system.name
        assert meta["system"]["complexity"]["macs"] == found["max_MACs"]
    packed = zipfile.ZipFile(tmp_path / f"{NAME}.zip").namelist()
    assert set(packed) == {f"{NAME}/{name}" for name in tree(package)}
    assert {
        f"{NAME}/{name}"
        for name in ("setup.py", "README.md", "complexity.py", f"{NAME}/ckpts/{NAME}_2.pt", f"{NAME}/{NAME}_1.py")
    } <= set(packed)


def is_parameter(name):
    """Of one network: the base of a container, without BatchNorm statistics."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return not name.endswith(statistics) and not name.startswith("device_models.")


def test_interface_of_a_system(package, systems, in_process, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(package)
    forget_packages()
    system = importlib.import_module(f"{NAME}.{NAME}_1")
    model = system.load_model()
    states = {device: system.get_model_for_device(model, device).state_dict() for device in ("a", "b", "s9", "")}
    assert all(tensor.dtype != torch.float32 for state in states.values() for tensor in state.values())
    own = torch.load(systems[0].run / "weights.pt", weights_only=True)["state_dict"]
    for device, place in (("a", "device_models.a"), ("b", "device_models.b"), ("s9", "base_model"), ("", "base_model")):
        key = "feed_forward.0.weight"
        assert torch.equal(states[device][key], own[f"multi_device_model.{place}.{key}"].half())

    write_clip(tmp_path / "odd.wav", 1, rate=48000, n_samples=30000, n_channels=2)
    clips = [str(tmp_path / "odd.wav"), str(package / NAME / "resources" / "dummy.wav")]
    inputs = system.load_inputs(clips, ["a", "z"], model)
    assert [(x.shape, x.dtype) for x in inputs] == [((1, 1, 256, 65), torch.float16)] * 2
    logits, order = system.predict(clips, ["a", "z"], None, use_cuda=False)
    assert order == list(CLASSES) and [row.shape for row in logits] == [(3,), (3,)]
    one_by_one = [system.predict([clip], [device])[0][0] for clip, device in zip(clips, ("a", "z"), strict=True)]
    torch.testing.assert_close(torch.stack(logits), torch.stack(one_by_one), atol=1e-4, rtol=0)
    other = system.load_model(str(systems[0].run / "weights.pt"))  # the unrounded file of the run
    assert other.model.devices == ["a", "b"]
    with pytest.raises(ValueError, match="2 files and 1 device ids"):
        system.load_inputs(clips, ["a"], model)


def test_dummy_clip_is_like_the_data(package):
    about = soundfile.info(package / NAME / "resources" / "dummy.wav")
    assert (about.samplerate, about.frames, about.channels, about.subtype) == (RATE, RATE, 1, "PCM_24")


def test_equal_runs_give_equal_packages(package, systems, data, tmp_path):
    again = tmp_path / "again" / NAME
    build_package(again, systems, open_data(data))
    assert tree(package) == tree(again)
    for folder in (package, again):
        write_zip(folder, folder.parent / "p.zip")
    assert (package.parent / "p.zip").read_bytes() == (again.parent / "p.zip").read_bytes()


def test_evaluation_set_and_filled_meta_file(runs, data, in_process, tmp_path, capsys):
    evaluation = tmp_path / "evaluation"
    rows = [("audio/7.wav", "s9"), ("audio/3.wav", "a"), ("audio/5.wav", "unknown")]
    for seed, (name, _) in enumerate(rows):
        write_clip(evaluation / name, seed)
    (evaluation / "evaluation_setup").mkdir()
    listed = evaluation / "evaluation_setup" / "fold1_test.csv"
    pd.DataFrame(rows, columns=["filename", "device_id"]).to_csv(listed, sep="\t", index=False)
    filled = {"submission": {"name": "Two", "abbreviation": "T"}, "system": {"source_code": "not published"}}
    (tmp_path / "me.yaml").write_text(yaml.safe_dump(filled))
    more = ["--eval-data", str(evaluation), "--meta", str(tmp_path / "me.yaml")]
    submit.main(command(runs[:1], data, tmp_path / "out", *more))
    said = capsys.readouterr().out
    assert "still empty" not in said and "--eval-data" not in said
    folder = tmp_path / "out" / NAME / "predictions" / f"{NAME}_1"
    assert list(pd.read_csv(folder / "output.csv", sep="\t").filename) == [name for name, _ in rows]
    meta = yaml.safe_load((folder / f"{NAME}_1.meta.yaml").read_text())
    assert meta["submission"] == {"label": f"{NAME}_1", "name": "Two", "abbreviation": "T"}
    assert meta["system"]["description"]["device_handling"].startswith("networks of their own for a, b")

    (evaluation / "audio" / "3.wav").unlink()
    with pytest.raises(SystemExit, match=r"1 of the 3 clips in fold1_test\.csv are missing.*audio/3\.wav"):
        submit.main(command(runs, data, tmp_path / "out", *more))
    (evaluation / "audio" / "3.wav").write_bytes(b"RIFF")
    with pytest.raises(SystemExit, match=r"audio/3\.wav: cannot be decoded"):
        submit.main(command(runs[:1], data, tmp_path / "out", *more))
    assert not (tmp_path / "out" / f"{NAME}.zip").exists()


def test_swapped_class_order_is_refused(package, systems, data, in_process):
    settings = package / NAME / "ckpts" / f"{NAME}_1.json"
    said = json.loads(settings.read_text())
    settings.write_text(json.dumps(said | {"class_names": ["park", "bus", "tram"]}))
    with pytest.raises(SubmissionError, match=rf"{NAME}_1: its class order is \['park', 'bus', 'tram'\]"):
        check_package(package, systems, open_data(data), None, no_cuda=True)


def test_weights_changed_after_building_are_refused(package, runs, systems, data, in_process):
    checkpoint = package / NAME / "ckpts" / f"{NAME}_1.pt"
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["multi_device_model.device_models.b.feed_forward.1.bias"] += 0.5
    torch.save(content, checkpoint)
    with pytest.raises(SystemExit, match=rf"{NAME}_1: 6 of 18 clips have other logits.*by 0\.5 .*package .*; run "):
        submit.main(command(runs, data, package.parent, "--check-only"))


def test_other_weights_than_predicted_with_are_refused(runs, data, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "run")
    shutil.copy(runs[1] / "weights.pt", run / "weights.pt")
    with pytest.raises(SystemExit, match=r"predictions\.csv was not made with the weights\.pt"):
        submit.main(command([run], data, tmp_path))


def test_network_over_the_limit_is_refused(data, in_process, tmp_path):
    run = write_run(tmp_path / "large", data, TOO_LARGE)
    with pytest.raises(
        SystemExit, match=rf"{NAME}_1: [\d,]+ MACs are above the limit of 30,000,000 for the devices a, b"
    ):
        submit.main(command([run], data, tmp_path / "out"))
    assert not (tmp_path / "out" / f"{NAME}.zip").exists()


def test_limits_are_checked_on_what_the_package_wrote_too(systems, tmp_path):
    cost = {device: {"MACs": 1, "Params": 2} for device in submit_check.DEVICES}
    cost["s10"]["Params"] = 128_001
    (tmp_path / "complexity.json").write_text(json.dumps({"per_device": cost}))
    with pytest.raises(SubmissionError, match="device s10 needs 1 MACs and 128,001 bytes"):
        submit_check.check_complexity(tmp_path / "complexity.json", systems[0])


def test_renamed_module_is_refused(package, systems, data):
    module = package / NAME / f"{NAME}_2.py"
    module.rename(module.with_name("other_2.py"))
    with pytest.raises(SubmissionError, match=rf"holds \['{NAME}_1', 'other_2'\] \(\.py\), expected"):
        check_package(package, systems, open_data(data), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename\tscene_label\tpark\tbus\ttram\nx.wav\tbus\t0\t1\t0\n", "has the columns"),
        ("filename\tscene_label\tbus\tpark\ttram\ny.wav\tbus\t1\t0\t0\n", "does not hold the 1 clips"),
        ("filename\tscene_label\tbus\tpark\ttram\nx.wav\tbus\t\t\t\n", "do not add up to 1, the first for x.wav"),
        ("filename\tscene_label\tbus\tpark\ttram\nx.wav\tbus\t0.4\t0.6\t0\n", "not the most probable"),
    ],
)
def test_faulty_output_is_refused(systems, tmp_path, text, message):
    (tmp_path / "evaluation_setup").mkdir()
    (tmp_path / "evaluation_setup" / "fold1_test.csv").write_text("filename\tdevice_id\nx.wav\ta\n")
    (tmp_path / "output.csv").write_text(text)
    with pytest.raises(SubmissionError, match=message):
        submit_check.check_output(tmp_path / "output.csv", tmp_path, systems[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--name", "My-Team_INST_task1"], "letters, digits and underscores"),
        (["--label", "one"], "1 --label for 2 --run"),
        (["--run", "x", "--run", "y", "--run", "z"], "5 runs are given"),
        (["--check-only"], "no package to check"),
    ],
)
def test_arguments_that_cannot_be_used(runs, data, tmp_path, changed, message):
    with pytest.raises(SystemExit, match=message):
        submit.main(command(runs, data, tmp_path / "out", *changed))


def test_run_that_was_not_predicted_is_named(data, tmp_path):
    (tmp_path / "weights.pt").touch()
    with pytest.raises(SystemExit, match=r"predictions\.json is missing.*task1_asc\.evaluate predict"):
        submit.main(command([tmp_path], data, tmp_path / "out"))


def test_a_folder_of_something_else_is_not_deleted(systems, data, tmp_path):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "thesis.txt").write_text("years of work")
    with pytest.raises(SubmissionError, match="exists and is no package"):
        build_package(tmp_path / NAME, systems, open_data(data))
    assert (tmp_path / NAME / "thesis.txt").is_file()
