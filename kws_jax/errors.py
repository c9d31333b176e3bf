"""What is meant for the user's eyes: one exception for mistakes, one for requests."""

import contextlib
import difflib
import signal
from collections.abc import Iterable, Iterator

_TERMINATED, _CTRL_C = 75, 130
# Exit codes of a run that was asked to end.
REQUESTED = (_TERMINATED, _CTRL_C)


class UserError(Exception):
    """Something the user can mend: bad input, a wrong field, a full disk.

    The message says what was wrong (naming the file or field), what was expected and
    what to do. The command-line programs print it without a traceback and exit with 2.
    """


class Interrupted(BaseException):
    """The run was asked to end, by `number` (SIGTERM or SIGINT), and does.

    Nothing that was `saved` is lost; the same command goes on from there. No Exception,
    so that nothing takes it for a failure.

    Attributes:
      saved: what was saved on the request, "" where all was saved before.
      exit_code: 75 after SIGTERM (EX_TEMPFAIL of sysexits.h, "try again later": what a
        scheduler may start again), 130 after Ctrl-C (as shells have it).
    """

    def __init__(self, number: int, saved: str = "") -> None:
        self.saved = saved
        self.exit_code = _CTRL_C if number == signal.SIGINT else _TERMINATED
        where = saved or "what was saved before stays"
        super().__init__(
            f"{signal.Signals(number).name}: {where}; the same command goes on from "
            "there."
        )


@contextlib.contextmanager
def told_with(where: str) -> Iterator[None]:
    """Puts `where`, a place in the config, before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown `name`: the nearest known one, or the list of all."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}"
