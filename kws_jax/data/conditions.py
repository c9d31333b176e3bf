"""Acoustic conditions as data: the same words for training and for testing."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Condition:
    """How a clip is disturbed before the network hears it.

    Attributes:
      shift_ms: the clip is moved by a uniform draw in ±shift_ms, zeros fill the gap.
      background_probability: chance that a crop of a background recording is added.
      background_volume: the crop is multiplied by a uniform draw in [0, volume].
      snr_db: signal-to-noise ratios (dB), one drawn per clip; empty means no noise.
      clean_fraction: chance that a clip stays without noise where `snr_db` is given.
      reverberant_fraction: chance that a clip is heard through a room.
    """

    shift_ms: float = 0.0
    background_probability: float = 0.0
    background_volume: float = 0.1
    snr_db: tuple[float, ...] = ()
    clean_fraction: float = 0.0
    reverberant_fraction: float = 0.0


CLEAN = Condition()
