"""The built-in sound event data: layout of DESED and MAESTRO Real, same bytes, labels that fit the sound."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from torchaudio.transforms import MelSpectrogram

from common.audio.files import read_audio
from common.data import event_clips, soundscapes
from common.data.event_clips import make_event_dataset, render_clip, render_recording
from common.data.event_plan import (
    SCENES,
    SUBSETS,
    EventOptions,
    PlannedEvent,
    plan_clip,
    plan_clips,
    plan_recording,
    plan_recordings,
    soft_labels,
)
from common.data.sound_events import DESED_EVENTS, EVENTS, MAESTRO_EVENTS, in_turn
from common.data.synth import SAMPLE_RATE, name_rng

SIZES = {
    "n_synth": 5, "n_synth_val": 2, "n_strong": 3, "n_weak": 3, "n_unlabeled": 3,
    "n_validation": 20, "n_public": 2, "n_maestro_train": 4, "n_maestro_validation": 2,
}  # fmt: skip
STRONG = [name for name, subset in SUBSETS.items() if subset.labels == "strong"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small data set, whole."""
    folder = tmp_path_factory.mktemp("sound_events") / "data"
    make_event_dataset(folder, seed=3, **SIZES, n_processes=1, progress=False)
    return folder


def read_tsv(path):
    return pd.read_csv(path, sep="\t", keep_default_na=False)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------- files and tables


@pytest.mark.parametrize("name", list(SUBSETS))
def test_tables_and_folders_hold_the_same_files(root, name):
    table = read_tsv(root / SUBSETS[name].table)
    on_disk = {path.name for path in (root / SUBSETS[name].audio).iterdir()}
    assert set(table.filename) == on_disk and len(on_disk) == SIZES[SUBSETS[name].option]


@pytest.mark.parametrize("name", STRONG)
def test_strong_tables_hold_events_of_desed_inside_their_clips(root, name):
    table = read_tsv(root / SUBSETS[name].table)
    assert list(table.columns) == ["filename", "onset", "offset", "event_label"]
    events = table[table.event_label != ""].astype({"onset": float, "offset": float})
    assert set(events.event_label) <= set(DESED_EVENTS) and (events.onset >= 0).all()
    assert (events.offset - events.onset > 0.1).all()
    length_s = {f: soundfile.info(root / SUBSETS[name].audio / f).duration for f in table.filename}
    assert (events.offset <= events.filename.map(length_s) + 1e-9).all()
    for _, same in events.sort_values("onset").groupby(["filename", "event_label"]):
        assert (same.onset.iloc[1:].to_numpy() > same.offset.iloc[:-1].to_numpy() + 0.25).all()


def test_devtest_has_a_clip_without_events_and_short_clips_as_the_real_one(root):
    table = read_tsv(root / SUBSETS["devtest"].table)
    empty = table[table.event_label == ""]
    assert len(empty) == 1 and (empty[["onset", "offset"]] == "").all(axis=None)
    durations = read_tsv(root / SUBSETS["devtest"].durations).set_index("filename").duration
    assert set(durations.index) == set(table.filename)
    assert durations.min() < 10 and durations.max() == 10
    for filename, duration_s in durations.items():
        assert soundfile.info(root / SUBSETS["devtest"].audio / filename).duration == pytest.approx(duration_s)
    assert set(table.event_label) - {""} == set(DESED_EVENTS)


def test_weak_table_joins_classes_by_commas(root):
    table = read_tsv(root / SUBSETS["weak"].table)
    assert list(table.columns) == ["filename", "event_labels"]
    options = EventOptions(3, **SIZES)
    for number, (filename, labels) in enumerate(table.itertuples(index=False, name=None)):
        clip = plan_clip(options, "weak", number)
        assert clip.filename == filename and set(labels.split(",")) == {event.label for event in clip.events}
    assert table.event_labels.str.contains(",").any()


