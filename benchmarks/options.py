"""The options that all benchmark commands share."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from kws_jax.errors import UserError, nearest

SMALL_BATCH, SMALL_REPEATS = 4, 2

_JSON = flags.DEFINE_string("json", "", "File for the results as JSON.")
_ONLY = flags.DEFINE_list("only", [], "Comma-separated names of what is measured.")
_BATCH = flags.DEFINE_integer("batch", None, "Clips in a batch.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", None, "Timed repetitions.", lower_bound=1)
_SMALL = flags.DEFINE_bool("small", False, "Tiny sizes: tries the program alone.")


@dataclasses.dataclass(frozen=True)
class Options:
    """What a benchmark is asked to do.

    Attributes:
      json: file for the results, None for none.
      only: names of what is measured; empty for all.
      batch: clips in a batch.
      repeats: timed repetitions.
      small: tiny networks and arrays, for tests; the figures mean nothing.
    """

    json: Path | None = None
    only: tuple[str, ...] = ()
    batch: int = 128
    repeats: int = 20
    small: bool = False

    def chosen(self, known: Sequence[str]) -> list[str]:
        """The names to measure, in the order of `known`.

        Raises:
          UserError: `only` has a name that is not in `known`.
        """
        for name in self.only:
            if name not in known:
                raise UserError(f"--only={name}: no such name; {nearest(name, known)}")
        return [name for name in known if not self.only or name in self.only]


def read(*, batch: int, repeats: int) -> Options:
    """The options of the command line; `batch` and `repeats` are the defaults.

    Raises:
      UserError: the JSON file cannot be written.
    """
    small = _SMALL.value
    options = Options(
        json=Path(_JSON.value) if _JSON.value else None,
        only=tuple(_ONLY.value),
        batch=_BATCH.value or (SMALL_BATCH if small else batch),
        repeats=_REPEATS.value or (SMALL_REPEATS if small else repeats),
        small=small,
    )
    check_json(options.json)
    return options


def check_json(path: Path | None) -> None:
    """Refuses a file that could not be written after the measurements.

    Raises:
      UserError: its folder does not exist, or it is a folder itself.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--json={path} is a folder; give the name of a file.")
    if not path.absolute().parent.is_dir():
        raise UserError(
            f"--json={path}: the folder {path.parent} does not exist; make it first."
        )
