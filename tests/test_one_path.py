"""The layer that computes one path, against the bottlenecks that it holds."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_values import QUICK, random_variables

from kws_jax.models.mbconv import SKIP, MBConv, MBConvNet, parse_operation
from kws_jax.search.bottleneck import Candidates
from kws_jax.search.mbconv_space import MBConvSpace
from kws_jax.search.path_net import PathLayer, PathNet

EXPANSIONS, KERNELS = (1, 2, 5), (3, 5)
BLOCKS = [f"E{e}K{k}" for e in EXPANSIONS for k in KERNELS]
RNG = np.random.default_rng(0)
near = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4)


def side_by_side(entries, axis=-1):
    return np.concatenate(list(entries), axis)


def cut(tree, start, stop, count):
    """Entries start … stop of arrays that hold `count`, strung together or not."""
    return jax.tree.map(
        lambda a: np.reshape(a, (count, -1) if a.ndim == 1 else a.shape)[start:stop],
        tree,
    )


def extract(tree, name):
    """What MBConv has of a layer's parameters or statistics, for one operation."""
    e, k = parse_operation(name)
    at = EXPANSIONS.index(e)
    # Nested: a group of expansion 1, then five of which 2 and 5 take the first.
    nested = "shared" in tree
    first, count = (min(at, 1), 6) if nested else (sum(EXPANSIONS[:at]), 8)
    groups = tree[f"K{k}"]["groups"] if not nested else dict(tree["shared"])
    if nested:
        groups["depthwise_norm"] = tree[f"K{k}"]["depthwise_norm"]
        if "depthwise" in groups and k < max(KERNELS):
            groups["depthwise"] = groups["depthwise"][:, 1:-1, 1:-1]
    groups = cut(groups, first, first + e, count)
    norm = cut(tree[f"K{k}"]["norms"], at, at + 1, len(EXPANSIONS))

    def part(conv, norm, axis=-1):
        own = {"bn": jax.tree.map(side_by_side, norm)}
        if conv in groups:
            own["conv"] = {"kernel": side_by_side(groups[conv], axis)}
        return own

    block = {
        "depthwise": part("depthwise", groups["depthwise_norm"]),
        "project": part("project", norm, axis=-2),
    }
    if e > 1:
        block["expand"] = part("expand", groups["expand_norm"])
    return block


class Case:
    """A layer with random variables, an input, and a gradient at its output.

    Images lie as [b, f, t, c] here, and as [c, f, t, b] inside of the layer.
    """

    def __init__(self, stride, nested):
        self.stride, self.channels = stride, 4 if stride == 1 else 6
        candidates = Candidates(
            EXPANSIONS,
            KERNELS,
            stride == 1,
            self.channels,
            stride,
            momentum=0.8,
            nested=nested,
        )
        self.layer = PathLayer(candidates)
        self.x = RNG.normal(size=(3, 6, 8, 4)).astype(np.float32)
        init = functools.partial(self.layer.init, train=False)
        shapes = jax.eval_shape(
            init, jax.random.key(0), jnp.swapaxes(self.x, 0, -1), jnp.array(0), None
        )
        self.variables = jax.tree.map(
            lambda v: RNG.uniform(0.2, 1.0, v.shape).astype(np.float32), shapes
        )
        self.names = [*BLOCKS, SKIP] if stride == 1 else BLOCKS
        shape = (3, 6 // stride, 8 // stride, self.channels)
        self.dy = RNG.normal(size=shape).astype(np.float32)
        self.gradients = jax.jit(self._gradients, compiler_options=QUICK)

    def own(self, name):
        return {key: extract(tree, name) for key, tree in self.variables.items()}

    def block(self, name):
        module = MBConv(
            self.channels,
            *parse_operation(name),
            self.stride,
            batch_norm_momentum=0.8,
        )
        return lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"])

    def run(self, params, x, choice, gates=None):
        y, moved = self.layer.apply(
            self.variables | {"params": params},
            jnp.swapaxes(x, 0, -1),
            choice,
            gates,
            train=True,
            mutable=["batch_stats"],
        )
        y = jnp.swapaxes(y, 0, -1)
        return jnp.sum(y * self.dy), (y, moved["batch_stats"])

    def _gradients(self, params, x, choice):
        return jax.grad(self.run, argnums=(0, 1), has_aux=True)(params, x, choice)


@pytest.fixture(
    scope="module",
    params=[(1, False), (2, False), (1, True), (2, True)],
    ids=["stride1", "stride2", "nested-stride1", "nested-stride2"],
)
def case(request):
    return Case(*request.param)


@pytest.mark.parametrize("name", ["E2K5", "E1K3", "E5K3"])
def test_path_and_its_gradients_are_those_of_the_bottleneck(case, name):
    params, stats = (case.variables[c] for c in ("params", "batch_stats"))
    choice = jnp.array(case.names.index(name))
    (by_params, by_x), (y, moved) = case.gradients(params, case.x, choice)
    own = case.own(name)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def alone(params, x):
        def loss(params, x):
            y, moved = case.block(name)(own | {"params": params}, x)
            return jnp.sum(y * case.dy), (y, moved["batch_stats"])

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    (expected, expected_x), (expected_y, expected_moved) = alone(own["params"], case.x)
    near(y, expected_y)
    near(by_x, expected_x, atol=1e-3)
    jax.tree.map(functools.partial(near, atol=2e-3), extract(by_params, name), expected)
    jax.tree.map(near, extract(moved, name), expected_moved)

    gradient = jax.tree.map(lambda g: np.asarray(g) != 0, by_params)
    changed = jax.tree.map(lambda new, old: np.asarray(new) != old, moved, stats)
    for tree in (gradient, changed):
        of_path, every = (
            sum(np.sum(leaf) for leaf in jax.tree.leaves(t))
            for t in (extract(tree, name), tree)
        )
        # nothing moves beside the path (an expansion of 1 has no use for "expand")
        assert of_path == every > 0

    def agree(path, used, gradient):
        # that of an expansion of 1 counts as used, and stays as it is
        if not (name.startswith("E1") and "expand" in jax.tree_util.keystr(path)):
            np.testing.assert_array_equal(used, gradient)

    used = case.layer.candidates.layout.used(params, choice)
    jax.tree_util.tree_map_with_path(agree, used, gradient)


def test_skip_passes_on_values_and_gradients(case):
    if case.stride != 1:
        pytest.skip("a stride cannot be skipped")
    params, choice = case.variables["params"], jnp.array(len(BLOCKS))
    (by_params, by_x), (y, moved) = case.gradients(params, case.x, choice)
    np.testing.assert_array_equal(y, case.x)
    np.testing.assert_array_equal(by_x, case.dy)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(by_params))
    jax.tree.map(
        np.testing.assert_array_equal, moved, dict(case.variables["batch_stats"])
    )


