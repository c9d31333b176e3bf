"""Networks as if trained: random ones whose answers tell one clip from another."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from network_values import QUICK


@functools.cache
def clips() -> np.ndarray:
    """float32 [8, 16000]: tones in noise, both of any loudness: no two are alike."""
    rng = np.random.default_rng(0)
    seconds = np.arange(16_000) / 16_000
    pitch = np.geomspace(150, 5000, 8)[rng.permutation(8), None]
    loud, hiss = np.exp(rng.uniform(np.log(0.01), np.log(0.4), (2, 8, 1)))
    start = rng.uniform(0, 0.5, (8, 1))
    tone = loud * np.sin(2 * np.pi * pitch * seconds) * (seconds > start)
    return (tone + hiss * rng.normal(size=tone.shape) / 4).astype(np.float32)


def settled(model, variables, x, spread=2.0):
    """Random variables of a network, with what training makes depend on the data.

    Under random statistics what comes from the input drowns in what a network adds by
    itself, and an artefact that ignores its input would pass. So the statistics are
    those of the batch x, and the last layer, if its name is "linear", tells apart what
    it is given: `spread` is about the deviation of logits over the batch.
    """
    shares, given = {}, {}

    def call(proceed, arguments, keywords, context):
        module = context.module
        if isinstance(module, nn.Dropout):
            return arguments[0]
        if isinstance(module, nn.BatchNorm):
            shares[module.path] = 1 - module.momentum
        if module.name == "linear":
            given[*module.path, "kernel"] = arguments[0]
        return proceed(*arguments, **keywords)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(variables, x):
        with nn.intercept_methods(call):
            _, after = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return after["batch_stats"], list(given.values())

    # From zeros a step leads to the batch's share of its own statistics.
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    after, embeddings = run({**variables, "batch_stats": zeros}, x)
    stats, params = map(
        traverse_util.flatten_dict, (variables["batch_stats"], variables["params"])
    )
    for path, value in traverse_util.flatten_dict(after).items():
        if path[:-1] in shares:
            stats[path] = value / shares[path[:-1]]
    for path, embedding in zip(given, embeddings):
        params[path] = _telling(np.asarray(embedding), params[path].shape[1], spread)
    trees = {"params": params, "batch_stats": stats}
    return {name: traverse_util.unflatten_dict(flat) for name, flat in trees.items()}


def _telling(embedding, labels, spread):
    """A kernel [d, labels] to which the mean of embeddings [b, d] says nothing.

    The labels point to as many sides in the plane in which embeddings differ most.
    """
    mean = embedding.mean(0) / np.linalg.norm(embedding.mean(0))
    apart = embedding - np.outer(embedding @ mean, mean)
    _, sizes, ways = np.linalg.svd(apart, full_matrices=False)
    angles = 0.4 + 2 * np.pi * np.arange(labels) / labels
    plane = np.stack([np.cos(angles), np.sin(angles)])
    scale = spread * np.sqrt(len(embedding)) / sizes[0]
    return np.float32(scale * ways[:2].T @ plane)
