"""Audio files of any kind as int16 mono at 16 kHz."""

import contextlib
import io
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

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
# Hz. Beyond them a header is damaged, and resampling would make gigabytes of a byte.
_RATES = (1_000, 768_000)
# Samples of all channels that are read at once.
_AT_ONCE = 2**21
# Full scales: what is louder is cut, for sums of it would not be finite.
_LOUDEST = 2.0**15
_TOO_SHORT = "it is too short for one sample at 16 kHz"


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
    return decode_audio(os.fspath(path), str(path))


def read_first_channel(path: str | os.PathLike[str]) -> np.ndarray:
    """The first channel of a file: float32 [samples] at 16 kHz, full scale at 1.

    Not rounded to int16, which would lose the end of a decay. Other sample rates are
    resampled with soxr.

    Raises:
      CorruptAudioError: the file is missing, empty, damaged or no audio.
    """
    with _opened(os.fspath(path), str(path)) as sound:
        rate = sound.samplerate
        pieces = [
            piece[:, 0].astype(np.float32) / np.float32(_full_scale(piece))
            for piece, _ in _pieces(sound, str(path))
        ]
    channel = np.concatenate(pieces)
    if rate != SAMPLE_RATE:
        channel = soxr.resample(channel, rate, SAMPLE_RATE)
    if not len(channel):
        raise CorruptAudioError(str(path), _TOO_SHORT)
    return channel


def decode_audio(file: str | BinaryIO, name: str) -> np.ndarray:
    """As `read_audio`, also from a file inside an archive; `name` is for the errors."""
    return np.concatenate(list(_blocks(file, name)))


def seconds_of(path: str | os.PathLike[str]) -> float:
    """Length of an audio file.

    Raises:
      CorruptAudioError: the file is missing, empty, damaged or no audio.
    """
    with _opened(os.fspath(path), str(path)) as sound:
        return float(sound.frames / sound.samplerate)


def audio_blocks(
    path: str | os.PathLike[str], seconds: float = 10.0
) -> Iterator[np.ndarray]:
    """A long recording in pieces of `seconds` at most: int16 [n], mono, at 16 kHz.

    Together they are what `read_audio` gives, but no more than a piece is in memory.

    Raises:
      CorruptAudioError: the file is missing, empty, damaged or no audio.
    """
    return _blocks(os.fspath(path), str(path), seconds)


def _blocks(
    file: str | BinaryIO, name: str, seconds: float = 10.0
) -> Iterator[np.ndarray]:
    """`audio_blocks` of a file that may be inside an archive."""
    given = 0
    with _opened(file, name) as sound:
        rate, stream = sound.samplerate, None
        if rate != SAMPLE_RATE:
            stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        for piece, last in _pieces(sound, name, seconds):
            block = _mono(piece, stream, last=last)
            given += len(block)
            yield block
    if not given:
        raise CorruptAudioError(name, _TOO_SHORT)


def _mono(
    piece: np.ndarray, stream: soxr.ResampleStream | None, *, last: bool
) -> np.ndarray:
    """int16 [n] of samples [t, channels], through the resampler if there is one."""
    exact = piece.dtype == np.int16
    if exact and stream is None and piece.shape[1] == 1:
        return piece[:, 0]
    mono = piece.mean(axis=1, dtype=np.float32) * (1.0 if exact else 2.0**15)
    if stream is not None:
        mono = stream.resample_chunk(mono, last=last)
    return np.clip(np.rint(mono), -(2**15), 2**15 - 1).astype(np.int16)


def _full_scale(piece: np.ndarray) -> float:
    return 2.0**15 if piece.dtype == np.int16 else 1.0


