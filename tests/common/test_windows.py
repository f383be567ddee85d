"""Windows over long recordings: every moment is covered once, and joining undoes cutting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.audio.windows import Windows


def frame_means(windows):
    """Return a network whose frames are the means of their own samples, so that every window agrees."""
    covered = windows.n_frames * windows.frame_samples
    return lambda batch: batch[:, :1, :covered].unflatten(-1, (windows.n_frames, -1)).mean(-1).transpose(1, 2)


@settings(max_examples=60, deadline=None)
@given(
    n_samples=st.integers(1, 400),
    n_frames=st.integers(1, 12),
    frame_samples=st.integers(1, 7),
    extra=st.integers(0, 6),
    share=st.floats(0.01, 1),
    batch_size=st.integers(1, 5),
)
def test_joined_windows_equal_one_pass(n_samples, n_frames, frame_samples, extra, share, batch_size):
    windows = Windows(n_frames * frame_samples + extra, frame_samples, n_frames, max(1, round(share * n_frames)))
    waveform = torch.randn(1, n_samples, generator=torch.Generator().manual_seed(n_samples))
    joined = windows.run(waveform, frame_means(windows), batch_size)
    n_total = windows.n_total(n_samples)
    padded = torch.nn.functional.pad(waveform, (0, n_total * frame_samples - n_samples))  # negative: cut
    torch.testing.assert_close(joined, padded.reshape(n_total, frame_samples).mean(-1, keepdim=True))


def test_ten_seconds_are_one_window_and_longer_ones_are_covered_evenly():
    windows = Windows(window_samples=160000, frame_samples=1024, n_frames=156, hop_frames=78)
    assert windows.starts(160000) == windows.starts(16000) == [0]
    assert (windows.n_total(160000), windows.n_total(1)) == (156, 1)
    starts = windows.starts(35 * 16000)
    assert starts == [0, 65, 130, 196, 261, 326, 391]
    assert starts[-1] + 156 == windows.n_total(35 * 16000)


def test_the_middle_of_a_window_outweighs_its_edge():
    windows = Windows(4, 1, 4, 2)
    assert windows.weights().tolist() == [0.5, 1.0, 1.0, 0.5]
    turn = iter((0.0, 1.0))
    joined = windows.run(torch.zeros(1, 6), lambda batch: torch.full((1, 4, 1), next(turn)), batch_size=1)
    torch.testing.assert_close(joined[:, 0], torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1]))


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="hop_frames 5 must be 1 up to the 4 frames"):
        Windows(40, 10, 4, 5)
    with pytest.raises(ValueError, match="longer than the window"):
        Windows(39, 10, 4, 2)
    with pytest.raises(ValueError, match="gave 3 frames for a window, expected 4"):
        Windows(4, 1, 4, 2).run(torch.zeros(1, 6), lambda batch: torch.zeros(len(batch), 3, 1))
    with pytest.raises(ValueError, match="no samples"):
        Windows(4, 1, 4, 2).run(torch.zeros(1, 0), lambda batch: batch)
