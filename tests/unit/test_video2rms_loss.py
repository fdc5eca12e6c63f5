"""Labels, loss and metrics of Video2RMS beyond the official vectors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foley import envelope, metrics
from foley_export.networks import video2rms_loss


@given(rms=st.lists(st.floats(-1, 2), min_size=1, max_size=50))
def test_rms_is_within_its_class(rms):
    bins = envelope.mu_law_bins()
    for value, found in zip(rms, video2rms_loss.to_classes(rms), strict=True):
        assert 0 <= found < len(bins)
        assert found == len(bins) - 1 or max(value, 0) < bins[found]
        assert found == 0 or value >= bins[found - 1]


@pytest.mark.parametrize("smoothing", ["official", "paper"])
def test_smoothed_labels_are_symmetric_and_decreasing(smoothing):
    soft = video2rms_loss.smooth_labels(torch.tensor([0, 1, 30, 63]), smoothing=smoothing).numpy()
    assert soft.shape == (4, 64)
    assert soft[0].tolist() == [1] + [0] * 63  # silence is not smoothed
    assert not soft[1:, 0].any()
    peak = soft[2, 27:34]
    np.testing.assert_array_equal(peak, peak[::-1])
    assert peak[0] == 0 < peak[1] < peak[2] < peak[3] == 1


def test_cross_entropy_of_hard_targets_matches_torch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 30, 64, generator=generator)
    classes = torch.randint(0, 64, (2, 30), generator=generator)
    hard = torch.nn.functional.one_hot(classes, 64).float()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), classes.flatten())
    torch.testing.assert_close(video2rms_loss.cross_entropy(logits, hard), expected)


def test_metrics_reject_frames_of_different_length():
    assert metrics.event_l1([0.1, 0.3], [0.2, 0.3]) == pytest.approx(0.05)
    assert metrics.tolerant_accuracy([0, 5, 9], [0, 3, 3], 2) == pytest.approx(2 / 3)
    for measure in (metrics.event_l1, lambda *frames: metrics.tolerant_accuracy(*frames, 2)):
        with pytest.raises(ValueError, match="differ"):
            measure([1, 2, 3], [1])
