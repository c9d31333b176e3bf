"""The prepared form of every source: one folder with clips that can be read at random.

    STORE/clips.array_record   one record a clip, 16,000 little-endian int16 samples
    STORE/rows.npz             words, speakers, names and splits, a row a clip
    STORE/recordings.npz       the long recordings of noise
    STORE/index.json           format, sizes, fingerprint, names of the recordings, meta

A store is written beside its place and renamed when it is complete, so that it is there
as a whole or not at all.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kws_jax.data.corpus import CLIP_SAMPLES, Corpus, Recording
from kws_jax.errors import UserError

FORMAT = 1
# (name, word, speaker, split, audio int16 [samples])
Clip = tuple[str, str, str, str, np.ndarray]
# Called with the number of clips done and the number of all clips.
Progress = Callable[[int, int], None]

_COLUMNS = ("names", "words", "speakers", "splits")
_CLIPS, _ROWS, _RECORDINGS = "clips.array_record", "rows.npz", "recordings.npz"
_INDEX = "index.json"
_WRITER_OPTIONS = "group_size:1,uncompressed"
# A batch is drawn at random, so that reading ahead would only read what nobody wants.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:1"
# What damaged files make their readers raise.
_DAMAGES = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
_ABANDONED_SECONDS = 24 * 3600


def fit(audio: np.ndarray) -> np.ndarray:
    """Cuts or zero-pads int16 [samples] at its end to int16 [CLIP_SAMPLES]."""
    clip = np.zeros(CLIP_SAMPLES, "<i2")
    length = min(len(audio), CLIP_SAMPLES)
    clip[:length] = audio[:length]
    return clip


def write_store(
    path: str | os.PathLike[str],
    clips: Iterable[Clip],
    background: Mapping[str, Sequence[Recording]],
    noise: Mapping[str, Sequence[Recording]],
    meta: Mapping[str, Any],
) -> None:
    """Writes a store at `path`; where one is already, that one stays.

    Args:
      path: the folder to be made; its parents are made too.
      clips: (name, word, speaker, split, int16 [samples]) in the order of the rows;
        cut or zero-padded to CLIP_SAMPLES. Consumed one by one: may be a generator.
      background: recordings of each split, as in `Corpus`.
      noise: recordings under "seen" and "unseen", as in `Corpus`.
      meta: JSON values to be kept with the store, see `read_meta`; looked at when all
        clips are consumed.

    Raises:
      UserError: the disk is full or the folder cannot be written; nothing is left
        behind. Also what `clips` raises.
    """
    path = Path(path)
    with _storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        partial = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        fingerprint, count = _write_files(Path(partial), clips, background, noise)
        index = {
            "format": FORMAT,
            "count": count,
            "fingerprint": fingerprint,
            "background": {k: [r.name for r in v] for k, v in background.items()},
            "noise": {k: [r.name for r in v] for k, v in noise.items()},
            "sizes": {
                f: os.path.getsize(Path(partial, f))
                for f in (_CLIPS, _ROWS, _RECORDINGS)
            },
            "meta": dict(meta),
        }
        with _storage_errors(path.parent):
            Path(partial, _INDEX).write_text(json.dumps(index, indent=1))
            os.chmod(partial, 0o755)
            try:
                os.rename(partial, path)
            except OSError:
                # Another process may have been faster; its store holds the same clips.
                if not path.exists():
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_store(path: str | os.PathLike[str]) -> Corpus:
    """Opens the store at `path`; clips are read on demand, by any number of threads.

    Raises:
      UserError: the store is damaged; the message names the folder to delete.
    """
    path = Path(path)
    try:
        index = _read_index(path)
        rows = np.load(path / _ROWS, allow_pickle=False)
        columns = {name: rows[name] for name in _COLUMNS}
        audio = np.load(path / _RECORDINGS, allow_pickle=False)
        groups = {
            group: {
                key: tuple(
                    Recording(name, audio[f"{group}/{key}/{i}"])
                    for i, name in enumerate(names)
                )
                for key, names in index[group].items()
            }
            for group in ("background", "noise")
        }
        read = _ClipReader(path, index["count"])
    except _DAMAGES as error:
        raise _damaged(path, error) from error
    return Corpus(
        words=columns["words"],
        speakers=columns["speakers"],
        names=columns["names"],
        splits=columns["splits"],
        read=read,
        background=groups["background"],
        noise=groups["noise"],
        fingerprint=index["fingerprint"],
    )


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `meta` that the store at `path` was written with.

    Raises:
      UserError: the store is damaged; the message names the folder to delete.
    """
    try:
        return _read_index(Path(path))["meta"]
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(Path(path), error) from error


