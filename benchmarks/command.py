"""What the benchmark commands share: options, limits, messages, results."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging
from rich.console import Console

from benchmarks import machine, options, results
from benchmarks.options import Options
from benchmarks.results import Row, Work
from kws_jax import command_line, runtime
from kws_jax.errors import UserError

JAX, TORCH = "JAX", "PyTorch"
Call = Callable[[], Any]
# More cores than this in use by others disturb the measurement.
_IDLE = 0.3


class Session:
    """One run of a benchmark: collects rows, and says what it could not measure."""

    def __init__(self, wanted: Options, console: Console | None = None):
        """Fixes the threads and measures the machine's limits; configure JAX before."""
        from benchmarks import limits

        self.options = wanted
        self.console = console or Console()
        self.rows: list[Row] = []
        self.threads = machine.match_threads()
        self.busy_before = machine.busy_cores()
        if self.busy_before > _IDLE:
            self.console.print(
                f"Other programs use {self.busy_before:.1f} cores: the figures will "
                "be too slow, some of them by far."
            )
        self.has_twins = self._find_twins()
        self.limits = limits.measure(small=wanted.small)
        self.console.print(
            f"{self.threads} threads for each framework; limits: "
            f"{self.limits.flops / 1e9:.1f} GFLOP/s (float32 matrix product), "
            f"{self.limits.bandwidth / 1e9:.1f} GB/s."
        )

    def time(
        self, name: str, calls: Mapping[str, Call], work: Work, *, clips: int
    ) -> None:
        """Times framework -> call by turns and keeps a row for each."""
        from benchmarks.timing import interleaved

        self.console.print(f"  {name}: {', '.join(calls)}", highlight=False)
        floor = work.floor(self.limits.flops, self.limits.bandwidth)
        timings = interleaved(calls, repeats=self.options.repeats)
        for framework, timing in timings.items():
            self.rows.append(results.make_row(name, framework, timing, clips, floor))

    def _find_twins(self) -> bool:
        """Whether the twins can run beside JAX; says why not."""
        import jax

        if jax.default_backend() != "cpu":
            self.console.print(
                "JAX does not run on the CPU, as the PyTorch twins do: they are left "
                "out. JAX_PLATFORMS=cpu compares both."
            )
            return False
        if not machine.has_torch():
            self.console.print(
                "PyTorch is not installed: JAX alone is measured. "
                'pip install -e ".[twins]" adds it.',
                markup=False,
            )
            return False
        return True


def run(
    name: str,
    known: tuple[str, ...],
    measure: Callable[[Session, list[str]], None],
    *,
    batch: int = 128,
    repeats: int = 20,
) -> None:
    """The program `python -m benchmarks.NAME`.

    Args:
      name: of the command.
      known: names that --only may choose from.
      measure: takes the session and the chosen names.
      batch: default of --batch.
      repeats: default of --repeats.
    """

    def main(argv: list[str]) -> None:
        if argv[1:]:
            raise UserError(
                f"Unexpected arguments {argv[1:]}; all options begin with --."
            )
        wanted = options.read(batch=batch, repeats=repeats)
        chosen = wanted.chosen(known)
        runtime.configure()
        logging.set_verbosity(logging.WARNING)
        session = Session(wanted)
        measure(session, chosen)
        report(name, session)

    command_line.run(main)


def report(name: str, session: Session) -> None:
    """Prints the session's rows and writes its JSON file, if one is wanted."""
    results.print_table(name, session.rows, session.console)
    wanted = session.options
    if wanted.json is None:
        return
    results.write_json(
        wanted.json,
        session.rows,
        command=name,
        batch=wanted.batch,
        small=wanted.small,
        threads=session.threads,
        busy_cores_before=session.busy_before,
        machine=machine.describe(),
        limits=dataclasses.asdict(session.limits),
    )
    session.console.print(f"Written: {wanted.json}", highlight=False)
