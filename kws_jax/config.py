"""Reading, checking, storing and comparing the config of an experiment; no JAX here."""

import json
import re
import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kws_jax import config_fields, recipes, scaling, stage_fields
from kws_jax.errors import UserError, nearest
from kws_jax.workdirs import read_json

SOURCES = ("tfds", "folder", "synthetic")
STAGE_KINDS = (
    "train",
    "search",
    "proxyless_search",
    "random_search",
    "embed",
    "quantize",
)
COMPUTE_DTYPES = ("float32", "bfloat16")
SEEDS_AT_ONCE = (AUTO, YES, NO) = ("auto", "yes", "no")
# Fields that may differ when an experiment is taken up again: where things lie and
# how they are shown, not what is computed.
_MAY_DIFFER = re.compile(
    # Where data lies; what training hears of it is in the fingerprint.
    r"data\.(cache_dir|dir|threads|noise_seen|noise_unseen)"
    r"|log_every_steps|seeds_at_once"
    # What they ask for is in the sizes and rates of the stages (see `scaling`).
    r"|batch_size_of|learning_rate_scaling"
    r"|(evaluation|detection)\..*"
)
# Of the differences between two experiments, in a message.
MOST_SHOWN = 5
# Fields that not all versions had, and what those did that had none.
_BEFORE_FIELDS = {
    "batch_norm_of": scaling.GLOBAL,
    "frontend.first_filters": "uniform",
    "frontend.first_gain": 1.0,
    "search.min_parameters": 0,
    "search.nested": False,
    "search.operations": [],
    "seeds": 1,
}

# Fields without which data cannot be opened, and that not all versions had.
_LATER_FIELDS = (
    "data.flip_labels",
    "data.noise_hours",
    "data.noise_test_fraction",
    "data.rooms",
    "data.synthetic_unknown.rate",
    "data.train_fraction",
    "data.unheard_words",
    "detection.hours",
)


def load_file(value: str) -> ConfigDict:
    """The config of `FILE.py` or `FILE.py:ARGUMENT`.

    Raises:
      UserError: where there is no such file (the nearest name beside it is given), or
        the file has no `get_config`.
    """
    name, _, argument = value.partition(":")
    path = Path(name)
    if not path.is_file():
        beside = path.parent if path.parent.is_dir() else Path("configs")
        known = [str(p) for p in beside.glob("*.py") if p.name != "__init__.py"]
        raise UserError(f"--config: there is no file {name!r}; {nearest(name, known)}")
    # Configs share code in their package, wherever the program is started.
    home = str(path.resolve().parent.parent)
    if home not in sys.path:
        sys.path.append(home)
    get_config = runpy.run_path(str(path)).get("get_config")
    if get_config is None:
        raise UserError(f"--config: {name!r} defines no get_config(argument).")
    return get_config(argument or None)


def check_overrides(config: ConfigDict, arguments: list[str], flag: str) -> None:
    """Raises UserError for a `--config.FIELD` that the config lacks.

    With `flag` other than "config", it is a group of the config: `--data.FIELD`.
    """
    group = "" if flag == "config" else f"{flag}."
    for argument in arguments:
        match = re.match(rf"--?{flag}\.([^=]+)", argument)
        if match:
            _find(config, group + match.group(1), f"--{flag}.{match.group(1)}")


def _find(config: Any, path: str, flag: str) -> None:
    here, done = config, "config"
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(here, tuple | list) and part.isdigit():
            if int(part) >= len(here):
                raise UserError(f"{flag}: {done} has {len(here)} entries.")
            here, done = here[int(part)], f"{done}[{part}]"
            continue
        keys = list(here.keys()) if isinstance(here, ConfigDict) else []
        if part not in keys:
            hint = nearest(part, keys) if keys else f"{done} is a value, not a group."
            raise UserError(f"{flag}: {done} has no field {part!r}; {hint}")
        here, done = here[part], f"{done}.{part}"


