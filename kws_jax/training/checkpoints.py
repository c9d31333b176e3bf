"""Checkpoints of a stage: the last ones to go on from, and the best on validation."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from kws_jax import together
from kws_jax.errors import UserError

PyTree = Any
_ITEM, _NOTES = "state", "notes"


@dataclasses.dataclass
class StageCheckpoints:
    """Saves and restores the state of one stage under `directory`.

    `last/` holds the newest two checkpoints, `best/` the one with the best validation
    measure. Orbax writes each beside its place and renames it when complete, so a run
    killed while saving loses nothing that was saved. With `read_only`, nothing in the
    directory is made, changed or tidied up.
    """

    directory: epath.Path
    read_only: bool = False

    def __post_init__(self) -> None:
        self.directory = epath.Path(self.directory)
        self._last = _manager(self.directory / "last", 2, self.read_only)
        self._best = _manager(self.directory / "best", 1, self.read_only)

    def save_last(self, step: int, state: PyTree, notes: dict[str, Any]) -> None:
        """Saves a state to go on from, with JSON `notes` (best value, seconds, …)."""
        self._save(self._last, step, state, notes)

    def save_best(self, step: int, state: PyTree, notes: dict[str, Any]) -> None:
        """Saves the state that is the best so far."""
        self._save(self._best, step, state, notes)

    def restore_last(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """The newest state and its notes, or None; `like` gives shapes and places."""
        return self._restore(self._last, like)

    def restore_best(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """The best state and its notes, or None."""
        return self._restore(self._best, like)

    def last_notes(self) -> dict[str, Any]:
        """The notes of the newest state, {} where there is none."""
        step = self._last.latest_step()
        if step is None:
            return {}
        items = ocp.args.Composite(**{_NOTES: ocp.args.JsonRestore()})
        return self._last.restore(step, args=items)[_NOTES]

    def last_path(self) -> str:
        """Where the newest checkpoint lies, for messages."""
        step = self._last.latest_step()
        where = self.directory / "last"
        return "none yet" if step is None else str(where / str(step))

    def close(self) -> None:
        """Ends Orbax's background threads."""
        self._last.close()
        self._best.close()

    def _save(
        self, manager: ocp.CheckpointManager, step: int, state: PyTree, notes: dict
    ) -> None:
        items = ocp.args.Composite(
            **{
                _ITEM: ocp.args.StandardSave(state),
                _NOTES: ocp.args.JsonSave(notes),
            }
        )
        with saving(self.directory):
            if manager.latest_step() == step:
                manager.delete(step)
            manager.save(step, args=items, force=True)
            manager.wait_until_finished()

    def _restore(
        self, manager: ocp.CheckpointManager, like: PyTree
    ) -> tuple[PyTree, dict[str, Any]] | None:
        step = manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(
            **{
                _ITEM: ocp.args.StandardRestore(abstract),
                _NOTES: ocp.args.JsonRestore(),
            }
        )
        try:
            restored = manager.restore(step, args=items)
        except (ValueError, KeyError, OSError) as error:
            raise UserError(
                f"The checkpoint {manager.directory / str(step)} does not fit this "
                f"experiment or is damaged: {error}\nUse another --workdir, or remove "
                "this folder: the stage then goes on from the one before, or anew."
            ) from error
        return restored[_ITEM], restored[_NOTES]


def _manager(
    directory: epath.Path, keep: int, read_only: bool
) -> ocp.CheckpointManager:
    if not read_only and together.is_first():
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
    with saving(directory):
        return ocp.CheckpointManager(directory.resolve(), options=options)


@contextlib.contextmanager
def saving(where: Any) -> Iterator[None]:
    """Turns a failed write (full disk, no permission) at `where` into a UserError."""
    try:
        yield
    except (OSError, ValueError) as error:
        # TensorStore gives the errors of the system as ValueError.
        if isinstance(error, ValueError) and "os_error_code" not in str(error):
            raise
        raise UserError(
            f"Could not write to {where}: {error}\nFree some space or choose another "
            "--workdir; what was saved before is intact, and the same command goes on "
            "from there."
        ) from error


def write_json(path: epath.PathLike, content: Any) -> None:
    """Writes JSON, see `write_text`."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a file whole or not at all (a temporary file, then a rename)."""
    path = epath.Path(path)
    with saving(path):
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(text)
        temporary.replace(path)
