"""What the names of noise files tell: of which kind they are, and of which recording.

UrbanSound8K   FSID-CLASS-OCCURRENCE-SLICE.wav     recording FSID, kind CLASS
ESC-50         FOLD-CLIP-TAKE-CLASS.wav            recording CLIP, kind CLASS
DCASE (TAU)    SCENE-CITY-LOCATION-SEGMENT-DEVICE  recording SCENE-CITY-LOCATION
DCASE (TUT)    a001_0_10.wav                       recording a001
DEMAND         PLACE/ch01.wav … PLACE/ch16.wav     recording PLACE: 16 microphones
                                                   heard it, the first is taken
MUSAN, NOISEX-92, WHAM! and all others             a file is a recording
"""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

_CHANNEL = re.compile(r"ch\d\d")
_NAMES = (
    # A class is one digit and the smallest FSID 344: dates, as 2024-03-01-1, are none.
    re.compile(r"(?P<recording>\d{3,})-(?P<kind>\d)-\d+-\d+"),
    re.compile(r"\d-(?P<recording>\d+)-[A-Z]-(?P<kind>\d+)"),
    re.compile(r"(?P<recording>(?P<kind>[a-z_]+)-[a-z]+-\d+)-\d+(-[a-z]\d*)?"),
    re.compile(r"(?P<recording>[ab]\d{3})_\d+_\d+"),
)


def is_channel(name: str) -> bool:
    """Whether a file is one microphone of several."""
    return bool(_CHANNEL.fullmatch(PurePosixPath(name).stem))


def kinds_and_recordings(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """File name (a path with /) -> its kind and its recording.

    All files of a recording have the kind of the first of them by name.
    """
    told = {name: _kind_and_recording(PurePosixPath(name)) for name in sorted(names)}
    kind_of: dict[str, str] = {}
    for kind, recording in told.values():
        kind_of.setdefault(recording, kind)
    return {name: (kind_of[r], r) for name, (_, r) in told.items()}


def _kind_and_recording(path: PurePosixPath) -> tuple[str, str]:
    folder = path.parent.as_posix()
    if is_channel(path.name):
        return folder, folder
    for form in _NAMES:
        match = form.fullmatch(path.stem)
        if match:
            found = match.groupdict()
            return found.get("kind", folder), found["recording"]
    name = path.as_posix()
    return (name if folder == "." else folder), name
