"""What the machine can do: matrix products and memory traffic, measured."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from benchmarks.timing import fastest

_SIZES, _SMALL_SIZES = (512, 1024, 2048), (64, 128)
_REPEATS, _SMALL_REPEATS = 10, 2
# Each of the two arrays of a pass is this many times the largest cache, within these
# bounds in bytes.
_CACHES, _LEAST, _MOST = 2, 2**28, 2**30
_SMALL_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """The best rates that were seen.

    Attributes:
      flops: float32 additions and multiplications a second in a matrix product.
      bandwidth: bytes a second, read and written, of a pass over a large array.
    """

    flops: float
    bandwidth: float


def measure(*, small: bool = False) -> Limits:
    """The limits of this machine, the best of JAX and, if installed, PyTorch."""
    repeats = _SMALL_REPEATS if small else _REPEATS
    flops = max(
        2 * n**3 / fastest(_products(n), repeats=repeats)
        for n in (_SMALL_SIZES if small else _SIZES)
    )
    size = _SMALL_BYTES if small else _array_bytes()
    # Read once, written once.
    bandwidth = 2 * size / fastest(_passes(size // 4), repeats=repeats)
    return Limits(flops, bandwidth)


def _array_bytes() -> int:
    return min(max(_CACHES * machine.cache_bytes(), _LEAST), _MOST)


def _products(n: int) -> list[Callable[[], Any]]:
    """float32 products [n, n] · [n, n]."""
    values = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32)
    a = jnp.asarray(values)
    product = jax.jit(jnp.matmul)
    calls: list[Callable[[], Any]] = [lambda: jax.block_until_ready(product(a, a))]
    if machine.has_torch():
        import torch

        b, out = torch.from_numpy(values), torch.empty(n, n)
        calls.append(lambda: torch.mm(b, b, out=out))
    return calls


def _passes(n: int) -> list[Callable[[], Any]]:
    """Multiplications of a float32 array [n] by a number."""
    a = jnp.ones(n, jnp.float32)
    scaled = jax.jit(lambda a: a * 1.5)
    calls: list[Callable[[], Any]] = [lambda: jax.block_until_ready(scaled(a))]
    if machine.has_torch():
        import torch

        b, out = torch.ones(n), torch.empty(n)
        calls.append(lambda: torch.mul(b, 1.5, out=out))
    return calls
