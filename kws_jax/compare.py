"""One table of several experiments: `python -m kws_jax.compare WORKDIR…`.

Workdirs that differ in `config.seed` and `config.data.seed` alone are one row: mean and
standard deviation over the seeds; so are the seeds of a workdir with `config.seeds`.
With `--baseline=W`, the row of workdir W is what the others are compared with, by a
paired bootstrap over the test clips (each clip's share of right answers over the
seeds). Rows of one network and search method, that differ in another setting, are told
apart by the folder named first. Keywords missed in continuous audio are marked where it
was made of other streams than those of the baseline, or else of the first row. Prints
Markdown. `--noise` adds a table for each kind of noise, near and far, with a column for
each SNR. `--plot=FILE.html` also draws accuracy against parameters, the area of a dot
being the multiply-accumulates, and against the SNR.
"""

from pathlib import Path

from absl import flags

from kws_jax import command_line
from kws_jax.comparison import page, tables
from kws_jax.comparison.rows import folders_of, read_rows
from kws_jax.errors import UserError
from kws_jax.workdirs import folder_of

_BASELINE = flags.DEFINE_string(
    "baseline", "", "Workdir whose row the others are compared with."
)
_NOISE = flags.DEFINE_bool(
    "noise", False, "Whether to print a table for each kind of noise, too."
)
_PLOT = flags.DEFINE_string("plot", "", "HTML file for drawings of the tables.")


def main(argv: list[str]) -> None:
    """Reads the workdirs and prints the tables."""
    if not argv[1:]:
        raise UserError("Give the workdirs of finished experiments.")
    rows = read_rows([folder_of(folder) for folder in argv[1:]])
    baseline = None
    if _BASELINE.value:
        _, first = next(folders_of([folder_of(_BASELINE.value)], "--baseline="))
        baseline = next((row for row in rows if row.holds(first)), None)
        if baseline is None:
            raise UserError(f"--baseline={_BASELINE.value} is not among the workdirs.")
    print(tables.overview(rows, baseline))
    for told in (tables.levels(rows), tables.other_streams(rows, baseline)):
        if told:
            print("\n" + told)
    if _NOISE.value:
        noise = tables.in_noise(rows, baseline)
        print("\n" + (noise or "None of them was tested in noise."))
    if _PLOT.value:
        page.write(rows, Path(_PLOT.value))


if __name__ == "__main__":
    command_line.run(main)
