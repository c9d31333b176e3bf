"""Files that name a network, of any content: read, or refused by name and reason."""

import functools
import json

import pytest
from fuzzing import cases, refusal
from hypothesis import given
from hypothesis import strategies as st

from kws_jax.models import genotype, mbconv

NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from((10**4000, 2**31, 2**63, -1, 0))
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=7), st.dictionaries(st.text(max_size=6), inner)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ("layers", "strides", "channels", "stem_channels", "shortcut", "se_reduction", "x")
)
OPERATIONS = st.sampled_from((*genotype.OPERATIONS, *mbconv.OPERATIONS, "C5se", ""))
LAYERS = st.lists(
    st.one_of(OPERATIONS, st.lists(st.one_of(OPERATIONS, VALUES), max_size=2)),
    min_size=5,
    max_size=7,
)
SIZES = st.lists(st.one_of(st.integers(1, 100), NUMBERS), min_size=5, max_size=7)
CONTENTS = st.one_of(
    VALUES,
    st.dictionaries(FIELDS, st.one_of(LAYERS, SIZES, VALUES)),
    st.fixed_dictionaries({"layers": LAYERS}),
    st.fixed_dictionaries({"layers": LAYERS, "strides": SIZES, "channels": SIZES}),
)
DEEP, NESTED = "[" * 100_000, "[" * 900 + "]" * 900
BROKEN = st.sampled_from(("", "{", DEEP, '{"layers":' + DEEP, "\0", "NaN", '{"a":1}x'))
# Deep, but not too deep to be parsed.
NESTED_FIELDS = FIELDS.map(lambda name: f'{{"layers": [], "{name}": {NESTED}}}')
load_layers = functools.partial(mbconv.load_layers, round_widths=False)
READERS = (genotype.load_genotype, lambda path: load_layers(str(path)))


@cases(600)
@given(st.one_of(CONTENTS.map(json.dumps), BROKEN, NESTED_FIELDS, st.text(max_size=20)))
def test_any_text_is_a_network_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "network.json"
    path.write_text(text, encoding="utf-8")
    for reader in READERS:
        told = refusal(reader, path)
        assert not told or str(path) in told


@cases(100)
@given(st.binary(max_size=40))
def test_any_bytes_are_a_network_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "network.json"
    path.write_bytes(content)
    for reader in READERS:
        assert str(path) in refusal(reader, path)


@pytest.mark.parametrize("name", ["", ".", "/", "x" * 300, "nul\0", ",", ",,,,,", "a,"])
def test_any_name_is_a_network_or_refused(name):
    assert refusal(genotype.load_genotype, name)
    assert refusal(load_layers, name)
