"""Files of sound event detectors as they are published: every layout, made from small networks, and the registry.

The way back from our names to the published ones is written here once more, so that a key map is not compared
with itself.
"""

import dataclasses
import re
import zipfile

import pytest
import torch
from torch import nn

from common.nn.encoders import ENCODERS, build_encoder
from common.nn.key_maps import KEY_MAPS, Alias, KeyMap
from common.nn.published import REGISTRY
from common.nn.weights import (
    LoadReport,
    WeightsError,
    load_published,
    load_state_dict_file,
    load_weights,
    published_file,
    registered,
)
from task4_sed.model import build_network
from task4_sed.models.crnn import BaselineCRNN
from task4_sed.models.fusion import FusionModel, build_fusion
from task4_sed.models.prediction import FramePredictor

VIT = {"dim": 8, "depth": 2, "n_heads": 2}
SMALL = {
    "atst_frame": VIT,
    "fpasst": VIT,
    "m2d": VIT,
    "beats": {"dim": 16, "patch_dim": 8, "depth": 3, "n_heads": 2, "ffn_dim": 8, "conv_taps": 4, "conv_groups": 2},
    "fmn04": {},
}
FEATURES = {"atst_frame": (64, 40), "fpasst": (128, 40), "beats": (128, 48), "m2d": (80, 40), "fmn04": (128, 16)}
CRNN = (
    (r"^crnn\.cnn\.blocks\.(\d)\.conv", r"cnn.cnn.conv\1"),
    (r"^crnn\.cnn\.blocks\.(\d)\.norm", r"cnn.cnn.batchnorm\1"),
    (r"^crnn\.cnn\.blocks\.(\d)\.gate", r"cnn.cnn.cg\1.linear"),
    (r"^crnn\.gru", "rnn.rnn"),
    (r"^crnn\.merge", "cat_tf"),
    (r"^crnn\.strong_head", "dense"),
    (r"^crnn\.attention_head", "dense_softmax"),
    (r"^projection", "as_model.head_linear_layer"),
)
OLD_WEIGHT_NORM = (
    (r"parametrizations\.weight\.original0", "weight_g"),
    (r"parametrizations\.weight\.original1", "weight_v"),
)


def small_encoder(name, **options):
    return build_encoder(name, **SMALL[name], **options).eval()


def small_fusion(name):
    return build_fusion(small_encoder(name), n_classes=5, hidden=8, n_projected=6).eval()


def renamed(model, *pairs):
    """Return random entries in the shapes of `model`, renamed by the pairs that fit."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        state[name] = torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor + 7
    return with_repeated_bias(state)


def with_repeated_bias(state):
    """Add the names under which BEATs files repeat the position table of layer 0."""
    for name in [name for name in state if name.endswith("layers.0.self_attn.relative_attention_bias.weight")]:
        state |= {name.replace("layers.0", f"layers.{i}"): state[name] for i in (1, 2)}
    return state


def filled(model, file_or_state, **how):
    """Return the report, after checking that every entry of the network that is not missing came from the file."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_published(model, file_or_state, **how)
    unchanged = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert unchanged == set(report.missing)
    return report


def saved(tmp_path, content):
    torch.save(content, tmp_path / "file.ckpt")
    return tmp_path / "file.ckpt"


# ---------------------------------------------------------------- the winner of DCASE 2024 task 4


def stage_names(name):
    inside = "as_model.model.atst." if name == "atst_frame" else "as_model.model."
    return ((r"^encoder\.network\.", inside), *CRNN)


