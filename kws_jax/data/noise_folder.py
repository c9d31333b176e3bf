"""Noise from folders, divided by recording: what the test hears, training never does.

A kind of noise is a folder, or a file where files lie directly in the folder that is
given. A kind with several recordings is divided by recording; of a kind's only one,
training has the first seconds and the test the last, with a clip's length between that
neither hears. What belongs to one recording is told by its name (`noise_names`). The
division that WHAM! has (tr/, cv/, tt/ in any folder) is kept: tt is the test.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

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
from kws_jax.data.noise import NoiseBank, check_sound
from kws_jax.data.noise_names import is_channel, kinds_and_recordings
from kws_jax.data.splits import hash_order, held_out
from kws_jax.errors import UserError

SEEN, UNSEEN = "seen", "unseen"
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
        training = list(from_source.get(SEEN, ()))
        kept = background.get(TEST) or background.get(VALIDATION) or ()
        seen = [r for r in kept if np.any(r.audio)] if training else []
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

    A kind's only recording is for training alone where it is in several files, is
    shorter than three clips, or where one part would be silent; that is told on
    standard error.
    """
    if test_fraction == 0:
        return list(recordings), []
    names = [recording.name for recording in recordings]
    test_names, lone, in_pieces = _division(names, test_fraction)
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
    names: Sequence[str], fraction: float
) -> tuple[set[str], set[str], list[list[str]]]:
    """What goes to the test, and the kinds that are a single recording.

    Returns:
      The files held out for the test; those that alone are all of their kind; and of
      each kind that is one recording in several files, these.
    """
    own_training, test = _own_division(names)
    names = [name for name in names if name not in own_training | test]
    told = kinds_and_recordings(names)
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


def _cut(recording: Recording, fraction: float) -> tuple[Recording, Recording] | str:
    """Its parts for training and for the test, or what keeps it from being cut.

    A clip's length between them is left out: what sounds on across the border is not
    heard by both. The test gets at least a clip, and gives the gap as long as it can.
    """
    samples = len(recording.audio)
    border = min(samples - round(fraction * samples), samples - 2 * CLIP_SAMPLES)
    if border < CLIP_SAMPLES:
        return "too short to be divided"
    parts = [recording.audio[:border], recording.audio[border + CLIP_SAMPLES :]]
    if not all(map(np.any, parts)):
        return "that would be silent in training or test"
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

    Recordings are told by how they sound, not by their files' names.
    """
    heard = {_beginning(r.audio): r.name for r in background}
    others = {SEEN: "the background of training", UNSEEN: "what training hears"}
    for kind, other in others.items():
        recordings = named.get(kind, ())
        shared = [r.name for r in recordings if _beginning(r.audio) in heard]
        if shared:
            raise UserError(
                f"config.data.noise_{kind} shares {shared[0]} ({len(shared)} "
                f"recordings in all) with {other}, so that the test would hear it too. "
                "Give a folder without them, or none: the source's own background is "
                "divided for training and test"
            )
        heard |= {_beginning(r.audio): r.name for r in recordings}


def _beginning(audio: np.ndarray) -> bytes:
    """The first second of sound, which a recording and its first part share."""
    first = int(np.argmax(audio != 0))
    return audio[first : first + CLIP_SAMPLES].tobytes()


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
