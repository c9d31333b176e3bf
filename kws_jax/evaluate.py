"""Measures a trained experiment again: `python -m kws_jax.evaluate --workdir=W`.

`--data.FIELD=VALUE` and `--evaluation.FIELD=VALUE` change the data and the conditions,
for example `--data.source=folder --data.dir=my_clips` or `--evaluation.snr_db=(15,0)`.
Prints the accuracy in each condition; `--output=FILE` keeps rows as in results.json.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from kws_jax import command_line, runtime
from kws_jax import config as configs
from kws_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished experiment.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the rows of results.")
_GROUPS = ("data", "evaluation")


def _define_overrides(argv: list[str]) -> None:
    """Makes flags of the stored config's groups, once the workdir is known."""
    workdir = command_line.value_of("workdir", argv)
    if not workdir:
        return
    stored = configs.load_workdir(Path(workdir))
    for group in _GROUPS:
        configs.check_overrides(stored, argv, group)
        config_flags.DEFINE_config_dict(group, stored[group])


def main(argv: list[str]) -> None:
    """Checks the flags, then measures."""
    if argv[1:]:
        raise UserError(f"Unexpected arguments {argv[1:]}; all options begin with --.")
    if not _WORKDIR.value:
        raise UserError("Give --workdir=DIR, the folder of a finished experiment.")
    folder = Path(_WORKDIR.value)
    config = configs.load_workdir(folder)
    for group in _GROUPS:
        config[group] = flags.FLAGS[group].value
    configs.check(config)
    runtime.configure(config.data.cache_dir)
    from kws_jax import experiment

    experiment.evaluate(config, folder, _OUTPUT.value)


if __name__ == "__main__":
    command_line.run(main, _define_overrides)
