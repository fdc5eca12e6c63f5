"""The official low-pass filter of envelopes.

Lee et al., "Video-Foley" (TASLP 2025), section III: the training targets of Video2RMS are filtered with it. The
official RMS2Sound applies the same filter to the envelope of a recording.
"""

import numpy as np
import numpy.typing as npt

from foley.errors import EnvelopeError, SettingError

_ORDER, _RIPPLE_DB, _STOP_BAND_DB, _CUTOFF = 4, 0.01, 120.0, 0.125  # the cutoff as a share of the Nyquist frequency
_MIN_FRAMES = 2 * _ORDER + 1  # fewer do not determine the initial conditions of both passes


def low_pass(rms: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Apply a zero-phase elliptic low-pass filter (forward and backward, Gustafsson 1996) to an envelope.

    The cutoff is an eighth of the Nyquist frequency: 6.25 Hz for envelopes of 100 Hz.

    Args:
        rms: Linear RMS [frames], at least 9 frames.

    Returns:
        The filtered RMS [frames]. The filter overshoots: values after a sudden change can be negative.

    Raises:
        EnvelopeError: There are fewer than 9 frames.
        SettingError: SciPy is not installed.
    """
    try:
        from scipy import signal
    except ImportError as error:
        raise SettingError("the official envelope filter needs SciPy: pip install 'foley-core[filter]'") from error
    rms = np.asarray(rms)
    if len(rms) < _MIN_FRAMES:
        raise EnvelopeError(
            f"the official envelope filter needs at least {_MIN_FRAMES} frames, but the envelope has {len(rms)}; use "
            "no filter"
        )
    numerator, denominator = signal.ellip(_ORDER, _RIPPLE_DB, _STOP_BAND_DB, _CUTOFF)
    return np.ascontiguousarray(signal.filtfilt(numerator, denominator, rms, method="gust"))
