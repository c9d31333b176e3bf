"""Noise from folders, divided by recording: what the test hears, training never does.

A kind of noise is a folder, or a file where files lie directly in the folder that is
given. A kind with several recordings is divided by recording; of a kind's only one,
training has the first seconds and the test the last, with a clip's length between that
neither hears. What belongs to one recording is told by its name (`noise_names`) and by
its sound (`copies`). The division that WHAM! has (tr/, cv/, tt/ in any folder) is kept:
tt is the test.
"""

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path, PurePosixPath

import numpy as np

from kws_jax.condition_names import SEEN, UNSEEN
from kws_jax.data import copies
from kws_jax.data.audio_files import CorruptAudioError, seconds_of
from kws_jax.data.corpus import (
    CLIP_SAMPLES,
    SAMPLE_RATE,
    TEST,
    TRAIN,
    VALIDATION,
    Recording,
)
from kws_jax.data.folder import read_noise_folder
from kws_jax.data.noise import NoiseBank, check_sound, sounds
from kws_jax.data.noise_names import is_channel, kinds_and_recordings
from kws_jax.data.sounding import power
from kws_jax.data.splits import hash_order, held_out, powers_of_wholes
from kws_jax.errors import UserError

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
      UserError: a setting out of range, folders that cannot be used, or that share
        recordings with each other or with the background that training hears.
    """
    if not 0 <= test_fraction < 1:
        raise UserError(
            f"config.data.noise_test_fraction = {test_fraction}: give 0 or more, and "
            "less than 1."
        )
    if not hours > 0:
        raise UserError(f"config.data.noise_hours = {hours}: give a number above 0.")
    named = {
        kind: _read(folders, kind, hours) for kind in (SEEN, UNSEEN) if folders[kind]
    }
    _check_apart(named, background.get(TRAIN) or ())
    if folders[SEEN]:
        training, seen = divide(named[SEEN], test_fraction)
        if test_fraction and not seen:
            _tell(
                f"config.data.noise_seen: {folders[SEEN]} leaves nothing for the test, "
                "so there is no test in seen noise. Add a recording of three seconds "
                "or more, with sound at its end, or a second one of a kind"
            )
    else:
        powers = powers_of_wholes(background)
        training = _sounding(from_source.get(SEEN, ()), powers, "training")
        kept = background.get(TEST) or background.get(VALIDATION) or ()
        seen = _sounding(kept, powers, "the test") if training else []
    unseen = named[UNSEEN] if folders[UNSEEN] else list(from_source.get(UNSEEN, ()))
    banks = {
        kind: (recordings, NoiseBank.from_recordings(recordings))
        for kind, recordings in (("", training), (SEEN, seen), (UNSEEN, unseen))
        if recordings
    }
    _tell_silence(banks.values())
    tests = {kind: bank for kind, (_, bank) in banks.items() if kind}
    return (banks[""][1] if training else None), tests


def divide(
    recordings: Sequence[Recording], test_fraction: float
) -> tuple[list[Recording], list[Recording]]:
    """Recordings, or parts of them, for training and for the test.

    Recordings that hold the same sound are divided as one. A kind's only recording is
    for training alone where it is in several files, is shorter than three clips,
    repeats itself, or where one part would be silent; that is told on standard error.

    Raises:
      UserError: the folders' own division gives one sound to both.
    """
    if test_fraction == 0:
        return list(recordings), []
    marks = {recording.name: copies.marks(recording.audio) for recording in recordings}
    test_names, lone, in_pieces = _division(marks, test_fraction)
    _check_parts(marks, test_names, lone)
    test = [r for r in recordings if r.name in test_names]
    training: list[Recording] = []
    undivided: dict[str, list[str]] = defaultdict(list)
    for recording in recordings:
        parts = _cut(recording, test_fraction) if recording.name in lone else ""
        if isinstance(parts, tuple):
            training.append(parts[0])
            test.append(parts[1])
        elif recording.name not in test_names:
            training.append(recording)
            undivided[parts].append(recording.name)
    undivided.pop("", None)
    for pieces in in_pieces:
        listed = f"{pieces[0]} … {pieces[-1]} ({len(pieces)} files)"
        undivided["of one recording in several files"].append(listed)
    for why, listed_names in undivided.items():
        _tell(
            f"config.data.noise_seen: noise {why}, for training alone: "
            f"{', '.join(listed_names)}"
        )
    return training, test


def choose(root: Path, paths: Sequence[Path], hours: float) -> list[Path]:
    """The files to be read: whole recordings of every kind in turn, to `hours` at most.

    Within a kind, recordings come in the order of their hashes; one that does not fit
    any more is passed over. The order of the paths stays.
    """
    named = {path.relative_to(root).as_posix(): path for path in paths}
    told = kinds_and_recordings(named)
    groups: dict[str, list[str]] = defaultdict(list)
    for name, (_, recording) in told.items():
        if not (groups[recording] and is_channel(name)):
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


def _division(
    marks: Mapping[str, Set[bytes]], fraction: float
) -> tuple[set[str], set[str], list[list[str]]]:
    """What goes to the test, and the kinds that are a single recording.

    Args:
      marks: of each file, as `copies.marks`.
      fraction: share of the recordings of each kind for the test.

    Returns:
      The files held out for the test; those that alone are all of their kind; and of
      each kind that is one recording in several files, these.
    """
    own_training, test = _own_division(marks)
    names = [name for name in marks if name not in own_training | test]
    told = _joined(kinds_and_recordings(names), marks)
    files: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, (kind, recording) in told.items():
        files[kind][recording].add(name)
    lone: set[str] = set()
    in_pieces: list[list[str]] = []
    for recordings in files.values():
        if len(recordings) > 1:
            test.update(*(recordings[r] for r in held_out(recordings, fraction)))
            continue
        (pieces,) = recordings.values()
        if len(pieces) == 1:
            lone |= pieces
        else:
            # They may overlap: they are not cut.
            in_pieces.append(sorted(pieces))
    return test, lone, in_pieces


def _joined(
    told: Mapping[str, tuple[str, str]], marks: Mapping[str, Set[bytes]]
) -> dict[str, tuple[str, str]]:
    """File -> kind and recording, those that share sound being one; this is told."""
    of_recording: dict[str, set[bytes]] = defaultdict(set)
    for name, (_, recording) in told.items():
        of_recording[recording] |= marks[name]
    same = copies.same_sound(of_recording)
    together: dict[str, list[str]] = defaultdict(list)
    for recording in of_recording:
        together[same[recording]].append(recording)
    listed = [" = ".join(group) for group in together.values() if len(group) > 1]
    if listed:
        _tell(
            "config.data.noise_seen: recordings that hold the same sound are divided "
            f"as one: {', '.join(listed)}"
        )
    kind_of = {recording: kind for kind, recording in told.values()}
    return {name: (kind_of[same[r]], same[r]) for name, (_, r) in told.items()}


def _check_parts(
    marks: Mapping[str, Set[bytes]], test: Set[str], lone: Set[str]
) -> None:
    """Raises UserError where training and test would hear one sound.

    That is left to the folders' own division, which `_joined` does not touch. What is
    cut in time (`lone`) is for both.
    """
    holders: dict[bytes, str] = {}
    for name in sorted(marks):
        for mark in marks[name]:
            other = holders.setdefault(mark, name)
            if (other in test, other in lone) != (name in test, name in lone):
                pair = " and ".join(
                    f"{own} ({_side(own, test, lone)})" for own in (other, name)
                )
                raise UserError(
                    f"config.data.noise_seen: {pair} hold the same sound, and the "
                    "division by folders (tr, cv, tt) is kept as it is. Remove one of "
                    "them"
                )


def _side(name: str, test: Set[str], lone: Set[str]) -> str:
    if name in lone:
        return "whose last seconds are for the test"
    return "for the test" if name in test else "for training"


def _cut(recording: Recording, fraction: float) -> tuple[Recording, Recording] | str:
    """Its parts for training and for the test, or what keeps it from being cut.

    A clip's length between them is left out: what sounds on across the border is not
    heard by both. The test gets at least a clip, and gives the gap as long as it can.
    """
    samples = len(recording.audio)
    border = min(samples - round(fraction * samples), samples - 2 * CLIP_SAMPLES)
    if border < CLIP_SAMPLES:
        return "too short to be divided"
    whole = power(recording.audio, CLIP_SAMPLES)
    first, last = (
        Recording(recording.name, part, whole)
        for part in (recording.audio[:border], recording.audio[border + CLIP_SAMPLES :])
    )
    if not (sounds(first) and sounds(last)):
        return "that would be silent in training or test"
    if copies.marks(first.audio) & copies.marks(last.audio):
        return "that repeats itself"
    return first, last


def _sounding(
    recordings: Sequence[Recording], powers: Mapping[str, float], where: str
) -> list[Recording]:
    """The background that sounds, told which power the whole of it has."""
    parts = [dataclasses.replace(r, power=powers.get(r.name)) for r in recordings]
    faint = [r.name for r in parts if r.power is not None and not sounds(r)]
    if faint:
        _tell(
            f"the part of the background for {where} is silent, and no noise: "
            f"{', '.join(faint)}"
        )
    return [recording for recording in parts if sounds(recording)]


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
    taken = [Recording(r.name, r.audio[:longest]) for r in recordings]
    # Before they are divided: what is silent is not too short.
    check_sound(taken, f"config.data.noise_{kind}: {directory}")
    return taken


def _is_clipped(audio: np.ndarray) -> bool:
    full = np.count_nonzero((audio == 32767) | (audio == -32768))
    return bool(full > _CLIPPED_SHARE * len(audio))


def _seconds(path: Path) -> float:
    """0 for what cannot be read, which is found when it is read."""
    try:
        return seconds_of(path)
    except CorruptAudioError:
        return 0.0


def _check_apart(
    named: Mapping[str, Sequence[Recording]], background: Sequence[Recording]
) -> None:
    """Raises UserError where a recording is in both folders, or training's background.

    Recordings are told by how they sound (`copies`), not by their files' names.
    """
    heard = frozenset().union(*(copies.marks(r.audio) for r in background))
    others = {
        SEEN: "the background that training may hear",
        UNSEEN: "what training may hear (data.noise_seen, the source's background)",
    }
    for kind, other in others.items():
        marks = {r.name: copies.marks(r.audio) for r in named.get(kind, ())}
        shared = [name for name, own in marks.items() if own & heard]
        if shared:
            raise UserError(
                f"config.data.noise_{kind} shares {shared[0]} ({len(shared)} "
                f"recordings in all) with {other}, so that the test would hear it too. "
                "Give a folder without them, or none: the source's own background is "
                "divided for training and test"
            )
        heard = heard.union(*marks.values())


def _tell_silence(
    banks: Iterable[tuple[Sequence[Recording], NoiseBank]],
) -> None:
    shares: dict[str, float] = {}
    for recordings, bank in banks:
        for recording, share in zip(recordings, bank.silent_shares.tolist()):
            shares[recording.name] = max(share, shares.get(recording.name, 0.0))
    silent = sorted((n for n in shares if shares[n] >= 0.01), key=lambda n: -shares[n])
    if silent:
        shown = ", ".join(f"{name} ({100 * shares[name]:.0f} %)" for name in silent[:5])
        more = f", … {len(silent)} recordings" if len(silent) > 5 else ""
        _tell(f"seconds of noise that are silent are left out: {shown}{more}")


def _tell(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
