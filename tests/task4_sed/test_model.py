"""Networks written as expressions, and detectors around them."""

import functools

import pytest
import torch

from common.audio.encoder_frontends import M2dMel
from common.config import ConfigError
from common.nn.encoders import Encoder
from common.nn.m2d import M2d
from common.nn.published import REGISTRY
from common.nn.weights import WeightsError
from task4_sed.labels import sound_classes
from task4_sed.model import BUILDERS, Detector, build_network, load_detector, untrained_detector
from task4_sed.models.fusion import FusionModel
from task4_sed.models.prediction import FramePredictor

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
        ("build_fusion(x)", "'x' is neither a value nor a call"),
        ("'fmn04'", "builds nothing: write it like"),
        ("build_fusion('fmn04'", "cannot be read"),
        ("build_fusion('fmn05')", "encoder 'fmn05' is unknown: did you mean"),
        ("build_fusion('fmn04', foldfrequency=True)", "has no option 'foldfrequency'"),
        ("FramePredictor(build_encoder('fmn04'), classes=3)", "unexpected keyword argument 'classes'"),
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
    torch.save(saved.encoder.network.state_dict(), tmp_path / "encoder.pt")
    with pytest.raises(WeightsError):
        load_detector(tmp_path / "crnn.pt", "build_baseline('fmn04')")
