"""The network of an experiment: built from the config, initialised, asked."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from kws_jax import scaling, together
from kws_jax.errors import UserError
from kws_jax.evaluation.frame_scores import FrameScorer, create_frame_scorer
from kws_jax.models import counting, front_filter, wrapped
from kws_jax.models.genotype import (
    OPERATIONS,
    SKIP,
    Genotype,
    load_genotype,
    published,
)
from kws_jax.models.learned_frontend import WithFrontend, create_filters
from kws_jax.models.mbconv import layers_to_json, load_layers
from kws_jax.models.registry import create_model
from kws_jax.parts import Setup
from kws_jax.training import sharding
from kws_jax.training.checkpoints import write_text

PyTree = Any
GENOTYPE_FILE = "genotype.json"


def found_field(setup: Setup) -> str:
    """The setting of the network that a search can fill in, or ''."""
    network = setup.config.network
    return next((name for name in ("genotype", "layers") if name in network), "")


def finds_genotype(setup: Setup) -> bool:
    """Whether the experiment's network is the one that its own search stage finds."""
    field = found_field(setup)
    return bool(field) and not setup.config.network[field]


def create_network(setup: Setup, folder: Path) -> nn.Module:
    """The network of the config.

    A genotype comes from `folder`, where the search or the claim of the workdir has
    kept it; before that, from the name or file that the config gives.

    Raises:
      UserError: for unknown names or settings, or a genotype that is missing or does
        not fit.
    """
    settings = {k: v for k, v in setup.config.network.items() if k != "name"}
    path, field = folder / GENOTYPE_FILE, found_field(setup)
    if field and path.exists():
        settings[field] = str(path)
    elif finds_genotype(setup):
        raise UserError(
            f"config.network.{field} is empty and no stage has found a network: "
            "give a JSON file or a published name (such as autokws-noisydarts), or "
            "add a stage of kind 'search', 'proxyless_search' or 'random_search' "
            "before 'train'."
        )
    model = create_model(setup.config.network.name, len(setup.labels), **settings)
    return behind_front(setup, model)


def behind_front(setup: Setup, network: nn.Module) -> nn.Module:
    """The network behind what the config has before it: learned filters, front filter.

    Raises:
      UserError: for a front filter that is unknown or does not fit.
    """
    # Experiments of versions without front filters have no such group.
    settings = dict(setup.config.get("front_filter", {"name": front_filter.NONE}))
    frontend = setup.frontend
    bands = frontend.settings.get("num_filters", frontend.shape[1])
    filtered = front_filter.filtered(network, settings.pop("name"), bands, **settings)
    learned = create_filters(frontend.name, frontend.settings, frontend.shape[1])
    return WithFrontend(learned, filtered) if learned else filtered


def keep_given_genotype(setup: Setup, folder: Path) -> None:
    """Copies the genotype that the config names, if any, into `folder`.

    Raises:
      UserError: where another network has been trained there.
    """
    field = found_field(setup)
    name = setup.config.network[field] if field else ""
    if not name or not isinstance(name, str):
        return
    loads: dict[str, Callable[[str], Any]]
    loads = {
        "genotype": load_genotype,
        "layers": functools.partial(
            load_layers, round_widths=setup.config.network.get("round_widths", False)
        ),
    }
    load = loads[field]
    path, given = folder / GENOTYPE_FILE, load(name)
    if path.exists() and load(str(path)) != given:
        raise UserError(
            f"config.network.{field}={name} is not the network that is trained in "
            f"{folder}; choose another --workdir."
        )
    if together.is_first():
        keep: dict[str, Callable[[], None]] = {
            "genotype": lambda: keep_genotype(given, folder),
            "layers": lambda: keep_layers(setup, given, folder),
        }
        keep[field]()


def keep_layers(setup: Setup, layers: Sequence[str], folder: Path) -> None:
    """Saves the layers of an MBConv network, where `create_network` looks for them."""
    text = layers_to_json(layers, setup.config.network.round_widths)
    write_text(folder / GENOTYPE_FILE, text)


