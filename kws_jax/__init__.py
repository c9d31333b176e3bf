"""kws_jax: a keyword-spotting laboratory in JAX and Flax."""

__version__ = "0.1.0"
