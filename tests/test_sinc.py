"""Learned front ends: filters, their guarantee and gradients, and their place."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from tiny_parts import LABELS, random_audio, tiny_config, tiny_parts

from kws_jax.errors import UserError
from kws_jax.frontends.registry import create_frontend
from kws_jax.models.counting import count_macs, count_parameters
from kws_jax.models.learned_frontend import WithFrontend, create_filters
from kws_jax.models.mbconv import MBConvNet
from kws_jax.ops.sinc_filters import bands, mel_bands, sinc_filters
from kws_jax.ops.tables import WINDOWS
from kws_jax.stages import filters, networks

RATE = 16_000
LIMITS = {"min_low_hz": 50.0, "min_band_hz": 50.0, "limit_hz": 8000.0}


def literal_filters(low, high, taps, window):
    """SincNet's formula with sin(x)/x written out, float64."""
    n = np.arange(taps) - (taps - 1) / 2
    f1, f2 = (np.asarray(f, np.float64)[None] / RATE for f in (low, high))

    def sinc(x):
        return np.where(x == 0, 1.0, np.sin(x) / np.where(x == 0, 1.0, x))

    x = 2 * np.pi * n[:, None]
    g = 2 * f2 * sinc(x * f2) - 2 * f1 * sinc(x * f1)
    # the same window sampled in the middle of taps cells
    full = scipy.signal.get_window(window, 2 * taps) if window else np.ones(2 * taps)
    return g / (2 * (f2 - f1)) * full[1::2, None]


@pytest.mark.parametrize("taps", [400, 401])
@pytest.mark.parametrize("window", WINDOWS)
def test_filters_are_those_of_the_formula(window, taps):
    low, high = np.array([50.0, 300.0, 7950.0]), np.array([100.0, 3000.0, 8000.0])
    got = sinc_filters(low, high, taps=taps, sample_rate=RATE, window=window)
    expected = literal_filters(low, high, taps, "" if window == "none" else window)
    np.testing.assert_allclose(got, expected, atol=2e-4)
    np.testing.assert_allclose(got, got[::-1], atol=2e-4)


def test_frequency_response_passes_the_band_alone():
    low, high = 1000.0, 2000.0
    taps = sinc_filters(
        jnp.array([low]), jnp.array([high]), taps=400, sample_rate=RATE
    )[:, 0]
    places = [500.0, 800, low, 1200, 1500, 1800, high, 2200, 4000]
    _, response = scipy.signal.freqz(np.float64(taps), worN=places, fs=RATE)
    # over the peak, a band of width B has the gain RATE / 2B
    gain = np.abs(response) / (RATE / (2 * (high - low)))
    np.testing.assert_allclose(gain[3:6], 1.0, atol=0.01)
    np.testing.assert_allclose(gain[[2, 6]], 0.5, atol=0.02)
    assert gain[[0, 1, 7, 8]].max() < 0.01


def test_first_bands_are_evenly_spaced_in_mel_and_reach_to_the_nyquist_frequency():
    low, high = mel_bands(40, 30.0, 7900.0)
    mel = 2595 * np.log10(1 + np.stack([low, high]) / 700)
    np.testing.assert_allclose(np.diff(mel, axis=1), np.diff(mel, axis=1)[0, 0])
    np.testing.assert_allclose(low[2:], high[:-2])
    np.testing.assert_allclose([low[0], high[-1]], [30, 7900])
    layer = create_filters("sinc", {"num_filters": 40}, 400)
    variables = layer.init(jax.random.key(3), jnp.zeros((1, 2, 400)))
    first, last = layer.apply(variables, method="edges")
    np.testing.assert_allclose(first, low + 50, rtol=1e-5)
    np.testing.assert_allclose(last, np.minimum(high + 100, 8000), rtol=1e-5)


def test_no_update_leads_out_of_the_audible_bands():
    rng = np.random.default_rng(0)
    for scale in (1.0, 1e2, 1e4, 1e6):
        first, second = scale * rng.standard_normal((2, 1000)).astype(np.float32)
        first[:2], second[1:3] = 0, 0
        low, high = (np.float64(e) for e in bands(first, second, **LIMITS))
        assert low.min() >= 50
        assert high.max() <= 8000
        assert (high - low).min() >= 50 - 1e-3


