"""Noise from folders, divided by recording: what the test hears, training never does.

A kind of noise is a folder, or a file where files lie directly in the folder that is
given. A kind with several recordings is divided by recording; of a kind's only one,
training has the first seconds and the test the last, with a clip's length between that
neither hears. What belongs to one recording is told by the names that these data sets
have:

    UrbanSound8K   FSID-CLASS-OCCURRENCE-SLICE.wav     recording FSID, kind CLASS
    ESC-50         FOLD-CLIP-TAKE-CLASS.wav            recording CLIP, kind CLASS
    DCASE (TAU)    SCENE-CITY-LOCATION-SEGMENT-DEVICE  recording SCENE-CITY-LOCATION
    DCASE (TUT)    a001_0_10.wav                       recording a001
    DEMAND         PLACE/ch01.wav … PLACE/ch16.wav     recording PLACE: 16 microphones
                                                       heard it, the first is taken
    WHAM!          tr/, cv/, tt/ in any folder         its own division: tt is the test
    MUSAN, NOISEX-92 and all others                    a file is a recording
"""

import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from kws_jax.data.audio_files import CorruptAudioError, find_audio, seconds_of
from kws_jax.data.corpus import (
    CLIP_SAMPLES,
    SAMPLE_RATE,
    TEST,
    VALIDATION,
    Recording,
)
from kws_jax.data.folder import read_noise_folder
from kws_jax.data.noise import NoiseBank
from kws_jax.data.splits import hash_order, held_out
from kws_jax.errors import UserError

SEEN, UNSEEN = "seen", "unseen"
_CHANNEL = re.compile(r"ch\d\d")
_NAMES = (
    re.compile(r"(?P<recording>\d+)-(?P<kind>\d+)-\d+-\d+"),
    re.compile(r"\d-(?P<recording>\d+)-[A-Z]-(?P<kind>\d+)"),
    re.compile(r"(?P<recording>(?P<kind>[a-z_]+)-[a-z]+-\d+)-\d+(-[a-z]\d*)?"),
    re.compile(r"(?P<recording>[ab]\d{3})_\d+_\d+"),
)
_OWN_TRAINING, _OWN_TEST = ("tr", "cv"), "tt"
_CLIPPED_SHARE = 1e-3


def open_noise(
    folders: Mapping[str, str],
    from_source: Mapping[str, Sequence[Recording]],
    background: Mapping[str, Sequence[Recording]],
    *,
    test_fraction: float,
    hours: float,
) -> tuple[NoiseBank | None, dict[str, NoiseBank]]:
    """The noise that training may hear, and that of the tests under SEEN and UNSEEN.

    Args:
      folders: under SEEN and UNSEEN, or "" for what the source of speech has.
      from_source: that, as in `Corpus.noise`: SEEN is the background of training.
      background: `Corpus.background`: what was held out there for the test, or else
        for validation, is the test's seen noise where the source's is taken.
      test_fraction: share of the seen folder's recordings, or seconds, for the test.
      hours: at most so many of each folder.

    Raises:
      UserError: a setting out of range, folders that cannot be used or share files.
    """
    if not 0 <= test_fraction < 1:
        raise UserError(
            f"config.data.noise_test_fraction = {test_fraction}: give 0 or more, and "
            "less than 1."
        )
    if not hours > 0:
        raise UserError(f"config.data.noise_hours = {hours}: give a number above 0.")
    _check_apart(folders)
    if folders[SEEN]:
        training, seen = divide(_read(folders, SEEN, hours), test_fraction)
    else:
        training = list(from_source.get(SEEN, ()))
        kept = background.get(TEST) or background.get(VALIDATION) or ()
        seen = [r for r in kept if np.any(r.audio)] if training else []
    if folders[UNSEEN]:
        unseen = _read(folders, UNSEEN, hours)
    else:
        unseen = list(from_source.get(UNSEEN, ()))
    tests = {SEEN: seen, UNSEEN: unseen}
    banks = {k: NoiseBank.from_recordings(r) for k, r in tests.items() if r}
    return (NoiseBank.from_recordings(training) if training else None), banks


def divide(
    recordings: Sequence[Recording], test_fraction: float
) -> tuple[list[Recording], list[Recording]]:
    """Recordings, or parts of them, for training and for the test.

    A kind's only recording is for training alone where it is in several files, is
    shorter than three clips, or where one part would be silent.
    """
    if test_fraction == 0:
        return list(recordings), []
    names = [recording.name for recording in recordings]
    test_names, lone = _test_and_lone(names, test_fraction)
    training = [r for r in recordings if r.name not in test_names]
    test = [r for r in recordings if r.name in test_names]
    kept: list[Recording] = []
    uncut: list[Recording] = []
    for recording in training:
        if recording.name in lone:
            first, last = _cut(recording, test_fraction)
            kept.append(first)
            (test if last else uncut).append(last or recording)
        else:
            kept.append(recording)
    if uncut:
        listed = ", ".join(recording.name for recording in uncut)
        _tell(f"noise too short to be divided, for training alone: {listed}")
    return kept, test


