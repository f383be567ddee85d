"""Files of sound event detectors as they are published: every layout, made from small networks.

The way back from our names to the published ones is written here once more, so that a key map is not compared
with itself.
"""

import re

import pytest
import torch
from torch import nn

from common.nn.encoders import build_encoder
from common.nn.key_maps import Alias, KeyMap
from common.nn.weights import LoadReport, WeightsError, load_published, load_state_dict_file, load_weights
from task4_sed.models.crnn import BaselineCRNN
from task4_sed.models.fusion import build_fusion
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
    if name == "beats":  # fine-tuned BEATs keeps the layer to its own classes
        student |= {f"as_model.model.predictor.{p}": torch.ones(2) for p in ("weight", "bias")}
    teacher = {key: tensor + 1 for key, tensor in student.items()}
    both = {f"student.{k}": t for k, t in student.items()} | {f"teacher.{k}": t for k, t in teacher.items()}
    path = saved(tmp_path, {
        "epoch": 3, "student": student, "teacher": teacher, "state_dict": both | {"mel.window": torch.zeros(2)},
    })
    report = filled(model, load_state_dict_file(path, "teacher"), key_map="cpjku_dcase24")
    n_ignored = 2 + 2 if name == "beats" else 0  # repeated positions and predictor
    assert (report.loaded, len(report.ignored)) == (len(student) - n_ignored, n_ignored)
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


BEATS_CFG = {
    "encoder_layers": 3, "encoder_embed_dim": 16, "num_buckets": 320, "activation_fn": "gelu", "deep_norm": True,
    "dropout": 0.0, "attention_dropout": 0.2, "activation_dropout": 0.3, "dropout_input": 0.4, "encoder_layerdrop": 0.5,
    "layer_wise_gradient_decay_ratio": 0.6, "predictor_class": 527,
}  # fmt: skip


def test_beats_file_with_old_names(tmp_path):
    encoder = small_encoder("beats")
    state = renamed(encoder.network, *OLD_WEIGHT_NORM)
    assert "encoder.pos_conv.0.weight_g" in state
    predictor = {"predictor.weight": torch.zeros(2), "predictor.bias": torch.zeros(2)}
    path = tmp_path / "beats_as.pt"
    torch.save({"cfg": BEATS_CFG, "model": state | predictor}, path)
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


@pytest.mark.parametrize("around", [lambda b: b.network, lambda b: b, lambda b: build_fusion(b)])
def test_beats_takes_the_dropouts_of_its_file(tmp_path, around):
    encoder = small_encoder("beats")
    path = tmp_path / "beats_as.pt"
    torch.save({"cfg": BEATS_CFG, "model": renamed(encoder.network)}, path)
    report = load_weights(around(encoder), path)
    network, layer = encoder.network, encoder.network.encoder.layers[2]
    assert (network.encoder.dropout.p, layer.dropout.p, layer.self_attn.dropout) == (0.0, 0.0, 0.2)
    assert (layer.activation_dropout.p, network.input_dropout.p, network.encoder.layerdrop) == (0.3, 0.4, 0.5)
    assert "dropout 0, attention_dropout 0.2, activation_dropout 0.3, dropout_input 0.4" in report.text()
    assert "not layer_wise_gradient_decay_ratio 0.6" in report.text()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"encoder_layers": 12}, "encoder_layers is 12 in the file and 3 in the network"),
        ({"layer_norm_first": True}, "layer_norm_first is True in the file and False in the network"),
        ({"max_distance": 1280}, "max_distance is 1280 in the file and 800 in the network"),
        ({"dropout": 1.5}, "dropout is 1.5 in the file, but has to be 0 up to 1"),
        ({"encoder_layerdrop": "much"}, "encoder_layerdrop is much in the file, but has to be 0 up to 1"),
    ],
)
def test_beats_of_another_architecture_is_refused(tmp_path, settings, sentence):
    encoder = small_encoder("beats")
    path = tmp_path / "beats_as.pt"
    torch.save({"cfg": BEATS_CFG | settings, "model": renamed(encoder.network)}, path)
    before = encoder.network.post_extract_proj.weight.clone()
    with pytest.raises(WeightsError, match=sentence):
        load_weights(encoder, path)
    assert torch.equal(before, encoder.network.post_extract_proj.weight)
    assert encoder.network.input_dropout.p == 0.1


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