@pytest.mark.parametrize("name", ["atst_frame", "fpasst", "beats"])
@torch.no_grad()
def test_stage_checkpoint(tmp_path, name):
    model = small_fusion(name)
    student = renamed(model, *stage_names(name))
    teacher = {key: tensor + 1 for key, tensor in student.items()}
    both = {f"student.{k}": t for k, t in student.items()} | {f"teacher.{k}": t for k, t in teacher.items()}
    path = saved(tmp_path, {
        "epoch": 3, "student": student, "teacher": teacher, "state_dict": both | {"mel.window": torch.zeros(2)},
    })
    report = filled(model, load_state_dict_file(path, "teacher"), key_map="cpjku_dcase24")
    n_repeated = 2 if name == "beats" else 0
    assert (report.loaded, len(report.ignored)) == (len(student) - n_repeated, n_repeated)
    assert (report.missing, report.unexpected) == ((), ())
    assert torch.equal(model.crnn.merge.weight, teacher["cat_tf.weight"])

    # From the names in "state_dict" alone, and by parts: the same outputs.
    by_prefix = load_state_dict_file(saved(tmp_path, {"state_dict": both}), "teacher")
    encoder, twin = small_encoder(name), small_fusion(name)
    parts = filled(encoder.network, by_prefix, key_map="cpjku_dcase24", part="encoder.network.")
    assert "cat_tf.weight" in parts.ignored
    filled(twin.crnn, by_prefix, key_map="cpjku_dcase24", part="crnn.")
    log_mel, mel = torch.randn(1, 1, *FEATURES[name]), torch.randn(1, 1, 128, 16)
    tokens = model.encoder(log_mel)
    assert torch.equal(encoder(log_mel), tokens)
    embeddings = model.embeddings(log_mel)
    assert torch.equal(twin.crnn(mel, embeddings)["weak"], model(mel, log_mel)["weak"])


@pytest.mark.parametrize(
    ("name", "inside", "with_head"),
    [
        ("atst_frame", "net_strong.model.atst.", False),
        ("atst_frame", "net_strong.model.model.atst.", False),
        ("fpasst", "net_strong.model.", False),
        ("fpasst", "net_strong.model.model.", True),
    ],
)
def test_encoders_of_audioset_strong(name, inside, with_head):
    model = small_fusion(name)
    own = renamed(model, (r"^encoder\.network\.", inside), (r"^projection", "net_strong.model.head_linear_layer"))
    head = ["net_strong.model.head_linear_layer.weight", "net_strong.model.head_linear_layer.bias"]
    state = {k: t for k, t in own.items() if k.startswith("net_strong.") and (with_head or k not in head)}
    other = {"net_strong.rnn.weight_ih_l0": torch.zeros(2), "net_strong.strong_head.bias": torch.zeros(2)}
    report = filled(model, {**state, **other, "mel.window": torch.zeros(2)}, key_map="cpjku_as_strong")
    assert report.loaded == len(state)
    assert set(report.ignored) == {*other, "mel.window"}
    assert {k.split(".")[0] for k in report.missing} == ({"crnn"} if with_head else {"crnn", "projection"})


def atst_layouts():
    yield {r"^": "encoder.encoder."}, {"encoder.encoder.teacher_module.x": torch.zeros(2), "head.bias": torch.zeros(2)}
    yield {r"^": "encoder.encoder.frame_encoder."}, {"encoder.encoder.teacher_module.blocks.0.x": torch.zeros(2)}
    yield {r"^norm_frame": "norm", r"^": "model.teacher.encoder."}, {
        "model.teacher.encoder.cls_token": torch.zeros(2), "model.student.encoder.norm.bias": torch.zeros(2),
    }


@pytest.mark.parametrize("names", range(3))
def test_three_layouts_of_atst_frame(tmp_path, names):
    to_file, others = list(atst_layouts())[names]
    encoder = small_encoder("atst_frame")
    state = renamed(encoder.network, *to_file.items())
    path = saved(tmp_path, {"state_dict": state | others, "epoch": 1})
    report = filled(encoder, load_state_dict_file(path), key_map="atst_frame", part="encoder.")
    assert (report.loaded, set(report.ignored)) == (len(state), set(others))


# ---------------------------------------------------------------- BEATs, M2D


def test_beats_file_with_old_names(tmp_path):
    encoder = small_encoder("beats")
    state = renamed(encoder.network, *OLD_WEIGHT_NORM)
    assert "encoder.pos_conv.0.weight_g" in state
    predictor = {"predictor.weight": torch.zeros(2), "predictor.bias": torch.zeros(2)}
    path = tmp_path / "beats_as.pt"
    torch.save({"cfg": {"encoder_layers": 12, "activation_fn": "gelu"}, "model": state | predictor}, path)
    report = filled(encoder, load_state_dict_file(path), key_map="beats", part="encoder.")
    # Known by its name, it fills an encoder, its network or the encoder of a detector.
    model = small_fusion("beats")
    reports = [load_weights(module, path) for module in (encoder, encoder.network, model)]
    assert [r.loaded for r in reports] == 3 * [report.loaded]
    assert {name.split(".")[0] for name in reports[2].missing} == {"crnn"}
    assert (report.loaded, report.missing, report.unexpected) == (len(state) - 2, (), ())
    repeated = {f"encoder.layers.{i}.self_attn.relative_attention_bias.weight" for i in (1, 2)}
    assert set(report.ignored) == repeated | set(predictor)
    taps = encoder.network.encoder.pos_conv[0].parametrizations.weight
    assert torch.equal(taps.original0, state["encoder.pos_conv.0.weight_g"])
    assert torch.equal(taps.original1, state["encoder.pos_conv.0.weight_v"])


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_weight_norm_of_a_network_with_old_names():
    network = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv1d(2, 3, 3)))
    new = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 3)))
    report = load_published(network, new.state_dict())
    assert report == LoadReport(loaded=3)
    assert torch.equal(network[0].weight_v, new[0].parametrizations.weight.original1)


