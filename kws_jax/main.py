"""Runs an experiment: `python -m kws_jax.main --config=FILE.py[:ARGS] --workdir=DIR`.

All stages are run, then the final test and the report. Run again with the same workdir,
it goes on where it stopped.
"""

import sys

from absl import flags
from ml_collections import config_flags

from kws_jax import command_line, config, distributed, runtime, workdirs
from kws_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE.py or FILE.py:ARGUMENTS; see configs/."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, logs, results and the report."
)
_STAGES_FROM = flags.DEFINE_string(
    "stages_from",
    "",
    "Workdir whose finished stages are taken over, from the first on, as far as they "
    "and all that is not of stages are the same there.",
)
distributed.define_flags()


def _check_arguments(argv: list[str]) -> None:
    for flag in ("workdir", "stages_from"):
        workdirs.check_kind(command_line.value_of(flag, argv))
    file = command_line.value_of("config", argv)
    if file:
        config.check_overrides(config.load_file(file), argv, "config")


def main(argv: list[str]) -> None:
    """Checks the flags, then hands over to `experiment.run`."""
    if argv[1:]:
        raise UserError(f"Unexpected arguments {argv[1:]}; all options begin with --.")
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError(
            "Give --config=configs/NAME.py and --workdir=DIR, for example\n"
            "  python -m kws_jax.main --config=configs/autokws.py:demo "
            "--workdir=runs/demo"
        )
    config.check(_CONFIG.value)
    runtime.configure(_CONFIG.value.data.cache_dir)
    # After the checks: this imports JAX and TensorFlow.
    distributed.start_by_flags()
    from kws_jax import experiment, several_seeds

    arguments = sys.argv[1:]
    for flag in ("workdir", *distributed.VARIABLES):
        arguments = command_line.without(flag, arguments)
    program = several_seeds if _CONFIG.value.seeds > 1 else experiment
    program.run(_CONFIG.value, _WORKDIR.value, arguments, _STAGES_FROM.value)


if __name__ == "__main__":
    command_line.run(main, _check_arguments)