def test_gradients_by_edges_are_those_of_finite_differences():
    layer = create_filters("sinc", {"num_filters": 3, "unit_hz": 50.0}, 400)
    rng = np.random.default_rng(1)
    frames = rng.standard_normal((1, 5, 400))
    target = rng.standard_normal((1, 5, 3))
    low, band = np.array([4.0, -20, 80]), np.array([6.0, 30, -40])

    def by_hand(low, band):
        f1 = 50 * np.abs(low) + 50
        f2 = f1 + 50 * np.abs(band) + 50
        out = frames @ literal_filters(f1, f2, 400, "hamming")
        return np.sum(target * np.log1p(np.abs(out)))

    def loss(params):
        return jnp.sum(target * layer.apply({"params": params}, jnp.float32(frames)))

    params = {"low": jnp.float32(low), "band": jnp.float32(band)}
    got = jax.jit(jax.grad(loss))(params)
    for i, step in enumerate(1e-5 * np.eye(3)):
        slope = (by_hand(low + step, band) - by_hand(low - step, band)) / 2e-5
        np.testing.assert_allclose(got["low"][i], slope, rtol=2e-2, atol=0.02)
        slope = (by_hand(low, band + step) - by_hand(low, band - step)) / 2e-5
        np.testing.assert_allclose(got["band"][i], slope, rtol=2e-2, atol=0.02)


def test_edges_beyond_the_limit_come_back_when_the_loss_asks_and_go_no_further():
    def edge(sign):
        return lambda a: (sign * bands(a, jnp.zeros(1), **LIMITS)[1]).sum()

    beyond = jnp.array([9000.0])
    assert jax.grad(edge(1.0))(beyond) > 0  # a step against it leads inside
    assert jax.grad(edge(-1.0))(beyond) == 0
    # at 0 the sign of the parameter does not tell which way is back
    assert jax.grad(edge(1.0))(jnp.zeros(1)) == 1
    assert jax.grad(edge(1.0))(jnp.full(1, -1.0)) == -1


@pytest.mark.parametrize("name", ["sinc", "conv1d"])
def test_published_size_counts_filters_among_the_network(name):
    frontend = create_frontend(name, num_filters=60)
    assert frontend.shape == (98, 400)
    layer = create_filters(name, frontend.settings, 400)
    model = WithFrontend(layer, MBConvNet(12))
    x = jax.ShapeDtypeStruct((1, *frontend.shape), np.float32)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), x
    )
    macs = count_macs(lambda v, x: model.apply(v, x, train=False), variables, x)
    # both as published, with two parameters a filter
    assert macs == 21_712_960
    own = {"sinc": 2 * 60, "conv1d": 400 * 60}[name]
    assert count_parameters(variables["params"]) == 109_622 - 2 * 60 + own


def test_features_are_those_of_a_strided_convolution():
    audio = random_audio(0, (2, RATE)).astype(np.float32) / 32768
    frontend = create_frontend("conv1d", num_filters=3, post="abs")
    layer = create_filters("conv1d", frontend.settings, 400)
    frames = frontend(jnp.asarray(audio))
    variables = layer.init(jax.random.key(0), frames)
    kernel = np.float64(variables["params"]["kernel"])
    for clip, got in zip(audio, layer.apply(variables, frames)):
        for i, column in enumerate(kernel.T):
            every = np.correlate(np.float64(clip), column, "valid")[::160]
            np.testing.assert_allclose(got[:, i], np.abs(every), atol=1e-4)


