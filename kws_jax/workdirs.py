"""Where workdirs lie: in folders of this machine, or in buckets of Cloud Storage."""

import functools
import io
import json
from pathlib import Path
from typing import Any

from kws_jax import runtime
from kws_jax.errors import UserError

_BUCKETS = "gs://"


def check_kind(address: str) -> None:
    """Raises UserError for an address of a kind that cannot be a workdir."""
    if "://" in address and not address.startswith(_BUCKETS):
        raise UserError(
            f"{address} is an address of an unknown kind: give a path of this machine "
            "or gs://BUCKET/NAME, or mount what lies there."
        )


def folder_of(address: str | Path) -> Path:
    """The path of a workdir, or of a file in it, from the text of a flag.

    For `gs://BUCKET/NAME` an `etils.epath.Path`, which is used as one of pathlib's is;
    what is a path already stays as it is.

    Raises:
      UserError: for a bucket that cannot be used, and for another kind of address,
        which would become a folder's name.
    """
    if not isinstance(address, str):
        return address
    check_kind(address)
    if not address.startswith(_BUCKETS):
        return Path(address)
    _check_bucket(address)
    # epath reaches buckets through TensorFlow.
    runtime.configure_tensorflow()
    from etils import epath

    folder: Any = epath.Path(address)
    return folder


def _check_bucket(address: str) -> None:
    """Raises UserError where the bucket of an address cannot be used."""
    try:
        bucket = _bucket(address.removeprefix(_BUCKETS).partition("/")[0])
    except ImportError as error:
        raise UserError(
            f"{address} needs the extra 'gcs' ({error}): pip install -c "
            "constraints.txt -e '.[gcs]'"
        ) from error
    except Exception as error:  # Of google.auth, google.api_core, requests, …
        raise UserError(
            f"the bucket of {address} cannot be reached: {error}\nIs the name right, "
            "and may this machine use the bucket (storage.buckets.get and all of "
            "storage.objects)? Outside Google Cloud: gcloud auth application-default "
            "login."
        ) from error
    if getattr(bucket, "hierarchical_namespace_enabled", False):
        raise UserError(
            f"the bucket of {address} has a hierarchical namespace, which is not "
            "supported: take one without."
        )


@functools.cache
def _bucket(name: str) -> Any:
    """What Cloud Storage knows of a bucket, for which Orbax asks at each start too."""
    from google.cloud import storage

    return storage.Client().get_bucket(name)


def is_of_bucket(error: BaseException) -> bool:
    """Whether an error is one of reading or writing a bucket."""
    module = type(error).__module__
    # TensorFlow, by which epath reads and writes, and TensorStore name the object.
    may_be = isinstance(error, ValueError) or module.startswith("tensorflow.")
    return module.startswith("google.") or (may_be and _BUCKETS in str(error))


def in_bucket(path: Any) -> bool:
    """Whether a path, or a text that begins with one, is of a bucket.

    Nothing is appended or locked there.
    """
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


def read_json(path: Path) -> Any:
    """What a JSON file of a workdir holds.

    Raises:
      UserError: where it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # No JSON, or no text.
        raise UserError(
            f"{path} is damaged ({error}): restore it, or choose another --workdir."
        ) from error


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file, by name.

    Raises:
      OSError: where it cannot be read.
      ValueError: for what is no such file, is damaged, or holds more than arrays.
    """
    # Imported here: the config is read from workdirs before NumPy is needed.
    import numpy as np

    file = io.BytesIO(path.read_bytes())
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # Damage shows in many ways: zlib's, zipfile's, NumPy's.
        raise ValueError(str(error) or type(error).__name__) from error
