"""How the sound in a room decays: measured on a response, and from its images.

Reference: Schroeder 1965, J. Acoust. Soc. Am. 37:409–412 (backward integration).
"""

import dataclasses

import numpy as np

from kws_jax.data.corpus import SAMPLE_RATE

BIN = 16  # samples: 1 ms, for the decay of the images' energies
_ABSORPTIONS = (0.002, 0.998)


def measured_t60(response: np.ndarray) -> float:
    """T60 (s) of an impulse response, at 16 kHz, by Schroeder's backward integration.

    L(t) = 10 log10(∫_t^∞ h² / ∫_0^∞ h²); a line through L where it is between -5 and
    -25 dB falls by 60 dB in T60.
    """
    return _t60(np.square(np.asarray(response, float)), SAMPLE_RATE)


def _t60(energy: np.ndarray, rate: float) -> float:
    left = np.cumsum(energy[::-1])[::-1]
    level = 10 * np.log10(np.maximum(left / left[0], 1e-30))
    place = np.flatnonzero((level <= -5) & (level >= -25))
    if len(place) < 2:
        return 0.0
    return float(-60 / np.polyfit(place / rate, level[place], 1)[0])


@dataclasses.dataclass(frozen=True)
class Decay:
    """How the energy of the images decays under any absorption.

    `energy` [orders, times] is that of the images of each order in each millisecond,
    without absorption; a reflection at an absorbing wall takes the share a of it. For
    what comes behind them, until `end` (s), it falls on as in the last quarter of their
    time; an `end` of 0 has nothing behind them.
    """

    energy: np.ndarray
    end: float

    @classmethod
    def of_images(
        cls,
        times: np.ndarray,
        distances: np.ndarray,
        orders: np.ndarray,
        end: float,
    ) -> "Decay":
        """That of images [n] with the orders at these times (s) and distances (m)."""
        bins = (times * SAMPLE_RATE / BIN).astype(np.int64)
        shape = (int(orders.max()) + 1, int(bins.max()) + 1)
        flat = np.bincount(
            orders * shape[1] + bins, distances**-2.0, minlength=shape[0] * shape[1]
        )
        return cls(flat.reshape(shape), end)

    def absorption(self, t60: float) -> float | None:
        """The absorption that brings `t60` (s), by bisection; None where none does."""
        low, high = _ABSORPTIONS
        if not self._t60(high) <= t60 <= self._t60(low):
            return None
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if self._t60(middle) > t60 else (low, middle)
        return (low + high) / 2

    def later(self, absorption: float, begin: int, count: int) -> np.ndarray:
        """Energy in a millisecond around each of `count` samples from `begin` on.

        What a line through the logarithm in the last quarter of the images' time gives.
        """
        # The last millisecond may not be whole.
        kept = self._kept(absorption)[:-1]
        place = np.arange(3 * len(kept) // 4, len(kept))
        level = np.log(np.maximum(kept[place], 1e-30))
        slope, start = np.polyfit(place + 0.5, level, 1)
        return np.exp(start + slope * np.arange(begin, begin + count) / BIN)

    def _t60(self, absorption: float) -> float:
        energy = self._kept(absorption)
        if self.end:
            begin = (len(energy) - 1) * BIN
            count = round(self.end * SAMPLE_RATE) - begin
            later = self.later(absorption, begin, count)
            energy = np.concatenate([energy[:-1], later[BIN // 2 :: BIN]])
        return _t60(energy, SAMPLE_RATE / BIN)

    def _kept(self, absorption: float) -> np.ndarray:
        """The energy in each millisecond under this absorption."""
        return (1 - absorption) ** np.arange(len(self.energy)) @ self.energy
