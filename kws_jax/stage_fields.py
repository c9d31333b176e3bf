"""The fields that a stage cannot do without, by its kind; no JAX here."""

from collections.abc import Iterable, Sequence

from ml_collections import ConfigDict

from kws_jax.errors import UserError, nearest

# Kinds of stages that make no steps, and need nothing but these two.
WITHOUT_STEPS = ("random_search",)
# Kinds of stages that train the network's own weights, from which the next one goes on.
TRAINS_NETWORK = ("train", "embed")
# Kinds of stages that look for a network, and train none that is tested.
FINDS_GENOTYPE = ("search", "proxyless_search", "random_search")
_ALL = ("name", "kind")
# Of every kind that makes steps, one's own too.
_STEPS = (
    "epochs",
    "steps",
    "batch_size",
    "eval_every_epochs",
    "condition",
    "condition.clean_fraction",
    "condition.background_probability",
    "condition.reverberant_fraction",
)
_WEIGHTS = ("optimizer", "spec_augment")
_LABELS = (*_WEIGHTS, "label_smoothing")
_SEARCH = (*_LABELS, "architecture_optimizer", "warmup_epochs")
# Kind -> where such a stage is made, and what else it needs.
_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": (
        "configs/common.py:train_stage()",
        (
            "objective",
            "validation",
            "optimizer_start",
            "stop",
            "mixup",
            "trained_part",
            "data_parameters",
            *_LABELS,
        ),
    ),
    "embed": ("configs/pair_loss.py:embed_stage()", (*_WEIGHTS, "classes", "metric")),
    "search": ("configs/autokws.py", _SEARCH),
    "proxyless_search": (
        "configs/end_to_end_nas.py",
        (*_SEARCH, "architecture_every"),
    ),
    "quantize": (
        "configs/quantized.py:quantize_stage()",
        (
            "bits",
            "range_optimizer",
            "bits_optimizer",
            "weight_bits_penalty",
            "activation_bits_penalty",
            "keep_float",
            "calibration_batches",
            *_LABELS,
        ),
    ),
}


def size_of_batch(kind: str) -> str:
    """The field that says how large a batch of such a stage is."""
    return "tuples_per_batch" if kind == "embed" else "batch_size"


def check(stages: Sequence[ConfigDict], kinds: Sequence[str]) -> None:
    """Raises UserError for a stage of none of the `kinds`, or that lacks a field."""
    for index, stage in enumerate(stages):
        where = f"config.stages[{index}]"
        if missing := _missing(stage, _ALL):
            raise UserError(f"{where} has no {missing}: give it one.")
        if stage.kind not in kinds:
            raise UserError(
                f"{where}.kind = {stage.kind!r} is unknown; "
                f"{nearest(stage.kind, kinds)}"
            )
        if stage.kind in WITHOUT_STEPS:
            continue
        source, own = _KINDS.get(stage.kind, ("configs/common.py:train_stage()", ()))
        size = size_of_batch(stage.kind)
        steps = (size if field == "batch_size" else field for field in _STEPS)
        if missing := _missing(stage, (*own, *steps)):
            raise UserError(
                f"{where} is of kind {stage.kind!r} but has no {missing}: take the "
                f"stage from {source}."
            )


def _missing(stage: ConfigDict, fields: Iterable[str]) -> str:
    """The fields that are not there, without those of groups that are not."""
    missing = []
    for field in fields:
        group, _, name = field.rpartition(".")
        here = stage.get(group) if group else stage
        if isinstance(here, ConfigDict) and name not in here:
            missing.append(field)
    return ", ".join(missing)
