"""Values for networks under test, and layers in NumPy to compare with."""

import functools

import jax
import numpy as np

# Programs that run once are not worth optimising.
QUICK = {"xla_backend_optimization_level": 0}


def random_variables(model, *inputs, seed=0):
    """Random values everywhere, in place of initial ones; nothing is compiled.

    Values of one axis, variances among them, are positive. Kernels have the size that
    keeps activations about one, so that no part of a network drowns another.
    """
    rng = np.random.default_rng(seed)

    def value(shape):
        v = rng.uniform(0.2, 1.0, shape)
        if len(shape) > 1:
            v *= rng.choice([-1, 1], shape) / np.sqrt(np.prod(shape[:-1]))
        return v.astype(np.float32)

    variables = jax.eval_shape(
        lambda *x: model.init(jax.random.key(0), *x, train=False), *inputs
    )
    return jax.tree.map(lambda v: value(v.shape), variables)


def conv_same(x, w, stride=1):
    """TensorFlow's SAME convolution [b, t, c] by [k, c, d], by its definition."""
    t, k = x.shape[1], len(w)
    out = -(-t // stride)
    total = max((out - 1) * stride + k - t, 0)
    x = np.pad(x, ((0, 0), (total // 2, total - total // 2), (0, 0)))
    windows = [x[:, i * stride : i * stride + k] for i in range(out)]
    return np.stack([np.einsum("bkc,kcd->bd", v, w) for v in windows], axis=1)


def conv_centred(x, w, stride=1, dilation=1):
    """PyTorch's convolution [b, h, w, c] by [i, j, c, d], as many zeros on both sides.

    A kernel [i, j, 1, c] is depthwise. Sizes of kernels are odd.
    """
    w = np.float64(w)
    zeros = [(dilation * (k // 2),) * 2 for k in w.shape[:2]]
    padded = np.pad(x, [(0, 0), *zeros, (0, 0)])
    total = 0
    for i, j in np.ndindex(w.shape[:2]):
        rows = slice(dilation * i, dilation * i + x.shape[1], stride)
        columns = slice(dilation * j, dilation * j + x.shape[2], stride)
        heard, tap = padded[:, rows, columns], w[i, j]
        total = total + (heard * tap if len(tap) == 1 else heard @ tap)
    return total


def batch_norm(x, stats, params, epsilon, *, train):
    """By the statistics of the batch in training, else by the running ones."""
    axes = tuple(range(x.ndim - 1))
    mean, var = (x.mean(axes), x.var(axes)) if train else (stats["mean"], stats["var"])
    normal = (x - mean) / np.sqrt(var + epsilon)
    return normal * params.get("scale", 1) + params.get("bias", 0)


def assert_embeds(model, variables, x, expected_of):
    """The embeddings [b, d] are `expected_of(train)`, in inference and in training."""

    @functools.partial(jax.jit, static_argnums=1, compiler_options=QUICK)
    def embed(x, train):
        settings = {"train": train, "mutable": ["batch_stats"], "method": "embed"}
        return model.apply(variables, x, **settings)[0]

    for train in (False, True):
        got, expected = embed(x, train), expected_of(train)
        assert got.shape == expected.shape
        scale = np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * scale)