def words(text: str) -> tuple[str, ...]:
    """The words of a comma-separated string."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def keywords(config: ConfigDict) -> tuple[str, ...]:
    """`config.data.keywords`, a comma-separated string, as words."""
    return words(config.data.keywords)


def check(config: ConfigDict) -> None:
    """Raises UserError for values that cannot work, before anything slow is done."""
    config_fields.check(config)
    if config.data.source not in SOURCES:
        raise UserError(
            f"config.data.source = {config.data.source!r} is unknown; "
            f"{nearest(config.data.source, SOURCES)}"
        )
    share = config.data.train_fraction
    if not 0 < share <= 1:
        raise UserError(
            f"config.data.train_fraction = {share:g}: give a number above 0, at most 1."
        )
    if not config.stages:
        raise UserError("config.stages is empty: give at least one stage.")
    stage_fields.check(config.stages, STAGE_KINDS)
    names = [stage.name for stage in config.stages]
    if len(set(names)) < len(names):
        raise UserError(f"config.stages: the names {names} must differ.")
    if not 0 <= config.data.flip_labels < 1:
        raise UserError(
            f"config.data.flip_labels = {config.data.flip_labels}: give a share in "
            "0 … 1, below 1."
        )
    if config.steps_per_call > 1 and not config.data.on_device:
        raise UserError(
            f"config.steps_per_call = {config.steps_per_call} needs batches that are "
            "made on the device: set config.data.on_device to True, or steps_per_call "
            "to 1."
        )
    if config.steps_per_call > config.log_every_steps:
        raise UserError(
            f"config.steps_per_call = {config.steps_per_call} would never be made: a "
            "call ends where a log line is due. Give at most config.log_every_steps = "
            f"{config.log_every_steps}, or make that larger."
        )
    if config.compute_dtype not in COMPUTE_DTYPES:
        raise UserError(
            f"config.compute_dtype = {config.compute_dtype!r} is unknown; "
            f"{nearest(config.compute_dtype, COMPUTE_DTYPES)}"
        )
    _check_seeds(config)
    for index, stage in enumerate(config.stages):
        _check_stage(stage, f"config.stages[{index}]", config.data)
    recipes.check(config.stages)
    scaling.check(config)


def _check_seeds(config: ConfigDict) -> None:
    # Workdirs of before have neither field.
    at_once, count = config.get("seeds_at_once", AUTO), config.get("seeds", 1)
    if at_once not in SEEDS_AT_ONCE:
        raise UserError(
            f"config.seeds_at_once = {at_once!r} is unknown; "
            f"{nearest(at_once, SEEDS_AT_ONCE)}"
        )
    if config.seed + count > 2**32:
        raise UserError(
            f"config.seed = {config.seed} leaves no room for config.seeds = {count}: "
            "the last seed must be below 2^32."
        )


def _check_stage(stage: ConfigDict, where: str, data: ConfigDict) -> None:
    if stage.kind in stage_fields.WITHOUT_STEPS:
        return
    if (stage.steps > 0) == (stage.epochs > 0):
        raise UserError(
            f"{where} has epochs = {stage.epochs:g} and steps = {stage.steps}: set one "
            "of them above 0 and the other to 0."
        )
    if stage.eval_every_epochs <= 0:
        raise UserError(f"{where}.eval_every_epochs: give a number above 0.")
    for field in ("clean_fraction", "background_probability", "reverberant_fraction"):
        if not 0 <= stage.condition[field] <= 1:
            raise UserError(f"{where}.condition.{field}: give a number in 0 … 1.")
    if stage.condition.reverberant_fraction > 0 and not data.rooms:
        raise UserError(
            f"{where}.condition.reverberant_fraction = "
            f"{stage.condition.reverberant_fraction:g} needs rooms: set "
            "config.data.rooms to a folder of impulse responses or to 'simulated', or "
            "the fraction to 0."
        )
    masks = stage.get("spec_augment")
    if masks and masks.min_width > min(masks.time_width, masks.frequency_width):
        raise UserError(
            f"{where}.spec_augment.min_width = {masks.min_width} is above a greatest "
            f"width: give at most time_width = {masks.time_width} and frequency_width "
            f"= {masks.frequency_width}."
        )
    if stage.kind == "quantize" and stage.bits.learned:
        _check_learned(stage.bits, f"{where}.bits")


def _check_learned(bits: ConfigDict, where: str) -> None:
    for field in ("weights", "activations"):
        if not 2 <= bits[field] <= bits.most:
            raise UserError(
                f"{where}.{field} = {bits[field]}: give 2 to {bits.most} where bits "
                "are learned."
            )


def to_json(config: ConfigDict) -> str:
    """The config as JSON text, as kept in `WORKDIR/config.json`."""
    return config.to_json_best_effort(indent=1, sort_keys=True)


def load_workdir(workdir: Path, flag: str = "--workdir=") -> ConfigDict:
    """The config stored in a workdir, which was given after `flag`.

    Raises:
      UserError: where there is none, or it cannot be read.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(
            f"{flag}{workdir} holds no experiment (there is no config.json); give "
            "the workdir of a run of kws_jax.main."
        )
    return ConfigDict(_tuples(read_json(path)))