class _Content(io.BytesIO):
    """Bytes as libsndfile takes them: to before their beginning it moves in vain.

    An exception could not leave its call, and would be printed with a traceback.
    """

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file, but where there is no such place it stays."""
        with contextlib.suppress(ValueError, OverflowError):
            super().seek(offset, whence)
        return self.tell()


class _Sound(soundfile.SoundFile):
    """A file that is read from its beginning to its end, and moved in by nobody.

    Where it could move, soundfile does so after each piece, to where it is. Decoders of
    MP3 and Opus begin anew there, without what the frames before have left for them.
    """

    def seekable(self) -> bool:
        """False."""
        return False


@contextlib.contextmanager
def _opened(file: str | BinaryIO, name: str) -> Iterator[soundfile.SoundFile]:
    """An audio file whose header can be believed.

    Raises CorruptAudioError for what is no whole audio file, here and while it is read.
    """
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(file, str):
                # Pipes and devices never end.
                if not stat.S_ISREG(os.stat(file).st_mode):
                    raise CorruptAudioError(name, "it is no regular file")
                # Without a buffer, whose place is not that of the descriptor.
                file = stack.enter_context(open(file, "rb", buffering=0))
                announced, there = _wav_bytes(file)
                # By its descriptor: the name might say that it has no header.
                source: Any = file.fileno()
            else:
                source = file = _Content(file.read())
                announced, there = _wav_bytes(file)
            if announced > there:
                raise CorruptAudioError(
                    name, f"it ends after {there} of {announced} bytes of audio"
                )
            sound = stack.enter_context(_Sound(source, closefd=False))
            if not sound.frames:
                raise CorruptAudioError(name, "it holds no samples")
            if not _RATES[0] <= sound.samplerate <= _RATES[1]:
                raise CorruptAudioError(
                    name,
                    f"its sample rate is {sound.samplerate} Hz, not one of "
                    f"{_RATES[0]:,} to {_RATES[1]:,}",
                )
            yield sound
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CorruptAudioError(name, reason) from error
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise CorruptAudioError(
            name, getattr(error, "error_string", str(error))
        ) from error


def _pieces(
    sound: soundfile.SoundFile, name: str, seconds: float = 10.0
) -> Iterator[tuple[np.ndarray, bool]]:
    """The samples of an open file, [t, channels] at a time, and whether it ends there.

    int16 of 16-bit files, else float32. A header may announce any length, so no more is
    asked for at once than `_AT_ONCE` samples.
    """
    exact = sound.subtype == "PCM_16"
    frames = min(round(seconds * sound.samplerate), _AT_ONCE // sound.channels)
    done = 0
    while done < sound.frames:
        piece = sound.read(
            min(max(1, frames), sound.frames - done),
            dtype="int16" if exact else "float32",
            always_2d=True,
        )
        if not len(piece):
            raise CorruptAudioError(
                name, f"it ends after {done} of {sound.frames} samples"
            )
        done += len(piece)
        if not exact:
            if not np.isfinite(piece).all():
                raise CorruptAudioError(name, "some samples are not finite numbers")
            np.clip(piece, -_LOUDEST, _LOUDEST, out=piece)
        yield piece, done >= sound.frames


def _wav_bytes(file: BinaryIO) -> tuple[int, int]:
    """Bytes of audio that a RIFF WAV file announces, and how many of them are there.

    libsndfile takes what is there for the whole. Zeros for every other kind of file,
    and for a WAV that was written to a pipe, whose writer could not know its length.
    """
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

    With `recursive`, the files of all folders below it too; links to folders are not
    followed.

    Raises:
      UserError: a name that is no UTF-8, which could be written into no report.
    """
    found = Path(folder).rglob("*") if recursive else Path(folder).iterdir()
    paths = sorted(path for path in found if is_audio(path.name))
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the name of {str(path)!a} is no UTF-8. Rename the file or its folder"
            ) from error
    return paths


def find_files(paths: Iterable[str]) -> list[Path]:
    """The audio files that `paths` name; folders are searched.

    Raises:
      UserError: for a path that does not exist or a folder without audio.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        # Unlike Path.exists, this raises nothing for a name that is too long.
        if not os.path.exists(path):
            raise UserError(f"There is no file or folder {str(path)!r}.")
        files = find_audio(path, recursive=True) if os.path.isdir(path) else [path]
        if not files:
            raise UserError(f"The folder {str(path)!r} holds no audio files.")
        found += files
    return found


def is_audio(name: str) -> bool:
    """Whether a file of this name is taken for audio."""
    return name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith(".")
