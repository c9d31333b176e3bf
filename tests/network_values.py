"""Values for networks under test, and a convolution to compare with."""

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
