"""What the programs share: errors for the user become one message and exit code 2."""

import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags

from kws_jax.errors import UserError


def stop(message: object) -> NoReturn:
    """Prints `message` and ends the program with code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def run(
    main: Callable[[list[str]], None],
    before_parsing: Callable[[list[str]], None] = lambda argv: None,
) -> None:
    """Runs `main(remaining arguments)` under absl's flags.

    `before_parsing` sees the raw arguments and may define further flags or raise
    UserError.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            before_parsing(argv)
            # Options may stand behind other arguments.
            flags.FLAGS.set_gnu_getopt()
            return flags.FLAGS(argv)
        except (flags.Error, UserError) as error:
            stop(error)

    def guarded(argv: list[str]) -> None:
        try:
            main(argv)
        except UserError as error:
            stop(error)
        except KeyboardInterrupt:
            stop("interrupted; the same command goes on from the last checkpoint.")

    app.run(guarded, flags_parser=parse)


def value_of(flag: str, argv: list[str]) -> str:
    """The last value that raw arguments give to `--flag=VALUE` or `--flag VALUE`."""
    value = ""
    for position, argument in enumerate(argv):
        name, equals, given = argument.partition("=")
        if name in (f"--{flag}", f"-{flag}"):
            value = given if equals else "".join(argv[position + 1 : position + 2])
    return value


def without(flag: str, argv: list[str]) -> list[str]:
    """The raw arguments without `--flag=VALUE` and `--flag VALUE`."""
    names, kept, skip = (f"--{flag}", f"-{flag}"), [], False
    for argument in argv:
        if not skip and argument.partition("=")[0] not in names:
            kept.append(argument)
        skip = argument in names
    return kept
