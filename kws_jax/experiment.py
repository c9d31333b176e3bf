"""An experiment from its config to its report: stages, final test, results."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict
from rich.console import Console

from kws_jax import condition_names, heard, scaling, together
from kws_jax import config as configs
from kws_jax.data import pipeline
from kws_jax.data.conditions import CLEAN
from kws_jax.deploy import artefacts
from kws_jax.errors import UserError
from kws_jax.evaluation import false_accepts, testing
from kws_jax.evaluation.metrics import result
from kws_jax.parts import TASK_FILE, Parts, build_parts
from kws_jax.report.page import write_report
from kws_jax.report.terminal import print_summary
from kws_jax.stages import (
    detection,
    dispatch,
    embeddings,
    feeding,
    filters,
    networks,
    taken,
)
from kws_jax.training import preemption
from kws_jax.training.checkpoints import saving, write_arrays, write_json, write_text
from kws_jax.training.workdir_lock import WorkdirLock
from kws_jax.workdirs import folder_of, read_json


def run(
    config: ConfigDict,
    workdir: str,
    arguments: Sequence[str] = (),
    stages_from: str = "",
) -> list[dict[str, Any]]:
    """Runs all stages, the final test and the report; returns the rows of results.

    `arguments` are what the program was started with, to be shown in the report.
    Stages that the workdir `stages_from` has finished are taken over (see
    `stages.taken`).

    Raises:
      UserError: for everything the user can mend; what was saved stays.
      Interrupted: after SIGTERM or Ctrl-C, see `preemption`.
    """
    console = Console(highlight=False)
    logging.set_verbosity(logging.ERROR)
    folder = folder_of(workdir)
    with preemption.watched(), WorkdirLock(folder) as lock:
        return _run(config, folder, lock, arguments, stages_from, console)


def _run(
    config: ConfigDict,
    folder: Path,
    lock: WorkdirLock,
    arguments: Sequence[str],
    stages_from: str,
    console: Console,
) -> list[dict[str, Any]]:
    source = folder_of(stages_from) if stages_from else None
    parts = prepare(config, folder, lock, arguments, console, source)
    if source is not None:
        taken.take(parts.config, source, folder, console)
    rows: list[dict[str, Any]] = []
    for index in range(len(parts.config.stages)):
        rows += dispatch.run(parts, index, folder)
    rows = finish(parts, folder, rows, console)
    if together.is_first():
        print_summary(folder, console)
    return rows


def prepare(
    config: ConfigDict,
    folder: Path,
    lock: WorkdirLock,
    arguments: Sequence[str],
    console: Console,
    source: Path | None = None,
    check: Callable[[Parts], None] = lambda parts: None,
) -> Parts:
    """Opens the data, checks all that can be checked, and claims the workdir.

    Stages are to be taken from `source`. `check` may add checks of its own.

    Raises:
      UserError: for everything that the user can mend.
    """
    config = scaling.resolve(config, jax.device_count(), console.print)
    together.check_same("a config", configs.identity(config))
    check_workdir(config, folder)
    if source is not None:
        taken.check(config, source, folder)
    parts = build_parts(config, console)
    if source is not None:
        taken.check_data(parts, source)
    dispatch.check(parts, folder)
    detection.check(parts)
    check(parts)
    lock.take(make=True)
    # While the data was opened, another run may have begun there, and ended.
    check_workdir(config, folder)
    claim_workdir(parts, folder)
    if together.is_first():
        write_json(folder / "command.json", list(arguments))
    _print_pipeline_speed(parts, console)
    return parts


def finish(
    parts: Parts, folder: Path, rows: list[dict[str, Any]], console: Console
) -> list[dict[str, Any]]:
    """The final test and the report; returns its rows after those of the stages."""
    rows = rows + final_test(parts, folder, folder)
    rows += detection.final_test(parts, folder, console)
    rows += _packed_rows(parts, folder, console)
    if together.is_first():
        write_json(folder / "results.json", rows)
        with saving(folder / "report.html"):
            write_report(folder)
    return rows


def _packed_rows(parts: Parts, folder: Path, console: Console) -> list[dict[str, Any]]:
    """How large the artefact of a quantised network is.

    On all processes, which restore it together.
    """
    try:
        size = artefacts.packed_bytes(parts, folder)
    except UserError as error:
        # A layer of the user's own perhaps; what was trained and tested stays.
        console.print(f"Not packed: {error}")
        return []
    if size is None:
        return []
    stage = parts.config.stages[-1].name
    name = condition_names.CLEAN
    return [result(stage, "train", name, "packed_bytes", size, None, 1)]


def _print_pipeline_speed(parts: Parts, console: Console) -> None:
    """Tells what the input pipeline delivers alone, the upper limit of training."""
    batches = feeding.batches_alone(parts, parts.config.stages[-1])
    speed = pipeline.measure_throughput(batches, count=20)
    where = ", mixed on the device" if parts.config.data.on_device else ""
    console.print(f"Input pipeline alone{where}: {speed:,.0f} clips/s")


def check_workdir(config: ConfigDict, folder: Path) -> None:
    """Raises UserError where `folder` holds another experiment than `config`."""
    if (folder / "config.json").exists():
        configs.check_same(config, configs.load_workdir(folder), folder)


def claim_workdir(parts: Parts, folder: Path) -> None:
    """Makes `folder` this experiment's, or finds that it is already.

    Raises:
      UserError: where it was started on other data, or cannot be written.
    """
    task = parts.identity()
    together.check_same("data", task)
    kept = folder / TASK_FILE
    if kept.exists() and not parts.is_data_of(read_json(kept)):
        raise UserError(
            f"--workdir={folder} was started on other data (other clips, "
            "labels or noise); choose another --workdir, or restore the data."
        )
    if together.is_first():
        with saving(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.json", configs.to_json(parts.config))
        write_json(folder / TASK_FILE, task)
        if parts.flipped:
            write_json(folder / "flipped_labels.json", parts.flips())
        if not (folder / heard.FILE).exists():
            heard.keep(parts, folder)
    networks.keep_given_genotype(parts, folder)
    together.wait("claim of the workdir")


def final_test(
    parts: Parts, folder: Path, into: Path | None = None
) -> list[dict[str, Any]]:
    """Tests the best network of the last stage: clean, in noise, on other words.

    A quantised network's accuracies before, in float, are rows of their own metric.

    Leaves `evaluation.json` (labels, confusion matrices), `predictions.npz` (the true
    and the predicted label of each test clip, by condition) and, of a learned front
    end, `filters.json` in `into`, and `embeddings.npz` where they are asked for.
    """
    network = dispatch.finished_network(parts, folder)
    test = functools.partial(
        testing.test_network,
        batches=functools.partial(
            parts.eval_batches, parts.task.test, rooms=parts.test_rooms
        ),
        stage=parts.config.stages[-1].name,
        labels=parts.labels,
        noise=parts.noise,
        snr_db=parts.config.evaluation.snr_db,
        far=parts.test_rooms is not None,
    )
    rows, confusion, predictions = test(network.predict)
    before = dispatch.float_network(parts, folder)
    if before:
        in_float = test(before.predict)[0]
        rows += [
            row | {"metric": testing.FLOAT_ACCURACY}
            for row in in_float
            if row["metric"] == testing.ACCURACY
        ]
    rows += false_accepts.test_others(
        network.predict,
        lambda split: parts.eval_batches(split, CLEAN),
        parts.held_out,
        predictions,
        stage=parts.config.stages[-1].name,
        labels=parts.labels,
        keywords=len(parts.keywords),
    )
    if into is not None:
        filters.keep_filters(parts, network, into)
    if into is not None and together.is_first():
        write_json(
            into / "evaluation.json",
            {"labels": parts.labels, "confusion": confusion},
        )
        write_arrays(into / "predictions.npz", predictions)
    if embeddings.asked_for(parts.config):
        rows += embeddings.measure(parts, network, into)
    return rows
