"""One table of several experiments: `python -m kws_jax.compare WORKDIR…`.

Workdirs that differ in `config.seed` and `config.data.seed` alone are one row: mean and
standard deviation over the seeds; so are the seeds of a workdir with `config.seeds`.
With `--baseline=W`, the row of workdir W is what the others are compared with, by a
paired bootstrap over the test clips (each clip's share of right answers over the
seeds). Rows of one network and search method, that differ in another setting, are told
apart by the folder named first. Prints Markdown. `--plot=FILE.html` also draws
accuracy against parameters, the area of a dot being the multiply-accumulates.
"""

import dataclasses
import json
import statistics
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from kws_jax import command_line
from kws_jax import config as configs
from kws_jax.errors import UserError
from kws_jax.evaluation.metrics import paired_bootstrap
from kws_jax.report import size_plot
from kws_jax.report.workdir import Run, read_run

_BASELINE = flags.DEFINE_string(
    "baseline", "", "Workdir whose row the others are compared with."
)
_PLOT = flags.DEFINE_string("plot", "", "HTML file for a drawing of the table.")
# In what the runs of one row may differ.
_OF_A_SEED = ("seed", "data.seed", "seeds_at_once")
_HEADS = (
    "network",
    "seeds",
    "clean, % (sd)",
    "seen noise, %",
    "unseen noise, %",
    "far clean, %",
    "far seen noise, %",
    "far unseen noise, %",
    "parameters",
    "MACs",
    "search, min",
    "train, min",
)


@dataclasses.dataclass
class Row:
    """The runs of one experiment under several seeds."""

    name: str
    named: Path  # the first folder that was given for it
    folders: list[Path]
    runs: list[Run]
    correct: list[np.ndarray]  # bool [n] for each run: was the clean clip right?

    @property
    def group(self) -> str:
        """What the networks of one curve have in common: search and front end.

        Networks whose layers the config names were found by no search of theirs.
        """
        config = self.runs[0].config
        frontend = config.get("frontend") or {}
        sizes = ("num_filters", "num_coefficients", "num_mel")
        size = next((frontend[s] for s in sizes if s in frontend), "")
        network, search = config["network"], config.get("search")
        name = network["name"]
        if search:
            given = network.get("genotype") or network.get("layers")
            name = "given" if given else search["method"]
        return f"{name} {frontend.get('name', '')}{size}".rstrip()

    def values(self, metric: str, condition: str = "clean") -> list[float]:
        """A measure of the last stage's network in each run."""
        stage = str(self.runs[0].config["stages"][-1]["name"])
        return [
            m.value
            for run in self.runs
            for m in run.results
            if (m.metric, m.condition, m.stage) == (metric, condition, stage)
            and not (metric == "accuracy" and m.split != "test")
        ]

    def in_noise(self, kind: str) -> list[float]:
        """Accuracy over all SNRs of a kind of noise, one mean for each run."""
        curves = [run.noise().get(kind, []) for run in self.runs]
        return [statistics.fmean(m.value for _, m in c) for c in curves if c]

    def seconds(self, *, last: bool) -> list[float]:
        """Training time of the last stage, or of all before it, in each run."""
        totals = []
        for run in self.runs:
            final = str(run.config["stages"][-1]["name"])
            parts = [m.value for m in run.seconds() if (m.stage == final) == last]
            totals.append(sum(parts))
        return totals


