"""Batch norms of candidates that stand side by side, with the ReLU behind them.

Written with gradients of their own: what XLA derives keeps centred and masked copies of
the large arrays, and pads the gradient of each candidate with zeros. Here the backward
pass writes one masked array and reads it in its sums.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Norm(NamedTuple):
    """A batch norm of x [b, t, n, c] as (x − mean) · scale + bias.

    `mean` is [n, c]; `scale` and `bias` are [n, c], or [b, n, c] where a gate stands
    behind the norm. They are float32 where x is bfloat16; sums are made in their type,
    large arrays are kept in that of x.
    """

    mean: jax.Array
    scale: jax.Array
    bias: jax.Array


@jax.custom_vjp
def norm_relu(x: Float[Array, "b t n c"], norm: Norm) -> Float[Array, "b t n c"]:
    """ReLU(norm(x)). Differentiable in reverse mode."""
    y = _apply(norm, x)
    return _where_positive(y, y).astype(x.dtype)


def _norm_relu_forward(x, norm):
    return norm_relu(x, norm), (x, norm)


def _norm_relu_backward(saved, dy):
    x, norm = saved
    return _norm_gradients(x, norm, _where_positive(_apply(norm, x), dy))


norm_relu.defvjp(_norm_relu_forward, _norm_relu_backward)


@jax.custom_vjp
def residual_sum(
    x: Float[Array, "b t n c"],
    norm: Norm,
    shortcut: Float[Array, "b t m c"],
    weights: Float[Array, " n"],
) -> Float[Array, "b t c"]:
    """Σ_n weights[n] · ReLU(norm(x)[n] + shortcut[n]), for one shortcut (m = 1) or n.

    Differentiable in reverse mode.
    """
    outputs = _apply(norm, x) + shortcut
    return _where_positive(outputs, weights[:, None] * outputs).sum(2).astype(x.dtype)


def _residual_sum_forward(x, norm, shortcut, weights):
    return residual_sum(x, norm, shortcut, weights), (x, norm, shortcut, weights)


def _residual_sum_backward(saved, dy):
    x, norm, shortcut, weights = saved
    dy = dy[:, :, None].astype(norm.bias.dtype)
    outputs = _apply(norm, x) + shortcut
    d_outputs = _where_positive(outputs, weights[:, None] * dy)
    d_weights = _where_positive(outputs, outputs * dy).sum(1).sum((0, 2))
    d_shortcut = d_outputs
    if shortcut.shape[2] == 1:
        d_shortcut = d_outputs.sum(2, keepdims=True)
    d_shortcut = d_shortcut.astype(shortcut.dtype)
    return *_norm_gradients(x, norm, d_outputs), d_shortcut, d_weights


residual_sum.defvjp(_residual_sum_forward, _residual_sum_backward)


def _apply(norm: Norm, x: jax.Array) -> jax.Array:
    return (x - norm.mean) * _over_time(norm.scale) + _over_time(norm.bias)


def _where_positive(z: jax.Array, values: jax.Array) -> jax.Array:
    # A select, since XLA's reductions on CPUs take in products and maxima together with
    # their operands, each spread out to full size in memory.
    return jnp.where(z > 0, values, 0.0)


def _over_time(values: jax.Array) -> jax.Array:
    """[n, c] or [b, n, c] in a shape that spreads over [b, t, n, c]."""
    return values if values.ndim == 2 else values[:, None]


def _norm_gradients(x: jax.Array, norm: Norm, dy: jax.Array) -> tuple[jax.Array, Norm]:
    """Gradients by x and by the norm, of norm(x) with gradient dy."""
    dy = dy.astype(norm.bias.dtype)
    axes = (0, 1) if norm.scale.ndim == 2 else 1
    d_bias = dy.sum(axes)
    d_scale = (dy * x).sum(axes) - norm.mean * d_bias
    d_mean = -norm.scale * d_bias
    if d_mean.ndim > norm.mean.ndim:
        d_mean = d_mean.sum(0)
    d_x = (dy * _over_time(norm.scale)).astype(x.dtype)
    return d_x, Norm(d_mean, d_scale, d_bias)