def test_repeated_position_tables_have_to_be_equal():
    encoder = small_encoder("beats")
    state = renamed(encoder.network)
    state["encoder.layers.2.self_attn.relative_attention_bias.weight"] = torch.zeros(320, 2)
    with pytest.raises(WeightsError, match=r"layers\.0\..* and .*layers\.2\..* are two names of one tensor, but"):
        load_published(encoder, state, "beats", part="encoder.")


def test_first_of_several_second_names_stands_in_for_the_name_that_counts():
    key_map = KeyMap(aliases=(Alias(r"copy\d\.x", "x"),))
    found, ignored = key_map.apply({"copy1.x": torch.ones(1), "copy2.x": torch.ones(1)})
    assert (list(found), ignored) == (["x"], ["copy2.x"])


def test_tensor_under_two_names_of_the_network_needs_one():
    network = nn.ModuleDict({"a": nn.Linear(2, 2)})
    network["b"] = network["a"]
    report = load_published(network, {"b.weight": torch.eye(2), "b.bias": torch.zeros(2)})
    assert (report.loaded, report.missing) == (2, ())
    assert torch.equal(network["a"].weight, torch.eye(2))


def test_m2d_of_its_authors():
    encoder = small_encoder("m2d")
    state = renamed(encoder.network, (r"^", "module.ar.runtime.backbone."))
    others = {"module.head.mlp.mlp.0.bias": torch.zeros(2), "module.ar.runtime.backbone.norm_stats": torch.zeros(2)}
    report = filled(encoder, state | others, key_map="m2d", part="encoder.")
    assert (report.loaded, set(report.ignored)) == (len(state), set(others))


# ---------------------------------------------------------------- PretrainedSED, EfficientSED


@pytest.mark.parametrize(
    ("name", "inside", "buffers"),
    [
        ("beats", "model.model.", ()),
        ("beats", "model.beats.", ()),
        ("atst_frame", "model.atst.", ("model.atst_mel.mel_transform.spectrogram.window",)),
        ("fpasst", "model.", ("model.mel.window",)),
        ("fpasst", "model.fpasst.", ()),
        ("m2d", "model.backbone.", ("model.to_spec.mel_basis", "model.backbone.norm_stats")),
        ("m2d", "model.m2d.backbone.", ("model.m2d.to_spec.stft.wsin",)),
        ("fmn04", "model.frame_mn.", ()),
    ],
)
@torch.no_grad()
def test_pretrained_sed(name, inside, buffers):
    predictor = FramePredictor(small_encoder(name), n_classes=7).eval()
    state = renamed(predictor, (r"^encoder\.network\.", inside))
    n_repeated = 2 if name == "beats" else 0
    report = filled(predictor, {**state, **dict.fromkeys(buffers, torch.zeros(2))}, key_map="pretrained_sed")
    assert (report.loaded, len(report.ignored)) == (len(state) - n_repeated, n_repeated + len(buffers))

    # The encoder alone from the same file, and a predictor from one without heads.
    encoder, log_mel = small_encoder(name), torch.randn(1, 1, *FEATURES[name])
    report = filled(encoder, state, key_map="pretrained_sed", part="encoder.")
    assert {"strong_head.weight", "weak_head.bias"} <= set(report.ignored)
    assert torch.equal(encoder(log_mel), predictor.encoder(log_mel))
    headless = {k: t for k, t in state.items() if "head" not in k}
    report = filled(FramePredictor(small_encoder(name), n_classes=3), headless, key_map="pretrained_sed")
    assert set(report.missing) == {f"{head}.{p}" for head in ("strong_head", "weak_head") for p in ("weight", "bias")}


