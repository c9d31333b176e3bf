"""Measures a trained experiment again: `python -m kws_jax.evaluate --workdir=W`.

`--data.FIELD=VALUE` and `--evaluation.FIELD=VALUE` change the data and the conditions,
for example `--data.source=folder --data.dir=my_clips` or, in quotes since it has
brackets, `"--evaluation.snr_db=(15,0)"`.
Prints the accuracy in each condition; `--output=FILE` keeps rows as in results.json,
`--output_dir=DIR` what `kws_jax.compare` reads.
"""

from absl import flags

from kws_jax import command_line, distributed

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished experiment.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the rows of results.")
distributed.define_flags()
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "", "New folder for kws_jax.compare, with the answers to each clip."
)
_GROUPS = ("data", "evaluation")


def _define_overrides(argv: list[str]) -> None:
    command_line.define_groups(argv, _GROUPS)


def main(argv: list[str]) -> None:
    """Checks the flags, then measures."""
    config, folder = command_line.stored_experiment(argv, _WORKDIR.value, _GROUPS)
    distributed.start_by_flags()
    from kws_jax import measuring

    measuring.evaluate(config, folder, _OUTPUT.value, _OUTPUT_DIR.value)


if __name__ == "__main__":
    command_line.run(main, _define_overrides)
