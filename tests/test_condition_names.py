"""Conditions are found again by the names under which tests are written down."""

import subprocess
import sys

import numpy as np
import pytest

from kws_jax.condition_names import (
    CLEAN,
    FAR,
    SEEN,
    UNSEEN,
    clean_of,
    noisy,
    parse,
)
from kws_jax.evaluation.testing import noise_conditions


@pytest.mark.parametrize("kind", [SEEN, UNSEEN, FAR + SEEN, FAR + UNSEEN, "my own"])
@pytest.mark.parametrize("snr", [20, 0, -5, 2.5, -0.25, 100.0, 1e-5])
def test_what_is_written_is_read(kind, snr):
    assert parse(noisy(kind, snr)) == (kind, snr)


def test_names_are_those_of_earlier_results():
    assert noisy(SEEN, 20.0) == "seen 20 dB"
    assert noisy(FAR + UNSEEN, -5) == "far unseen -5 dB"
    assert parse("far unseen −5 dB") == ("far unseen", -5)  # with a minus sign
    assert [clean_of(kind) for kind in (SEEN, FAR + SEEN)] == ["clean", "far clean"]


def test_all_that_a_test_hears_is_parsed_into_what_it_hears():
    banks = {SEEN: object(), UNSEEN: object()}
    conditions = noise_conditions(banks, (20, -5), far=True)
    assert len(conditions) == 2 * (1 + 2 * 2)
    for name, (condition, bank) in conditions.items():
        far = name.startswith(FAR)
        assert condition.reverberant_fraction == float(far)
        if bank is None:
            assert (parse(name), condition.snr_db) == (None, ())
            assert name == (FAR + CLEAN if far else CLEAN)
        else:
            kind, snr = parse(name)
            assert banks[kind.removeprefix(FAR)] is bank
            np.testing.assert_equal(condition.snr_db, (snr,))


def test_names_need_neither_jax_nor_tensorflow():
    program = (
        "import sys, kws_jax.condition_names;"
        "sys.exit(any(m in sys.modules for m in ('jax', 'tensorflow')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