@pytest.mark.parametrize("kind", [None, "tf", "gru", "hybrid", "attn"])
def test_efficient_sed(kind):
    predictor = FramePredictor(small_encoder("fmn04"), 7, kind, dim=16)
    names = ((r"^encoder\.network\.", "net.model."), (r"^sequence\.", "net.seq_model."), (r"^(\w+_head)", r"net.\1"))
    state = renamed(predictor, *names)
    report = filled(predictor, state | {"net.mel.window": torch.zeros(2)}, key_map="efficient_sed")
    assert (report.loaded, report.ignored) == (len(state), ("net.mel.window",))


@torch.no_grad()
def test_efficient_sed_convolutions_stand_in_the_file_twice_and_the_later_name_wins():
    predictor = FramePredictor(small_encoder("fmn04"), 7, "tcn", dim=16)
    names = ((r"^encoder\.network\.", "net.model."), (r"^sequence\.", "net.seq_model."), (r"^(\w+_head)", r"net.\1"))
    twice = {}
    for name, tensor in renamed(predictor, *names, *OLD_WEIGHT_NORM).items():
        for name_of_file in (("conv1", "net.0"), ("conv2", "net.4")):
            if f".{name_of_file[0]}." in name:
                twice[name] = tensor + 1
                name = name.replace(*name_of_file)
        twice[name] = tensor
    report = filled(predictor, twice, key_map="efficient_sed")
    assert len(report.ignored) == len([name for name in twice if ".conv" in name]) > 0
    assert all(".conv" in name for name in report.ignored)
    first = predictor.sequence[1].layers[0].network[0].conv1.parametrizations.weight.original1
    assert torch.equal(first, twice["net.seq_model.1.layers.0.network.0.net.0.weight_v"])


# ---------------------------------------------------------------- the baseline, archives, files


def baseline_file(tmp_path):
    names = [(pattern.replace(r"crnn\.", ""), name.replace(".cg", ".glu")) for pattern, name in CRNN]
    student = renamed(BaselineCRNN(), *names)
    assert "cnn.cnn.glu6.linear.weight" in student
    teacher = {name: tensor + 1 for name, tensor in student.items()}
    return saved(tmp_path, {"sed_student": student, "sed_teacher": teacher, "hyper_parameters": {"a": 1}}), student


def test_baseline_from_its_archive(tmp_path):
    path, student = baseline_file(tmp_path)
    folder = tmp_path / "downloads"
    folder.mkdir()
    with zipfile.ZipFile(folder / "baseline_pretrained_2024.zip", "w") as archive:
        archive.write(path, "exp/version_0/epoch=259-step=30680.ckpt")
    network = BaselineCRNN()
    report = load_weights(network, "desed_baseline_2024", folder=folder)
    assert (report.loaded, report.missing, report.ignored) == (len(student), (), ())
    assert torch.equal(network.merge.weight, student["cat_tf.weight"])
    # Unpacked once; a file fetched by hand is known by its name, and another dict can be asked for.
    unpacked = published_file("desed_baseline_2024", folder)
    assert unpacked == folder / "epoch=259-step=30680.ckpt"
    (folder / "baseline_pretrained_2024.zip").unlink()
    load_weights(network, unpacked, inner="sed_teacher")
    assert torch.equal(network.merge.weight, student["cat_tf.weight"] + 1)
    # The whole detector takes it too; its encoder has a file of its own.
    whole = FusionModel(small_encoder("fmn04"), None, BaselineCRNN(384, hidden=192))
    with pytest.raises(WeightsError, match=r"1 of another shape \(crnn\.merge\.weight is \(128, 896\) in the file"):
        load_weights(whole, unpacked)
    whole.crnn = BaselineCRNN()
    report = load_weights(whole, unpacked)
    assert {name.split(".")[0] for name in report.missing} == {"encoder"}


def test_damaged_archives_get_one_sentence(tmp_path):
    archive = tmp_path / "baseline_pretrained_2024.zip"
    archive.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(WeightsError, match="is damaged or no zip archive"):
        published_file("desed_baseline_2024", tmp_path)
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("readme.txt", "x")
    with pytest.raises(WeightsError, match="holds no epoch=259-step=30680.ckpt"):
        published_file("desed_baseline_2024", tmp_path)