def _correct(path: Path) -> np.ndarray:
    """Whether each clean test clip was answered right, bool [n]."""
    try:
        with np.load(path, allow_pickle=False) as answers:
            return np.asarray(answers["clean"] == answers["label"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read ({error}): run `python -m kws_jax.main` with this "
            "workdir to its end, or leave the workdir out"
        ) from error


def read_rows(workdirs: Sequence[Path]) -> list[Row]:
    """The rows of the table, in the order in which they are first named.

    Raises:
      UserError: for a workdir without results.
    """
    rows: dict[str, Row] = {}
    for named, folder in _folders(workdirs):
        fields = configs.fields(configs.load_workdir(folder))
        same = {n: v for n, v in fields.items() if n not in _OF_A_SEED}
        key = json.dumps(same, sort_keys=True)
        row = rows.setdefault(key, Row(_name(folder), named, [], [], []))
        row.folders.append(folder)
        row.runs.append(read_run(folder))
        row.correct.append(_correct(folder / "predictions.npz"))
    names = [row.name for row in rows.values()]
    for row in rows.values():
        if names.count(row.name) > 1:
            row.name += f" ({row.named.name})"
    return list(rows.values())


def _folders(workdirs: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Each workdir with that of its network, or in turn of its seeds' networks.

    None twice, however often and however it is named.
    """
    seen = set()
    for named in workdirs:
        for folder in configs.seed_folders(configs.load_workdir(named), named):
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield named, folder


def _name(folder: Path) -> str:
    config = configs.load_workdir(folder)
    name = _network_name(config)
    front = config.get("front_filter", {}).get("name", "none")
    return name if front == "none" else f"{front} > {name}"


def _network_name(config: ConfigDict) -> str:
    if "search" in config:
        kinds = {stage.kind for stage in config.stages}
        given = config.network.get("genotype") or config.network.get("layers")
        if given:
            return str(given)
        method = "random" if "random_search" in kinds else str(config.search.method)
        filters = config.frontend.get("num_filters") if "frontend" in config else None
        return f"{method} {config.frontend.name}{filters}" if filters else method
    width = config.network.get("width", 1.0)
    return f"{config.network.name} ×{width:g}"


def table(rows: Sequence[Row], baseline: Row | None) -> str:
    """The table as Markdown."""
    heads = list(_HEADS)
    if baseline is not None:
        heads.append(f"clean against {baseline.name} (95 %)")
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        cells = _cells(row)
        if baseline is not None:
            cells.append("" if row is baseline else _difference(row, baseline))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        str(len(row.runs)),
        _percent(row.values("accuracy"), spread=True),
        _percent(row.in_noise("seen")),
        _percent(row.in_noise("unseen")),
        _percent(row.values("accuracy", "far clean")),
        _percent(row.in_noise("far seen")),
        _percent(row.in_noise("far unseen")),
        f"{statistics.fmean(row.values('parameters')):,.0f}",
        f"{statistics.fmean(row.values('macs')) / 1e6:.2f} M",
        _minutes(row.seconds(last=False)),
        _minutes(row.seconds(last=True)),
    ]


def write_plot(rows: Sequence[Row], path: Path) -> None:
    """Draws clean accuracy against parameters; a curve for each front end and method.

    Raises:
      UserError: where the file cannot be written.
    """
    points = [
        size_plot.Point(
            group=row.group,
            name=row.name,
            parameters=statistics.fmean(row.values("parameters")),
            macs=statistics.fmean(row.values("macs")),
            accuracy=statistics.fmean(row.values("accuracy")),
        )
        for row in rows
    ]
    try:
        path.write_text(size_plot.page(points), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--plot={path} cannot be written ({error}); name a file in a folder that "
            "exists."
        ) from error


def _percent(values: list[float], *, spread: bool = False) -> str:
    if not values:
        return "–"
    mean = f"{100 * statistics.fmean(values):.2f}"
    if spread and len(values) > 1:
        mean += f" ({100 * statistics.stdev(values):.2f})"
    return mean


def _minutes(seconds: list[float]) -> str:
    mean = statistics.fmean(seconds) / 60
    return f"{mean:.1f}" if mean else "–"


def _difference(row: Row, baseline: Row) -> str:
    a, b = (np.mean(r.correct, axis=0) for r in (row, baseline))
    if a.shape != b.shape:
        return "other test clips"
    difference, (low, high) = paired_bootstrap(a, b)
    return f"{100 * difference:+.2f} ({100 * low:+.2f} … {100 * high:+.2f})"


def main(argv: list[str]) -> None:
    """Reads the workdirs and prints the table."""
    if not argv[1:]:
        raise UserError("Give the workdirs of finished experiments.")
    rows = read_rows([Path(folder) for folder in argv[1:]])
    baseline = None
    if _BASELINE.value:
        folder = Path(_BASELINE.value)
        _, first = next(_folders([folder]))
        baseline = next((row for row in rows if first in row.folders), None)
        if baseline is None:
            raise UserError(f"--baseline={_BASELINE.value} is not among the workdirs.")
    print(table(rows, baseline))
    if _PLOT.value:
        write_plot(rows, Path(_PLOT.value))


if __name__ == "__main__":
    command_line.run(main)
