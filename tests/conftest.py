"""Set-up of all tests: the CPU alone, and arguments checked against annotations."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# As for a static type checker, an int is a float.
typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))

# Wraps the functions when the modules are first imported, so this comes before them.
install_import_hook(
    ["kws_jax.frontends", "kws_jax.objectives"], f"{__name__}.typechecker"
)


@pytest.fixture
def strict_ranks():
    """Implicit broadcasting between ranks, often a mistake, is an error in the test."""
    with jax.numpy_rank_promotion("raise"):
        yield
