"""Speech in a folder: the layout of Speech Commands, or any WORD/*.wav|flac|ogg|mp3.

    DIR/WORD/SPEAKER_nohash_N.wav    clips; any name, this form tells the speaker
    DIR/_background_noise_/*.wav     long recordings, if there are any
    DIR/validation_list.txt          one WORD/FILE a line; both lists, or none
    DIR/testing_list.txt

The folder is prepared once into a store under the cache folder. The store is named
after the content of the files, so any change in the folder makes a new one.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kws_jax import runtime
from kws_jax.condition_names import SEEN, UNSEEN
from kws_jax.data import store
from kws_jax.data.audio_files import (
    AUDIO_SUFFIXES,
    CorruptAudioError,
    find_audio,
    read_audio,
)
from kws_jax.data.corpus import CLIP_SAMPLES, TRAIN, Corpus, Recording
from kws_jax.data.splits import (
    TEST_LIST,
    VALIDATION_LIST,
    divide_background,
    speaker_of,
    split_by_lists,
    which_set,
)
from kws_jax.errors import UserError

BACKGROUND_FOLDER = "_background_noise_"
_THREADS = 4
# Clips decoded ahead of the one that is written: bounds the memory.
_CHUNK = 512


def open_folder(
    directory: str | os.PathLike[str],
    *,
    cache_dir: str = "",
    skip_corrupt: bool = False,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    progress: store.Progress | None = None,
) -> Corpus:
    """Opens a folder of words; the first time it is prepared into a store.

    Splits come from the two lists where the folder has them, else from `which_set`: for
    file names with `_nohash_` and fractions of 0.1 that is Google's rule to the letter.
    The background recordings are divided by `divide_background`; those of the training
    split are also the corpus's "seen" noise, and there is no "unseen" noise.

    Args:
      directory: the folder.
      cache_dir: where stores are kept, see `runtime.cache_root`.
      skip_corrupt: leave out files that cannot be read (they are logged) instead of
        raising an error.
      validation_fraction: share of the speakers (or files) for validation.
      test_fraction: share of the speakers (or files) for testing.
      progress: called with (clips done, all clips) while the store is written.

    Raises:
      UserError: the folder, a word's clips, or one of the two lists is missing; files
        cannot be read; a fraction is out of range; the disk is full.
    """
    if min(validation_fraction, test_fraction) < 0 or (
        validation_fraction + test_fraction >= 1
    ):
        raise UserError(
            "config.data.validation_fraction and config.data.test_fraction must be 0 "
            "or more and together below 1, not "
            f"{validation_fraction} and {test_fraction}"
        )
    listing = _list_folder(Path(directory))
    fractions = (validation_fraction, test_fraction)
    path = _store_path(listing, fractions, runtime.cache_root(cache_dir))
    if not os.path.exists(path):
        _prepare(listing, path, fractions, skip_corrupt, progress)
    skipped = store.read_meta(path)["skipped"]
    if skipped and not skip_corrupt:
        raise _corrupt_error(listing.root, skipped)
    if skipped:
        told = _corrupt_text(listing.root, skipped)
        print(f"warning: audio files skipped:{told}", file=sys.stderr)
    return store.open_store(path)


def read_noise_folder(
    directory: str | os.PathLike[str],
    choose: Callable[[Path, Sequence[Path]], Sequence[Path]] = lambda root, paths: (
        paths
    ),
) -> list[Recording]:
    """All audio files in `directory` and below, in the order of their paths.

    Args:
      directory: the folder.
      choose: the folder, the files found -> those to be read.

    Raises:
      UserError: no such folder, no audio in it, or files that cannot be read (all of
        them are named).
    """
    root = Path(directory)
    # Unlike Path.is_dir, this raises nothing for a name that is too long.
    if not os.path.isdir(root):
        raise UserError(
            f"{root} is not a folder. Expected a folder of noise recordings"
        )
    paths = choose(root, find_audio(root, recursive=True))
    recordings, corrupt = _read_recordings(root, paths)
    if corrupt:
        raise UserError(
            f"noise recordings that cannot be read:{_corrupt_text(root, corrupt)}\n"
            "Mend or remove them"
        )
    if not recordings:
        raise UserError(
            f"{root} holds no audio. Expected recordings of noise, one of "
            f"{', '.join(AUDIO_SUFFIXES)}, in the folder or below it"
        )
    return recordings


@dataclasses.dataclass(frozen=True)
class _Listing:
    """What a folder holds: `clips` and `background` as paths below `root`."""

    root: Path
    clips: tuple[str, ...]
    background: tuple[str, ...]
    lists: tuple[str, ...]

    def files(self) -> tuple[str, ...]:
        return (*self.clips, *self.background, *self.lists)


def _list_folder(root: Path) -> _Listing:
    """Lists the folder and raises what can be seen to be wrong from names alone."""
    layout = f"Expected WORD/FILE with FILE one of {', '.join(AUDIO_SUFFIXES)}"
    if not os.path.isdir(root):
        raise UserError(
            f"{root} is not a folder. {layout}; set it with --config.data.dir=…"
        )
    try:
        folders = sorted(
            path
            for path in root.iterdir()
            if path.is_dir() and not path.name.startswith(".")
        )
        audio = {folder.name: find_audio(folder) for folder in folders}
    except OSError as error:
        raise UserError(f"cannot list {error.filename}: {error.strerror}") from error
    background = audio.pop(BACKGROUND_FOLDER, [])
    if not any(audio.values()):
        raise UserError(f"no audio in the folders of {root}. {layout}")
    empty = [str(root / word) for word, paths in audio.items() if not paths]
    if empty:
        raise UserError(
            f"word folders without audio: {', '.join(empty)}. {layout}; add clips or "
            "remove these folders"
        )
    lists = [name for name in (VALIDATION_LIST, TEST_LIST) if (root / name).is_file()]
    if len(lists) == 1:
        raise UserError(
            f"{root} has {lists[0]} alone. Expected both {VALIDATION_LIST} and "
            f"{TEST_LIST}, or none of them"
        )
    return _Listing(
        root=root,
        clips=tuple(f"{word}/{p.name}" for word, paths in audio.items() for p in paths),
        background=tuple(f"{BACKGROUND_FOLDER}/{path.name}" for path in background),
        lists=tuple(lists),
    )


def _store_path(listing: _Listing, fractions: tuple[float, float], cache: Path) -> Path:
    """The place of the store for this content.

    Reading all files takes seconds to minutes, asking for their sizes and times takes a
    fraction of one: where these are as they were, the hash of last time is still right.
    """
    place = f"{os.path.realpath(listing.root)} {fractions}"
    memo = cache / "folders" / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"
    signature = _signature(listing)
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(memo.read_text())
        if known["signature"] == signature:
            return cache / known["store"]
    name = f"folder-{_content_hash(listing, fractions)[:24]}"
    with contextlib.suppress(OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        fresh = memo.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({"signature": signature, "store": name}))
        os.replace(fresh, memo)
    return cache / name


def _signature(listing: _Listing) -> str:
    digest = hashlib.sha256()
    for name in listing.files():
        try:
            status = os.stat(listing.root / name)
        except OSError as error:
            raise UserError(
                f"cannot read {listing.root / name}: {error.strerror}. Mend or remove "
                "this file"
            ) from error
        if not stat.S_ISREG(status.st_mode):
            raise UserError(
                f"cannot read {listing.root / name}: it is no regular file. Rename or "
                "remove it"
            )
        # The change time cannot be set by hand, unlike the modification time.
        times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
        digest.update(f"{name}\0{status.st_size} {times}\n".encode())
    return digest.hexdigest()


def _content_hash(listing: _Listing, fractions: tuple[float, float]) -> str:
    def file_hash(name: str) -> bytes:
        try:
            return hashlib.sha256((listing.root / name).read_bytes()).digest()
        except OSError as error:
            raise UserError(
                f"cannot read {listing.root / name}: {error.strerror}"
            ) from error

    digest = hashlib.sha256(f"{store.FORMAT} {fractions}\n".encode())
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, content in zip(listing.files(), pool.map(file_hash, listing.files())):
            digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


def _prepare(
    listing: _Listing,
    path: Path,
    fractions: tuple[float, float],
    skip_corrupt: bool,
    progress: store.Progress | None,
) -> None:
    """Writes the store of a folder; all corrupt files come in one error."""
    splits = _assign_splits(listing, fractions)
    recordings, corrupt = _read_recordings(
        listing.root, [listing.root / name for name in listing.background]
    )
    background = divide_background(recordings)

    def clips() -> Iterator[store.Clip]:
        lost = {name.split("/")[0] for name in listing.clips}
        read = _read_all(listing.root, listing.clips, longest=CLIP_SAMPLES)
        for done, (name, audio) in enumerate(read, 1):
            word = name.split("/")[0]
            if isinstance(audio, CorruptAudioError):
                corrupt.append((name, audio.reason))
            else:
                lost.discard(word)
                yield name, word, speaker_of(name), splits[name], audio
            if progress:
                progress(done, len(listing.clips))
        if corrupt and not skip_corrupt:
            raise _corrupt_error(listing.root, corrupt)
        if lost:
            raise UserError(
                f"no clip of {', '.join(sorted(lost))} in {listing.root} can be read. "
                "Replace the files or remove the folder"
            )

    # `corrupt` grows while the clips are read; the store keeps it as it is at the end.
    noise = {SEEN: background[TRAIN], UNSEEN: ()}
    store.write_store(path, clips(), background, noise, {"skipped": corrupt})


def _read_all(
    root: Path, names: Sequence[str], longest: int | None = None
) -> Iterator[tuple[str, np.ndarray | CorruptAudioError]]:
    """Reads files in several threads, a bounded number ahead of what is asked for.

    Of each, all of which must be readable, the first `longest` samples are kept.
    """

    def read(name: str) -> np.ndarray | CorruptAudioError:
        try:
            # A copy, for a view would hold the whole.
            return read_audio(root / name)[:longest].copy()
        except CorruptAudioError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            yield from zip(chunk, pool.map(read, chunk))


def _read_recordings(
    root: Path, paths: Iterable[Path]
) -> tuple[list[Recording], list[tuple[str, str]]]:
    """The recordings, and (name, reason) of each that cannot be read."""
    recordings, corrupt = [], []
    names = [path.relative_to(root).as_posix() for path in paths]
    for name, audio in _read_all(root, names):
        if isinstance(audio, CorruptAudioError):
            corrupt.append((name, audio.reason))
        else:
            stem = name.removeprefix(f"{BACKGROUND_FOLDER}/")
            recordings.append(Recording(stem, audio))
    return recordings, corrupt


def _assign_splits(listing: _Listing, fractions: tuple[float, float]) -> dict[str, str]:
    """The split of every clip, by the folder's lists or by `which_set`."""
    if not listing.lists:
        validation, test = fractions
        return {
            name: which_set(name, validation_fraction=validation, test_fraction=test)
            for name in listing.clips
        }
    return split_by_lists(
        listing.clips,
        validation=(listing.root / VALIDATION_LIST).read_text(errors="replace"),
        test=(listing.root / TEST_LIST).read_text(errors="replace"),
        where=str(listing.root),
    )


def _corrupt_text(root: Path, corrupt: Sequence[Sequence[str]]) -> str:
    return "".join(f"\n  {root / name}: {reason}" for name, reason in corrupt)


def _corrupt_error(root: Path, corrupt: Sequence[Sequence[str]]) -> UserError:
    return UserError(
        f"{len(corrupt)} audio files cannot be read:{_corrupt_text(root, corrupt)}\n"
        "Mend or remove them, or leave them out with --config.data.skip_corrupt=True"
    )