def test_gates_get_the_product_of_the_gradient_and_every_candidate(case):
    params, name = case.variables["params"], "E5K3"
    choice = jnp.array(case.names.index(name))
    gates = jax.nn.one_hot(choice, len(case.names))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(gates, x):
        def loss(gates, x):
            return case.run(params, x, choice, gates)[0]

        return jax.grad(loss, argnums=(0, 1))(gates, x)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def outputs(x):
        return [
            x if n == SKIP else case.block(n)(case.own(n), x)[0] for n in case.names
        ]

    by_gates, by_x = run(gates, case.x)
    # m = Σ_j g_j o_j(x): all candidates written out
    expected = [np.sum(np.float64(case.dy) * y) for y in outputs(case.x)]
    near(by_gates, expected, atol=1e-3)
    (_, expected_x), _ = case.gradients(params, case.x, choice)
    near(by_x, expected_x)


@pytest.mark.parametrize("nested", [False, True])
def test_path_through_the_supernet_is_the_network_it_stands_for(nested):
    space = MBConvSpace(EXPANSIONS, KERNELS, nested=nested)
    model = PathNet(3, space)
    x = RNG.normal(size=(2, 10, 8)).astype(np.float32)
    layers = ("E5K3", "E1K5", SKIP, "E1K3", SKIP, "E2K5")
    path = jnp.array([c.index(n) for c, n in zip(space.candidates, layers)])
    variables = random_variables(model, x, path)

    def own(tree):
        found = {key: tree[key] for key in ("stem", "last", "head") if key in tree}
        for index, name in enumerate(layers):
            if name != SKIP:
                found[f"blocks_{index}"] = extract(tree[f"layers_{index}"], name)
        return found

    extracted = {key: own(tree) for key, tree in variables.items()}

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(x, path):
        alone = MBConvNet(3, layers).apply(extracted, x, train=False)
        return model.apply(variables, x, path, train=False), alone

    got, expected = both(x, path)
    near(got, expected)
    assert np.ptp(expected, axis=0).min() > 0


def test_initial_kernels_have_the_deviation_of_the_network_alone():
    layer = PathLayer(Candidates((2, 6), (3,), True, 40, 1))
    x = jnp.zeros((40, 6, 8, 1))
    init = jax.jit(functools.partial(layer.init, train=False), compiler_options=QUICK)
    params = init(jax.random.key(0), x, jnp.array(0), None)["params"]
    groups = params["K3"]["groups"]
    for (first, stop, e), (name, fan_out) in itertools.product(
        [(0, 2, 2), (2, 8, 6)],
        [("expand", 40), ("depthwise", 9 * 40), ("project", None)],
    ):
        values = np.asarray(groups[name][first:stop])
        fan = 40 if fan_out is None else e * fan_out
        assert values.std() == pytest.approx(np.sqrt(2 / fan), rel=0.2)
