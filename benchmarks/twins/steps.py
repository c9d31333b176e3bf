"""The twins' programs as calls to time, written as PyTorch is usually written."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.steps import LEARNING_RATE, random_labels
from benchmarks.twins import frontends
from benchmarks.twins.supernet import SuperNet
from kws_jax.search.space import SearchSpace

Call = Callable[[], Any]


def channels_first(features: np.ndarray) -> torch.Tensor:
    """Features [b, t, f] as a contiguous tensor [b, f, t]."""
    return torch.from_numpy(features).transpose(1, 2).contiguous()


def inference(twin: nn.Module, features: np.ndarray) -> Call:
    """Features to logits."""
    twin.eval()
    inputs = channels_first(features)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        return twin(inputs)

    return call


def window(twin: nn.Module, frontend: str, audio: np.ndarray) -> Call:
    """int16 audio [b, s] to probabilities, both of NumPy."""
    spotter = nn.Sequential(frontends.create(frontend), twin, nn.Softmax(dim=1)).eval()

    @torch.inference_mode()
    def call() -> np.ndarray:
        return spotter(frontends.to_float(torch.from_numpy(audio))).numpy()

    return call


def features_of(name: str, audio: np.ndarray) -> Call:
    """int16 audio [b, s] to features."""
    frontend, inputs = frontends.create(name).eval(), torch.from_numpy(audio)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        return frontend(frontends.to_float(inputs))

    return call


def training(twin: nn.Module, features: np.ndarray) -> Call:
    """A training step: cross-entropy, gradients, SGD with momentum."""
    twin.train()
    inputs, labels = channels_first(features), _labels(twin, features)
    optimizer = torch.optim.SGD(twin.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def call() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(twin(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return call


def search(space: SearchSpace, features: np.ndarray, labels: int) -> Call:
    """A first-order DARTS step: the architecture, then the weights.

    Each by its own batch, with the settings of AutoKWS' config.
    """
    net = SuperNet(
        num_labels=labels,
        channels=space.channels,
        strides=space.strides,
        stem_channels=space.stem_channels,
    ).train()
    alphas = net.new_architecture()
    architecture_optimizer = torch.optim.Adam(
        alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3
    )
    groups: list[dict[str, Any]] = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 3e-4},
        {"params": [p for p in net.parameters() if p.ndim <= 1]},
    ]
    optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=0.9)
    train, validation = channels_first(features), channels_first(features[::-1].copy())
    targets = torch.from_numpy(random_labels(len(features), labels)).long()

    def call() -> float:
        weights = [alpha.softmax(0) for alpha in alphas]
        loss = F.cross_entropy(net(validation, weights), targets)
        # Gradients by the architecture alone: those by the weights would be thrown away
        for alpha, gradient in zip(alphas, torch.autograd.grad(loss, alphas)):
            alpha.grad = gradient
        architecture_optimizer.step()

        optimizer.zero_grad(set_to_none=True)
        weights = [alpha.detach().softmax(0) for alpha in alphas]
        loss = F.cross_entropy(net(train, weights), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        return loss.item()

    return call


def _labels(twin: nn.Module, features: np.ndarray) -> torch.Tensor:
    """Random labels int64 [b], of as many classes as the twin has."""
    with torch.inference_mode():
        classes = twin(channels_first(features[:2])).shape[1]
    return torch.from_numpy(random_labels(len(features), classes)).long()