def keep_genotype(genotype: Genotype, folder: Path) -> None:
    """Saves what a search has found, where `create_network` looks for it."""
    write_text(folder / GENOTYPE_FILE, genotype.to_json())


def stand_in(setup: Setup) -> nn.Module:
    """In place of a network that is yet to be found, one with every layer of its space.

    Raises:
      UserError: as `create_network`.
    """
    settings = {k: v for k, v in setup.config.network.items() if k != "name"}
    if found_field(setup) == "genotype":
        known = next(iter(published().values()))
        blocks = tuple(name for name in OPERATIONS if name != SKIP)
        layers = (blocks,) * len(known.layers)
        settings["genotype"] = dataclasses.replace(known, layers=layers)
    else:
        # A larger kernel or expansion is no other layer.
        settings["layers"] = ("E2K3",) * 6
    model = create_model(setup.config.network.name, len(setup.labels), **settings)
    return behind_front(setup, model)


def sample_features(setup: Setup) -> jax.Array:
    """Zeros like the front end's output of one clip, to initialise and count with."""
    return jnp.zeros((1, *setup.frontend.shape), jnp.float32)


def initial_variables(model: nn.Module, key: jax.Array, *inputs: PyTree) -> PyTree:
    """Fresh variables of a network for inputs like these."""
    # Run once, the program is not worth optimising: for the supernet that saves most
    # of a minute, on compilation operation by operation too.
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    init = functools.partial(model.init, train=False)
    return jax.jit(init, compiler_options=options)(key, *inputs)


def variable_shapes(model: nn.Module, *inputs: PyTree) -> PyTree:
    """Shapes and types of `initial_variables`, without computing them."""
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), *inputs)


def split_variables(variables: Mapping[str, PyTree]) -> tuple[PyTree, PyTree]:
    """Parameters and batch statistics ({} for a network without) of a network."""
    return variables["params"], variables.get("batch_stats", {})


def infer(
    model: nn.Module, variables: PyTree, features: jax.Array, *arguments: Any
) -> jax.Array:
    """Logits [b, k] of features [b, t, f], with running batch statistics."""
    logits = model.apply(variables, features, *arguments, train=False)
    return cast(jax.Array, logits)


def embed(model: nn.Module, variables: PyTree, features: jax.Array) -> jax.Array:
    """Embeddings [b, d] of features [b, t, f], with running batch statistics."""
    return cast(
        jax.Array, model.apply(variables, features, train=False, method="embed")
    )


def embeds(model: nn.Module) -> bool:
    """Whether the network has embeddings before its last layer.

    What stands before it hands embeddings on, whether or not it has any.
    """
    return hasattr(wrapped.inner(model), "embed")


def mesh_of_norms(setup: Setup) -> Mesh | None:
    """The devices of which each normalises its own rows; None where norms see all."""
    own = setup.config.batch_norm_of == scaling.DEVICE
    return setup.mesh if own and setup.mesh.size > 1 else None


class Applicable(Protocol):
    """What has `apply` as Flax modules have it."""

    @property
    def apply(self) -> Callable[..., Any]:
        """(variables, inputs, settings) -> outputs."""


def infer_in_training(
    model: Applicable,
    variables: PyTree,
    features: jax.Array,
    *arguments: Any,
    rngs: dict[str, jax.Array],
    compute_dtype: str = "float32",
    method: str = "__call__",
    epoch: jax.Array | None = None,
    norm_mesh: Mesh | None = None,
) -> tuple[jax.Array, PyTree]:
    """Logits [b, k] with the batch's own statistics, and new running statistics.

    With `method="embed"`, embeddings [b, d] in place of logits.

    The network computes in `compute_dtype`: parameters and features are rounded to it
    where they enter, so gradients by them arrive in float32 again. Statistics are
    summed and kept in float32 (Flax's batch norm does so), and logits are float32.
    `infer`, for validation and tests, always computes in float32. `epoch`, where given,
    tells a network behind a front filter how far its training is. With `norm_mesh`,
    each of its devices takes the statistics of its own rows, and the running ones are
    the mean of what they would have become on each.
    """
    progress: dict[str, Any] = {} if epoch is None else {"epoch": epoch}

    def apply(
        variables: PyTree,
        features: jax.Array,
        rngs: dict[str, jax.Array],
        arguments: Any,
        progress: dict[str, Any],
    ) -> tuple[jax.Array, PyTree]:
        params, batch_stats = split_variables(variables)
        rounded = jax.tree.map(lambda leaf: leaf.astype(compute_dtype), params)
        logits, updated = model.apply(
            {"params": rounded, "batch_stats": batch_stats},
            features.astype(compute_dtype),
            *arguments,
            train=True,
            mutable=["batch_stats"],
            rngs=rngs,
            method=method,
            **progress,
        )
        return logits.astype(jnp.float32), updated.get("batch_stats", {})

    applied = apply if norm_mesh is None else sharding.on_own_rows(apply, norm_mesh)
    return applied(variables, features, rngs, arguments, progress)


