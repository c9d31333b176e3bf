"""Scalars for TensorBoard."""

from collections.abc import Mapping
from typing import Any

from etils import epath


class TensorBoard:
    """Writes scalars under `directory`."""

    def __init__(self, directory: epath.PathLike) -> None:
        # Imported here: TensorFlow takes seconds, and only process 0 of a run needs it.
        import tensorflow as tf

        self._tf = tf
        self._writer: Any = tf.summary.create_file_writer(str(directory))

    def write(self, prefix: str, step: int, metrics: Mapping[str, float]) -> None:
        """Adds each value under `prefix/name` at `step`."""
        with self._writer.as_default():
            for name, value in metrics.items():
                self._tf.summary.scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()
