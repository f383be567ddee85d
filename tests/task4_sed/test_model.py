"""Networks written as expressions, and detectors around them."""

import dataclasses
import functools
import re

import pytest
import torch

from common.audio.encoder_frontends import M2dMel
from common.config import ConfigError
from common.nn.encoders import ENCODERS, Encoder
from common.nn.m2d import M2d
from common.nn.published import REGISTRY
from common.nn.weights import WeightsError
from task4_sed.labels import sound_classes
from task4_sed.model import BUILDERS, Detector, build_network, load_detector, untrained_detector
from task4_sed.models.fusion import FusionModel
from task4_sed.models.prediction import FramePredictor
from tests.common.test_published_sed import CRNN

SMALL = "build_fusion('fmn04', hidden=8, projection='trained', n_projected=12)"
PREDICTOR = "FramePredictor(build_encoder('fmn04'), n_classes=5, sequence='tf', dim=32)"


def test_expressions_build_networks_with_their_options():
    network = build_network(SMALL)
    assert isinstance(network, FusionModel)
    assert network.projection.out_features == 12
    assert build_network(PREDICTOR).strong_head.out_features == 5


@pytest.mark.parametrize(
    "expression, sentence",
    [
        ("__import__('os').system('true')", "builds nothing here"),
        ("build_fusion(open('x'))", "'open' builds nothing here"),
        ("build_fusion(x)", "x is neither a value nor a call (names stand in quotes)"),
        ("'fmn04'", "builds nothing: write it like"),
        ("build_fusion('fmn04'", "cannot be read"),
        ("build_fusion('fmn05')", "encoder 'fmn05' is unknown: did you mean"),
        ("build_fusion('fmn04', foldfrequency=True)", "has no option 'foldfrequency'"),
        ("FramePredictor(build_encoder('fmn04'), classes=3)", "has no option 'classes'; did you mean 'n_classes'?"),
        ("FramePredictor(**{'n_classes': 3})", "name every option"),
    ],
)
def test_other_expressions_are_refused_without_running_them(expression, sentence):
    with pytest.raises(ConfigError, match="network") as refused:
        build_network(expression)
    assert sentence in str(refused.value)


def test_every_registered_sed_network_is_an_expression_of_known_builders(monkeypatch):
    for name, builder in BUILDERS.items():  # names and options are checked, nothing large is built
        monkeypatch.setitem(BUILDERS, name, functools.wraps(builder)(lambda *_, **__: torch.nn.Identity()))
    known = {entry.architecture for entry in REGISTRY.values() if entry.architecture.startswith(tuple(BUILDERS))}
    assert len(known) > 30
    for expression in known:
        build_network(expression)


@pytest.mark.parametrize("expression, frames, classes", [(SMALL, 156, 27), (PREDICTOR, 250, 5)])
def test_detector_maps_ten_seconds_to_its_grid(expression, frames, classes):
    detector = untrained_detector(expression)
    with torch.no_grad():
        outputs = detector(0.1 * torch.randn(2, 1, 160000))
    assert outputs["strong_logits"].shape == (2, frames, classes) == (2, detector.grid.n_frames, len(detector.classes))
    assert outputs["weak"].shape == (2, classes)
    assert 0 <= outputs["weak"].min() and outputs["weak"].max() <= 1


def test_class_names_are_those_of_the_task_or_given():
    assert untrained_detector(SMALL).classes == sound_classes().names
    assert untrained_detector(PREDICTOR).classes[4] == "class 4"
    assert untrained_detector(PREDICTOR, class_names=list("abcde")).classes == tuple("abcde")
    with pytest.raises(ConfigError, match="2 class names were given for a network of 5 classes"):
        untrained_detector(PREDICTOR, class_names=["a", "b"])


def test_same_seed_same_weights_and_the_global_generator_is_left_alone():
    state = torch.random.get_rng_state()
    first, second, third = (untrained_detector(SMALL, seed).network.crnn.strong_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(state, torch.random.get_rng_state())


def test_bare_networks_and_other_rates_are_refused():
    with pytest.raises(ConfigError, match="put it into a FramePredictor"):
        Detector(build_network("build_encoder('fmn04')"))
    with pytest.raises(ConfigError, match="works at 32000 Hz, detectors at 16000 Hz"):
        Detector(FramePredictor(Encoder("tiny", M2dMel(32000), M2d(dim=12, depth=1, n_heads=2), 16)))
    with pytest.raises(ConfigError, match="needs 250"):
        untrained_detector("FramePredictor(build_encoder('fmn04'), n_frames=None)")


def test_loaded_detector_gives_what_the_saved_one_gave(tmp_path):
    saved = untrained_detector(SMALL, seed=5)
    torch.save(saved.network.state_dict(), tmp_path / "own.pt")
    loaded, reports = load_detector(tmp_path / "own.pt", SMALL)
    assert not loaded.training
    assert reports[0].missing == ()
    waveform = 0.1 * torch.randn(1, 1, 160000)
    with torch.no_grad():
        assert torch.equal(loaded(waveform)["strong_logits"], saved(waveform)["strong_logits"])


def test_weights_without_their_encoder_say_so(tmp_path):
    saved = untrained_detector("build_baseline('fmn04')", seed=5)
    torch.save(saved.network.crnn.state_dict(), tmp_path / "crnn.pt")
    with pytest.raises(WeightsError):
        load_detector(tmp_path / "crnn.pt", "build_baseline('fmn04')")


BASELINE_FILE = "epoch=259-step=30680.ckpt"


@pytest.fixture
def small_beats(monkeypatch):
    small = {"dim": 16, "patch_dim": 8, "depth": 1, "n_heads": 2, "ffn_dim": 8, "conv_taps": 4, "conv_groups": 2}
    spec = dataclasses.replace(ENCODERS["beats"], settings=small)
    monkeypatch.setitem(ENCODERS, "beats", spec)


def published_crnn(network):
    """The CRNN's entries under the names they are published under."""
    state = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("crnn.")}
    for pattern, published in CRNN:
        state = {re.sub(pattern, published, name): tensor for name, tensor in state.items()}
    return state