def test_audio_is_16_bit_mono_at_16_khz_with_sound_that_does_not_clip(root):
    paths = sorted(root.rglob("*.wav"))
    assert len(paths) == sum(SIZES.values())
    for path in paths:
        info = soundfile.info(path)
        assert (info.subtype, info.channels, info.samplerate) == ("PCM_16", 1, 16000), path
    for path in paths[::4]:
        waveform, _ = read_audio(path)
        assert 1e-3 < np.sqrt(np.mean(waveform**2)) and np.abs(waveform).max() < 1, path


def test_maestro_part_has_lists_and_soft_labels_on_whole_seconds(root):
    numbers = set()
    for part, column, n_recordings in (("train", "train", 4), ("validation", "val", 2)):
        names = pd.read_csv(root / f"metadata/{part}_split.csv")[column]
        assert len(names) == n_recordings and names.str.endswith(".txt").all()
        numbers |= set(names)
        for name in names:
            stem = name.removesuffix(".txt")
            scene = stem.rpartition("_")[0]
            (audio,) = (root / "maestro_real/development_audio").rglob(f"{stem}.wav")
            (labels,) = (root / "maestro_real/development_annotation").rglob(f"*{stem}.txt")
            rows = pd.read_csv(labels, sep="\t", header=None, names=["onset", "offset", "label", "confidence"])
            duration_s = soundfile.info(audio).duration
            assert 25 <= duration_s <= 60 and rows.offset.max() <= duration_s
            assert (rows.onset % 1 == 0).all() and rows.confidence.between(0, 1).all()
            assert not rows.duplicated(["onset", "label"]).any() and set(rows.label) <= set(SCENES[scene])
    assert len(numbers) == 6
    durations = read_tsv(root / "metadata/maestro_real_durations.tsv")
    assert len(durations) == 2


def test_card_says_what_it_is(root):
    card = json.loads((root / "dataset.json").read_text())
    assert card["name"] == "built-in data" and "task4_sed" in card["generator"]
    assert {key: card[key] for key in SIZES} == SIZES and card["seed"] == 3
    assert card["counts"]["devtest"] == 20 and card["counts"]["maestro_train"] == 4
    assert not (root / "generating.json").exists()


# ---------------------------------------------------------------- same bytes, going on


def test_goes_on_after_loss_of_half_with_the_same_bytes_from_two_processes(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    clips = sorted((tmp_path / "data").rglob("*.wav"))
    kept = clips[-1]
    for clip in clips[:22]:
        clip.unlink()
    clips[23].write_bytes(clips[23].read_bytes()[:1000])
    (clips[25].parent / ".half.wav.tmp").write_bytes(b"RIFF")
    written = kept.stat().st_mtime_ns
    make_event_dataset(tmp_path / "data", seed=3, **SIZES, n_processes=2, progress=False)
    assert contents(tmp_path / "data") == contents(root)
    assert kept.stat().st_mtime_ns == written


def test_killed_generation_is_no_data_set(tmp_path, monkeypatch):
    written = []

    def write_three(path, *arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        path.touch()

    monkeypatch.setattr(event_clips, "write_wav", write_three)
    with pytest.raises(KeyboardInterrupt):
        make_event_dataset(tmp_path, seed=3, **SIZES, n_processes=1, progress=False)
    assert (tmp_path / "generating.json").is_file() and not (tmp_path / "dataset.json").exists()


def test_a_clip_does_not_depend_on_how_many_there_are_and_another_seed_differs():
    assert plan_clips(EventOptions(n_synth=7))[:5] == plan_clips(EventOptions(n_synth=5))[:5]
    first, again, other = (plan_clip(EventOptions(seed), "devtest", 4) for seed in (0, 0, 1))
    assert first == again and first != other


def test_refuses_folders_with_other_data(root, tmp_path):
    with pytest.raises(ValueError, match="holds data with seed = 3, asked for 4; give another folder"):
        make_event_dataset(root, seed=4, **SIZES)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "weak.tsv").write_text("filename\n")
    with pytest.raises(ValueError, match="this generator did not write"):
        make_event_dataset(tmp_path)


@pytest.mark.parametrize("options", [{"n_maestro_train": 3}, {"n_weak": 0}])
def test_options_that_do_not_fit_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}: at least"):
        EventOptions(**options)


