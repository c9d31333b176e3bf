"""Audio files of any kind as int16 mono at 16 kHz."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from kws_jax.data.corpus import SAMPLE_RATE
from kws_jax.errors import UserError

AUDIO_SUFFIXES = tuple(
    f".{name}"
    for name in ("wav", "flac", "ogg", "mp3")
    if name.upper() in soundfile.available_formats()
)

# Programs that write to a pipe announce a length near the largest.
_UNKNOWN_LENGTH = 0x7FFFF000


class CorruptAudioError(UserError):
    """A file that is missing, empty, damaged or no audio; `reason` tells which."""

    def __init__(self, name: str, reason: str):
        self.reason = reason.strip().rstrip(".")
        super().__init__(
            f"{name} cannot be read as audio: {self.reason}. Expected one of "
            f"{', '.join(AUDIO_SUFFIXES)}; replace the file or remove it"
        )


def read_audio(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads one file: int16 [samples], mono, at 16 kHz.

    Several channels are averaged, other sample rates are resampled with soxr. Mono
    16-bit files at 16 kHz come out sample by sample as they are.

    Raises:
      CorruptAudioError: the file is missing, empty, damaged or no audio.
    """
    try:
        os.stat(path)
        return decode_audio(os.fspath(path), str(path))
    except OSError as error:
        raise CorruptAudioError(str(path), str(error.strerror)) from error


def read_first_channel(path: str | os.PathLike[str]) -> np.ndarray:
    """The first channel of a file: float32 [samples] at 16 kHz, full scale at 1.

    Not rounded to int16, which would lose the end of a decay. Other sample rates are
    resampled with soxr.

    Raises:
      CorruptAudioError: the file is missing, empty, damaged or no audio.
    """
    try:
        os.stat(path)
        audio, rate = _decode(os.fspath(path), str(path))
    except OSError as error:
        raise CorruptAudioError(str(path), str(error.strerror)) from error
    full_scale = 2.0**15 if audio.dtype == np.int16 else 1.0
    channel = audio[:, 0].astype(np.float32) / np.float32(full_scale)
    return channel if rate == SAMPLE_RATE else soxr.resample(channel, rate, SAMPLE_RATE)


def decode_audio(file: str | BinaryIO, name: str) -> np.ndarray:
    """As `read_audio`, also from a file inside an archive; `name` is for the errors."""
    audio, rate = _decode(file, name)
    exact = audio.dtype == np.int16
    if exact and rate == SAMPLE_RATE and audio.shape[1] == 1:
        return audio[:, 0]
    mono = audio.mean(axis=1, dtype=np.float32) * (1.0 if exact else 2.0**15)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    return np.clip(np.rint(mono), -(2**15), 2**15 - 1).astype(np.int16)


def _decode(file: str | BinaryIO, name: str) -> tuple[np.ndarray, int]:
    """Samples [t, channels] and the sample rate; int16 for 16-bit files, else float32.

    Raises CorruptAudioError for what is no whole audio file.
    """
    try:
        announced, there = _wav_bytes(file)
        if announced > there:
            raise CorruptAudioError(
                name, f"it ends after {there} of {announced} bytes of audio"
            )
        with soundfile.SoundFile(file) as sound:
            exact = sound.subtype == "PCM_16"
            expected, rate = sound.frames, sound.samplerate
            audio = sound.read(dtype="int16" if exact else "float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise CorruptAudioError(
            name, getattr(error, "error_string", str(error))
        ) from error
    if not len(audio):
        raise CorruptAudioError(name, "it holds no samples")
    if len(audio) < expected:
        raise CorruptAudioError(
            name, f"it ends after {len(audio)} of {expected} samples"
        )
    if not np.isfinite(audio).all():
        raise CorruptAudioError(name, "some samples are not finite numbers")
    return audio, rate


def seconds_of(path: str | os.PathLike[str]) -> float:
    """Length of an audio file.

    Raises:
      CorruptAudioError: the file is missing, empty, damaged or no audio.
    """
    try:
        os.stat(path)
        return float(soundfile.info(str(path)).duration)
    except OSError as error:
        raise CorruptAudioError(str(path), str(error.strerror)) from error
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise CorruptAudioError(
            str(path), getattr(error, "error_string", str(error))
        ) from error


def audio_blocks(
    path: str | os.PathLike[str], seconds: float = 10.0
) -> Iterator[np.ndarray]:
    """A long recording in pieces of about `seconds`: int16 [n], mono, at 16 kHz.

    As `read_audio`, but no more than a piece is in memory.

    Raises:
      CorruptAudioError: the file is missing, empty, damaged or no audio.
    """
    name = str(path)
    try:
        announced, there = _wav_bytes(name)
        if announced > there:
            raise CorruptAudioError(
                name, f"it ends after {there} of {announced} bytes of audio"
            )
        with soundfile.SoundFile(name) as sound:
            if not sound.frames:
                raise CorruptAudioError(name, "it holds no samples")
            yield from _resampled(sound, max(1, round(seconds * sound.samplerate)))
    except OSError as error:
        raise CorruptAudioError(name, str(error.strerror)) from error
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise CorruptAudioError(
            name, getattr(error, "error_string", str(error))
        ) from error


def _resampled(sound: soundfile.SoundFile, frames: int) -> Iterator[np.ndarray]:
    """The rest of an open file, `frames` of it at a time."""
    rate = sound.samplerate
    stream = None
    if rate != SAMPLE_RATE:
        stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    exact = sound.subtype == "PCM_16"
    done = 0
    while done < sound.frames:
        piece = sound.read(
            frames, dtype="int16" if exact else "float32", always_2d=True
        )
        if not len(piece):
            raise CorruptAudioError(
                sound.name, f"it ends after {done} of {sound.frames} samples"
            )
        if not np.isfinite(piece).all():
            raise CorruptAudioError(sound.name, "some samples are not finite numbers")
        done += len(piece)
        mono = piece.mean(axis=1, dtype=np.float32) * (1.0 if exact else 2.0**15)
        if stream is not None:
            mono = stream.resample_chunk(mono, last=done >= sound.frames)
        yield np.clip(np.rint(mono), -(2**15), 2**15 - 1).astype(np.int16)


def _wav_bytes(file: str | BinaryIO) -> tuple[int, int]:
    """Bytes of audio that a RIFF WAV file announces, and how many of them are there.

    libsndfile takes what is there for the whole. Zeros for every other kind of file,
    and for a WAV that was written to a pipe, whose writer could not know its length.
    """
    if isinstance(file, str):
        with open(file, "rb") as opened:
            return _wav_bytes(opened)
    start = file.tell()
    size = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    header = file.read(12)
    announced = there = 0
    if header[:4] == b"RIFF" and header[8:] == b"WAVE":
        place = 12
        while len(chunk := file.read(8)) == 8:
            length = int.from_bytes(chunk[4:], "little")
            place += 8
            if chunk[:4] == b"data":
                if 0 < length < _UNKNOWN_LENGTH:
                    announced, there = length, min(length, size - place)
                break
            place += length + length % 2
            file.seek(start + place)
    file.seek(start)
    return announced, there


def find_audio(
    folder: str | os.PathLike[str], *, recursive: bool = False
) -> list[Path]:
    """The audio files in `folder` by suffix, sorted by path; hidden ones left out.

    With `recursive`, the files of all folders below it too.
    """
    found = Path(folder).rglob("*") if recursive else Path(folder).iterdir()
    return sorted(path for path in found if is_audio(path.name))


def is_audio(name: str) -> bool:
    """Whether a file of this name is taken for audio."""
    return name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith(".")