def kinds_and_recordings(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """File name (a path with /) -> its kind and its recording.

    All files of a recording have the kind of the first of them by name.
    """
    told = {name: _kind_and_recording(PurePosixPath(name)) for name in sorted(names)}
    kind_of: dict[str, str] = {}
    for kind, recording in told.values():
        kind_of.setdefault(recording, kind)
    return {name: (kind_of[r], r) for name, (_, r) in told.items()}


def choose(root: Path, paths: Sequence[Path], hours: float) -> list[Path]:
    """The files to be read: whole recordings of every kind in turn, to `hours` at most.

    Within a kind, recordings come in the order of their hashes; one that does not fit
    any more is passed over. The order of the paths stays.
    """
    named = {path.relative_to(root).as_posix(): path for path in paths}
    told = kinds_and_recordings(named)
    groups: dict[str, list[str]] = defaultdict(list)
    for name, (_, recording) in told.items():
        if not (groups[recording] and _CHANNEL.fullmatch(PurePosixPath(name).stem)):
            groups[recording].append(name)
    seconds = {g: sum(_seconds(named[n]) for n in group) for g, group in groups.items()}
    taken: set[str] = set()
    left = 3600 * hours
    for recording in _in_turn({r: kind for kind, r in told.values()}):
        # A first one that is too long is cut when it is read.
        if seconds[recording] <= left or not taken:
            taken.update(groups[recording])
            left -= seconds[recording]
    total = sum(seconds.values())
    if total > 3600 * hours:
        _tell(
            f"{root}: {len(taken)} of {len(named)} files are taken, at most "
            f"{hours:g} of {total / 3600:.1f} hours (config.data.noise_hours)"
        )
    return [path for name, path in named.items() if name in taken]


def _kind_and_recording(path: PurePosixPath) -> tuple[str, str]:
    folder = path.parent.as_posix()
    if _CHANNEL.fullmatch(path.stem):
        return folder, folder
    for form in _NAMES:
        match = form.fullmatch(path.stem)
        if match:
            found = match.groupdict()
            return found.get("kind", folder), found["recording"]
    name = path.as_posix()
    return (name if folder == "." else folder), name


def _in_turn(kind_of: Mapping[str, str]) -> list[str]:
    """The first recording of each kind by its hash, then the second of each …"""
    place: dict[str, int] = defaultdict(int)
    keyed = []
    for recording in hash_order(kind_of):
        kind = kind_of[recording]
        keyed.append((place[kind], kind, recording))
        place[kind] += 1
    return [recording for _, _, recording in sorted(keyed)]


def _own_division(names: Iterable[str]) -> tuple[set[str], set[str]]:
    """The files that a data set's own folders give to training, and to the test.

    Neither has what lies beside these folders: tr and tt, and cv, in one folder.
    """
    held: dict[PurePosixPath, dict[str, set[str]]] = defaultdict(dict)
    for name in names:
        folder = PurePosixPath(name).parent
        held[folder.parent].setdefault(folder.name, set()).add(name)
    training: set[str] = set()
    test: set[str] = set()
    for parts in held.values():
        if {_OWN_TRAINING[0], _OWN_TEST} <= parts.keys():
            training.update(*(parts.get(part, ()) for part in _OWN_TRAINING))
            test |= parts[_OWN_TEST]
    return training, test


def _test_and_lone(names: Sequence[str], fraction: float) -> tuple[set[str], set[str]]:
    """The files held out for the test, and those that alone are all of their kind."""
    own_training, test = _own_division(names)
    names = [name for name in names if name not in own_training | test]
    told = kinds_and_recordings(names)
    files: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, (kind, recording) in told.items():
        files[kind][recording].add(name)
    lone: set[str] = set()
    for recordings in files.values():
        if len(recordings) > 1:
            test.update(*(recordings[r] for r in held_out(recordings, fraction)))
        else:
            # Several pieces of one recording may overlap: they are not cut.
            lone.update(*(piece for piece in recordings.values() if len(piece) == 1))
    return test, lone


def _cut(recording: Recording, fraction: float) -> tuple[Recording, Recording | None]:
    """Its parts for training and for the test; itself and None if it is too short.

    A clip's length between them is left out: what sounds on across the border is not
    heard by both. The test gets at least a clip, and gives the gap as long as it can.
    """
    samples = len(recording.audio)
    border = min(samples - round(fraction * samples), samples - 2 * CLIP_SAMPLES)
    if border < CLIP_SAMPLES:
        return recording, None
    parts = [recording.audio[:border], recording.audio[border + CLIP_SAMPLES :]]
    if not all(map(np.any, parts)):
        return recording, None
    first, last = (Recording(recording.name, part) for part in parts)
    return first, last


def _read(folders: Mapping[str, str], kind: str, hours: float) -> list[Recording]:
    directory = folders[kind]
    try:
        recordings = read_noise_folder(
            directory, lambda root, paths: choose(root, paths, hours)
        )
    except UserError as error:
        raise UserError(f"config.data.noise_{kind}: {error}") from error
    longest = round(3600 * hours * SAMPLE_RATE)
    clipped = [r.name for r in recordings if _is_clipped(r.audio)]
    if clipped:
        _tell(f"clipped noise in {directory}, taken as it is: {', '.join(clipped)}")
    return [Recording(r.name, r.audio[:longest]) for r in recordings]


def _is_clipped(audio: np.ndarray) -> bool:
    full = np.count_nonzero((audio == 32767) | (audio == -32768))
    return bool(full > _CLIPPED_SHARE * len(audio))


def _seconds(path: Path) -> float:
    """0 for what cannot be read, which is found when it is read."""
    try:
        return seconds_of(path)
    except CorruptAudioError:
        return 0.0


def _check_apart(folders: Mapping[str, str]) -> None:
    """Raises UserError where a file is in both folders."""
    if not all(map(os.path.isdir, folders.values())):
        return
    files = [
        set(map(os.path.realpath, find_audio(folder, recursive=True)))
        for folder in folders.values()
    ]
    shared = sorted(set.intersection(*files))
    if shared:
        raise UserError(
            f"config.data.noise_seen and config.data.noise_unseen share {shared[0]} "
            f"({len(shared)} files in all): noise cannot be both. Give two folders "
            "with no file in common"
        )


def _tell(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
