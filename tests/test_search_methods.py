import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.errors import UserError
from kws_jax.models.genotype import Genotype
from kws_jax.search.methods import METHODS, create_method
from kws_jax.search.space import SearchSpace

SPACE = SearchSpace()


def architecture(seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.array(scale * rng.normal(size=len(names)), jnp.float32)
        for names in SPACE.candidates
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    method = create_method(name)
    alphas = architecture()
    weights = method.op_weights(alphas)
    assert [w.shape for w in weights] == [a.shape for a in alphas]
    assert all(np.all((np.array(w) >= 0) & (np.array(w) <= 1)) for w in weights)
    for seed in range(20):
        derived = method.derive(architecture(seed), SPACE)
        assert isinstance(derived, Genotype)
        for kept, names, a in zip(derived.layers, SPACE.candidates, architecture(seed)):
            assert names[int(np.argmax(a))] in kept

    def total(alphas):
        mixed = method.op_weights(alphas)
        return method.regulariser(alphas) + sum((w**2).sum() for w in mixed)

    assert method.regulariser(alphas).shape == ()
    gradient = jax.grad(total)(alphas)
    assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in gradient)
    assert method.skip_noise >= 0


@pytest.mark.parametrize("name", ["darts", "noisydarts"])
def test_darts_weighs_by_softmax_and_keeps_the_largest(name):
    method = create_method(name)
    alphas = architecture(1)
    for weights, a in zip(method.op_weights(alphas), alphas):
        e = np.exp(np.float64(a))
        np.testing.assert_allclose(weights, e / e.sum(), rtol=1e-5)
    assert all(len(layer) == 1 for layer in method.derive(alphas, SPACE).layers)
    assert float(method.regulariser(alphas)) == 0.0


def test_fairdarts_keeps_all_above_the_threshold_else_the_largest():
    method = create_method("fairdarts")
    logit = np.log(0.8 / 0.2)
    layers = [np.full(len(names), -3.0) for names in SPACE.candidates]
    layers[0][[1, 4]] = logit + 0.01
    layers[1][8] = logit + 0.01
    layers[2][5] = logit - 0.01
    derived = method.derive(tuple(jnp.array(a) for a in layers), SPACE).layers
    names = SPACE.candidates
    assert derived[0] == (names[0][1], names[0][4])
    assert derived[1] == ("SKIP",)
    assert derived[2] == (names[2][5],)
    assert all(len(layer) == 1 for layer in derived[3:])


def test_fairdarts_regulariser_is_the_zero_one_loss():
    method = create_method("fairdarts", zero_one_weight=10.0)
    alphas = architecture(2)
    weights = 1 / (1 + np.exp(-np.concatenate([np.float64(a) for a in alphas])))
    expected = -10.0 * np.mean((weights - 0.5) ** 2)
    assert float(method.regulariser(alphas)) == pytest.approx(expected, rel=1e-5)


def test_only_noisydarts_disturbs_the_skip():
    assert create_method("darts").skip_noise == 0
    assert create_method("fairdarts").skip_noise == 0
    assert create_method("noisydarts").skip_noise == 0.2
    assert create_method("noisydarts", skip_noise=0.1).skip_noise == 0.1


def test_unknown_method_and_setting_name_the_nearest():
    with pytest.raises(UserError, match="'noisydarts'"):
        create_method("noisy_darts")
    with pytest.raises(UserError, match="'threshold'"):
        create_method("fairdarts", treshold=0.5)
    with pytest.raises(UserError, match="no setting 'skip_noise'"):
        create_method("darts", skip_noise=0.2)
