"""Which layers a network has that can be quantised, and which batch norms fold.

Found in the program that the network is traced to, so that nothing has to be said of it
in any model.
"""

import dataclasses
import fnmatch
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core as jex_core

from kws_jax.errors import UserError, nearest
from kws_jax.quantization import layers

PyTree = Any
_INPUT, _OUTPUT, _NORM = "input", "output", "norm"
# What may stand between a layer and the batch norm that is folded into it: channels
# stay the last axis, of the same size.
_RESHAPES = ("reshape", "squeeze", "broadcast_in_dim", "expand_dims")
# What stands before a network (models/learned_frontend.py, models/front_filter.py): it
# stays in float as a whole.
_BEFORE_NETWORKS = ("frontend/*", "front_filter/*", "encoder/front_filter/*")


@dataclasses.dataclass(frozen=True)
class Site:
    """A layer that is quantised.

    Attributes:
      name: its path, such as "blocks_0/conv1".
      kind: "dense", "conv", "depthwise" or "dilated".
      path: of its kernel among the parameters.
      shape: of its kernel, whose last axis are the channels of the output.
      activation: the first layer with the same input: they share its quantiser.
      inputs: values in its input, of one clip.
      norm: the batch norm that is folded into it, or None.
    """

    name: str
    kind: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    activation: str
    inputs: int
    norm: str | None

    @property
    def weights(self) -> int:
        """Values in its kernel."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Sites:
    """All that is quantised in a network.

    Attributes:
      layers: name -> layer, in the order in which the network calls them.
      norms: name -> ε of each batch norm.
      kept: names of the layers that stay in float.
    """

    layers: Mapping[str, Site]
    norms: Mapping[str, float]
    kept: tuple[str, ...]

    @property
    def folded(self) -> dict[str, Site]:
        """Batch norm -> the layer that it is folded into."""
        return {site.norm: site for site in self.layers.values() if site.norm}

    @property
    def unfolded(self) -> tuple[str, ...]:
        """The batch norms that stay: what comes before them is no quantised layer."""
        return tuple(norm for norm in self.norms if norm not in self.folded)

    @property
    def weight_counts(self) -> dict[str, int]:
        """Layer -> number of weights."""
        return {name: site.weights for name, site in self.layers.items()}

    @property
    def activation_counts(self) -> dict[str, int]:
        """Activation -> number of its values of one clip; each counts once."""
        return {site.activation: site.inputs for site in self.layers.values()}


def find_sites(
    model: nn.Module,
    variables: PyTree,
    features: Any,
    *,
    keep_float: Sequence[str] = (),
    keep_unknown: bool = False,
    may_lack: bool = False,
) -> Sites:
    """The layers of a network to be quantised; nothing is computed.

    Filters before the network stay in float, whatever `keep_float` names.

    Args:
      model: the network.
      variables: its parameters and batch statistics, or their shapes.
      features: of one clip [1, t, f], or their shape.
      keep_float: patterns (`fnmatch`) of names of layers that are not quantised.
      keep_unknown: whether kernels that cannot be quantised are kept in float, and not
        refused.
      may_lack: whether a pattern may be of a layer that this network lacks.

    Raises:
      UserError: a pattern that no layer has, or a kernel (parameter of two and more
        axes) of a layer that cannot be quantised and is not kept in float.
    """
    marker = _Marker()

    def run(variables: PyTree, features: jax.Array) -> Any:
        with layers.watch(marker):
            return model.apply(variables, features, train=False)

    program = jax.make_jaxpr(run)(variables, features).jaxpr
    shapes = {
        path: leaf.shape
        for path, leaf in traverse_util.flatten_dict(variables["params"]).items()
        if len(leaf.shape) > 1
    }
    known = {layer.path: name for name, layer in marker.layers.items()}
    names = [known.get(path, layers.name_of(path)) for path in shapes]
    kept = _kept(names, keep_float, may_lack)
    unknown = [n for path, n in zip(shapes, names) if path not in known]
    if keep_unknown:
        kept = (*kept, *unknown)
    _check_known(unknown, kept)
    if set(kept) >= set(names):
        raise UserError("keep_float names every layer: leave one to be quantised.")
    marks = _Marks(program)
    found: dict[str, Site] = {}
    for name, layer in marker.layers.items():
        if name not in kept:
            first = marks.sharing(name, kept)
            norm = marks.norm_after(name)
            found[name] = Site(*layer, shapes[layer.path], *first, norm)
    return Sites(found, marker.epsilons, kept)


def _kept(
    names: Sequence[str], patterns: Sequence[str], may_lack: bool
) -> tuple[str, ...]:
    for pattern in patterns:
        if not may_lack and not fnmatch.filter(names, pattern):
            raise UserError(
                f"keep_float: no layer is named {pattern!r}; {nearest(pattern, names)}"
            )
    kept = (*patterns, *_BEFORE_NETWORKS)
    return tuple(n for n in names if any(fnmatch.fnmatchcase(n, p) for p in kept))


def _check_known(unknown: Sequence[str], kept: Sequence[str]) -> None:
    left = [name for name in unknown if name not in kept]
    if left:
        raise UserError(
            f"Cannot quantise {', '.join(left)}: only dense layers and plain, "
            "depthwise and dilated convolutions can be. Name it in the stage's "
            "keep_float, or choose another network."
        )


class _Marker(layers.Watcher):
    """Leaves names in the program where layers begin and end."""

    def __init__(self) -> None:
        self.layers: dict[str, layers.Layer] = {}
        self.epsilons: dict[str, float] = {}

    def input(self, layer: layers.Layer, x: jax.Array) -> jax.Array:
        self.layers[layer.name] = layer
        return checkpoint_name(x, f"{_INPUT}:{layer.name}")

    def output(self, layer: layers.Layer, y: jax.Array) -> jax.Array:
        return checkpoint_name(y, f"{_OUTPUT}:{layer.name}")

    def norm(self, module: nn.BatchNorm, x: jax.Array, call: Any) -> jax.Array:
        name = layers.name_of(module.path)
        self.epsilons[name] = module.epsilon
        return call(checkpoint_name(x, f"{_NORM}:{name}"))


class _Marks:
    """The names in a program, and what lies between them."""

    def __init__(self, program: jex_core.Jaxpr) -> None:
        # Names inside of loops are not seen; what they mark is not folded.
        marks = [e for e in program.eqns if e.primitive.name == "name"]
        self._named = {e.params["name"]: e for e in marks}
        self._calls = Counter(e.params["name"] for e in marks)
        self._makers = {v: e for e in program.eqns for v in e.outvars}
        used = [v for e in program.eqns for v in e.invars] + list(program.outvars)
        self._uses = Counter(v for v in used if isinstance(v, jex_core.Var))

    def sharing(self, name: str, kept: Sequence[str]) -> tuple[str, int]:
        """The first quantised layer with the input of layer `name`, and its size."""
        value: Any = self._named[f"{_INPUT}:{name}"].invars[0]
        first = next(
            other
            for other, equation in self._with(_INPUT)
            if equation.invars[0] is value and other not in kept
        )
        return first, value.aval.size

    def norm_after(self, name: str) -> str | None:
        """The batch norm that gets the output of layer `name`, used nowhere else."""
        mark = f"{_OUTPUT}:{name}"
        if self._calls[mark] != 1:
            return None
        output: Any = self._named[mark].outvars[0]
        for norm, equation in self._with(_NORM):
            value: Any = equation.invars[0]
            while self._only_reshaped(value):
                value = self._makers[value].invars[0]
            same_channels = equation.invars[0].aval.shape[-1:] == output.aval.shape[-1:]
            alone = self._uses[value] == 1 and self._calls[f"{_NORM}:{norm}"] == 1
            if value is output and alone and same_channels:
                return norm
        return None

    def _only_reshaped(self, value: Any) -> bool:
        maker: Any = self._makers.get(value)
        return (
            maker is not None
            and maker.primitive.name in _RESHAPES
            and self._uses[value] == 1
            and maker.invars[0].aval.size == value.aval.size
        )

    def _with(self, kind: str) -> Iterator[tuple[str, Any]]:
        for mark, equation in self._named.items():
            if mark.startswith(f"{kind}:"):
                yield mark.partition(":")[2], equation
