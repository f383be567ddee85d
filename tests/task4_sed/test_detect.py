"""Detection in files of any length: what is written, what is said, and what cannot be used."""

import json

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from task4_sed import detect as command
from task4_sed.csebbs import BoxParameters, Csebbs
from task4_sed.detect import detect, frame_probabilities, published_median
from task4_sed.evaluate import main as score_command
from task4_sed.labels import AUDIOSET_GRID, FrameGrid, sound_classes
from task4_sed.model import Detector, untrained_detector

SMALL = "build_fusion('fmn04', hidden=8)"
RATE = 16000


class Loudness(torch.nn.Module):
    """A detector whose one class is sure where the frame is loud."""

    def __init__(self, grid=FrameGrid()):  # noqa: B008 - frozen
        super().__init__()
        self.grid, self.classes, self.sample_rate, self.clip_s = grid, ("loud", "silent"), RATE, grid.clip_s
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, waveform):
        self.seen.append(tuple(waveform.shape))
        frame = round(self.grid.frame_s * RATE)
        parts = waveform[:, 0, : self.grid.n_frames * frame].unflatten(-1, (self.grid.n_frames, frame))
        loud = 20 * (parts.abs().amax(-1) - 0.5)
        return {"strong_logits": torch.stack([loud, -loud], -1)}


def bursts(duration_s, spans):
    waveform = torch.zeros(1, round(duration_s * RATE))
    for onset, offset in spans:
        waveform[:, round(onset * RATE) : round(offset * RATE)] = 0.9
    return waveform


@pytest.mark.parametrize("overlap", [0, 0.5, 0.8])
def test_events_of_a_long_recording_are_found_where_they_are(overlap):
    spans = [(1.024, 2.048), (9.6, 10.88), (20.032, 21.12), (34.0, 35.0)]
    found = detect(Loudness(), bursts(35, spans), overlap=overlap)
    loud = found.events[found.events.event_label == "loud"]
    np.testing.assert_allclose(loud[["onset", "offset"]], spans, atol=0.0641)
    assert loud.offset.max() == 35.0  # the last frame is cut where the recording ends
    assert found.scores.values.shape == (1, 547, 2)
    assert found.scores.boundaries_s[-1] == 35.0


def test_one_window_for_a_short_clip_and_no_more_frames_than_sound():
    detector = Loudness()
    found = detect(detector, bursts(2.4, [(0.5, 1.0)]))
    assert detector.seen == [(1, 1, 160000)]
    assert found.scores.values.shape[1] == 38  # 2.4 s in frames of 64 ms, without the 16 ms that no frame covers
    assert detect(detector, bursts(10, [])).scores.values.shape == (1, 156, 2)


def test_windows_come_in_small_batches_whatever_the_length():
    detector = Loudness(AUDIOSET_GRID)
    scores = frame_probabilities(detector, bursts(100, [(50, 51)]), batch_size=3)
    assert max(shape[0] for shape in detector.seen) == 3
    assert scores.shape == (2500, 2)
    assert np.flatnonzero(scores[:, 0] > 0.5).tolist() == list(range(1250, 1275))


def test_median_filter_and_boxes_are_choices():
    waveform = bursts(12, [(3.008, 3.072), (6.016, 8.0)])
    plain, smooth = (detect(Loudness(), waveform, median_frames=m).events for m in (None, 5))
    assert (plain.event_label == "loud").sum() == 2
    assert (smooth.event_label == "loud").sum() == 1
    boxed = detect(Loudness(), waveform, csebbs=Csebbs(BoxParameters(), cell_classes=["silent"])).events
    longest = boxed[boxed.event_label == "loud"].iloc[-1]
    np.testing.assert_allclose([longest.onset, longest.offset], [6.016, 8.0], atol=0.1)
    assert published_median(Loudness()) == 9
    assert len(published_median(untrained_detector(SMALL))) == 27


