"""What a workdir has to be: a folder, with one run in it at a time."""

import errno
import fcntl
import os
import socket
import sys
from pathlib import Path
from typing import IO

from kws_jax import together
from kws_jax.errors import UserError
from kws_jax.training.checkpoints import saving
from kws_jax.workdirs import in_bucket

LOCK_FILE = ".lock"
# What came of trying to take it.
_ABSENT, _TAKEN, _REFUSED = range(3)
# What file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class WorkdirLock:
    """A lock on a folder, given back when the process ends, however it ends.

    The lock is the kernel's (flock), not the file: a killed run leaves the file and no
    lock. Of the processes of a pod the first one holds it. Use it as a context manager.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._file: IO[str] | None = None
        self._held = False

    def take(self, *, make: bool = False) -> None:
        """Takes the lock, unless it is held already or there is no folder.

        With `make`, the folder is made where there is none.

        Raises:
          UserError: where another run holds it, or the folder cannot be written.
        """
        if self._held:
            return
        outcome = together.agreed(self._try(make) if together.is_first() else _ABSENT)
        if outcome == _REFUSED:
            raise UserError(
                f"Another run is at work in {self._path.parent}{self._holder()}. Wait "
                "for its end, or choose another --workdir."
            )
        self._held = outcome == _TAKEN

    def __enter__(self) -> "WorkdirLock":
        self.take()
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._held = None, False

    def _try(self, make: bool) -> int:
        folder = self._path.parent
        with saving(folder):
            if make:
                folder.mkdir(parents=True, exist_ok=True)
            if not folder.exists():
                return _ABSENT
            if in_bucket(folder):
                _warn(f"{folder} is in a bucket, which has no locks")
                return _TAKEN
            file = self._path.open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    file.close()
                    if isinstance(error, BlockingIOError):
                        return _REFUSED
                    raise
                _warn(f"{folder} is on a file system without locks")
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        self._file = file
        return _TAKEN

    def _holder(self) -> str:
        """Who says to hold the lock, for a message."""
        try:
            return f" ({self._path.read_text()})"
        except OSError:
            return ""


def _warn(what: str) -> None:
    print(f"note: {what}; make sure that no other run uses it.", file=sys.stderr)
