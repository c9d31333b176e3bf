"""Several devices compute what one does; they are faked in a process of their own."""

import json

import pytest
from four_devices import on_four_devices

from kws_jax.errors import UserError
from kws_jax.training import sharding

_PROGRAM = """
import functools
import json
from types import SimpleNamespace

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.common import spec_augment
from kws_jax.models.registry import create_model
from kws_jax.stages.learner import classification_loss
from kws_jax.training import sharding
from kws_jax.training.state import WEIGHTS, create_train_state
from kws_jax.training.step import make_train_step

model = create_model("tc_resnet8", 3, width=0.25, dropout=0.5)
rng = np.random.default_rng(0)
# The level rises through the batch: statistics of a share are far from those of all.
level = np.exp(np.arange(8)).reshape(8, 1, 1) / 100
batch = {
    "audio": np.float32(rng.normal(size=(8, 24, 10)) * level + level),
    "label": np.int32(rng.integers(0, 3, 8)),
    "index": np.arange(8, dtype=np.int32),
    "mask": np.arange(8) < 7,
}
stage = ConfigDict({"label_smoothing": 0.1, "spec_augment": spec_augment(1)})
stage.spec_augment.update(time_width=4, frequency_width=3)
parts = SimpleNamespace(features=lambda audio: audio)
transformations = {WEIGHTS: optax.sgd(0.1, 0.9)}
variables = jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(0), batch["audio"][:1]
)
step = jax.jit(
    make_train_step(classification_loss(parts, stage, model), transformations)
)


def one_step(mesh):
    state = create_train_state(
        {WEIGHTS: variables["params"]}, variables["batch_stats"], transformations
    )
    state = sharding.replicate(state, mesh)
    return step(state, sharding.shard(batch, mesh), jax.random.key(1))


assert len(jax.devices()) == 4
mesh = sharding.data_mesh()
shared = sharding.shard(batch, mesh)["audio"]
alone, of_all = one_step(Mesh(np.asarray(jax.devices()[:1]), ("data",))), one_step(mesh)
gaps = jax.tree.map(
    lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), alone, of_all
)
moved = jax.tree.map(
    lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()),
    of_all[0].trees[WEIGHTS],
    dict(variables["params"]),
)
print(json.dumps({
    "mesh": mesh.size,
    "rows": sorted({s.data.shape[0] for s in shared.addressable_shards}),
    "gap": max(jax.tree.leaves(gaps)),
    "least_move": min(jax.tree.leaves(moved)),
    "replicated": all(x.sharding.is_fully_replicated for x in jax.tree.leaves(of_all)),
}))
try:
    sharding.check_batch_size(10, mesh)
except sharding.UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def printed():
    return on_four_devices("-c", _PROGRAM).splitlines()


def test_a_step_on_four_devices_is_that_on_one(printed):
    found = json.loads(printed[0])
    assert found["mesh"] == 4
    assert found["rows"] == [2]
    # Weights, momentum, batch statistics, loss and accuracy; all of them have moved.
    assert found["gap"] < 1e-5
    assert found["least_move"] > 0
    assert found["replicated"]


def test_a_batch_that_four_devices_cannot_share_is_refused(printed):
    assert printed[1] == (
        "batch_size = 10 cannot be divided over 4 devices; take a multiple, for "
        "example 12."
    )


def test_any_batch_fits_one_device():
    sharding.check_batch_size(7, sharding.data_mesh())
    with pytest.raises(UserError, match="batch_size = 7"):
        sharding.check_batch_size(7, _MeshOf(2))


class _MeshOf:
    def __init__(self, size):
        self.size = size