def seed_folders(config: ConfigDict, workdir: Path) -> list[Path]:
    """Where the networks of `config.seeds` lie; the workdir itself where there is one.

    `config` is that of the workdir.
    """
    count = config.get("seeds", 1)
    if count == 1:
        return [workdir]
    return [workdir / f"seed-{config.seed + number}" for number in range(count)]


def stage_folder(config: ConfigDict, index: int, workdir: Path) -> Path:
    """Where a stage of the experiment in `workdir` keeps its checkpoints."""
    return workdir / "stages" / f"{index}-{config.stages[index].name}"


def load_single(workdir: Path) -> ConfigDict:
    """The config stored in the workdir of a single network.

    Raises:
      UserError: where there is none, it cannot be read, or it is that of several seeds.
    """
    config = load_workdir(workdir)
    folders = seed_folders(config, workdir)
    if len(folders) > 1:
        raise UserError(
            f"--workdir={workdir} holds {len(folders)} networks, one for each seed; "
            f"give one of them, for example --workdir={folders[0]}."
        )
    return config


def load_complete(workdir: Path) -> ConfigDict:
    """The same, with all that is needed to open the experiment's data.

    Raises:
      UserError: also where an earlier version stored it, without fields of this one.
    """
    config = load_single(workdir)
    fields = {name for name, _ in _leaves(json.loads(to_json(config)))}
    missing = [name for name in _LATER_FIELDS if name not in fields]
    if missing:
        raise UserError(
            f"--workdir={workdir} was made by an earlier version, which knew no config."
            f"{missing[0]}. Run its experiment again in a new workdir; kws_jax.predict "
            "answers with its network as it is."
        )
    return config


def identity(config: ConfigDict) -> dict[str, Any]:
    """Field -> value of all that makes the experiment what it is."""
    return {n: v for n, v in fields(config).items() if not _MAY_DIFFER.fullmatch(n)}


def fields(config: ConfigDict) -> dict[str, Any]:
    """Field -> value, with those that an earlier version had none of but acted by."""
    return _BEFORE_FIELDS | dict(_leaves(json.loads(to_json(config))))


def check_same(config: ConfigDict, stored: ConfigDict, workdir: Path) -> None:
    """Raises UserError where `workdir` holds another experiment than `config`."""
    differing = differences(config, stored)
    if differing:
        shown = "\n".join(list(differing.values())[:MOST_SHOWN])
        raise UserError(
            f"--workdir={workdir} belongs to another experiment:\n{shown}\nChoose "
            "another --workdir, or give the config that it was started with."
        )


def differences(config: ConfigDict, stored: ConfigDict) -> dict[str, str]:
    """Field -> a line on what it is in `stored` (there) and in `config` (here).

    Of those alone that make them different experiments.
    """
    new, old = identity(config), identity(stored)

    def shown(values: dict[str, Any], name: str) -> str:
        return repr(values[name]) if name in values else "no such field"

    return {
        name: f"  config.{name}: {shown(old, name)} there, {shown(new, name)} here"
        for name in sorted(new.keys() | old.keys())
        if new.get(name) != old.get(name)
    }


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else key)
    elif isinstance(tree, list) and tree and isinstance(tree[0], Mapping):
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{prefix}[{index}]")
    else:
        yield prefix, tree


def _tuples(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _tuples(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return tuple(
            ConfigDict(_tuples(v)) if isinstance(v, Mapping) else v for v in tree
        )
    return tree