def infer_with_frozen_encoder(
    model: nn.Module,
    variables: PyTree,
    features: jax.Array,
    *,
    rngs: dict[str, jax.Array],
    compute_dtype: str = "float32",
) -> tuple[jax.Array, PyTree]:
    """Logits [b, k] of the head in training on what the encoder infers.

    The encoder uses its running statistics, which stay, and no gradient reaches it; a
    front filter is part of it, and as at the end of training. Arguments and result are
    otherwise those of `infer_in_training`, without what a frozen encoder has no use
    for: `arguments`, `method`, `epoch` and `norm_mesh`.
    """
    params, batch_stats = split_variables(variables)
    rounded = jax.tree.map(lambda leaf: leaf.astype(compute_dtype), params)

    def classify(network: Any, features: jax.Array) -> jax.Array:
        embedding = network.embed(features, train=False)
        return network.head(jax.lax.stop_gradient(embedding), train=True)

    logits = model.apply(
        {"params": rounded, "batch_stats": batch_stats},
        features.astype(compute_dtype),
        rngs=rngs,
        method=classify,
    )
    return cast(jax.Array, logits).astype(jnp.float32), batch_stats


def size_of(setup: Setup, model: nn.Module, variables: PyTree) -> dict[str, int]:
    """Parameters (with and without batch statistics) and MACs of one clip."""
    params, _ = split_variables(variables)
    return {
        "parameters": counting.count_parameters(params),
        "parameters_with_statistics": counting.count_parameters_with_statistics(
            variables
        ),
        "macs": counting.count_macs(
            functools.partial(infer, model, variables),
            sample_features(setup),
        ),
    }


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network with all it needs to answer.

    Attributes:
      model: the Flax module.
      variables: its parameters and batch statistics.
      labels: names of its k outputs.
      probabilities: int16 audio [b, 16000] -> probabilities [b, k], jitted.
      embeddings: int16 audio [b, 16000] -> embeddings [b, d], jitted; None of a network
        that makes none.
      stream: how it scores continuous audio itself, of a network that does.
    """

    model: nn.Module
    variables: PyTree
    labels: tuple[str, ...]
    probabilities: Callable[[Any], jax.Array]
    embeddings: Callable[[Any], jax.Array] | None = None
    stream: FrameScorer | None = None

    def predict(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Probabilities [b, k] of a batch."""
        return self.probabilities(batch["audio"])


def trained_network(
    setup: Setup,
    model: nn.Module,
    variables: PyTree,
    *,
    probabilities_of: Callable[[jax.Array], jax.Array] = jax.nn.softmax,
) -> Network:
    """A network that answers with the given variables.

    `probabilities_of` makes probabilities [b, k] of logits [b, k].
    """

    @jax.jit
    def probabilities(variables: PyTree, audio: jax.Array) -> jax.Array:
        return probabilities_of(infer(model, variables, setup.features(audio)))

    @jax.jit
    def embeddings(variables: PyTree, audio: jax.Array) -> jax.Array:
        return embed(model, variables, setup.features(audio))

    return Network(
        model,
        variables,
        setup.labels,
        lambda audio: probabilities(variables, audio),
        (lambda audio: embeddings(variables, audio)) if embeds(model) else None,
        create_frame_scorer(model, variables, setup.frontend),
    )
