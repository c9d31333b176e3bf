"""The supernet that computes one path, against the networks it holds."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_values import QUICK

from kws_jax.models.mbconv import SKIP, MBConvNet, parse_operation
from kws_jax.search.mbconv_space import MBConvSpace
from kws_jax.search.one_path import Candidates
from kws_jax.search.path_net import PathLayer, PathNet

SPACE = MBConvSpace(expansions=(1, 3), kernels=(3, 5))
CANDIDATES = SPACE.candidates
PATH = ("E3K5", "E1K3", SKIP, "E3K3", SKIP, "E1K5")
B, T, F, K = 4, 10, 8, 3


def places(layers):
    return jnp.array([c.index(name) for c, name in zip(CANDIDATES, layers)])


def cut(tree, start, stop, count):
    """Entries start … stop of arrays that hold `count`, strung together or not."""
    return jax.tree.map(
        lambda a: (a.reshape(count, -1) if a.ndim == 1 else a)[start:stop], tree
    )


def side_by_side(entries, axis=-1):
    return np.concatenate(list(entries), axis)


def part(groups, conv, norm, axis=-1):
    own = {} if norm is None else {"bn": jax.tree.map(side_by_side, norm)}
    if conv in groups:
        own["conv"] = {"kernel": side_by_side(groups[conv], axis)}
    return own


def extract(tree, layers):
    """What MBConvNet(layers) has of a PathNet's parameters or statistics."""
    found = {name: tree[name] for name in ("stem", "last", "head") if name in tree}
    for index, name in enumerate(layers):
        if name == SKIP:
            continue
        e, k = parse_operation(name)
        at = SPACE.expansions.index(e)
        first = sum(SPACE.expansions[:at])
        whole = tree[f"layers_{index}"][f"K{k}"]
        groups = cut(whole["groups"], first, first + e, sum(SPACE.expansions))
        norm = cut(whole["norms"], at, at + 1, len(SPACE.expansions))

        block = {
            "depthwise": part(groups, "depthwise", groups["depthwise_norm"]),
            "project": part(groups, "project", norm, axis=-2),
        }
        if e > 1:
            block["expand"] = part(groups, "expand", groups["expand_norm"])
        found[f"blocks_{index}"] = block
    return found


@pytest.fixture(scope="module")
def net():
    """A PathNet with random variables, features and labels."""
    model = PathNet(K, SPACE, batch_norm_momentum=0.8)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, T, F)).astype(np.float32)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), x, places(PATH))

    def draw(path, leaf):
        positive = path[-1].key in ("var", "scale")
        values = rng.normal(size=leaf.shape) * (0.2 if positive else 0.4)
        return np.float32(values + 1 if positive else values)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return model, variables, x, rng.integers(0, K, B)


def cross_entropy(logits, labels):
    return -jax.nn.log_softmax(logits)[jnp.arange(B), labels].mean()


def gradients_of(model, train=True):
    """(params, stats, x, labels, *path) -> gradient by params and x, moved stats."""

    def run(params, stats, x, labels, *path):
        def loss(params, x):
            logits, moved = model.apply(
                {"params": params, "batch_stats": stats},
                x,
                *path,
                train=train,
                mutable=["batch_stats"],
            )
            return cross_entropy(logits, labels), (logits, moved["batch_stats"])

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    return jax.jit(run, compiler_options=QUICK)


@pytest.fixture(scope="module")
def path_gradients(net):
    return gradients_of(net[0])


def test_path_is_the_network_it_stands_for(net, path_gradients):
    _, variables, x, labels = net
    params, stats = variables["params"], variables["batch_stats"]
    (by_params, by_x), (logits, moved) = path_gradients(
        params, stats, x, labels, places(PATH)
    )
    alone = MBConvNet(K, PATH, batch_norm_momentum=0.8)
    (expected, expected_x), (expected_logits, expected_moved) = gradients_of(alone)(
        extract(params, PATH), extract(stats, PATH), x, labels
    )
    near = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-5)
    near(logits, expected_logits)
    near(by_x, expected_x)
    jax.tree.map(near, extract(by_params, PATH), expected)
    jax.tree.map(near, extract(moved, PATH), expected_moved)


