"""An experiment with several seeds: `config.seeds=N`, one folder for each of them.

Each seed's folder is a workdir of its own, `WORKDIR/seed-S`: that seed alone can be
evaluated, exported and compared. In WORKDIR itself are the means over the seeds, with
their intervals.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict
from rich.console import Console

from kws_jax import config as configs
from kws_jax import experiment, together
from kws_jax.errors import UserError
from kws_jax.evaluation.over_seeds import over_seeds
from kws_jax.parts import Parts
from kws_jax.report import seeds as seeds_report
from kws_jax.report.page import FILE_NAME
from kws_jax.stages import dispatch, seeds_at_once, taken
from kws_jax.stages.stacked_seeds import Member
from kws_jax.training import preemption
from kws_jax.training.checkpoints import saving, write_json
from kws_jax.training.workdir_lock import WorkdirLock
from kws_jax.workdirs import folder_of


def run(
    config: ConfigDict,
    workdir: str,
    arguments: Sequence[str] = (),
    stages_from: str = "",
) -> list[dict[str, Any]]:
    """Runs the experiment with each of its seeds; returns the rows of their means.

    Seeds differ in `config.seed` alone: they hear the same clips in the same batches.
    Run again with the same workdir, it goes on where it stopped. Stages that the same
    seeds have finished in the workdir `stages_from` are taken over.

    Raises:
      UserError: for everything the user can mend; what was saved stays.
      Interrupted: after SIGTERM or Ctrl-C, see `preemption`.
    """
    console, quiet = Console(highlight=False), Console(quiet=True)
    logging.set_verbosity(logging.ERROR)
    folder = folder_of(workdir)
    source = folder_of(stages_from) if stages_from else None
    with contextlib.ExitStack() as held:
        held.enter_context(preemption.watched())
        lock = held.enter_context(WorkdirLock(folder))
        parts = experiment.prepare(
            config, folder, lock, arguments, console, source, _check_wish
        )
        at_once = _stages_at_once(parts, folder, console)
        members = [
            Member(parts.of_seed(config.seed + number), own)
            for number, own in enumerate(configs.seed_folders(config, folder))
        ]
        for member in members:
            experiment.check_workdir(member.parts.config, member.folder)
            held.enter_context(WorkdirLock(member.folder)).take(make=True)
            experiment.claim_workdir(member.parts, member.folder)
            if source is not None:
                there = source / member.folder.name
                taken.take(member.parts.config, there, member.folder, console)
            if together.is_first():
                seed = member.parts.config.seed
                alone = [*arguments, f"--config.seed={seed}", "--config.seeds=1"]
                write_json(member.folder / "command.json", alone)
        rows: list[list[dict[str, Any]]] = [[] for _ in members]
        for index, stage in enumerate(parts.config.stages):
            if index in at_once:
                seeds_at_once.run(members, index, folder)
            for member, own in zip(members, rows, strict=True):
                if index not in at_once:
                    seed = member.parts.config.seed
                    console.print(f"Seed {seed}, stage {stage.name!r}")
                own += dispatch.run(member.parts, index, member.folder)
        finished = []
        for member, own in zip(members, rows, strict=True):
            console.print(f"Seed {member.parts.config.seed}: final test")
            finished.append(experiment.finish(member.parts, member.folder, own, quiet))
        means = over_seeds(finished)
        if together.is_first():
            write_json(folder / "results.json", means)
            with saving(folder / FILE_NAME):
                seeds_report.write_page(folder, [m.folder for m in members])
            seeds_report.print_summary(folder, [m.folder for m in members], console)
    return means


def _check_wish(parts: Parts) -> None:
    """Raises UserError where seeds are wanted at once and no stage can do it."""
    config = parts.config
    reasons = [seeds_at_once.obstacle(parts, i) for i in range(len(config.stages))]
    if config.seeds_at_once == configs.YES and all(reasons):
        told = "; ".join(
            f"stage {stage.name!r}: {reason}"
            for stage, reason in zip(config.stages, reasons, strict=True)
        )
        raise UserError(
            f"config.seeds_at_once = 'yes', and no stage can train {config.seeds} "
            f"seeds at once ({told}). Say 'no': one seed after the other."
        )


def _stages_at_once(parts: Parts, folder: Path, console: Console) -> set[int]:
    """Which stages train all seeds in one program; one that has begun goes on as it is.

    Tells where that is not what the config, or the default, asks for.
    """
    wanted = parts.config.seeds_at_once == configs.YES
    if parts.config.seeds_at_once == configs.AUTO:
        wanted = jax.default_backend() != "cpu"
    chosen = set()
    for index, stage in enumerate(parts.config.stages):
        reason = seeds_at_once.obstacle(parts, index)
        if reason:
            if wanted:
                console.print(
                    f"Stage {stage.name!r} takes one seed after the other: {reason}"
                )
            continue
        begun = together.agreed(seeds_at_once.begun(parts, index, folder))
        if begun is not None and begun != wanted:
            way = "all seeds at once" if begun else "one seed after the other"
            console.print(f"Stage {stage.name!r} goes on as it began: {way}")
        if wanted if begun is None else begun:
            chosen.add(index)
    return chosen