def test_command_line(root, capsys):
    options = [f"--{key.replace('_', '-')}={value}" for key, value in ({"seed": 3} | SIZES).items()]
    soundscapes.main(["task4_sed", str(root), *options])
    assert "'devtest': 20" in capsys.readouterr().out


# ---------------------------------------------------------------- plan


def test_train_and_validation_hear_no_source_in_common():
    pools = {name: subset.pool for name, subset in SUBSETS.items()}
    train = {pools[name] for name in ("synth_train", "strong_train", "weak", "unlabeled_train")}
    others = [pools[name] for name in ("synth_val", "devtest", "eval_public")]
    assert not train & set(others) and len(set(others)) == 3
    options = EventOptions()
    events = PlannedEvent("Dog", 0.5, 2.0, 20.0, 0)
    sounds = [event_clips._mixed(options, [events], 2.5, pool, event_clips._CLEAN, ("same",)) for pool in sorted(train)]
    assert not any(np.allclose(sounds[0], sound) for sound in sounds[1:])


def test_default_plan_holds_every_class_in_every_set():
    options = EventOptions()
    clips = plan_clips(options)
    for name in SUBSETS:
        events = [event for clip in clips if clip.subset == name for event in clip.events]
        assert {event.label for event in events} == set(DESED_EVENTS), name
    shorter = [clip.duration_s < 10 for clip in clips if SUBSETS[clip.subset].real]
    assert 0.05 < np.mean(shorter) < 0.25
    assert all(clip.duration_s == 10 for clip in clips if not SUBSETS[clip.subset].real)
    assert any(not clip.events for clip in clips if clip.subset == "unlabeled_train")
    recordings = plan_recordings(options)
    assert len({recording.name for recording in recordings}) == len(recordings) == 12
    assert {r.scene for r in recordings if r.part == "validation"} == set(SCENES)
    assert {event.label for r in recordings for event in r.events} == set(MAESTRO_EVENTS)


def test_annotators_are_sure_inside_of_loud_events_and_silent_elsewhere():
    options = EventOptions()
    inside, outside = [], []
    for number in range(40):
        recording = plan_recording(options, "train", "residential_area", number)
        said = {(onset, label): confidence for onset, _, label, confidence in soft_labels(options, recording)}
        for event in recording.events:
            if event.level_db > 8 and event.offset_s - event.onset_s > 4:
                inside.append(said.get((np.floor(event.onset_s) + 2.0, event.label), 0.0))
        quiet = set(np.arange(25.0)) - {
            t for e in recording.events if e.label == "car" for t in np.arange(int(e.onset_s) - 2, e.offset_s + 3)
        }
        outside += [said.get((t, "car"), 0.0) for t in quiet]
    assert np.mean(np.array(inside) > 0.5) > 0.9 and np.mean(np.array(outside) > 0.5) == 0
    assert 0 < np.mean(np.array(outside) > 0) < 0.2  # at times somebody hears what is not there


# ---------------------------------------------------------------- sounds


