"""Checkpoints of a stage: the last ones to go on from, and the best on validation."""

import contextlib
import dataclasses
import hashlib
import io
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from kws_jax import together, workdirs
from kws_jax.errors import UserError
from kws_jax.training import failed_saves, sharding

PyTree = Any
_ITEM, _NOTES = "state", "notes"
# Folders of states to go on from; see `StageCheckpoints`.
TO_GO_ON = (_ASIDE, _LAST) = ("aside", "last")
# With which Orbax marks a checkpoint in a bucket that is complete.
COMPLETE_FILE = "commit_success.txt"
# Among the saved notes: the digests of state and notes, by the names above.
_DIGESTS = "digests"
_NOTES_ALONE = ocp.args.Composite(**{_NOTES: ocp.args.JsonRestore()})


@dataclasses.dataclass
class StageCheckpoints:
    """Saves and restores the state of one stage under `directory`.

    `last/` holds the newest two checkpoints, `best/` the one with the best validation
    measure. Orbax writes each beside its place and renames it when complete, or in a
    bucket marks it, so a run killed while saving loses nothing that was saved. A step
    that is saved again is written to `aside/` first: it lies there while its former
    state is removed from `last/` and it takes that place. Each carries a digest of its
    values, by which a single changed bit is found. With `read_only`, nothing in the
    directory is made, changed or tidied up.
    """

    directory: epath.Path
    read_only: bool = False

    def __post_init__(self) -> None:
        self.directory = epath.Path(self.directory)
        self._last = _manager(self.directory / _LAST, 2, self.read_only)
        # Orbax makes this folder where it is needed.
        self._aside = _manager(self.directory / _ASIDE, 1, self.read_only, make=False)
        self._best = _manager(self.directory / "best", 1, self.read_only)

    def save_last(self, step: int, state: PyTree, notes: dict[str, Any]) -> None:
        """Saves a state to go on from, with JSON `notes` (best value, seconds, …).

        A step may be saved again: at any moment a state of it, or of one before, is
        whole.
        """
        if step in self._last.all_steps():
            self._save(self._aside, step, state, notes)
            self._delete(self._last, step)
        self._save(self._last, step, state, notes)
        for done in list(self._aside.all_steps()):
            self._delete(self._aside, done)

    def save_best(self, step: int, state: PyTree, notes: dict[str, Any]) -> None:
        """Saves the state that is the best so far."""
        # A run that was killed after this comes here again. Of the best there is but
        # one, which must not be removed to be written anew.
        if not together.agreed(self._is_best(step, state)):
            self._save(self._best, step, state, notes)

    def restore_last(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """The newest state and its notes, or None; `like` gives shapes and places.

        A damaged one is told and removed, and the one before is taken. Not so with
        `read_only`, when the stage is over and what it ended with is asked for, and in
        a bucket, where checkpoints take no damage but may be out of reach for a while.

        Raises:
          UserError: where none is whole and fits.
        """
        saved = self._saved()
        damaged: dict[_Saved, Exception] = {}
        if self.read_only or workdirs.in_bucket(self.directory):
            saved = [each for each in saved if each.step == saved[0].step]
        for each in saved:
            try:
                restored = self._read(each.manager, each.step, like)
            except Exception as error:  # Whatever Orbax makes of changed bytes.
                damaged[each] = error
            # A file system may fail one process alone, and all must go on alike.
            if not together.any_of(each in damaged):
                if not self.read_only:
                    self._remove(damaged, each.step)
                    self._remove_copies(each)
                return restored
            damaged.setdefault(each, ValueError("another process cannot read it"))
        for each, reason in damaged.items():
            raise self._cannot_read(each.manager, each.step, reason) from reason
        return None

    def restore_best(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """The best state and its notes, or None.

        Raises:
          UserError: where it is damaged, or does not fit `like`.
        """
        step = self._best.latest_step()
        if step is None:
            return None
        try:
            return self._read(self._best, step, like)
        except Exception as error:
            raise self._cannot_read(self._best, step, error) from error

    def last_notes(self) -> dict[str, Any]:
        """The notes of the newest state, {} where there is none.

        Raises:
          UserError: where they are damaged.
        """
        for manager, step in self._saved()[:1]:
            try:
                return _checked(manager.restore(step, args=_NOTES_ALONE)[_NOTES])[0]
            except Exception as error:
                raise self._cannot_read(manager, step, error) from error
        return {}

    def last_step(self) -> int | None:
        """The step of the newest state; None where there is none."""
        saved = self._saved()
        return saved[0].step if saved else None

    def best_step(self) -> int | None:
        """The step of the best state; None where there is none."""
        return self._best.latest_step()

    def last_path(self) -> str:
        """Where the newest checkpoint lies, for messages."""
        saved = self._saved()
        return saved[0].path if saved else "none yet"

    def close(self) -> None:
        """Ends Orbax's background threads."""
        for manager in (self._last, self._aside, self._best):
            manager.close()

    def _saved(self) -> list["_Saved"]:
        """The states to go on from, the newest first."""
        saved = [
            _Saved(manager, step)
            # Of one step the state that is aside is the newer one, or the same.
            for manager in (self._aside, self._last)
            for step in manager.all_steps()
        ]
        return sorted(saved, key=lambda each: each.step, reverse=True)

    def _save(
        self, manager: ocp.CheckpointManager, step: int, state: PyTree, notes: dict
    ) -> None:
        digests = {_ITEM: sharding.digest(state), _NOTES: _digest_of(notes)}
        items = ocp.args.Composite(
            **{
                _ITEM: ocp.args.StandardSave(state),
                _NOTES: ocp.args.JsonSave({**notes, _DIGESTS: digests}),
            }
        )
        with saving(self.directory), failed_saves.told_once():
            if step in manager.all_steps():
                manager.delete(step)
            manager.save(step, args=items, force=True)
            manager.wait_until_finished()

    def _is_best(self, step: int, state: PyTree) -> bool:
        """Whether the best state is saved already, and is this one."""
        if self._best.latest_step() != step:
            return False
        try:
            saved = _checked(self._best.restore(step, args=_NOTES_ALONE)[_NOTES])
        except Exception:  # Whatever Orbax makes of changed bytes: it is written anew.
            return False
        return saved[1] == sharding.digest(state)

    def _read(
        self, manager: ocp.CheckpointManager, step: int, like: PyTree
    ) -> tuple[PyTree, dict[str, Any]]:
        """State and notes; whatever exception where they are damaged or do not fit."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(
            **{
                _ITEM: ocp.args.StandardRestore(abstract),
                _NOTES: ocp.args.JsonRestore(),
            }
        )
        restored = manager.restore(step, args=items)
        notes, digest = _checked(restored[_NOTES])
        if digest and digest != sharding.digest(restored[_ITEM]):
            raise ValueError("its values are not those that were saved")
        return restored[_ITEM], notes

    def _delete(self, manager: ocp.CheckpointManager, step: int) -> None:
        with saving(self.directory):
            manager.delete(step)

    def _remove(self, damaged: dict["_Saved", Exception], taken: int) -> None:
        """Removes newer checkpoints than the one `taken`, and tells it."""
        for each, error in damaged.items():
            self._delete(each.manager, each.step)
            if together.is_first():
                print(
                    f"note: the checkpoint {each.path} was damaged and is removed "
                    f"({_reason(error)}); the stage goes on from step {taken}.",
                    file=sys.stderr,
                )

    def _remove_copies(self, taken: "_Saved") -> None:
        """Removes the state that one from aside was about to take the place of.

        It may be half removed already, and must not be taken for a whole one.
        """
        if taken.manager is self._aside and taken.step in self._last.all_steps():
            self._delete(self._last, taken.step)

    def _cannot_read(
        self, manager: ocp.CheckpointManager, step: int, error: Exception
    ) -> UserError:
        where = manager.directory / str(step)
        if workdirs.in_bucket(where) and workdirs.is_of_bucket(error):
            return UserError(
                f"The checkpoint {where} cannot be read: {_reason(error)}\nGive the "
                "same command again when the bucket is in reach; nothing was removed."
            )
        return UserError(
            f"The checkpoint {where} does not fit this experiment or is damaged: "
            f"{_reason(error)}\nUse another --workdir, or remove {self.directory}: "
            "this stage is then trained anew."
        )


class _Saved(NamedTuple):
    """A state to go on from, of one of two managers."""

    manager: ocp.CheckpointManager
    step: int

    @property
    def path(self) -> str:
        """Where it lies."""
        return str(self.manager.directory / str(self.step))


def _reason(error: Exception) -> str:
    """The beginning of what an error tells."""
    text = _told(error).splitlines() or [type(error).__name__]
    return textwrap.shorten(text[0], 300)


def _told(error: Exception) -> str:
    """The part of an error's text that a person reads; TensorStore adds pages."""
    return str(error).partition(" [tensorstore_spec")[0]


def _digest_of(notes: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()


def _checked(saved: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The notes as they were given, and the state's digest.

    Checkpoints of before there were digests have none, and are taken as they are.

    Raises:
      ValueError: where they are not what was saved.
    """
    notes = dict(saved)
    digests = notes.pop(_DIGESTS, None)
    if digests is None:
        return notes, ""
    if digests[_NOTES] != _digest_of(notes):
        raise ValueError("its notes are not those that were saved")
    return notes, digests[_ITEM]


def _manager(
    directory: epath.Path, keep: int, read_only: bool, *, make: bool = True
) -> ocp.CheckpointManager:
    if make and not read_only and together.is_first():
        with saving(directory):
            directory.mkdir(parents=True, exist_ok=True)
    together.wait(f"{directory}")
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        # Processes that are named wait for each other through the coordinator: by
        # default it is through a device of each, which locks up fake devices of CPUs.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            active_processes=set(range(jax.process_count())),
            barrier_sync_key_prefix=f"{directory}",
        )
        if jax.process_count() > 1
        else ocp.options.MultiprocessingOptions(),
        create=False,
        # Orbax's own option `read_only` warns of what it leaves out at every start.
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=False,
    )
    # Orbax wants no relative path; epath's resolve() puts a bucket into this folder.
    whole = directory if workdirs.in_bucket(directory) else directory.resolve()
    with saving(directory):
        return ocp.CheckpointManager(whole, options=options)


@contextlib.contextmanager
def saving(where: Any) -> Iterator[None]:
    """Turns a failed write (full disk, no permission) at `where` into a UserError."""
    try:
        yield
    except Exception as error:
        if not _is_of_writing(error, where):
            raise
        raise UserError(
            f"Could not write to {where}: {_told(error)}\nFree some space, see that "
            "it may be written, or choose another --workdir; what was saved before is "
            "intact, and the same command goes on from there."
        ) from error


def _is_of_writing(error: Exception, where: Any) -> bool:
    """Whether an error is one of the disk or the bucket, and not one of ours."""
    # TensorStore gives the errors of the system as ValueError.
    told = isinstance(error, ValueError) and "os_error_code" in str(error)
    in_bucket = workdirs.in_bucket(where) and workdirs.is_of_bucket(error)
    return isinstance(error, OSError) or told or in_bucket


def write_json(path: epath.PathLike, content: Any) -> None:
    """Writes JSON, see `write_text`."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
      UserError: where it cannot be written.
    """
    write_bytes(path, text.encode())


def write_arrays(path: epath.PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes an .npz file, see `write_text`."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_bytes(path, file.getvalue())


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Writes a file of bytes, see `write_text`."""
    with saving(path):
        workdirs.write_whole(epath.Path(path), content)
