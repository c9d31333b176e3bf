"""Scalars for TensorBoard."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from kws_jax.training.checkpoints import saving


class TensorBoard:
    """Writes scalars under `directory`.

    Raises:
      UserError: where it cannot be made.
    """

    def __init__(self, directory: epath.PathLike) -> None:
        # Imported here: TensorFlow takes seconds, and only process 0 of a run needs it.
        import tensorflow as tf

        self._tf, self._directory = tf, directory
        with self._saving():
            self._writer: Any = tf.summary.create_file_writer(str(directory))

    def write(self, prefix: str, step: int, metrics: Mapping[str, float]) -> None:
        """Adds each value under `prefix/name` at `step`.

        Raises:
          UserError: where the file cannot be written.
        """
        with self._saving(), self._writer.as_default():
            for name, value in metrics.items():
                self._tf.summary.scalar(f"{prefix}/{name}", value, step)
            self._writer.flush()

    def close(self) -> None:
        """Closes the file; whatever `write` was given is in it already."""
        with contextlib.suppress(self._tf.errors.OpError):
            self._writer.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        with saving(self._directory):
            try:
                yield
            except self._tf.errors.OpError as error:
                raise OSError(error.message) from error
