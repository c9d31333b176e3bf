"""Constants that follow from few numbers: windows, mel filters, cosines.

NumPy alone, so that programs without JAX can make them. Each table is made once and
read-only, and is known again by its values: an artefact then holds the few numbers that
it follows from in place of the table.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, cast

import numpy as np

from kws_jax.errors import UserError

_P = ParamSpec("_P")
# name -> the function that makes such tables, and how many numbers it would give
TABLES: dict[str, Callable[..., np.ndarray]] = {}
COUNTS: dict[str, Callable[..., int]] = {}
# (name, settings, values) of all that were made
_made: list[tuple[str, dict[str, Any], np.ndarray]] = []

# name -> (a, b) of the window a − b·cos(2π(i + ½)/taps), i = 0 … taps − 1
WINDOWS: dict[str, tuple[float, float]] = {
    "hamming": (0.54, 0.46),
    "hann": (0.5, 0.5),
    "none": (1.0, 0.0),
}


def origin(values: np.ndarray) -> tuple[str, dict[str, Any]] | None:
    """Name and settings of a table of these values, whatever its shape; None of none.

    `TABLES[name](**settings)` are the values in one order, rounded to their type.
    """
    for name, settings, table in _made:
        if table.size == values.size > 1 and np.array_equal(
            table.astype(values.dtype).ravel(), values.ravel()
        ):
            return name, settings
    return None


def _table(
    count: Callable[..., int],
) -> Callable[[Callable[_P, np.ndarray]], Callable[_P, np.ndarray]]:
    """Makes a function one of TABLES; `count` is how many numbers it gives."""

    def register(function: Callable[_P, np.ndarray]) -> Callable[_P, np.ndarray]:
        signature = inspect.signature(function)

        @functools.cache
        def make(*arguments: Any, **settings: Any) -> np.ndarray:
            values = function(*arguments, **settings)
            values.setflags(write=False)
            told = dict(signature.bind(*arguments, **settings).arguments)
            _made.append((function.__name__, told, values))
            return values

        TABLES[function.__name__], COUNTS[function.__name__] = make, count
        return cast(Callable[_P, np.ndarray], functools.wraps(function)(make))

    return register


def fft_length(window: int) -> int:
    """The smallest power of two that is not below `window` (samples)."""
    return 1 << (window - 1).bit_length()


@_table(lambda window: window)
def hann(window: int) -> np.ndarray:
    """The periodic Hann window ½ - ½ cos(2πn/window) as float32 [window], read-only."""
    values = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return values.astype(np.float32)


@_table(lambda window: window)
def symmetric_hann(window: int) -> np.ndarray:
    """½ - ½ cos(2πn/(window - 1)) as float32 [window], read-only."""
    return np.hanning(window).astype(np.float32)


@_table(lambda name, taps: taps)
def window_values(name: str, taps: int) -> np.ndarray:
    """A window of WINDOWS, symmetric, float64 [taps], read-only."""
    a, b = WINDOWS[name]
    return a - b * np.cos(2 * np.pi * (np.arange(taps) + 0.5) / taps)


@_table(lambda num_mel, num_coefficients: num_mel * num_coefficients)
def dct_matrix(num_mel: int, num_coefficients: int) -> np.ndarray:
    """DCT-II in HTK's scaling, float32 [num_mel, num_coefficients], read-only.

    All columns are scaled by sqrt(2/num_mel); an orthogonal DCT would scale the first
    by sqrt(1/num_mel).
    """
    m, i = np.arange(num_mel)[:, None], np.arange(num_coefficients)
    basis = np.sqrt(2 / num_mel) * np.cos(np.pi * i * (m + 0.5) / num_mel)
    return basis.astype(np.float32)


@_table(lambda num_mel, window, **_: (fft_length(window) // 2 + 1) * num_mel)
def mel_matrix(
    *, num_mel: int, window: int, sample_rate: int, low_hz: float, high_hz: float
) -> np.ndarray:
    """Triangular filters of height 1, evenly spaced and linear in mel.

    mel(f) = 1127 ln(1 + f/700). The factor 1127 (Kaldi) or 2595/ln 10 (HTK, TensorFlow)
    cancels, so one matrix serves both conventions.

    Args:
      num_mel: number of filters.
      window: length of a frame in samples; the spectrum has fft_length(window)/2 + 1
        bins.
      sample_rate: in Hz.
      low_hz: lower edge of the first filter.
      high_hz: upper edge of the last filter.

    Returns:
      float32 [bins, num_mel], read-only: spectrum @ matrix gives the mel energies.

    Raises:
      UserError: if the band is empty or leaves 0 … sample_rate/2, or if a filter is so
        narrow that no bin of the spectrum falls into it.
    """
    if num_mel < 1 or not 0 <= low_hz < high_hz <= sample_rate / 2:
        raise UserError(
            f"Mel filters need num_mel >= 1 and 0 <= low_hz < high_hz <= "
            f"{sample_rate / 2:g}; got num_mel={num_mel}, low_hz={low_hz:g}, "
            f"high_hz={high_hz:g}. Change these settings of the front end."
        )
    mel = _mel(np.linspace(0, sample_rate / 2, fft_length(window) // 2 + 1))[:, None]
    edges = np.linspace(_mel(low_hz), _mel(high_hz), num_mel + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
    matrix = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    if not matrix.any(axis=0).all():
        raise UserError(
            f"num_mel={num_mel} filters between {low_hz:g} and {high_hz:g} Hz are "
            f"narrower than the {sample_rate / fft_length(window):g} Hz between two "
            "bins of the spectrum. Use fewer filters or a longer window_ms."
        )
    return matrix


def _mel(hertz):
    return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)
