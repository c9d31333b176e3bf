"""What the programs share: whatever ends them early becomes one message.

Exit codes: 2 for what the user can mend, and those of `errors.Interrupted`.
"""

import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from kws_jax import config as configs
from kws_jax import distributed, runtime, workdirs
from kws_jax.errors import Interrupted, UserError


def stop(message: object) -> NoReturn:
    """Prints `message` and ends the program, all its processes, with code 2."""
    print(f"error: {message}", file=sys.stderr)
    distributed.leave(2, message)


def out_of_reach(error: Exception) -> NoReturn:
    """Ends the program with code 1, after which it may be tried again."""
    print(
        f"error: a bucket could not be read or written: {error}\nThe same command goes "
        "on from what was saved.",
        file=sys.stderr,
    )
    sys.exit(1)


def interrupted(request: Interrupted) -> NoReturn:
    """Tells why the program ends, and ends it with the code of the request."""
    print(f"stopped by {request}", file=sys.stderr)
    # Schedulers repeat their signal, which must not change the code.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if request.saved:
        # All processes of a pod have saved together, and end.
        distributed.finish()
        sys.exit(request.exit_code)
    distributed.leave(request.exit_code, request)


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
        except Exception as error:
            if not workdirs.is_of_bucket(error):
                raise
            out_of_reach(error)

    def guarded(argv: list[str]) -> None:
        try:
            main(argv)
            distributed.finish()
        except UserError as error:
            stop(error)
        except Interrupted as request:
            interrupted(request)
        except KeyboardInterrupt:
            now = Interrupted(signal.SIGINT)
            print(f"stopped by {now}", file=sys.stderr)
            distributed.leave(now.exit_code, now)
        except Exception as error:
            if distributed.client() is not None:
                distributed.leave_after(error)
            if not workdirs.is_of_bucket(error):
                raise
            out_of_reach(error)

    app.run(guarded, flags_parser=parse)


def define_groups(argv: list[str], groups: Sequence[str]) -> None:
    """Makes flags of groups of the stored config: `--data.FIELD=…` for "data".

    Nothing where the raw arguments name no workdir.

    Raises:
      UserError: for a field that there is not, or that is given as `--config.FIELD`.
    """
    workdir = value_of("workdir", argv)
    if not workdir:
        return
    stored = configs.load_complete(workdirs.folder_of(workdir))
    for argument in argv:
        if re.match(r"--?config\b", argument):
            known = " and ".join(f"--{group}.FIELD=VALUE" for group in groups)
            raise UserError(
                f"{argument}: the experiment is that of the workdir. What can be "
                f"changed here is {known}."
            )
    for group in groups:
        configs.check_overrides(stored, argv, group)
        config_flags.DEFINE_config_dict(group, stored[group])


def stored_experiment(
    argv: list[str], workdir: str | None, groups: Sequence[str]
) -> tuple[ConfigDict, Path]:
    """The config in a workdir, with what flags of `groups` change, and the folder.

    Raises:
      UserError: arguments that are no flags, no workdir, or values that cannot work.
    """
    if argv[1:]:
        raise UserError(f"Unexpected arguments {argv[1:]}; all options begin with --.")
    if not workdir:
        raise UserError("Give --workdir=DIR, the folder of a finished experiment.")
    folder = workdirs.folder_of(workdir)
    config = configs.load_complete(folder)
    for group in groups:
        config[group] = flags.FLAGS[group].value
    configs.check(config)
    runtime.configure(config.data.cache_dir)
    return config, folder


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