@pytest.mark.parametrize("inside", ["module.ar.runtime.backbone.", "ar.runtime.backbone.", "backbone.", ""])
def test_m2d_of_its_authors(inside):
    encoder = small_encoder("m2d")
    state = renamed(encoder.network, (r"^", inside))
    others = {"module.head.mlp.mlp.0.bias": torch.zeros(2), "head.weight": torch.zeros(2)}
    stats = {f"{inside}norm_stats": torch.tensor([-6.5, 4.0])}
    report = filled(encoder, state | others | stats, key_map="m2d", part="encoder.")
    assert (report.loaded, set(report.ignored)) == (len(state), set(others))
    assert (encoder.front_end.mean, encoder.front_end.std) == (-6.5, 4.0)
    assert "front end now takes off -6.5 and divides by 4" in report.text()


def test_m2d_normalisation_without_a_front_end_is_said():
    network = small_encoder("m2d").network
    stats = {"norm_stats": torch.tensor([-6.5, 4.0])}
    report = load_published(network, renamed(network) | stats, "m2d", part="encoder.network.")
    assert "build_encoder('m2d', mean=-6.5, std=4)" in report.text()
    for odd in (torch.tensor([-6.5, 0.0]), torch.tensor([float("nan"), 4.0]), torch.zeros(3)):
        with pytest.raises(WeightsError, match="norm_stats has to be a mean and a deviation above 0"):
            load_published(network, renamed(network) | {"norm_stats": odd}, "m2d", part="encoder.network.")


# ---------------------------------------------------------------- PretrainedSED, EfficientSED


@pytest.mark.parametrize(
    ("name", "inside", "buffers"),
    [
        ("beats", "model.model.", ("model.model.predictor.weight",)),
        ("beats", "model.beats.", ("model.beats.predictor.weight", "model.predictor.bias")),
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


@pytest.mark.parametrize("key_map", ["pretrained_sed", "efficient_sed"])
def test_heads_of_another_number_of_classes_are_left_as_they_are(key_map):
    """Files of the AudioSet step have 527 classes; own classes are another number still."""
    inside, net = ("model.fmn.", "") if key_map == "pretrained_sed" else ("net.model.", "net.")
    names = (r"^encoder\.network\.", inside), (r"^(\w+_head)", rf"{net}\1")
    state = renamed(FramePredictor(small_encoder("fmn04"), 9), *names)
    report = filled(FramePredictor(small_encoder("fmn04"), 7), state, key_map=key_map)
    assert set(report.missing) == {f"{head}.{p}" for head in ("strong_head", "weak_head") for p in ("weight", "bias")}
    assert (report.loaded, report.ignored) == (len(state) - 4, ())
    assert "strong_head has 9 classes in the file and 7 here" in report.text()
    with pytest.raises(WeightsError, match=r"strong_head\.weight is \(9, 384\) in the file and \(9, 32\) in the net"):
        load_published(FramePredictor(small_encoder("fmn04"), 9, "tf", 32), state, key_map)


def test_stage_checkpoint_for_other_classes():
    state = renamed(small_fusion("atst_frame"), *stage_names("atst_frame"))
    model = build_fusion(small_encoder("atst_frame"), n_classes=3, hidden=8, n_projected=6)
    report = filled(model, state, key_map="cpjku_dcase24")
    assert {name.rsplit(".", 1)[0] for name in report.missing} == {"crnn.strong_head", "crnn.attention_head"}


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