@pytest.mark.parametrize("label", list(EVENTS))
def test_events_fill_their_time_and_hear_their_source(label):
    kind, n_samples = EVENTS[label], round(1.7 * SAMPLE_RATE)
    sound = kind.render(name_rng("source"), name_rng("now"), n_samples)
    assert sound.shape == (n_samples,) and np.isfinite(sound).all()
    assert 0.1 < np.sqrt(np.mean(sound**2)) < 1.1
    for part in (sound[: SAMPLE_RATE // 2], sound[-SAMPLE_RATE // 2 :]):
        assert np.sqrt(np.mean(part**2)) > 0.05
    elsewhere = kind.render(name_rng("another source"), name_rng("now"), n_samples)
    assert not np.allclose(sound, elsewhere)
    shortest = kind.render(name_rng("source"), name_rng("now"), round(kind.min_s * SAMPLE_RATE))
    assert np.abs(shortest).max() > 0.1


def test_sounds_in_turn_start_at_the_start_and_end_at_the_end():
    layer = in_turn(1000, period_s=250 / SAMPLE_RATE, gap_share=0.4, one=np.ones)
    edges = np.flatnonzero(np.diff(np.pad(layer, 1)))
    assert edges[0] == 0 and edges[-1] == 1000 and len(edges) == 8
    assert np.array_equal(in_turn(10, 1.0, 0.4, np.ones), np.ones(10))


def test_sound_is_where_the_label_says():
    """Ten dB more in the middle of an event than outside of all, in a clean clip."""
    options = EventOptions()
    for number in range(3):
        clip = plan_clip(options, "synth_train", number)
        waveform = render_clip(options, clip)
        assert len(waveform) == 160000
        active = np.zeros(160000, bool)
        for event in clip.events:
            active[round(event.onset_s * 16000) : round((event.offset_s + 0.3) * 16000)] = True
        if 0.05 < active.mean() < 0.95:
            assert np.mean(waveform[active] ** 2) > 4 * np.mean(waveform[~active] ** 2)


def test_recordings_have_the_length_planned():
    options = EventOptions()
    recording = plan_recording(options, "train", "cafe_restaurant", 1)
    assert len(render_recording(options, recording)) == round(recording.duration_s * 16000)


def test_file_names_are_those_of_their_sets():
    for name, subset in SUBSETS.items():
        path = Path(plan_clip(EventOptions(), name, 7).path)
        assert re.fullmatch(r"(Y.*_30\.000_40\.000|public\d+_30_40|7)\.wav", path.name), name
        assert str(path.parent) == subset.audio


def segment_features(name, n_clips):
    """Return mean and deviation of the log mel over each event of the first clips of a set, and the labels."""
    mel, options, features, labels = MelSpectrogram(16000, 1024, hop_length=256, n_mels=40), EventOptions(), [], []
    for clip in (plan_clip(options, name, number) for number in range(n_clips)):
        log_mel = 10 * torch.log10(mel(torch.from_numpy(render_clip(options, clip)).float()) + 1e-10)
        for event in clip.events:
            part = log_mel[:, int(event.onset_s * 62.5) : int(event.offset_s * 62.5)]
            features.append(torch.cat([part.mean(1) - part.mean(), part.std(1)]).numpy())
            labels.append(event.label)
    return np.array(features), np.array(labels)


def nearest_centroid(train, test):
    """Return the mean over classes of the share recognised."""
    (x, y), (test_x, test_y) = train, test
    scale, classes = x.std(0), np.unique(y)
    centroids = np.stack([x[y == label].mean(0) for label in classes])
    found = classes[(((test_x[:, None] - centroids) / scale) ** 2).sum(-1).argmin(1)]
    return np.mean([np.mean(found[test_y == label] == label) for label in np.unique(test_y)])


def test_classes_can_be_learnt():
    """Ten classes, so chance is 0.1; sources of validation were never heard."""
    train, validation = segment_features("synth_train", 20), segment_features("synth_val", 10)
    assert nearest_centroid(train, validation) > 0.3


@pytest.mark.slow
def test_real_kind_is_another_domain_that_real_clips_help_with():
    synth, real, devtest = (
        segment_features(name, n) for name, n in (("synth_train", 60), ("strong_train", 40), ("devtest", 40))
    )
    from_synth, from_real = nearest_centroid(synth, devtest), nearest_centroid(real, devtest)
    within = nearest_centroid(synth, segment_features("synth_val", 24))
    assert 0.15 < from_synth < from_real < within