def test_what_is_not_on_the_path_gets_no_gradient_and_keeps_its_statistics(
    net, path_gradients
):
    _, variables, x, labels = net
    params, stats = variables["params"], variables["batch_stats"]
    (by_params, _), (_, moved) = path_gradients(params, stats, x, labels, places(PATH))
    changed = jax.tree.map(lambda new, old: new != old, moved, stats)
    for tree in (jax.tree.map(lambda g: g != 0, by_params), changed):
        own = sum(np.sum(leaf) for leaf in jax.tree.leaves(extract(tree, PATH)))
        every = sum(np.sum(leaf) for leaf in jax.tree.leaves(tree))
        assert own == every > 0


def test_gates_get_the_product_of_the_gradient_and_every_candidate(net):
    model, variables, x, labels = net
    path = places(PATH)

    def loss(gates):
        logits, _ = model.apply(
            variables, x, path, gates, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(logits, labels)

    ones = tuple(jax.nn.one_hot(i, len(c)) for i, c in zip(path, CANDIDATES))
    got = jax.jit(jax.grad(loss), compiler_options=QUICK)(ones)

    # m = Σ_j g_j o_j(x) in one layer, with every candidate written out
    for index in (0, 2):
        blocks = MBConvNet(K, PATH)

        def explicit(gate, index=index, blocks=blocks):
            def logits_with(replace):
                return mixed_logits(variables, x, index, replace)

            return cross_entropy(logits_with(gate), labels)

        expected = jax.jit(jax.grad(explicit), compiler_options=QUICK)(ones[index])
        np.testing.assert_allclose(got[index], expected, rtol=2e-3, atol=1e-5)
    assert all(np.all(np.isfinite(g)) for g in got)


def mixed_logits(variables, x, index, gate):
    """Logits of PATH with Σ_j g_j o_j(x) over all candidates at one layer."""
    params, stats = variables["params"], variables["batch_stats"]

    def apply_block(bound, name, h):
        block = bound.blocks[index]
        return h if name == SKIP else block(h, train=True)

    # the networks that differ at this layer alone share what lies before it
    def before(layers):
        own = {
            "params": extract(params, layers),
            "batch_stats": extract(stats, layers),
        }
        model = MBConvNet(K, layers)

        def run(module, x):
            h = module.stem(jnp.swapaxes(x, 1, 2)[..., None], train=True)
            for at in range(index):
                h = module.blocks[at](h, train=True) if module.blocks[at] else h
            return apply_block(module, layers[index], h)

        return model.apply(own, x, method=run, mutable=["batch_stats"])[0]

    mixed = 0.0
    for g, name in zip(gate, CANDIDATES[index]):
        layers = (*PATH[:index], name, *PATH[index + 1 :])
        mixed = mixed + g * before(layers)

    own = {"params": extract(params, PATH), "batch_stats": extract(stats, PATH)}

    def after(module, h):
        for at in range(index + 1, len(PATH)):
            h = module.blocks[at](h, train=True) if module.blocks[at] else h
        return module.head(module.last(h, train=True).mean(axis=(1, 2)), train=True)

    return MBConvNet(K, PATH).apply(own, mixed, method=after, mutable=["batch_stats"])[
        0
    ]


def test_networks_of_other_paths_answer_with_running_statistics(net):
    model, variables, x, _ = net
    infer = jax.jit(
        lambda path: model.apply(variables, x, path, train=False),
        compiler_options=QUICK,
    )
    layers = ("E1K3", SKIP, "E3K3", "E1K5", "E1K3", SKIP)
    own = {name: extract(tree, layers) for name, tree in variables.items()}
    expected = jax.jit(
        lambda x: MBConvNet(K, layers).apply(own, x, train=False),
        compiler_options=QUICK,
    )(x)
    np.testing.assert_allclose(infer(places(layers)), expected, rtol=2e-3, atol=1e-4)


def test_initial_kernels_have_the_deviation_of_the_network_alone():
    layer = PathLayer(Candidates((2, 6), (3,), True, 40, 1))
    x = jnp.zeros((1, T, F, 40))
    params = layer.init(jax.random.key(0), x, jnp.array(0), None, train=False)["params"]
    groups = params["K3"]["groups"]
    for (first, stop, e), (name, fan_out) in itertools.product(
        [(0, 2, 2), (2, 8, 6)],
        [("expand", 40), ("depthwise", 9 * 40), ("project", None)],
    ):
        values = np.asarray(groups[name][first:stop])
        fan = 40 if fan_out is None else e * fan_out
        assert values.std() == pytest.approx(np.sqrt(2 / fan), rel=0.2)
