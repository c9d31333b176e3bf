"""A network that lacks what a stage asks for is refused before training."""

import flax.linen as nn
import pytest
from ml_collections import ConfigDict
from tiny_parts import tiny_config, tiny_parts

from configs import pair_loss
from kws_jax.errors import UserError
from kws_jax.models import registry
from kws_jax.stages import dispatch


class Plain(nn.Module):
    """Logits alone: no embedding, and no submodule `head`."""

    num_labels: int

    @nn.compact
    def __call__(self, features, *, train):
        return nn.Dense(self.num_labels, name="last")(features.mean(1))


class Embedding(Plain):
    """The same with an embedding."""

    def embed(self, features, *, train):
        return features.mean(1)


class Complete(nn.Module):
    """With an embedding and a head."""

    num_labels: int

    def setup(self):
        self.head = nn.Dense(self.num_labels)

    def embed(self, features, *, train):
        return features.mean(1)

    def __call__(self, features, *, train):
        return self.head(self.embed(features, train=train))


@pytest.fixture(autouse=True)
def own_networks(monkeypatch):
    for network in (Plain, Embedding, Complete):
        monkeypatch.setitem(registry.MODELS, network.__name__, (network, {}))


def embed_first(config):
    (head,) = config.stages
    config.stages = (pair_loss.embed_stage(head, "cn2"), head)


def train_head_alone(config):
    config.stages[0].trained_part = "head"


def keep_embeddings(config):
    config.evaluation.embeddings = True


def filtered(config):
    train_head_alone(config)
    config.front_filter = ConfigDict({"name": "dynamic"})


def keep_embeddings_filtered(config):
    keep_embeddings(config)
    config.front_filter = ConfigDict({"name": "dynamic"})


def parts_with(network, asked):
    config = tiny_config()
    config.network = ConfigDict({"name": network})
    if asked:
        asked(config)
    return tiny_parts(config)


REFUSED = [
    ("Plain", embed_first, r"stages\[0\].kind = 'embed' asks for the embeddings"),
    ("Plain", train_head_alone, r"stages\[0\].trained_part = 'head' asks for the emb"),
    ("Plain", keep_embeddings, "'Plain' makes no embeddings: set config.evaluation"),
    ("Plain", filtered, "the network 'Plain' has none: choose another one, or give"),
    ("Embedding", train_head_alone, "submodule `head` alone, and the network 'Embe"),
    ("Embedding", filtered, "say 'all', or give its last layer that name"),
    ("Plain", keep_embeddings_filtered, "'Plain' makes no embeddings"),
]


@pytest.mark.parametrize(("network", "asked", "message"), REFUSED)
def test_a_network_that_lacks_what_is_asked_of_it_is_refused(
    network, asked, message, tmp_path
):
    with pytest.raises(UserError, match=message):
        dispatch.check(parts_with(network, asked), tmp_path)


@pytest.mark.parametrize(
    ("network", "asked"),
    [
        ("Plain", None),
        ("Embedding", embed_first),
        ("Embedding", keep_embeddings),
        ("Complete", train_head_alone),
        ("Complete", filtered),
    ],
)
def test_what_a_network_has_may_be_asked_of_it(network, asked, tmp_path):
    dispatch.check(parts_with(network, asked), tmp_path)
