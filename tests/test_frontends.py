import jax
import jax.numpy as jnp
import kaldi_native_fbank
import numpy as np
import pytest
import scipy.signal
import tensorflow as tf

from kws_jax.errors import UserError
from kws_jax.frontends import log_mel, registry, spectrum
from kws_jax.frontends.mfcc import mfcc

pytestmark = pytest.mark.usefixtures("strict_ranks")


def speech_like(rng: np.random.Generator) -> np.ndarray:
    """A voiced sound of three formants with onset and decay, between quiet noise."""
    time = np.arange(16_000) / 16_000
    pulses = np.diff(np.floor(np.cumsum(120 + 20 * time) / 16_000), prepend=0.0)
    sound = pulses
    for formant, bandwidth in ((700, 90), (1200, 110), (2600, 160)):
        radius = np.exp(-np.pi * bandwidth / 16_000)
        angle = 2 * np.pi * formant / 16_000
        poles = [1, -2 * radius * np.cos(angle), radius**2]
        sound = scipy.signal.lfilter([1], poles, sound)
    sound *= np.exp(-(((time - 0.5) / 0.12) ** 2))
    return 0.5 * sound / np.abs(sound).max() + 1e-4 * rng.standard_normal(16_000)


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    """float32 [4, 16000]: loud noise, faint noise, speech-like, digital zeros."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, 16_000)) * np.array([[0.2], [1e-3]])
    rows = [*noise, speech_like(rng), np.zeros(16_000)]
    return np.stack(rows).astype(np.float32)


def tensorflow_mfcc(audio: np.ndarray) -> np.ndarray:
    stft = tf.signal.stft(audio, frame_length=480, frame_step=160)
    power = tf.math.real(stft * tf.math.conj(stft))
    mel = tf.signal.linear_to_mel_weight_matrix(64, 257, 16_000, 80.0, 7600.0)
    energies = tf.math.log(tf.tensordot(power, mel, 1) + 1e-6)
    return tf.signal.mfccs_from_log_mel_spectrograms(energies)[..., :40].numpy()


def kaldi_fbank(audio: np.ndarray) -> np.ndarray:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = 64
    options.use_energy = False
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16_000, (audio - audio.mean()).tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


@pytest.mark.parametrize("count", [17, 32, 45])
@pytest.mark.parametrize("name", ["mfcc", "log_mel"])
def test_many_clips_have_the_features_of_each_alone(name, count):
    rng = np.random.default_rng(count)
    audio = (rng.standard_normal((count, 4000)) * 0.1).astype(np.float32)
    frontend = jax.jit(registry.create_frontend(name))
    alone = np.concatenate([frontend(clip[None]) for clip in audio])
    np.testing.assert_allclose(frontend(audio), alone, atol=2e-5)


def test_mfcc_equals_tensorflow(clips):
    features = jax.jit(mfcc)(jnp.asarray(clips))
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, tensorflow_mfcc(clips), atol=1e-3, rtol=0)


def test_log_mel_equals_kaldi(clips):
    clips = clips + np.float32(0.05)  # a constant offset must not matter
    features = jax.jit(lambda audio: log_mel.log_mel(audio, normalized=False))(
        jnp.asarray(clips)
    )
    expected = np.stack([kaldi_fbank(clip) for clip in clips])
    assert expected.shape == (4, 98, 64)
    np.testing.assert_allclose(features, expected, atol=1e-3, rtol=0)


def test_log_mel_normalises_by_the_statistics_of_speech_commands(clips):
    audio = jnp.asarray(clips[2:3])
    raw = np.asarray(log_mel.log_mel(audio, normalized=False), np.float64)
    expected = (raw + 8.522078) / (2 * 4.0515576)
    np.testing.assert_allclose(log_mel.log_mel(audio), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("num_samples", "window", "hop"),
    [(1000, 480, 160), (1000, 400, 160), (481, 480, 160), (480, 480, 7), (50, 3, 10)],
)
def test_frames_are_slices_of_the_audio(num_samples, window, hop):
    audio = np.random.default_rng(1).standard_normal((2, num_samples), np.float32)
    starts = range(0, num_samples - window + 1, hop)
    expected = np.stack([audio[:, i : i + window] for i in starts], axis=1)
    frames = spectrum.frame(jnp.asarray(audio), window=window, hop=hop)
    np.testing.assert_array_equal(frames, expected)


@pytest.mark.parametrize(("name", "shape"), [("mfcc", (98, 40)), ("log_mel", (98, 64))])
def test_frontend_knows_its_shape_and_all_settings(name, shape):
    frontend = registry.create_frontend(name)
    assert frontend.shape == shape
    assert frontend(jnp.zeros((2, 16_000), jnp.int16)).shape == (2, *shape)
    assert registry.create_frontend(name, **frontend.settings) == frontend
    assert frontend.settings["sample_rate"] == 16_000


def test_frontend_scales_int16_to_unit_range(clips):
    frontend = registry.create_frontend("mfcc", num_coefficients=13)
    samples = np.round(clips[2:3] * 32768).astype(np.int16)
    expected = mfcc(jnp.asarray(samples / np.float32(32768)), num_coefficients=13)
    np.testing.assert_allclose(frontend(jnp.asarray(samples)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mfc", {}, "did you mean 'mfcc'"),
        ("mfcc", {"num_mels": 40}, "did you mean 'num_mel'"),
        ("mfcc", {"num_mel": "64"}, "'num_mel'.*must be of type int"),
        ("mfcc", {"num_coefficients": 65}, "num_coefficients <= num_mel"),
        ("mfcc", {"high_hz": 9000}, "high_hz <= 8000"),
        ("mfcc", {"num_mel": 200}, "Use fewer filters"),
        ("mfcc", {"hop_ms": 0}, "at least one sample"),
        ("log_mel", {"window_ms": 1001}, "Use a smaller window_ms"),
        ("log_mel", {"normalized": 1}, "must be of type bool"),
    ],
)
def test_wrong_settings_are_named(name, settings, message):
    with pytest.raises(UserError, match=message):
        registry.create_frontend(name, **settings)
