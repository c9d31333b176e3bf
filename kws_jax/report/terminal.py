"""The terminal's part: a progress bar while training and a short table at the end."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from kws_jax.condition_names import CLEAN, FAR
from kws_jax.report import bits, detection, false_accepts, noise, text
from kws_jax.report.page import FILE_NAME
from kws_jax.report.workdir import Measure, Run, parse_results, read_run
from kws_jax.workdirs import folder_of

_LINE_EVERY = 20.0  # seconds between plain lines


class Bar(Protocol):
    """What `progress_bar` gives."""

    def advance(self, n: int = 1, **fields: Any) -> None:
        """`n` more steps are done; `fields`: loss, clips_per_second, accuracy …"""


def print_summary(workdir: str | Path, console: Console | None = None) -> None:
    """Prints accuracy (clean, in noise, far), size, time and the report.

    Args:
      workdir: the folder of the run.
      console: where to print; standard output by default.

    Raises:
      UserError: the workdir's files are missing or cannot be read.
    """
    console = console or Console()
    _print(read_run(workdir), console)
    report = folder_of(workdir) / FILE_NAME
    if report.exists():
        _print_fact("report", str(report), console)


def print_results(
    rows: Sequence[Mapping[str, Any]], console: Console | None = None
) -> None:
    """Prints what `print_summary` does, from rows as in results.json.

    Args:
      rows: with stage, split, condition, metric, value, ci95 and count.
      console: where to print; standard output by default.

    Raises:
      UserError: a row lacks stage, metric or value.
    """
    run = Run(workdir=Path(), config={}, results=parse_results(rows, "results"))
    _print(run, console or Console())


def print_detection(workdir: str | Path, console: Console | None = None) -> None:
    """Prints what was measured on continuous audio, and where the report is.

    Raises:
      UserError: the workdir's files are missing or cannot be read.
    """
    console, run = console or Console(), read_run(workdir)
    for fact, value in detection.facts(run):
        _print_fact(fact, value, console)
    _print_fact("report", str(folder_of(workdir) / FILE_NAME), console)


def _print(run: Run, console: Console) -> None:
    name = run.config.get("name")
    told = list(_accuracies(run))
    table = Table(title=Text(str(name), style="bold") if name else None)
    table.add_column("test")
    table.add_column("accuracy", justify="right", style="bold")
    table.add_column("95 % interval", justify="right")
    in_float = {condition: bits.float_accuracy(run, condition) for condition, _ in told}
    if any(in_float.values()):
        table.add_column("before, in float", justify="right")
    for condition, measure in told:
        cells = [text.percent(measure.value), text.interval(measure)]
        before = in_float[condition]
        cells += [text.percent(before.value)] if before else []
        table.add_row(Text(condition), *cells)
    if table.row_count:
        console.print(table)
    for fact, value in _facts(run):
        _print_fact(fact, value, console)


def _print_fact(name: str, value: str, console: Console) -> None:
    console.print(Text.assemble((f"{name}: ", "dim"), value), soft_wrap=True)


def _accuracies(run: Run) -> Iterator[tuple[str, Measure]]:
    curves = run.noise()
    for place in ("", FAR):
        clean = run.find("accuracy", place + CLEAN)
        if clean:
            yield clean.condition, clean
        for kind, curve in curves.items():
            if kind.startswith(FAR) == bool(place):
                for _, measure in reversed(curve):
                    yield measure.condition, measure


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    parameters, macs = run.size("parameters"), run.size("macs")
    means = noise.means(run)
    if means:
        told = ", ".join(f"{kind} {text.percent(v)}" for kind, v in means.items())
        yield "mean over the SNRs", told
    if parameters:
        yield "parameters", text.count(parameters.value)
    if macs:
        yield "MACs a clip", text.millions(macs.value)
    yield from bits.facts(run)
    yield from false_accepts.facts(run)
    yield from detection.facts(run)
    seconds = run.seconds()
    if seconds:
        stages = ", ".join(f"{m.stage} {text.duration(m.value)}" for m in seconds)
        yield "training time", stages


@contextlib.contextmanager
def progress_bar(
    description: str,
    total_steps: int,
    start_step: int = 0,
    *,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Bar]:
    """A bar with percentage, speed, loss and time left, as a context manager.

    Where the output is no terminal, a plain line is printed every 20 s instead, and
    one at the end.

    Args:
      description: what goes on, e.g. the stage's name.
      total_steps: steps at the end.
      start_step: steps done before, when a run is taken up again.
      console: where to print; standard output by default.
      clock: seconds, from any start.
    """
    console = console or Console()
    pace = _Pace(total_steps, start_step, clock)
    if not console.is_terminal:
        lines = _PlainLines(description, pace, console)
        try:
            yield lines
        finally:
            lines.finish()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[told]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield _LiveBar(progress, description, pace)


class _Pace:
    """Counts steps and foresees the time left from the speed so far."""

    def __init__(self, total: int, start: int, clock: Callable[[], float]):
        self.total, self.done, self.clock = total, start, clock
        self._first: tuple[float, int] | None = None

    def advance(self, n: int) -> None:
        self.done += n
        # Counted from the first report on: what lies before it is compilation.
        self._first = self._first or (self.clock(), self.done)

    def left(self) -> float | None:
        """Seconds to go; None before there is a speed."""
        if self._first is None or self.done == self._first[1]:
            return None
        elapsed, steps = self.clock() - self._first[0], self.done - self._first[1]
        return max(0, self.total - self.done) * elapsed / steps

    def told(self, fields: dict[str, Any]) -> str:
        """'loss 0.431 · 1,612 clips/s · 3 min 12 s left'."""
        parts = []
        for name, value in fields.items():
            if name == "clips_per_second":
                parts.append(f"{text.count(value)} clips/s")
            elif name == "accuracy":
                parts.append(f"accuracy {text.percent(value)}")
            elif name == "loss":
                parts.append(f"loss {value:.3f}")
        left = self.left()
        if left is not None:
            parts.append(f"{text.duration(left)} left")
        return " · ".join(parts)


class _LiveBar:
    def __init__(self, progress: Progress, description: str, pace: _Pace):
        self._progress, self._pace = progress, pace
        self._task = progress.add_task(
            description, total=pace.total, completed=pace.done, told=""
        )

    def advance(self, n: int = 1, **fields: Any) -> None:
        self._pace.advance(n)
        told = self._pace.told(fields)
        self._progress.update(self._task, completed=self._pace.done, told=told)


class _PlainLines:
    def __init__(self, description: str, pace: _Pace, console: Console):
        self._description, self._pace, self._console = description, pace, console
        self._printed_at = pace.clock()
        self._printed_step: int | None = None
        self._fields: dict[str, Any] = {}

    def advance(self, n: int = 1, **fields: Any) -> None:
        self._pace.advance(n)
        self._fields = fields
        if self._pace.clock() - self._printed_at >= _LINE_EVERY:
            self._print()

    def finish(self) -> None:
        if self._fields and self._printed_step != self._pace.done:
            self._print()

    def _print(self) -> None:
        pace = self._pace
        share = 100 * pace.done / max(pace.total, 1)
        told = pace.told(self._fields)
        line = f"{self._description}  {pace.done}/{pace.total}  {share:.0f} %  {told}"
        self._console.print(Text(line), soft_wrap=True)
        self._printed_at, self._printed_step = pace.clock(), pace.done