def test_boxes_end_with_the_recording_and_their_scores_are_written():
    found = detect(Loudness(), bursts(1.0, [(0.3, 1.0)]), csebbs=Csebbs(BoxParameters(), cell_classes=["silent"]))
    assert (found.events.onset < found.events.offset).all()
    assert found.events.offset.max() == found.scores.boundaries_s[-1] == 1.0
    loud = found.events[found.events.event_label == "loud"].iloc[-1]
    inside = found.scores.boundaries_s[:-1] >= loud.onset
    np.testing.assert_allclose(found.scores.values[0, inside, 0], loud.score)  # a box has one score


def test_what_is_written_can_be_scored(recordings, tmp_path):
    files = [str(recordings / name) for name in ("stereo.wav", "short.flac")]
    command.main([*files, "--untrained", "--network", SMALL, "--out", str(tmp_path)])
    events = ["filename\tonset\toffset\tevent_label", "stereo.wav\t1\t2\tCat", "short.wav\t0\t1\tDog"]
    (tmp_path / "gt.tsv").write_text("\n".join(events))
    (tmp_path / "durations.tsv").write_text("filename\tduration\nstereo.wav\t12\nshort.wav\t1\n")
    where = ["--ground-truth", str(tmp_path / "gt.tsv"), "--durations", str(tmp_path / "durations.tsv")]
    score_command(["folder", str(tmp_path / "scores"), *where, "--bootstrap", "0", "--out", str(tmp_path / "s.json")])
    assert json.loads((tmp_path / "s.json").read_text())["status"] == "complete"


def test_registered_weights_are_listed(capsys):
    assert command.main(["--list-weights"]) == 0
    assert "cpjku_2024_beats_stage1" in capsys.readouterr().out


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    soundfile.write(folder / "stereo.wav", 0.1 * rng.standard_normal((44100 * 12, 2)), 44100)
    soundfile.write(folder / "short.flac", 0.1 * rng.standard_normal(RATE), RATE)
    (folder / "broken.wav").write_bytes(b"RIFF no sound at all")
    return folder


