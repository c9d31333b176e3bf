"""Devices send each other sums and nothing else, and by rows they compute the same."""

import json

from four_devices import on_four_devices

_PROGRAM = """
import functools, json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import collectives, pod_steps
from configs import tc_resnet
from kws_jax.frontends.registry import create_frontend
from kws_jax.ops import batch_last
from kws_jax.parts import Setup
from kws_jax.training import sharding

mesh = sharding.data_mesh()
rng = np.random.default_rng(0)
told = {"mesh": mesh.size}


def sent(function, *arguments):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return {kind: calls for kind, (calls, _) in collectives.count(text).items()}


# Features of a batch that is split, and of one that four devices cannot share.
frontend = create_frontend("mfcc")
setup = Setup(tc_resnet.get_config("8"), (), frontend, mesh)
clips = rng.integers(-9999, 9999, (8, 16000)).astype(np.int16)
split = sharding.shard({"audio": clips}, mesh)["audio"]
told["frontend alone"] = sent(frontend, split)
told["features"] = sent(setup.features, split)
made = jax.jit(setup.features)(split)
told["split"] = [list(s.data.shape) for s in made.addressable_shards]
told["gap"] = float(np.abs(np.asarray(made) - jax.jit(frontend)(clips)).max())
odd = jax.jit(setup.features)(clips[:3])
told["odd"] = float(np.abs(odd - np.asarray(made)[:3]).max())

# A seed for each entry of a second axis, as where several are trained at once.
both = jax.jit(jax.vmap(setup.features, in_axes=1))(np.stack([clips, clips[::-1]], 1))
told["seeds"] = float(np.abs(both[1] - np.asarray(made)[::-1]).max())

# What is drawn by rejection.
draw = functools.partial(jax.random.beta, a=10.0, b=10.0, shape=(8,))
drawn = lambda key, audio: audio * draw(key)[:, None]
whole = lambda key, audio: audio * sharding.keep_whole(draw(key), mesh)[:, None]
told["draws"] = sent(drawn, jax.random.key(0), split)
told["whole draws"] = sent(whole, jax.random.key(0), split)

# A product of channels, the batch last.
x = jnp.ones((3, 4, 5, 8))
kernel = jnp.asarray(rng.normal(size=(1, 1, 3, 2)), jnp.float32)
last = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, None, None, "data")))
told["pointwise"] = sent(batch_last.pointwise, last, kernel)

# A whole step, from the waveform through mixup to the update.
step, arguments = pod_steps.step_of("curriculum", 8, 100, small=True)
text = collectives.compiled(step, arguments)
told["curriculum"] = sorted(collectives.count(text))
print(json.dumps(told))
"""


def test_devices_send_each_other_nothing_but_sums():
    told = json.loads(on_four_devices("-c", _PROGRAM))
    assert told["mesh"] == 4
    # Should XLA divide Fourier transforms one day, `by_rows` is needed no more.
    assert told["frontend alone"] == {"all-gather": 1}
    assert told["features"] == {}
    assert told["split"] == [[2, 98, 40]] * 4
    assert max(told["gap"], told["odd"], told["seeds"]) < 1e-3
    assert told["draws"]["all-reduce"] > 0
    assert told["whole draws"] == {}
    assert told["pointwise"] == {}
    assert told["curriculum"] == ["all-reduce"]
