"""Where workdirs lie: in folders of this machine, or in buckets of Cloud Storage."""

import importlib
import io
from pathlib import Path
from typing import Any

from kws_jax.errors import UserError

_BUCKETS = "gs://"


def folder_of(address: str | Path) -> Path:
    """The path of a workdir, or of a file in it, from the text of a flag.

    For `gs://BUCKET/NAME` an `etils.epath.Path`, which is used as one of pathlib's is;
    what is a folder already stays as it is.

    Raises:
      UserError: for a bucket that cannot be reached, and for another kind of address,
        which would become a folder's name.
    """
    if not isinstance(address, str):
        return address
    if address.startswith(_BUCKETS):
        _check_extra(address)
        # Imported here: only buckets need it, and other programs start sooner.
        from etils import epath

        folder: Any = epath.Path(address)
        _check_reachable(folder)
        return folder
    if "://" in address:
        raise UserError(
            f"{address} is an address of an unknown kind: give a path of this machine "
            "or gs://BUCKET/NAME, or mount what lies there."
        )
    return Path(address)


def _check_extra(address: str) -> None:
    try:
        importlib.import_module("google.cloud.storage")
    except ImportError as error:
        raise UserError(
            f"{address} needs the extra 'gcs' ({error}): pip install -c "
            "constraints.txt -e '.[gcs]'"
        ) from error


def _check_reachable(path: Any) -> None:
    try:
        path.exists()
    except Exception as error:  # Each of epath's file systems has its own.
        raise UserError(
            f"{path} cannot be reached: {error}\nIs the name right, and may this "
            "machine use the bucket? Outside Google Cloud: gcloud auth "
            "application-default login."
        ) from error


def in_bucket(path: Any) -> bool:
    """Whether a path is of a bucket, where nothing is appended or locked."""
    return str(path).startswith(_BUCKETS)


def write_whole(path: Any, content: bytes) -> None:
    """Writes a file whole or not at all.

    A temporary file takes its place; in a bucket, objects appear once complete.

    Raises:
      OSError: for a folder that cannot be written; errors of other kinds in buckets.
    """
    if in_bucket(path):
        path.write_bytes(content)
        return
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        # On a full disk it takes what little room there is.
        temporary.unlink(missing_ok=True)
        raise


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file, by name.

    Raises:
      OSError, ValueError, EOFError, zipfile.BadZipFile: for what is no such file, or
        holds more than arrays.
    """
    # Imported here: the config is read from workdirs before NumPy is needed.
    import numpy as np

    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        return dict(arrays)
