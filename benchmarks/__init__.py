"""Speed of kws_jax beside PyTorch twins and the machine's limits; see README.md."""
