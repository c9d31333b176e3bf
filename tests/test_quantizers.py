import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kws_jax.quantization import fixed, learned
from kws_jax.training.optimizers import keep_within

X = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
WIDTHS = range(1, 9)


def literal(x, bound, bits, signed):
    """The quantiser by its definition, in float64."""
    x, bound = np.float64(x), np.float64(bound)
    if bits == 1 and signed:
        return np.where(x >= 0, bound, -bound)
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    step = bound / top
    return step * np.clip(np.rint(x / step), -top if signed else 0, top)


def spread(bound):
    return jnp.full((1, 1), bound, jnp.float32)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", WIDTHS)
def test_values_are_those_of_the_definition(bits, signed):
    y = fixed.quantize(X, spread(1.3), bits=bits, signed=signed)
    np.testing.assert_allclose(y, literal(X, 1.3, bits, signed), atol=1e-6)
    if bits > 1:
        traced = jnp.float32(bits)
        y = learned.quantize(X, spread(1.3), bits=traced, signed=signed)
        np.testing.assert_allclose(y, literal(X, 1.3, bits, signed), atol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_one_bit_has_two_values_and_each_more_at_most_twice_as_many(signed):
    x = np.linspace(-2, 2, 4001, dtype=np.float32)[None]
    found = [
        np.unique(fixed.quantize(x, spread(1.0), bits=bits, signed=signed))
        for bits in WIDTHS
    ]
    expected = [2**bits - (signed and bits > 1) for bits in WIDTHS]
    assert [len(values) for values in found] == expected
    np.testing.assert_array_equal(found[0], [-1, 1] if signed else [0, 1])
    assert all(0 in values for values in found[1:])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_and_gradients_are_those_of_pytorch(bits):
    torch = pytest.importorskip("torch")
    bound, top = 1.3, 2**bits - 1
    # Where PyTorch's range ends, half a step later, is another convention.
    x = np.concatenate([X.ravel() * 0.4, [-1.0, -0.5, 2.0, 3.0]]).astype(np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    theirs = torch.fake_quantize_per_tensor_affine(leaf, bound / top, 0, 0, top)
    theirs.sum().backward()
    y, vjp = jax.vjp(
        lambda x: fixed.quantize(x, jnp.full(1, bound), bits=bits, signed=False), x
    )
    np.testing.assert_allclose(y, theirs.detach().numpy(), atol=1e-6)
    half_step = 0.5 * bound / top
    clear = (x >= 0) & (x <= bound) | (x < -half_step) | (x > bound + half_step)
    np.testing.assert_array_equal(
        vjp(np.ones_like(x))[0][clear], leaf.grad.numpy()[clear]
    )


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", WIDTHS)
def test_gradient_passes_straight_through_the_range_alone(bits, signed):
    x = np.array([[-3.0, -1.01, -1.0, -0.4, 0.0, 0.3, 1.0, 1.01, 5.0]], np.float32)
    dy = np.arange(1.0, 10.0, dtype=np.float32)[None]
    _, vjp = jax.vjp(
        lambda x, bound: fixed.quantize(x, bound, bits=bits, signed=signed),
        x,
        spread(1.0),
    )
    dx, d_bound = vjp(dy)
    inside = (x <= 1) & (x >= (-1 if signed else 0))
    np.testing.assert_array_equal(dx, np.where(inside, dy, 0))
    # As if rounding added a constant: y = s·(x/s + r) inside, a multiple of s outside.
    # Of the values in x only 0.3 and −0.4 are not at an end; ties are float32's.
    y = np.float64(fixed.quantize(x, spread(1.0), bits=bits, signed=signed))
    np.testing.assert_allclose(
        d_bound[0, 0], (dy * np.where(inside, y - x, y)).sum(), rtol=1e-5
    )


def test_scale_of_each_channel_gets_the_gradient_of_its_channel():
    bound = jnp.linspace(0.5, 2.5, 5, dtype=jnp.float32)[None]
    together = jax.grad(
        lambda bound: (fixed.quantize(X, bound, bits=3, signed=True) ** 2).sum()
    )(bound)
    for channel in range(5):
        alone = jax.grad(
            lambda bound, x: (fixed.quantize(x, bound, bits=3, signed=True) ** 2).sum()
        )(spread(bound[0, channel]), X[:, [channel]])
        np.testing.assert_allclose(together[0, channel], alone[0, 0], rtol=1e-5)


@pytest.mark.parametrize("bits", [0, 9])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(ValueError, match="1 … 8"):
        fixed.quantize(X, spread(1.0), bits=bits, signed=True)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2.0, 5.0])
def test_gradient_by_bits_is_that_of_a_step_with_what_rounding_adds_held(bits, signed):
    """Central difference of s(b)·(x / s + r), r constant, in float64."""
    bound = 1.1
    top = (lambda b: 2 ** (b - 1) - 1) if signed else (lambda b: 2**b - 1)
    x = np.float64(X)
    inside = (x <= bound) & (x >= (-bound if signed else 0))
    added = literal(x, bound, int(bits), signed) / (bound / top(bits)) - x / (
        bound / top(bits)
    )

    def held(b):
        step = bound / top(b)
        return np.where(inside, step * (x / step + added), 0).sum()

    expected = (held(bits + 1e-4) - held(bits - 1e-4)) / 2e-4
    got = jax.grad(
        lambda b: learned.quantize(X, spread(bound), bits=b, signed=signed).sum()
    )(jnp.float32(bits))
    assert float(got) == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("offset", "bits", "slope"),
    [(0.0, 2, 1), (0.2, 2, 1), (-0.7, 3, -1), (1.5, 4, 1), (-6.0, 8, -1), (7.9, 8, 1)],
)
def test_learned_offset_gives_whole_bits_and_the_gradient_of_its_size(
    offset, bits, slope
):
    got, gradient = jax.value_and_grad(learned.bit_width)(jnp.float32(offset), 8)
    assert (float(got), float(gradient)) == (bits, slope)


def test_bits_never_leave_their_range_and_come_back_at_once():
    most = 6
    largest = learned.largest_offset(most)
    tx = optax.chain(optax.adam(0.9), keep_within(-largest, largest))
    offsets = {"a": learned.offset_of(4), "b": learned.offset_of(2)}
    state = tx.init(offsets)
    rng = np.random.default_rng(1)
    for _ in range(60):
        gradients = {k: np.float32(rng.normal(0.5, 2.0)) for k in offsets}
        updates, state = tx.update(gradients, state, offsets)
        offsets = optax.apply_updates(offsets, updates)
        for offset in offsets.values():
            assert abs(float(offset)) <= most - 2 + 1e-6
            assert float(learned.bit_width(offset, most)) in range(2, most + 1)
    alone = keep_within(-largest, largest)
    far = {"a": jnp.float32(4.0)}
    for update, expected in ((9.0, 4.0), (-1.0, 3.0), (-99.0, -4.0)):
        shortened, _ = alone.update({"a": jnp.float32(update)}, (), far)
        assert float(far["a"] + shortened["a"]) == pytest.approx(expected)


def test_mean_bits_counts_each_value():
    bits, counts = {"a": 2.0, "b": 8.0}, {"a": 300, "b": 100, "other": 7}
    assert learned.mean_bits(bits, counts) == pytest.approx(3.5)
