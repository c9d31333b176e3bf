"""What is known of a packed operation before it runs, beside what NumPy makes of it."""

import inspect

import numpy as np
import pytest
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from kws_jax.deploy.packed_check import check_settings
from kws_jax.deploy.packed_fields import BadFile
from kws_jax.deploy.packed_operations import OPERATIONS
from kws_jax.deploy.packed_shapes import RULES, result_of
from kws_jax.deploy.packed_values import Value

SIZES = st.integers(1, 4)
SHAPES = st.lists(SIZES, max_size=4)
AXES = st.integers(0, 3)
PADS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)).map(list), max_size=4)
LETTERS = st.text("abcd", max_size=3)
EQUATIONS = ("ab,bc->ac", "abc,cd->abd", "a,b->ab", "ab,ab->ab", "abc,bca->", ",a->a")
DTYPES = (
    "bool",
    "int8",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex64",
)
SETTINGS = {
    "bits": st.integers(1, 16),
    "signed": st.booleans(),
    "equation": st.one_of(
        st.sampled_from(EQUATIONS),
        st.tuples(LETTERS, LETTERS, LETTERS).map(lambda t: f"{t[0]},{t[1]}->{t[2]}"),
    ),
    "largest": st.sampled_from((0, 9, 2**25)),
    "strides": st.lists(SIZES, max_size=2),
    "dilation": st.lists(SIZES, max_size=2),
    "padding": PADS,
    "groups": SIZES,
    "type": st.sampled_from(("bool", "int32", "float32")),
    "shape": SHAPES,
    "axes": st.one_of(st.lists(AXES, max_size=4), st.permutations(range(3)).map(list)),
    "axis": AXES,
    "places": st.lists(
        st.tuples(st.integers(0, 1), st.integers(1, 3), SIZES).map(list), max_size=4
    ),
    "length": st.integers(1, 9),
    "exponent": st.integers(-100, 100),
}


@st.composite
def arrays(draw, shape):
    rng = np.random.default_rng(draw(st.integers(0, 3)))
    dtype = draw(st.sampled_from(DTYPES))
    values = (9 * rng.normal(size=shape)).astype(dtype)
    # What NumPy computes without axes is no array.
    return values[()] if draw(st.booleans()) else values


@st.composite
def steps(draw, name):
    """Inputs and settings of an operation, most of which go together."""
    rule, shape = RULES[name], draw(SHAPES)
    count = rule.inputs + (draw(st.integers(0, 2)) if rule.more else 0)
    shapes = [draw(st.sampled_from((shape, shape, [], [1]))) for _ in range(count)]
    named = {s: draw(SETTINGS[s]) for s in rule.settings}
    named |= {s: draw(SETTINGS[s]) for s in rule.others if draw(st.booleans())}
    if name in FITTING and draw(st.sampled_from((True, True, True, False))):
        shapes, fitting = FITTING[name](draw, shape)
        named |= fitting
        long = [sizes for sizes in shapes if sizes]
        if long and draw(st.booleans()):
            sizes = draw(st.sampled_from(long))
            sizes[draw(st.integers(0, len(sizes) - 1))] = draw(SIZES)
    return [draw(arrays(s)) for s in shapes], named


def fitting_conv(draw, shape):
    space = draw(st.integers(0, 2))

    def some(numbers):
        return draw(st.lists(numbers, min_size=space, max_size=space))

    groups, inputs, outputs = draw(SIZES), draw(SIZES), draw(SIZES)
    x = [draw(SIZES), *some(st.integers(3, 7)), groups * inputs]
    kernel = [*some(SIZES), inputs, groups * outputs]
    settings = {name: some(SIZES) for name in ("strides", "dilation")}
    padding = some(st.tuples(st.integers(0, 2), st.integers(0, 2)).map(list))
    return [x, kernel], settings | {"padding": padding, "groups": groups}


def fitting_product(draw, shape):
    equation = draw(st.sampled_from(EQUATIONS))
    sizes = {letter: draw(SIZES) for letter in "abcd"}
    first, second = equation.split("->")[0].split(",")
    shapes = [[sizes[a] for a in first], [sizes[a] for a in second]]
    return shapes, {"equation": equation}


def fitting_slice(draw, shape):
    places = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        places.append([start, draw(st.integers(start, size)), draw(SIZES)])
    return [shape], {"places": places}


def fitting_pad(draw, shape):
    pads = st.tuples(st.integers(0, 2), st.integers(0, 2)).map(list)
    return [shape, []], {"padding": [draw(pads) for _ in shape]}


def fitting_concatenate(draw, shape):
    shape = [*shape, 2]
    axis = draw(st.integers(0, len(shape) - 1))
    sizes = draw(st.lists(SIZES, min_size=1, max_size=3))
    return [[*shape[:axis], n, *shape[axis + 1 :]] for n in sizes], {"axis": axis}


def fitting_broadcast(draw, shape):
    shape = [draw(st.sampled_from((size, 1))) for size in shape]
    wide = [draw(SIZES) if size == 1 else size for size in shape]
    return [shape], {"shape": [*draw(st.lists(SIZES, max_size=2)), *wide]}


def fitting_axes(draw, shape):
    axes = draw(st.permutations(range(len(shape))))
    axes = axes[: draw(st.integers(0, len(shape)))]
    return [shape], {"axes": axes + axes[: draw(st.sampled_from((0, 0, 1)))]}


def fitting_count(draw, shape):
    return [], {"shape": [*shape, 3], "axis": draw(st.integers(0, len(shape)))}


FITTING = {
    "conv": fitting_conv,
    "product": fitting_product,
    "slice": fitting_slice,
    "pad": fitting_pad,
    "concatenate": fitting_concatenate,
    "broadcast": fitting_broadcast,
    "reshape": lambda draw, shape: (
        [shape],
        {"shape": draw(st.permutations([*shape, 1]))},
    ),
    "transpose": lambda draw, shape: (
        [shape],
        {"axes": draw(st.permutations(range(len(shape))))},
    ),
    "sum": fitting_axes,
    "max_over": fitting_axes,
    "count": fitting_count,
    "rfft": lambda draw, shape: ([[*shape, 5]], {}),
}


@pytest.mark.filterwarnings("error", "ignore::RuntimeWarning")
@pytest.mark.filterwarnings("error::numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_what_is_known_of_an_operation_is_what_it_makes(name):
    passed = []

    @cases(100 if RULES[name].settings else 20)
    @given(steps(name))
    def see(step):
        inputs, settings = step
        known = [Value(x.shape, x.dtype.kind) for x in inputs]
        try:
            check_settings(name, settings)
            result = result_of(name, known, settings)
        except BadFile:
            return
        made = np.asarray(OPERATIONS[name](*inputs, **settings))
        assert (made.shape, made.dtype.kind) == (result.value.shape, result.value.kind)
        assert 0 < made.nbytes <= 8 * result.value.numbers
        passed.append(inputs)

    see()
    assert passed


def test_every_operation_has_a_rule_for_its_settings():
    assert set(RULES) == set(OPERATIONS)
    for name, operation in OPERATIONS.items():
        if isinstance(operation, np.ufunc | np.vectorize):
            continue
        rule, takes = RULES[name], inspect.signature(operation).parameters.values()
        named = [p for p in takes if p.kind == inspect.Parameter.KEYWORD_ONLY]
        needed = {p.name for p in named if p.default is inspect.Parameter.empty}
        assert set(rule.settings) == needed
        assert set(rule.others) == {p.name for p in named} - needed
        assert rule.more or rule.inputs == len(takes) - len(named)


@pytest.mark.parametrize(
    ("equation", "first", "second"),
    [
        ("ab,bc->ac", (2, 3), (4, 2)),
        ("ab,bc->ac", (2, 1), (4, 2)),
        ("ab,bc->ac", (2, 3, 4), (3, 2)),
        ("ab,bc->a", (2, 3), (3, 2)),
        ("ab,bc->ad", (2, 3), (3, 2)),
        ("ab,bc->aca", (2, 3), (3, 2)),
        ("aa,ab->b", (2, 2), (2, 3)),
        ("ab,bc", (2, 3), (3, 2)),
        ("...b,bc->...c", (2, 3), (3, 2)),
    ],
)
def test_what_is_no_product_is_refused(equation, first, second):
    inputs = [Value(first, "f"), Value(second, "f")]
    with pytest.raises(BadFile, match="is no product of shapes"):
        result_of("product", inputs, {"equation": equation})


@pytest.mark.parametrize("value", [Value((1,), "f"), Value((), "c")])
def test_padding_is_by_one_real_number(value):
    with pytest.raises(BadFile, match="it takes one number"):
        result_of("pad", [Value((2,), "f"), value], {"padding": [[1, 1]]})