class _ClipReader:
    """Reads rows of an ArrayRecord file: int [n] -> int16 [n, CLIP_SAMPLES]."""

    def __init__(self, path: Path, count: int):
        from array_record.python import array_record_module

        self._path, self._count = path, count
        self._reader = array_record_module.ArrayRecordReader(
            str(path / _CLIPS), _READER_OPTIONS, file_reader_buffer_size=2**15
        )
        if self._reader.num_records() != count:
            raise ValueError(f"{_CLIPS} has {self._reader.num_records()} clips")

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows, np.int64)
        if not rows.size:
            return np.zeros((0, CLIP_SAMPLES), np.int16)
        if rows.min() < 0 or rows.max() >= self._count:
            raise IndexError(f"rows must be in 0 … {self._count - 1}")
        try:
            # A bytearray, unlike bytes, gives an array that can be written to.
            data = bytearray().join(self._reader.read(rows.tolist()))
            return np.frombuffer(data, "<i2").reshape(len(rows), CLIP_SAMPLES)
        except (RuntimeError, ValueError) as error:
            raise _damaged(self._path, error) from error


def _read_index(path: Path) -> dict[str, Any]:
    index = json.loads((path / _INDEX).read_text())
    if index["format"] != FORMAT:
        raise ValueError(f"format {index['format']}, this version reads {FORMAT}")
    for name, size in index["sizes"].items():
        found = (path / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes instead of {size}")
    return index


def _write_files(
    folder: Path,
    clips: Iterable[Clip],
    background: Mapping[str, Sequence[Recording]],
    noise: Mapping[str, Sequence[Recording]],
) -> tuple[str, int]:
    """Writes all but the index; returns the fingerprint and the number of clips."""
    digest = hashlib.sha256()
    rows = _write_clips(folder, clips, digest)
    names = rows["names"]
    if len(set(names)) != len(names):
        raise ValueError("the names of the clips of a store must be unique")
    recordings = {
        f"{group}/{key}/{i}": np.asarray(recording.audio, "<i2")
        for group, sets in (("background", background), ("noise", noise))
        for key, members in sets.items()
        for i, recording in enumerate(members)
    }
    for key, audio in sorted(recordings.items()):
        digest.update(f"{key} {len(audio)}\n".encode() + audio.tobytes())
    with _storage_errors(folder.parent):
        _save(folder / _ROWS, {key: np.array(texts) for key, texts in rows.items()})
        _save(folder / _RECORDINGS, recordings)
    return digest.hexdigest(), len(names)


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    np.savez(path, **arrays)


def _write_clips(
    folder: Path, clips: Iterable[Clip], digest: Any
) -> dict[str, list[str]]:
    """Writes the audio, adds all to `digest`, and returns the columns of the table."""
    from array_record.python import array_record_module

    rows: dict[str, list[str]] = {column: [] for column in _COLUMNS}
    with _storage_errors(folder.parent):
        writer = array_record_module.ArrayRecordWriter(
            str(folder / _CLIPS), _WRITER_OPTIONS
        )
    try:
        for *texts, audio in clips:
            for column, text in zip(_COLUMNS, texts):
                rows[column].append(text)
            record = fit(audio).tobytes()
            digest.update("\n".join(texts).encode() + b"\0" + record)
            with _storage_errors(folder.parent):
                writer.write(record)
    finally:
        with _storage_errors(folder.parent):
            writer.close()
    return rows


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    """Turns what the file system (or ArrayRecord, for it) refuses into a UserError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot write prepared clips in {folder}: {error}. Make room there, or "
            "choose another folder with --config.data.cache_dir=… or $KWS_JAX_CACHE"
        ) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"the prepared clips in {path} are damaged ({error}). "
        "Delete that folder and run again: it will be made anew"
    )


def _remove_abandoned(path: Path) -> None:
    """Removes what killed runs left behind while writing the store at `path`."""
    for partial in path.parent.glob(f".{path.name}.*"):
        if time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)
