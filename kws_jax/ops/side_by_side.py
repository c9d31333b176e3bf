"""Convolutions over time of several kernels at once, side by side in one array.

One convolution with many channels is faster than several with few, and the operations
by element that follow act on one array instead of many small ones.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_LAYOUT = ("NWC", "WIO", "NWC")


def shared_conv(
    x: Float[Array, "b t c"], kernels: Sequence[Float[Array, "k c d"]], stride: int = 1
) -> Float[Array, "b s n d"]:
    """y[b, s, n] = Σ_i kernels[n][i] · x[b, stride·s + i − before], all of one input.

    Args:
      x: the input of all.
      kernels: n kernels of one shape.
      stride: step of the output in frames.

    Returns:
      The n outputs of ⌈t / stride⌉ frames ("SAME" padding).
    """
    y = _conv(x, jnp.concatenate(kernels, axis=-1), stride)
    return y.reshape(*y.shape[:2], len(kernels), -1)


def own_conv(
    x: Float[Array, "b t n c"], kernels: Sequence[Float[Array, "k c d"]]
) -> Float[Array, "b t n d"]:
    """y[b, t, n] = Σ_i kernels[n][i] · x[b, t + i − before, n], each of its own input.

    "SAME" padding, kernels of one shape. XLA's grouped convolution is slow on CPUs,
    which convolve one after the other; elsewhere it is one grouped convolution.
    Differentiable in reverse mode, any number of times.
    """
    return _own(x, tuple(kernels))


@jax.custom_vjp
def _own(x: jax.Array, kernels: tuple[jax.Array, ...]) -> jax.Array:
    return lax.platform_dependent(x, kernels, cpu=_in_turn, default=_grouped)


def _forward(x, kernels):
    return _own(x, kernels), (x, kernels)


def _backward(saved, dy):
    def gradients(conv: Callable[..., jax.Array]) -> Callable[..., tuple]:
        return lambda x, kernels, dy: jax.vjp(conv, x, kernels)[1](dy)

    return lax.platform_dependent(
        *saved, dy, cpu=gradients(_in_turn), default=gradients(_grouped)
    )


_own.defvjp(_forward, _backward)


def _in_turn(x: jax.Array, kernels: tuple[jax.Array, ...]) -> jax.Array:
    inputs = [x[:, :, n] for n in range(x.shape[2])]
    return jnp.stack(
        [_conv(part, kernel) for part, kernel in zip(inputs, kernels, strict=True)],
        axis=2,
    )


def _grouped(x: jax.Array, kernels: tuple[jax.Array, ...]) -> jax.Array:
    b, t, n, _ = x.shape
    merged = jnp.concatenate(kernels, axis=-1)
    return _conv(x.reshape(b, t, -1), merged, groups=n).reshape(b, t, n, -1)


def _conv(
    x: jax.Array, kernel: jax.Array, stride: int = 1, groups: int = 1
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride,),
        padding="SAME",
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )
