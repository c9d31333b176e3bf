"""Finished stages of another workdir, taken over in place of being run again.

Where a searched network is quantised at several widths, or a curriculum is changed in
its last stage, what comes before is the same, and is made once (`--stages_from`).
"""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict
from rich.console import Console

from kws_jax import config as configs
from kws_jax import together
from kws_jax.errors import UserError
from kws_jax.parts import TASK_FILE, Parts
from kws_jax.stage_fields import FINDS_GENOTYPE
from kws_jax.stages.data_parameter_records import SUMMARY_FILE
from kws_jax.stages.networks import GENOTYPE_FILE
from kws_jax.stages.runner import DONE_FILE
from kws_jax.training.checkpoints import (
    COMPLETE_FILE,
    saving,
    write_bytes,
    write_json,
    write_text,
)
from kws_jax.training.logs import JsonLines
from kws_jax.workdirs import in_bucket, read_json

_STAGE = re.compile(r"stages\[(\d+)\]\..*")


def check(config: ConfigDict, source: Path, folder: Path) -> None:
    """Checks, before data are opened, that `source` has a stage for the experiment.

    `folder` is the experiment's own workdir.

    Raises:
      UserError: where `source` holds no experiment, or one that differs from `config`
        in its first stage or outside of the stages, or has not finished that stage;
        where it lies in a bucket and `folder` does not, or the other way round.
    """
    if source == folder:
        raise UserError(
            f"--stages_from={source} is the --workdir itself: leave it out, a workdir "
            "goes on from its own stages."
        )
    if in_bucket(source) != in_bucket(folder):
        raise UserError(
            f"--stages_from={source} and --workdir={folder} must both be folders of "
            "this machine, or both be in buckets: copy the former over first."
        )
    stored = _load(source)
    count, reasons = _same_stages(config, stored)
    if count == 0:
        shown = "\n".join(reasons[: configs.MOST_SHOWN])
        raise UserError(
            f"--stages_from={source} has no stage of this experiment:\n{shown}\nStages "
            "are taken from the first on, as far as they and all that is not of stages "
            "are the same."
        )
    for own in configs.seed_folders(stored, source):
        if not _done(config, 0, own).exists():
            raise UserError(
                f"--stages_from={source}: stage {config.stages[0].name!r} has not been "
                f"run to its end in {own}."
            )


def check_data(parts: Parts, source: Path) -> None:
    """Raises UserError where the stages of `source` were trained on other data."""
    if not parts.is_data_of(read_json(source / TASK_FILE)):
        raise UserError(
            f"--stages_from={source} was started on other data (other clips, labels or "
            "noise): its stages cannot be taken."
        )


def take(config: ConfigDict, source: Path, folder: Path, console: Console) -> None:
    """Copies the stages that `source` has finished and `folder` has not.

    To be called after the checks, for each seed with its own config and folders. The
    stages come with their lines of the logs, and what else they left for later stages
    and the report; TensorBoard's events stay behind. Each is complete before it counts
    as done, so that the same command mends an interrupted copy.

    Raises:
      UserError: where `folder` cannot be written.
    """
    count, _ = _same_stages(config, _load(source))
    finished = itertools.takewhile(
        lambda index: _done(config, index, source).exists(), range(count)
    )
    missing = [i for i in finished if not _done(config, i, folder).exists()]
    together.wait(f"look at the stages to be taken into {folder}")
    if together.is_first() and missing:
        _take_logs(config, missing, source, folder)
        _take_findings(config, missing, source, folder)
        for index in missing:
            with saving(folder):
                _copy_stage(config, index, source, folder)
        names = ", ".join(repr(config.stages[index].name) for index in missing)
        console.print(f"Taken from {source}: {names}", soft_wrap=True)
    together.wait(f"copies of the stages in {folder}")


def _load(source: Path) -> ConfigDict:
    if not (source / TASK_FILE).exists():
        raise UserError(
            f"--stages_from={source} holds no experiment with a finished stage; give "
            "the --workdir of another run of kws_jax.main."
        )
    return configs.load_workdir(source)


def _same_stages(config: ConfigDict, stored: ConfigDict) -> tuple[int, list[str]]:
    """How many leading stages are the same in both, and why there are no more."""
    # What an experiment is called changes nothing.
    differing = configs.differences(config, stored)
    differing.pop("name", None)
    stages = [
        int(of_stage.group(1)) if (of_stage := _STAGE.fullmatch(name)) else 0
        for name in differing
    ]
    count = min([len(config.stages), len(stored.stages), *stages])
    reasons = zip(stages, differing.values(), strict=True)
    return count, [line for stage, line in reasons if stage == count]


def _done(config: ConfigDict, index: int, folder: Path) -> Path:
    return configs.stage_folder(config, index, folder) / DONE_FILE


def _take_logs(
    config: ConfigDict, taken: list[int], source: Path, folder: Path
) -> None:
    """Takes the lines of the stages over, in place of what an interrupted copy left."""
    names = {config.stages[index].name for index in taken}
    later = tuple(stage.name for stage in config.stages[taken[0] + 1 :])
    for path in sorted(epath.Path(source).glob("*.jsonl")):
        lines = [_object(line) for line in path.read_text().splitlines()]
        own = JsonLines(folder / path.name)
        own.rewind(config.stages[taken[0]].name, -1, later)
        own.extend(line for line in lines if line.get("stage") in names)
        own.flush()


def _object(line: str) -> Mapping[str, Any]:
    """A line of a log; {} where another run is just writing it."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}


def _take_findings(
    config: ConfigDict, taken: list[int], source: Path, folder: Path
) -> None:
    """Takes what stages leave in the workdir: a network that was found, the σ."""
    stages = [config.stages[index] for index in taken]
    if any(stage.kind in FINDS_GENOTYPE for stage in stages):
        found = source / GENOTYPE_FILE
        if found.exists():
            write_text(folder / GENOTYPE_FILE, found.read_text())
    if (source / SUMMARY_FILE).exists():
        names = {stage.name for stage in stages}
        summary = read_json(source / SUMMARY_FILE)
        own = {name: entry for name, entry in summary.items() if name in names}
        if own:
            kept = folder / SUMMARY_FILE
            write_json(kept, (read_json(kept) if kept.exists() else {}) | own)


def _copy_stage(config: ConfigDict, index: int, source: Path, folder: Path) -> None:
    """Copies a stage's folder, what tells that it is done last of all."""
    there, here = (
        epath.Path(configs.stage_folder(config, index, where))
        for where in (source, folder)
    )
    if here.exists():
        here.rmtree()
    for part in sorted(there.iterdir()):
        if part.name != DONE_FILE:
            _copy(part, here / part.name)
    _copy(there / DONE_FILE, here / DONE_FILE)


def _copy(source: epath.Path, target: epath.Path) -> None:
    if not source.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, source.read_bytes())
        return
    target.mkdir(parents=True, exist_ok=True)
    # What tells that the others are there comes last.
    for part in sorted(source.iterdir(), key=lambda part: part.name == COMPLETE_FILE):
        _copy(part, target / part.name)