def test_command_writes_scores_events_and_picture(recordings, tmp_path, capsys):
    files = [str(recordings / name) for name in ("stereo.wav", "short.flac")]
    assert command.main([*files, "--untrained", "--network", SMALL, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("UNTRAINED network with random weights: these events mean nothing") == 1
    assert "stereo.wav: 12.00 s in 188 frames" in said
    scores = pd.read_csv(tmp_path / "scores" / "stereo.tsv", sep="\t")
    assert list(scores.columns) == ["onset", "offset", *sound_classes().names]
    assert scores.offset.iloc[-1] == 12.0
    np.testing.assert_allclose(scores.onset[1:], scores.offset[:-1])
    events = pd.read_csv(tmp_path / "events" / "stereo.tsv", sep="\t")
    assert list(events.columns) == ["onset", "offset", "event_label", "score"]
    assert (tmp_path / "pictures" / "stereo.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.tmp"))


def test_a_broken_file_is_named_and_the_others_are_done(recordings, tmp_path, capsys):
    files = [str(recordings / name) for name in ("broken.wav", "gone.wav", "short.flac")]
    assert command.main([*files, "--untrained", "--network", SMALL, "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert [line.split(": ")[0] for line in said.err.strip().splitlines()] == files[:2]
    assert (tmp_path / "events" / "short.tsv").is_file()


def test_weights_come_from_a_file_and_are_reported(recordings, tmp_path, capsys):
    torch.save(untrained_detector(SMALL, seed=3).network.state_dict(), tmp_path / "mine.pt")
    arguments = [str(recordings / "short.flac"), "--weights", str(tmp_path / "mine.pt"), "--out", str(tmp_path)]
    assert command.main(arguments) == 1
    assert "is not in the registry: say which network it is" in capsys.readouterr().err
    assert command.main([*arguments, "--network", SMALL]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Loaded ")
    assert "UNTRAINED" not in said
    assert command.main([*arguments, "--network", "build_fusion('fmn06', hidden=8)"]) == 1
    assert "do not fit FusionModel" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--weights", "cpjku_2024_atst_stage2"], "allow the download (--download), or fetch https://github.com/CPJKU"),
        (["--weights", "cpjku_2024_atst_stage3"], "did you mean cpjku_2024_atst_stage"),
        (["--untrained", "--network", "build_fusoin('atst_frame')"], "use build_fusion"),
        (["--untrained", "--network", SMALL, "--classes", "nowhere.txt"], "nowhere.txt: no such text file"),
        (["--untrained", "--network", SMALL, "--csebbs", "nowhere.json"], "nowhere.json"),
        (["--untrained", "--network", SMALL, "--threshold", "1.5"], "--threshold 1.5: scores lie between 0 and 1"),
        (["--untrained", "--network", SMALL, "--inner", "teacher"], "--untrained takes no weights"),
        (["--untrained", "--network", "build_fusion('fmn04', projecton='none')"], "did you mean 'projection'?"),
        (["--untrained", "--network", "FramePredictor('fmn04')"], "FramePredictor"),
        (["--untrained", "--network", SMALL, "--overlap", "1"], "overlap 1.0 must be 0 up to 0.95"),
        (["--untrained", "--network", SMALL, "--batch-size", "0"], "batch size 0 must be at least 1"),
        (["--untrained", "--network", SMALL, "--device", "cuda"], "--device cuda: expected cpu, gpu or auto."),
        (["--weights", "pretrained_sed_asit_strong"], "are for ASiT, a network that is not part of this repository"),
        (["--weights", "cpjku_2024_atst_stage2", "--like", "atst_stage2"], "did you mean cpjku_2024_atst_stage2"),
    ],
)
def test_what_cannot_work_is_one_sentence(recordings, tmp_path, capsys, arguments, sentence):
    files = [str(recordings / "short.flac"), "--weights-folder", str(tmp_path), "--out", str(tmp_path)]
    assert command.main([*files, *arguments]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


def test_gpu_where_there_is_none_is_one_sentence(recordings, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = [str(recordings / "short.flac"), "--untrained", "--network", SMALL, "--out", str(tmp_path)]
    assert command.main([*arguments, "--device", "gpu"]) == 1
    assert capsys.readouterr().err == "--device gpu: PyTorch finds no GPU on this machine; give --device cpu.\n"
    assert command.main([*arguments, "--device", "auto"]) == 0


def test_weights_without_a_clip_head_are_enough(recordings, tmp_path, capsys):
    small = "FramePredictor(build_encoder('fmn04'))"
    state = untrained_detector(small, seed=3).network.state_dict()
    named = {name.replace("encoder.network.", "net.model."): tensor for name, tensor in state.items()}
    torch.save({name: tensor for name, tensor in named.items() if "weak" not in name}, tmp_path / "mine.pt")
    arguments = [str(recordings / "short.flac"), "--weights", str(tmp_path / "mine.pt"), "--out", str(tmp_path)]
    assert command.main([*arguments, "--like", "fmn04_strong"]) == 0
    assert "2 not from the file, kept as they were: weak_head.weight, weak_head.bias." in capsys.readouterr().out


def test_scores_are_written_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "ROWS_AT_A_TIME", 7)
    scores = detect(Loudness(), bursts(12, [(3, 4)])).scores
    command.write_scores(tmp_path / "long.tsv", scores)
    written = pd.read_csv(tmp_path / "long.tsv", sep="\t")
    expected = scores.tables()["recording"]
    assert list(written.columns) == list(expected.columns)
    np.testing.assert_array_equal(written.to_numpy().astype(np.float32), expected.to_numpy().astype(np.float32))


def test_detector_refuses_what_gives_no_frames():
    with pytest.raises(ValueError, match="put it into a FramePredictor"):
        Detector(torch.nn.Linear(2, 2))
