"""Batch norms and 1×1 convolutions of images that lie as [c, f, t, b].

With the batch last, loops run over as many neighbouring numbers as there are clips,
however few the channels are, and all that a channel's batch norm needs lies together.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Below and above these, activations are constant.
_LIMITS = {"relu": (0.0, float("inf")), "relu6": (0.0, 6.0)}
_PLACES = (1, 2, 3)


def pointwise(
    x: Float[Array, "c f t b"], kernel: Float[Array, "1 1 c d"]
) -> Float[Array, "d f t b"]:
    """The product of channels and a matrix, at every place alike."""
    # Not of flat images: the batch, where it is split over devices, would be gathered.
    matrix = kernel.reshape(kernel.shape[-2:])
    return lax.dot_general(matrix, x, (((0,), (0,)), ((), ())))


def statistics(
    x: Float[Array, "c f t b"],
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Mean and variance of each channel, in float32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(_PLACES)
    return mean, jnp.maximum(0.0, (wide * wide).mean(_PLACES) - mean * mean)


def normalise(
    x: Float[Array, "c f t b"],
    mean: Float[Array, " c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    activation: str | None,
) -> Float[Array, "c f t b"]:
    """act((x − mean) · scale + bias), of the type of x; "relu", "relu6" or none."""
    y = _affine(x, mean, scale, bias)
    if activation:
        y = jnp.clip(y, *_LIMITS[activation])
    return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    x: Float[Array, "c f t b"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    epsilon: float,
    activation: str | None,
) -> tuple[Float[Array, "c f t b"], tuple[Float[Array, " c"], Float[Array, " c"]]]:
    """act((x − mean) / √(var + ε) · scale + bias), and (mean, var), those of the batch.

    Differentiable in reverse mode, once, and not by mean and var. The gradient is
    written out: it reads x and the gradient twice, where what is derived of the above
    keeps and reads several arrays as large.
    """
    outputs, _ = _forward(x, scale, bias, epsilon, activation)
    return outputs


def _forward(x, scale, bias, epsilon, activation):
    mean, var = statistics(x)
    inverse = lax.rsqrt(var + epsilon)
    y = normalise(x, mean, scale * inverse, bias, activation)
    return (y, (mean, var)), (x, scale, bias, mean, inverse)


def _backward(epsilon, activation, saved, cotangents):
    del epsilon
    x, scale, bias, mean, inverse = saved
    dy, _ = cotangents
    dy = dy.astype(mean.dtype)
    if activation:
        low, high = _LIMITS[activation]
        z = _affine(x, mean, scale * inverse, bias)
        dy = jnp.where((z > low) & (z < high), dy, 0.0)
    # No operand of a reduction's product is spread out here: XLA would write it down.
    d_bias = _sum(dy)
    d_scale = (_sum(dy * x) - mean * d_bias) * inverse
    count = x.size // len(x)
    # dx = scale/σ · (dy − mean(dy) − x̂ · mean(dy · x̂)), x̂ = (x − mean)/σ
    slope = scale * inverse
    shift, tilt = slope * d_bias / count, slope * inverse * d_scale / count
    dx = _spread(slope) * dy - _spread(shift) - (x - _spread(mean)) * _spread(tilt)
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


batch_norm.defvjp(_forward, _backward)


def _affine(
    x: jax.Array, mean: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    return (x - _spread(mean)) * _spread(scale) + _spread(bias)


def _sum(x: jax.Array) -> jax.Array:
    """Over all places and clips, those last."""
    return x.reshape(len(x), -1, x.shape[-1]).sum(1).sum(1)


def _spread(values: jax.Array) -> jax.Array:
    """[c] in a shape that spreads over images."""
    return values[:, None, None, None]
