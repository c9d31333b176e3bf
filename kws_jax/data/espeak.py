"""Speech from the espeak-ng library of the wheel `espeakng-loader`, through ctypes.

espeak-ng keeps the phase of its oscillators and its random numbers from one word to the
next, and is one per process. So `speak` runs a fresh child process that says all its
words in order: the same requests give the same samples, whatever was said before. The
child is this module run as a program (`python -m kws_jax.data.espeak`): requests as
JSON on its standard input, and for each one a 4-byte length and the answer on its
output, int16 samples or the text of phonemes.
"""

import ctypes
import dataclasses
import importlib.metadata
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from kws_jax.errors import UserError

ESPEAK_RATE = 22_050
_PACKAGE = "espeakng-loader"
# Values of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_PARAMETERS = {"rate": 1, "pitch": 3, "pitch_range": 4}
_LENGTH = struct.Struct("<I")
# What espeak-ng writes for main, secondary and no stress, and around a word.
_STRESS = str.maketrans("", "", "',%= \n")


@dataclasses.dataclass(frozen=True)
class Utterance:
    """What is said and how.

    Attributes:
      text: English text.
      accent: name of an espeak-ng voice, such as "en-us".
      variant: name of an espeak-ng voice variant, such as "f3".
      rate: words a minute, 80 to 450.
      pitch: 0 to 99, 50 is the variant's own.
      pitch_range: 0 (monotone) to 99.
    """

    text: str
    accent: str
    variant: str
    rate: int = 175
    pitch: int = 50
    pitch_range: int = 50


def version() -> str:
    """Version of the espeak-ng wheel, part of what decides the samples.

    Raises:
      UserError: the wheel is not installed.
    """
    try:
        return importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise _unusable("it is not installed") from error


def speak(utterances: Sequence[Utterance]) -> Iterator[np.ndarray]:
    """Says the utterances in order; a pure function of the whole list.

    Yields:
      int16 [samples] at ESPEAK_RATE for each utterance.

    Raises:
      UserError: espeak-ng cannot be loaded, or does not know a voice.
    """
    for answer in _ask([dataclasses.asdict(u) for u in utterances]):
        yield np.frombuffer(answer, "<i2")


def pronounce(words: Sequence[str], accents: Sequence[str]) -> list[list[str]]:
    """The phonemes of each word in each accent, without stress: [accents][words].

    Raises:
      UserError: espeak-ng cannot be loaded, or does not know an accent.
    """
    requests = [{"spell": word, "accent": a} for a in accents for word in words]
    answers = [answer.decode().translate(_STRESS) for answer in _ask(requests)]
    return [answers[i : i + len(words)] for i in range(0, len(answers), len(words))]


def _ask(requests: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    """The answers of a child process to the requests, in order."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with (
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryFile() as messages,
    ):
        asked.write(json.dumps(requests).encode())
        asked.seek(0)
        with subprocess.Popen(
            [sys.executable, "-m", "kws_jax.data.espeak"],
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=messages,
            env={**os.environ, "PYTHONPATH": path},
        ) as child:
            assert child.stdout is not None
            try:
                for _ in requests:
                    yield _receive(child.stdout)
            except EOFError as error:
                child.wait()
                messages.seek(0)
                lines = messages.read().decode(errors="replace").strip().splitlines()
                raise _unusable(lines[-1] if lines else "it ended early") from error
            finally:
                child.kill()


def _receive(stream: IO[bytes]) -> bytes:
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(header)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _unusable(reason: str) -> UserError:
    return UserError(
        f"espeak-ng, which makes the synthetic speech, cannot be used: {reason}."
        f" Install it with `pip install {_PACKAGE}`, or take real speech with"
        " --config.data.source=folder or tfds."
    )


class _Library:
    """The loaded library; one per process."""

    def __init__(self) -> None:
        import espeakng_loader

        self._voices = Path(espeakng_loader.get_data_path())
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = os.fsencode(self._voices)
        if self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT) <= 0:
            raise OSError(f"espeak-ng does not find its voices in {self._voices}")
        # Both of its generators: its own is seeded with the time of day, and the
        # breath of some voices comes from C's.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)
        self._pieces: list[bytes] = []
        # ctypes does not keep a callback alive; this attribute does.
        self._callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
        )(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: int | None, count: int, events: int | None) -> int:
        del events
        if samples and count > 0:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    def say(self, request: dict[str, Any]) -> bytes:
        """The int16 samples of one utterance."""
        accent, variant = request["accent"], request["variant"]
        # An unknown variant would be ignored silently, and speak as the plain voice.
        if not (self._voices / "voices" / "!v" / variant).is_file():
            raise ValueError(f"it has no voice variant {variant!r}")
        if self._library.espeak_SetVoiceByName(f"{accent}+{variant}".encode()):
            raise ValueError(f"it has no voice {accent!r}")
        for name, number in _PARAMETERS.items():
            self._library.espeak_SetParameter(number, int(request[name]), 0)
        self._pieces.clear()
        text = request["text"].encode() + b"\0"
        size = ctypes.c_size_t(len(text))
        if self._library.espeak_Synth(text, size, 0, 0, 0, _UTF8, None, None):
            raise ValueError(f"it cannot say {request['text']!r}")
        return b"".join(self._pieces)

    def spell(self, request: dict[str, Any]) -> bytes:
        """The phonemes of a text."""
        if self._library.espeak_SetVoiceByName(request["accent"].encode()):
            raise ValueError(f"it has no voice {request['accent']!r}")
        translate = self._library.espeak_TextToPhonemes
        translate.restype = ctypes.c_char_p
        rest = ctypes.c_char_p(request["spell"].encode())
        clauses = []
        while rest.value is not None:
            clauses.append(translate(ctypes.byref(rest), _UTF8, 0) or b"")
        return b" ".join(clauses)


def _serve() -> None:
    """The child process: says what standard input asks for."""
    # What the library itself may print must not come between the samples.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = json.load(sys.stdin)
    try:
        library = _Library()
        for request in requests:
            answer = library.spell if "spell" in request else library.say
            content = answer(request)
            output.write(_LENGTH.pack(len(content)) + content)
        output.flush()
    except (AttributeError, ImportError, OSError, ValueError) as error:
        output.flush()
        sys.exit(str(error))


if __name__ == "__main__":
    _serve()
