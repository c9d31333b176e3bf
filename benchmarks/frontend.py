"""Times the front ends on a batch of audio: `python -m benchmarks.frontend`."""

import importlib.util
from typing import Any

import numpy as np

from benchmarks import command
from benchmarks.command import JAX, TORCH, Call, Session

NAMES = ("mfcc", "log_mel")
LIBROSA = "librosa"


def measure(session: Session, chosen: list[str]) -> None:
    """Each chosen front end: ours, its twin, librosa's nearest relative."""
    from benchmarks import steps

    has_librosa = importlib.util.find_spec("librosa") is not None
    if not has_librosa:
        session.console.print("librosa is not installed: its rows are left out.")
    audio = steps.random_audio(session.options.batch)
    for name in chosen:
        call, work = steps.features_of(name, audio)
        calls: dict[str, Call] = {JAX: call}
        if session.has_twins:
            from benchmarks.twins import steps as twin_steps

            calls[TORCH] = twin_steps.features_of(name, audio)
        if has_librosa:
            calls[LIBROSA] = _librosa(name, audio)
        session.time(name, calls, work, clips=len(audio))


def _librosa(name: str, audio: np.ndarray) -> Call:
    """Features by librosa, of the same size; its conventions, and values, differ."""
    import librosa

    windows = {"mfcc": (480, 80, 7600), "log_mel": (400, 20, 8000)}
    window, low_hz, high_hz = windows[name]
    y = audio.astype(np.float32) / 32768
    settings: dict[str, Any] = {
        "y": y,
        "sr": 16_000,
        "n_fft": 512,
        "win_length": window,
        "hop_length": 160,
        "center": False,
        "n_mels": 64,
        "fmin": low_hz,
        "fmax": high_hz,
        "htk": True,
    }
    if name == "mfcc":
        return lambda: librosa.feature.mfcc(n_mfcc=40, **settings)
    return lambda: np.log(librosa.feature.melspectrogram(**settings) + 1e-6)


if __name__ == "__main__":
    command.run("frontend", NAMES, measure)