def test_which_of_several_dicts(tmp_path):
    path, student = baseline_file(tmp_path)
    with pytest.raises(WeightsError, match=r"several state dicts \(sed_student, sed_teacher\): say which one to load"):
        load_state_dict_file(path)
    with pytest.raises(WeightsError, match=r"holds no 'student': choose one of those it holds \(sed_student, sed_tea"):
        load_state_dict_file(path, "student")
    assert set(load_state_dict_file(path, "sed_student")) == set(student)
    whole = saved(tmp_path, {"student.a": torch.ones(1), "teacher.a": torch.zeros(1)})
    assert load_state_dict_file(whole, "teacher") == {"a": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"holds no 'mean': choose one of those it holds \(student, teacher\)"):
        load_state_dict_file(whole, "mean")


def test_report_reads_as_a_paragraph():
    report = LoadReport(5, missing=("crnn.a", "crnn.b"), unexpected=("x",), ignored=("m1", "m2", "m3", "m4"))
    assert report.text() == (
        "Loaded 5 entries. 2 missing in the file, kept as they were: crnn.a, crnn.b. 1 left over: x. "
        "4 ignored: m1, m2, m3, …."
    )
    assert LoadReport(5).text() == "Loaded 5 entries."


def test_wrong_checkpoint_names_the_first_differences():
    state = renamed(small_fusion("atst_frame"), *stage_names("atst_frame"))
    with pytest.raises(WeightsError) as error:
        load_published(small_fusion("fpasst"), state, "cpjku_dcase24")
    message = str(error.value)
    assert "do not fit FusionModel with" in message
    assert "missing in the file (encoder.network.cls_token" in message
    assert "left over (encoder.network.pos_embed, encoder.network.patch_embed.patch_embed.weight" in message
    assert "\n" not in message
    with pytest.raises(WeightsError, match=r"merge\.weight is \(8, 134\) in the file and \(128, 896\) in the network"):
        load_published(BaselineCRNN(), state, "desed_baseline", part="crnn.")


# ---------------------------------------------------------------- registry


def test_files_of_the_registry_are_known_by_name():
    assert registered("somewhere/atst_stage2.ckpt") is REGISTRY["cpjku_2024_atst_stage2"]
    assert registered("fmn10+tf-256_strong") is registered("fmn10+tf-256_strong.pt")
    assert registered("model_state_dict.pt") is None  # no address: such a name says nothing
    with pytest.raises(WeightsError, match="did you mean cpjku_2024_atst_stage2"):
        published_file("cpjku_atst_stage2")


def test_registry_holds_what_is_published():
    counts = {}
    for entry in REGISTRY.values():
        counts[entry.source] = counts.get(entry.source, 0) + 1
    assert counts["https://github.com/CPJKU/cpjku_dcase24"] == 10
    assert counts["https://github.com/fschmid56/PretrainedSED"] == 17
    assert counts["https://github.com/theMoro/EfficientSED"] == 10 + 12 + 3 * 4 + 1
    files = [entry.url for entry in REGISTRY.values() if entry.url]
    assert len(files) == len(set(files))
    url = "https://github.com/theMoro/EfficientSED/releases/download/v0.0.1/fmn10+hybrid-1024_strong.pt"
    assert REGISTRY["fmn10+hybrid-1024_strong"].url == url


class NoFrontEnd(nn.Module):
    """Stands in for front ends, whose filter banks cannot be built on the meta device."""

    def __init__(self, sample_rate=16000):
        super().__init__()
        self.sample_rate = sample_rate


@pytest.mark.parametrize("key_map", sorted({e.key_map for e in REGISTRY.values()} - {"dcase_baseline", "same names"}))
def test_architectures_can_be_built(key_map, monkeypatch):
    """Each network exists, and consists of the parts that its key map speaks of."""
    monkeypatch.setattr(
        "common.nn.encoders.ENCODERS",
        {name: dataclasses.replace(spec, front_end=NoFrontEnd) for name, spec in ENCODERS.items()},
    )
    parts = {
        "cpjku": {"encoder", "projection", "crnn"}, "desed": {"encoder", "crnn"},
        "atst": {"network"}, "beats": {"network"}, "m2d": {"network"},
    }.get(key_map.split("_")[0], {"encoder", "sequence", "strong_head", "weak_head"})
    found = {e.architecture for e in REGISTRY.values() if e.key_map == key_map}
    for architecture in found - {"none here: ASiT"}:
        with torch.device("meta"):
            network = build_network(architecture)
        assert {name.split(".")[0] for name in network.state_dict()} <= parts, architecture


def test_every_key_map_is_used_or_general():
    used = {entry.key_map for entry in REGISTRY.values()}
    assert set(KEY_MAPS) == used
