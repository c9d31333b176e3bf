"""The one exception that is meant for the user's eyes."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: bad input, a wrong field, a full disk.

    The message says what was wrong (naming the file or field), what was expected and
    what to do. The command-line programs print it without a traceback and exit with 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown `name`: the nearest known one, or the list of all."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}"
