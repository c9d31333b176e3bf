"""Set-up of all tests: the CPU alone, and arguments checked against annotations."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest
from beartype import BeartypeConf, beartype
from jax.experimental.compilation_cache import compilation_cache
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


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A folder of tones in place of words, see `words`."""
    # Not before the functions of the package are wrapped.
    from words import write_words

    folder = tmp_path_factory.mktemp("data") / "words"
    write_words(folder)
    return folder


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """All tests of a module share what they compile."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def compiled_quickly():
    """No program of a module is optimised, those that the package compiles included."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)
