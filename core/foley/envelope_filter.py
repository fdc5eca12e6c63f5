"""The official low-pass filter of envelopes.

Lee et al., "Video-Foley" (TASLP 2025), section III: the targets of Video2RMS are filtered with it. The official
RMS2Sound filters an envelope that it takes from a recording in the same way.
"""

import numpy as np
import numpy.typing as npt

from foley.errors import EnvelopeError, SettingError

_ORDER, _RIPPLE_DB, _STOP_BAND_DB, _CUTOFF = 4, 0.01, 120.0, 0.125  # the cutoff as a share of the Nyquist frequency
_FEWEST_FRAMES = 2 * _ORDER + 1  # with fewer, the initial conditions of both passes are not determined


def low_pass(rms: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Filter an envelope without delay: an elliptic low-pass filter, run forward and backward (Gustafsson 1996).

    Args:
        rms: linear RMS [frames], 9 frames or more. The cutoff is an eighth of its Nyquist frequency: 6.25 Hz for
            envelopes of 100 Hz.

    Returns:
        The filtered RMS [frames]. The filter overshoots: values after a sudden change can be negative.

    Raises:
        EnvelopeError: there are fewer than 9 frames.
        SettingError: SciPy is not installed.
    """
    try:
        from scipy import signal
    except ImportError as error:
        raise SettingError("the official envelope filter needs SciPy: pip install 'foley-core[filter]'") from error
    rms = np.asarray(rms)
    if len(rms) < _FEWEST_FRAMES:
        raise EnvelopeError(
            f"the official envelope filter needs {_FEWEST_FRAMES} frames, the envelope has {len(rms)}; use no filter"
        )
    numerator, denominator = signal.ellip(_ORDER, _RIPPLE_DB, _STOP_BAND_DB, _CUTOFF)
    return np.ascontiguousarray(signal.filtfilt(numerator, denominator, rms, method="gust"))
