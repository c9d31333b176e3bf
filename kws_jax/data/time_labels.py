"""Which word is said when in a long recording, and the files that tell it."""

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kws_jax.errors import UserError, nearest

_FORM = "Expected lines of start_seconds,end_seconds,word (commas or tabs)"


@dataclasses.dataclass(frozen=True)
class Spoken:
    """Words in time: `begins` and `ends` float64 [r] in seconds, `words` of length r.

    In the order of `begins`.
    """

    begins: np.ndarray
    ends: np.ndarray
    words: tuple[str, ...]

    def of(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        """Begins and ends of one word."""
        here = np.array([w == word for w in self.words], bool)
        return self.begins[here], self.ends[here]


def read_spoken(
    path: Path, *, seconds: float, labels: Sequence[str], keywords: Sequence[str]
) -> Spoken:
    """Reads a file of start_seconds,end_seconds,word; a first line of titles may stand.

    Args:
      path: the file, CSV or TSV in UTF-8.
      seconds: length of the recording.
      labels: the words that may occur, the network's labels.
      keywords: those of them that are looked for; one at least must occur.

    Raises:
      UserError: no such file, a line of another form, times that are no numbers, are
        outside the recording or do not rise, a word that is no label, or no keyword.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels={path} cannot be read ({error}). {_FORM}") from error
    rows: list[tuple[float, float, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = next(csv.reader([line], delimiter="\t" if "\t" in line else ","))
        except csv.Error as error:
            raise UserError(
                f"--labels={path}, line {number} cannot be read ({error}). {_FORM}"
            ) from error
        if number == 1 and not _is_number(fields[0]):
            continue
        where = f"--labels={path}, line {number}"
        rows.append(_read_row(fields, where, seconds, labels))
    if not any(word in keywords for _, _, word in rows):
        raise UserError(
            f"--labels={path} names no keyword, so nothing could be missed. {_FORM}, "
            f"with some of {', '.join(keywords)}"
        )
    rows.sort()
    begins, ends, words = zip(*rows)
    return Spoken(np.array(begins), np.array(ends), words)


def _read_row(
    fields: list[str], where: str, seconds: float, labels: Sequence[str]
) -> tuple[float, float, str]:
    texts = [field.strip() for field in fields]
    if len(texts) != 3 or not all(map(_is_number, texts[:2])):
        raise UserError(f"{where}: {','.join(texts)!r}. {_FORM}")
    begin, end, word = float(texts[0]), float(texts[1]), texts[2]
    if not 0 <= begin < end:
        raise UserError(
            f"{where}: {begin:g} to {end:g} s is no stretch of time. Expected "
            "0 <= start < end, in seconds"
        )
    if end > seconds:
        raise UserError(
            f"{where}: {begin:g} to {end:g} s lies outside the recording, which is "
            f"{seconds:.3f} s long. Mend the times (in seconds), or give the recording "
            "that they belong to"
        )
    if word not in labels:
        raise UserError(
            f"{where}: the network has no label {word!r}; {nearest(word, labels)} "
            "Leave other words out, or call them _unknown_"
        )
    return begin, end, word


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