def test_baseline_with_beats_from_its_own_file(tmp_path, small_beats):
    saved = untrained_detector("build_baseline()", seed=5)
    crnn, beats = published_crnn(saved.network), saved.encoder.network.state_dict()
    teacher = {name: tensor + 1 for name, tensor in crnn.items()}
    torch.save({"sed_student": crnn, "sed_teacher": teacher}, tmp_path / BASELINE_FILE)
    torch.save({"cfg": {"dropout": 0.0, "encoder_layers": 1}, "model": beats}, tmp_path / "beats_as.pt")
    with pytest.raises(WeightsError, match="holds no encoder: give weights for beats too"):
        load_detector("desed_baseline_2024", folder=tmp_path)
    # By the names of the registry, and from files anywhere, under any name.
    (tmp_path / "other.ckpt").write_bytes((tmp_path / BASELINE_FILE).read_bytes())
    for weights, encoder_weights, like in (
        ("desed_baseline_2024", "cpjku_2024_beats_as", None),
        (tmp_path / BASELINE_FILE, tmp_path / "beats_as.pt", None),
        (tmp_path / "other.ckpt", tmp_path / "beats_as.pt", "desed_baseline_2024"),
    ):
        detector, reports = load_detector(weights, encoder_weights=encoder_weights, like=like, folder=tmp_path)
        assert [report.loaded for report in reports] == [len(crnn), len(beats)]
        assert "dropout 0" in reports[1].text()
        waveform = 0.1 * torch.randn(1, 1, 160000)
        with torch.no_grad():
            assert torch.equal(detector(waveform)["strong_logits"], saved(waveform)["strong_logits"])


def test_scores_of_random_heads_are_refused_unless_asked_for(tmp_path):
    predictor = untrained_detector(PREDICTOR, seed=5).network
    state = {
        "net." + name.replace("encoder.network.", "model.").replace("sequence.", "seq_model."): tensor
        for name, tensor in predictor.state_dict().items()
    }
    # Heads of other classes, heads that are not there.
    torch.save(state, tmp_path / "fmn04_strong.pt")
    torch.save({k: t for k, t in state.items() if "strong_head" not in k}, tmp_path / "headless.pt")
    torch.save({k: t for k, t in state.items() if "weak_head" not in k}, tmp_path / "clipless.pt")
    seven = PREDICTOR.replace("=5", "=7")
    with pytest.raises(WeightsError, match=r"strong_head, weak_head.* has 5 classes in the file and 7 here"):
        load_detector(tmp_path / "fmn04_strong.pt", seven)
    detector, reports = load_detector(tmp_path / "fmn04_strong.pt", seven, untrained=("strong_head", "weak_head"))
    assert len(detector.classes) == 7
    assert len(reports[0].missing) == 4
    for name, part, other in (("headless", "strong_head", "weak_head"), ("clipless", "weak_head", "strong_head")):
        with pytest.raises(WeightsError, match=f"holds no weights for {part}, ") as refused:
            load_detector(tmp_path / f"{name}.pt", PREDICTOR, like="fmn04_strong")
        assert other not in str(refused.value)
        load_detector(tmp_path / f"{name}.pt", PREDICTOR, like="fmn04_strong", untrained=(part,))


def test_encoders_of_audioset_strong_bring_no_detector(tmp_path):
    model = untrained_detector(SMALL).network
    torch.save(
        {f"net_strong.model.{k}": t for k, t in model.encoder.network.state_dict().items()}, tmp_path / "file.pt"
    )
    with pytest.raises(WeightsError, match="holds no weights for projection, crnn"):
        load_detector(tmp_path / "file.pt", SMALL, like="cpjku_2024_passt_as_strong")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pretrained_sed_asit_strong", "are for ASiT, a network that is not part of this repository"),
        ("mn10_as", r"are for MobileNet\(width=1.0\), which is no detector of sound events"),
        ("cpjku_2024_beats_as", r"are for build_encoder\('beats'\), which is no detector of sound events"),
    ],
)
def test_registered_weights_of_other_networks_say_so(tmp_path, name, sentence):
    with pytest.raises(WeightsError, match=sentence):
        load_detector(name, folder=tmp_path)
