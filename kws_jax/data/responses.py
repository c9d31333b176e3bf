"""Impulse responses, as they are measured or simulated."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Response:
    """An impulse response from its direct path on: float [samples] at 16 kHz.

    `room` names what training and test may not share, `origin` what it was made from:
    it changes with the response.
    """

    name: str
    audio: np.ndarray
    room: str
    origin: str