def test_free_filters_begin_as_asked():
    frames = jnp.asarray(random_audio(3, (1, 2, 400)), jnp.float32) / 32768

    def begin(name, **settings):
        settings = create_frontend(name, num_filters=8, **settings).settings
        layer = create_filters(name, settings, 400)
        variables = layer.init(jax.random.key(0), frames)
        return layer.apply(variables, frames), variables["params"]

    edges = 50 + np.array(mel_bands(8, 30.0, 7900.0)) + [[0.0], [50.0]]
    taps = literal_filters(*np.minimum(edges, 8000), 400, "hamming")
    _, params = begin("conv1d", first_filters="mel", first_gain=0.5)
    np.testing.assert_allclose(params["kernel"], 0.5 * taps, atol=2e-4)
    same, _ = begin("conv1d", first_filters="mel")
    expected, _ = begin("sinc")
    np.testing.assert_allclose(same, expected, atol=1e-5)
    _, plain = begin("conv1d")
    _, loud = begin("conv1d", first_gain=40.0)
    assert np.abs(plain["kernel"]).max() == pytest.approx(1 / 20, rel=1e-2)
    np.testing.assert_allclose(loud["kernel"], 40 * plain["kernel"], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sinc", {"high_hz": 9000.0}, "high_hz <= 8000"),
        ("sinc", {"min_band_hz": 0.0}, "above 0"),
        ("sinc", {"window_function": "haming"}, "did you mean 'hamming'"),
        ("sinc", {"post": "log"}, "has no post 'log'"),
        ("conv1d", {"num_filters": 0}, "num_filters >= 1"),
        ("conv1d", {"first_filters": "mell"}, "did you mean 'mel'"),
        ("conv1d", {"first_gain": 0.0}, "first_gain above 0"),
        ("conv1d", {"window_ms": 1001.0}, "Use a smaller window_ms"),
    ],
)
def test_wrong_settings_are_named(name, settings, message):
    with pytest.raises(UserError, match=message):
        create_frontend(name, **settings)


def sinc_parts(**changes):
    config = tiny_config(**changes)
    parts = tiny_parts(config)
    frontend = create_frontend("sinc", num_filters=8)
    return type(parts)(**(vars(parts) | {"frontend": frontend}))


def test_masks_and_half_precision_are_refused_before_training():
    with pytest.raises(UserError, match="'bfloat16' is too coarse"):
        filters.check(sinc_parts(compute_dtype="bfloat16"))
    parts = sinc_parts()
    parts.config.stages[0].spec_augment.time_masks = 1
    with pytest.raises(UserError, match=r"stages\[0\].spec_augment"):
        filters.check(parts)
    filters.check(tiny_parts())
    parts.config.stages[0].spec_augment.time_masks = 0
    filters.check(parts)


def test_network_answers_audio_counts_and_keeps_its_filters(tmp_path):
    parts = sinc_parts()
    model = networks.create_network(parts, tmp_path)
    features = networks.sample_features(parts)
    variables = networks.initial_variables(model, jax.random.key(0), features)
    network = networks.trained_network(parts, model, variables)
    answer = network.predict({"audio": random_audio(1, (2, RATE))})
    assert answer.shape == (2, len(LABELS))
    plain = networks.size_of(
        types.SimpleNamespace(
            **(vars(parts) | {"frontend": types.SimpleNamespace(shape=(98, 8))})
        ),
        model.encoder,
        {
            name: tree["encoder"]
            for name, tree in variables.items()
            if "encoder" in tree
        },
    )
    size = networks.size_of(parts, model, variables)
    assert size["macs"] == plain["macs"] + 98 * 400 * 8
    assert size["parameters"] == plain["parameters"] + 16

    low = variables["params"]["frontend"]["low"]
    variables["params"]["frontend"]["low"] = low + 1.0
    filters.keep_filters(
        parts, networks.trained_network(parts, model, variables), tmp_path
    )
    found = json.loads((tmp_path / filters.FILTERS_FILE).read_text())
    before, after = (np.array(found[s]["low"]) for s in ("before", "after"))
    np.testing.assert_allclose(after - before, 100, atol=0.02)
    np.testing.assert_allclose(before, mel_bands(8, 30.0, 7900.0)[0] + 50, atol=0.01)
    response = np.array(found["after"]["response"])
    assert response.shape == (8, len(found["frequencies"]))
    middle = (np.array(found["after"]["low"]) + found["after"]["high"]) / 2
    peaks = np.array(found["frequencies"])[response.argmax(1)]
    width = np.array(found["after"]["high"]) - found["after"]["low"]
    assert np.all(np.abs(peaks - middle) <= width / 2 + 63)
