"""Noises made from random numbers, for the corpus of synthetic speech."""

from collections.abc import Sequence

import numpy as np
from scipy import signal

from kws_jax.data.corpus import SAMPLE_RATE, Recording

NOISE_SECONDS = 20
SEEN = ("white", "pink", "brown", "hum", "crackle")
UNSEEN = ("babble", "gusts", "siren")
_SAMPLES = NOISE_SECONDS * SAMPLE_RATE
_RMS = 0.1  # of every recording, samples in [-1, 1]
_LOWEST_HZ = 20.0
_BABBLERS = 8


def make_noise(
    kind: str, rng: np.random.Generator, *, speech: Sequence[np.ndarray] = ()
) -> Recording:
    """A recording of NOISE_SECONDS of one kind.

    Args:
      kind: one of `SEEN` or `UNSEEN`.
      rng: where all chance comes from.
      speech: int16 clips of words, what "babble" is made of.
    """
    audio = _babble(rng, speech) if kind == "babble" else _MAKERS[kind](rng)
    audio *= _RMS / np.sqrt(np.mean(audio**2))
    audio /= max(1.0, np.abs(audio).max() / 0.99)
    return Recording(kind, np.rint(audio * 32767).astype(np.int16))


def _coloured(rng: np.random.Generator, exponent: float) -> np.ndarray:
    """Gaussian noise with power 1/f^exponent above 20 Hz, and rms 1."""
    spectrum = np.fft.rfft(rng.standard_normal(_SAMPLES))
    frequency = np.fft.rfftfreq(_SAMPLES, 1 / SAMPLE_RATE)
    spectrum *= np.maximum(frequency, _LOWEST_HZ) ** (-exponent / 2)
    audio = np.fft.irfft(spectrum, _SAMPLES)
    return audio / np.sqrt(np.mean(audio**2))


def _slow(rng: np.random.Generator, highest_hz: float) -> np.ndarray:
    """A smooth random curve in (0, 1) that changes at up to `highest_hz`."""
    points = rng.random(int(NOISE_SECONDS * 2 * highest_hz) + 2)
    places = np.linspace(0, len(points) - 1, _SAMPLES)
    return np.interp(places, np.arange(len(points)), points)


def _hum(rng: np.random.Generator) -> np.ndarray:
    """Mains hum: 50 or 60 Hz with harmonics of falling random strength."""
    phase = 2 * np.pi * rng.choice([50.0, 60.0]) * np.arange(_SAMPLES) / SAMPLE_RATE
    audio = 0.05 * _coloured(rng, 1.0)
    for harmonic in range(1, 21):
        strength = rng.uniform(0.2, 1.0) / harmonic**0.7
        audio += strength * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
    return audio * (0.7 + 0.3 * _slow(rng, 1.0))


def _crackle(rng: np.random.Generator) -> np.ndarray:
    """Clicks at random times, each a short ringing, over a faint hiss."""
    audio = 0.02 * _coloured(rng, 1.0)
    time = np.arange(SAMPLE_RATE // 100) / SAMPLE_RATE
    for frequency in rng.uniform(800, 5000, 6):
        clicks = np.zeros(_SAMPLES)
        places = rng.integers(0, _SAMPLES, 5 * NOISE_SECONDS)
        clicks[places] = rng.lognormal(0.0, 1.0, len(places))
        ring = np.exp(-time / 0.0015) * np.sin(2 * np.pi * frequency * time)
        audio += signal.fftconvolve(clicks, ring)[:_SAMPLES]
    return audio


def _gusts(rng: np.random.Generator) -> np.ndarray:
    """Noise of middle frequencies that swells and falls, as wind at a window."""
    band = signal.butter(2, [200, 2500], "bandpass", fs=SAMPLE_RATE, output="sos")
    audio = signal.sosfilt(band, rng.standard_normal(_SAMPLES))
    return audio * (0.1 + _slow(rng, 3.0) ** 2) * (0.3 + _slow(rng, 0.5))


def _siren(rng: np.random.Generator) -> np.ndarray:
    """A tone with harmonics that glides up and down between 500 and 1,500 Hz."""
    seconds = np.arange(_SAMPLES) / SAMPLE_RATE
    glide = signal.sawtooth(2 * np.pi * rng.uniform(0.2, 0.6) * seconds, width=0.5)
    phase = 2 * np.pi * np.cumsum(1000 + 500 * glide) / SAMPLE_RATE
    tone = sum(np.sin(h * phase) / h for h in range(1, 5))
    return tone + 0.1 * _coloured(rng, 1.0)


def _babble(rng: np.random.Generator, speech: Sequence[np.ndarray]) -> np.ndarray:
    """Eight talkers at once, each saying random words without a pause."""
    audio = np.zeros(_SAMPLES)
    for _ in range(_BABBLERS):
        place = -int(rng.integers(0, SAMPLE_RATE))
        while place < _SAMPLES:
            word = speech[int(rng.integers(len(speech)))].astype(np.float64)
            word = word[max(0, -place) : _SAMPLES - place]
            begin = max(0, place)
            audio[begin : begin + len(word)] += word
            place = begin + int(rng.uniform(0.5, 0.8) * SAMPLE_RATE)
    return audio


_MAKERS = {
    "white": lambda rng: _coloured(rng, 0.0),
    "pink": lambda rng: _coloured(rng, 1.0),
    "brown": lambda rng: _coloured(rng, 2.0),
    "hum": _hum,
    "crackle": _crackle,
    "gusts": _gusts,
    "siren": _siren,
}
