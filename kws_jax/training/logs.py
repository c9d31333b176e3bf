"""Lines of JSON for measures over time, with neither gap nor repeat after a restart."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from kws_jax.training.checkpoints import saving, write_text
from kws_jax.workdirs import in_bucket

_EVERY_SECONDS = 30.0


class JsonLines:
    """A file with one JSON object a line, each with its `stage` and `step`."""

    def __init__(self, path: epath.PathLike) -> None:
        self.path = epath.Path(path)
        # In a bucket, where a file is written anew for every addition.
        self._waiting, self._written = "", time.monotonic()

    def rewind(
        self,
        stage: str,
        step: int,
        later: tuple[str, ...] = (),
        *,
        unvalidated: bool = False,
    ) -> None:
        """Drops the lines of `stage` after `step`, and those of the stages `later`.

        Called when a stage starts or is taken up again from a checkpoint at `step`. A
        half-written last line, left by a kill, goes too. Where the state at `step` is
        still `unvalidated`, of the lines at `step` only those of training stay: a run
        that was killed after its validation, before it saved, has told of it already.
        """
        self._waiting = ""
        if not self.path.exists():
            return
        kept = [
            line
            for line in self.path.read_text().splitlines()
            if self._keep(line, stage, step, later, unvalidated)
        ]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def append(self, **fields: Any) -> None:
        """Adds one line, whole or not at all; in a bucket see `flush`."""
        self.extend([fields])

    def extend(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines, all or none of them; in a bucket see `flush`."""
        text = "".join(json.dumps(fields) + "\n" for fields in lines)
        if in_bucket(self.path):
            self._waiting += text
            if time.monotonic() - self._written > _EVERY_SECONDS:
                self.flush()
            return
        with saving(self.path):
            size = self.path.stat().length if self.path.exists() else 0
            try:
                with self.path.open("a") as file:
                    file.write(text)
            except OSError:
                # On a full disk, half a line takes the room that a restart needs.
                if self.path.exists():
                    os.truncate(self.path, size)
                raise

    def flush(self) -> None:
        """Writes what waits: in a bucket, lines are written twice a minute.

        To be called before a state is saved, whose lines they are.
        """
        if not self._waiting:
            return
        with saving(self.path):
            before = self.path.read_text() if self.path.exists() else ""
            write_text(self.path, before + self._waiting)
        self._waiting, self._written = "", time.monotonic()

    @staticmethod
    def _keep(
        line: str, stage: str, step: int, later: tuple[str, ...], unvalidated: bool
    ) -> bool:
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            return False
        if fields["stage"] == stage:
            if unvalidated and fields["step"] == step:
                return fields.get("split") == "train"
            return fields["step"] <= step
        return fields["stage"] not in later
