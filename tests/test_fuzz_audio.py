"""Audio files of every kind and damage: processed, or refused by name and reason."""

import io
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fuzzing import cases, refusal, within
from hypothesis import given
from hypothesis import strategies as st

from kws_jax.data import audio_files
from kws_jax.data.folder import open_folder, read_noise_folder
from kws_jax.data.noise_folder import open_noise
from kws_jax.data.rooms import read_room_folder
from kws_jax.data.time_labels import read_spoken
from kws_jax.evaluation import windows

RATES = (8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000)
# container -> sample formats of it
FORMATS = {
    "WAV": ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"),
    "FLAC": ("PCM_S8", "PCM_16", "PCM_24"),
    "AIFF": ("PCM_16", "FLOAT"),
    "W64": ("PCM_16",),
    "CAF": ("PCM_24",),
}
# Containers of lossy codecs, with some rates of their encoders.
LOSSY = {
    ("OGG", "VORBIS"): (8_000, 16_000, 44_100, 48_000),
    ("OGG", "OPUS"): (8_000, 16_000, 48_000),
    ("MP3", "MPEG_LAYER_III"): (8_000, 16_000, 44_100, 48_000),
}
# Values that an attacker, or a broken recorder, would write into a header.
FIELDS = (0, 1, 2, 3, 255, 65_535, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
NOT_FINITE = (np.nan, np.inf, -np.inf)
READERS = (
    audio_files.read_audio,
    audio_files.read_first_channel,
    audio_files.seconds_of,
    lambda path: list(audio_files.audio_blocks(path, seconds=0.01)),
)


@st.composite
def sounds(draw):
    """What a file is to hold: container, sample format, rate, samples [t, channels]."""
    container = draw(st.sampled_from(sorted(FORMATS)))
    subtype = draw(st.sampled_from(FORMATS[container]))
    shape = (draw(st.integers(0, 600)), draw(st.integers(1, 8)))
    audio = np.random.default_rng(shape[0]).uniform(-1, 1, shape)
    level = draw(st.sampled_from((0.0, 1e-40, 0.3, 1.0, 3.0, 3e38, *NOT_FINITE)))
    if subtype not in ("FLOAT", "DOUBLE"):
        level = min(level, 1.0) if np.isfinite(level) else 0.5
    if np.isfinite(level):
        audio *= level
    elif audio.size:
        audio[draw(st.integers(0, len(audio) - 1)), -1] = level
    return container, subtype, draw(st.sampled_from(RATES)), audio


@st.composite
def lossy_sounds(draw):
    """The same for lossy codecs, of one or two channels."""
    container, subtype = draw(st.sampled_from(sorted(LOSSY)))
    rate = draw(st.sampled_from(LOSSY[container, subtype]))
    shape = (draw(st.integers(0, 20_000)), draw(st.integers(1, 2)))
    audio = np.random.default_rng(shape[0]).uniform(-1, 1, shape)
    return container, subtype, rate, draw(st.sampled_from((0.0, 0.3, 1.0))) * audio


def encoded(container, subtype, rate, audio):
    buffer = io.BytesIO()
    with np.errstate(all="ignore"):
        soundfile.write(buffer, audio, rate, subtype, format=container)
    return buffer.getvalue()


@st.composite
def damages(draw):
    """A function from the bytes of a file to those of a damaged one."""
    kind = draw(st.sampled_from(("cut", "field", "bytes", "insert", "append", "other")))
    share, place = draw(st.floats(0, 1)), draw(st.integers(0, 60))
    some = draw(st.binary(min_size=1, max_size=40))
    field = draw(st.sampled_from(FIELDS)).to_bytes(4, "little")
    return {
        "cut": lambda content: content[: int(share * len(content))],
        "field": lambda content: content[:place] + field + content[place + 4 :],
        "bytes": lambda content: content[:place] + some + content[place + len(some) :],
        "insert": lambda content: content[:place] + some + content[place:],
        "append": lambda content: content + some,
        "other": lambda content: some * 30,
    }[kind]


def expected(audio, subtype, rate):
    """What the samples come to as int16 at 16 kHz, straight in float64."""
    mono = np.clip(audio, -1, 1) if subtype not in ("FLOAT", "DOUBLE") else audio
    return np.clip(mono.mean(axis=1) * 2**15, -(2**15), 2**15 - 1)


@cases(500)
@given(sounds())
def test_every_whole_file_is_read_or_refused_for_a_reason(tmp_path_factory, sound):
    container, subtype, rate, audio = sound
    path = tmp_path_factory.getbasetemp() / f"sound.{container.lower()}"
    path.write_bytes(encoded(*sound))
    finite = subtype not in ("FLOAT", "DOUBLE") or np.isfinite(audio).all()
    told = refusal(audio_files.read_audio, path)
    samples = len(audio) * 16_000 / rate
    if samples != 0.5:
        assert bool(told) == (not finite or samples < 0.5), told
    if told:
        assert path.name in told
        reasons = ("not finite", "no samples", "too short", "not recognised")
        assert any(reason in told for reason in reasons), told
        return
    read = audio_files.read_audio(path)
    assert (read.dtype, read.ndim) == (np.int16, 1)
    assert abs(len(read) - samples) <= 1
    blocks = list(audio_files.audio_blocks(path, seconds=0.01))
    np.testing.assert_array_equal(np.concatenate(blocks), read)
    channel = audio_files.read_first_channel(path)
    assert np.isfinite(channel).all()
    assert len(channel) == len(read)
    if rate == 16_000 and np.isfinite(audio).all() and subtype != "ULAW":
        worst = 260 if subtype in ("PCM_U8", "PCM_S8") else 2
        assert np.abs(read - expected(audio, subtype, rate)).max() <= worst


@cases(60)
@given(lossy_sounds())
def test_every_lossy_file_is_read_or_refused_for_a_reason(tmp_path_factory, sound):
    container, _, rate, audio = sound
    path = tmp_path_factory.getbasetemp() / f"lossy.{container.lower()}"
    path.write_bytes(encoded(*sound))
    told = refusal(audio_files.read_audio, path)
    samples = len(audio) * 16_000 / rate
    if told:
        assert path.name in told
        # Encoders need some audio to make a file of.
        assert samples < 2_000, told
        return
    read = audio_files.read_audio(path)
    # Decoders of MP3 may give what the encoder has filled up.
    assert -1 <= len(read) - samples <= (2_500 if container == "MP3" else 1)
    blocks = list(audio_files.audio_blocks(path, seconds=0.01))
    np.testing.assert_array_equal(np.concatenate(blocks), read)


# An exception in a call from libsndfile would only be printed.
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@cases(700)
@given(
    st.one_of(sounds(), lossy_sounds()),
    damages(),
    st.sampled_from(("wav", "flac", "ogg", "mp3", "raw", "")),
)
def test_every_damaged_file_is_read_or_refused(tmp_path_factory, sound, damage, suffix):
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    path.write_bytes(damage(encoded(*sound)))
    for reader in READERS:
        told = refusal(reader, path)
        assert not told or f"{path} cannot be read as audio: " in told
    # The same from inside an archive, with no name to go by.
    told = refusal(audio_files.decode_audio, io.BytesIO(path.read_bytes()), "inside")
    assert not told or "inside cannot be read as audio: " in told


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60
).filter(lambda name: len(name.encode()) < 200 and not name.startswith("."))


@pytest.fixture(scope="module")
def noise_bytes():
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (2_000, 1))
    return encoded("WAV", "PCM_16", 16_000, audio)


@cases(50)
@given(NAMES, NAMES.filter(lambda name: name not in ("_background_noise_", "RIR")))
def test_names_of_every_kind_are_taken_as_they_are(noise_bytes, name, word):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "speech")
        (root / word).mkdir(parents=True)
        (root / word / f"{name}.wav").write_bytes(noise_bytes)
        (root / "_background_noise_").mkdir()
        (root / "_background_noise_" / f"{name}.wav").write_bytes(noise_bytes)
        corpus = open_folder(root, cache_dir=f"{folder}/cache")
        assert corpus.names.tolist() == [f"{word}/{name}.wav"]
        assert corpus.words.tolist() == [word]
        assert np.any(corpus.read(np.array([0])))
        found = audio_files.find_files([str(root)])
        assert {path.name for path in found} == {f"{name}.wav"}
        assert len(read_noise_folder(root)) == len(read_room_folder(root)) == 2
        # What is printed of it is one line that any program reads.
        assert "\n" not in json.dumps(str(found[0]))


def special_file(path, kind):
    """A file, or what looks like one, that holds no audio."""
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "loop of two":
        path.symlink_to(path.with_suffix(".other"))
        path.with_suffix(".other").symlink_to(path)
    elif kind == "dead link":
        path.symlink_to(path.with_suffix(".missing"))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            before = Path.cwd()
            os.chdir(path.parent)  # a socket's whole path may be 107 bytes long
            server.bind(path.name)
            os.chdir(before)
    elif kind == "unreadable":
        path.write_bytes(b"")
        path.chmod(0)


SPECIAL = (
    "folder",
    "loop",
    "loop of two",
    "dead link",
    "pipe",
    "endless",
    "socket",
    "unreadable",
)


@pytest.fixture
def as_nobody():
    """Without the rights of the superuser, for whom no file is unreadable."""
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(65_534)
    yield
    if superuser:
        os.seteuid(0)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["x.wav", 'a "quoted" name\n of two lines ü.wav'])
def test_what_is_no_file_is_refused_by_name(as_nobody, noise_bytes, name, kind):
    with tempfile.TemporaryDirectory() as folder, within():
        path = Path(folder, "word", name)
        path.parent.mkdir()
        (path.parent / "good.wav").write_bytes(noise_bytes)
        special_file(path, kind)
        for reader in READERS:
            assert f"{path} cannot be read as audio: " in refusal(reader, path)
        told = refusal(lambda: open_folder(folder, cache_dir=f"{folder}/cache"))
        assert str(path) in told
        for read in (read_noise_folder, read_room_folder):
            told = refusal(read, folder)
            assert str(path) in told
        told = refusal(noise_of_both, folder)
        assert str(path) in told


def noise_of_both(folder):
    open_noise({"seen": folder, "unseen": folder}, {}, {}, test_fraction=0.3, hours=1.0)


@pytest.mark.parametrize(
    "name", ["x" * 300, "x/" * 3_000 + "x", "\udcff.wav", "nul\0", "missing", ""]
)
def test_places_that_cannot_be_are_refused(tmp_path, name):
    place = str(tmp_path / name) if name else str(tmp_path)
    for action in (
        lambda: audio_files.find_files([place]),
        lambda: open_folder(place, cache_dir=tmp_path),
        lambda: read_noise_folder(place),
        lambda: read_room_folder(place),
        lambda: audio_files.read_audio(place),
        lambda: audio_files.seconds_of(place),
    ):
        assert refusal(action)


def test_a_name_that_is_no_utf_8_is_refused_where_it_would_be_kept(tmp_path):
    path = tmp_path / "word" / "\udcff\udcfe.wav"
    path.parent.mkdir()
    audio_files_there = encoded("WAV", "PCM_16", 16_000, np.ones((900, 1)) / 2)
    path.write_bytes(audio_files_there)
    assert len(audio_files.read_audio(path)) == 900
    for action in (
        lambda: audio_files.find_files([str(tmp_path)]),
        lambda: open_folder(tmp_path, cache_dir=tmp_path / "cache"),
        lambda: read_noise_folder(tmp_path),
        lambda: read_room_folder(tmp_path),
    ):
        assert r"\udcff\udcfe.wav" in refusal(action)


LABELS = ("yes", "no", "_unknown_")
TIMES = st.one_of(
    st.floats().map(str), st.integers(-2, 12).map(str), st.text(max_size=5)
)
LINES = st.one_of(
    st.tuples(TIMES, TIMES, st.sampled_from((*LABELS, "other"))).map(",".join),
    st.text(max_size=30),
    st.just('"' * 3 + "x" * 140_000),
)


@cases(300)
@given(st.lists(LINES, max_size=4), st.sampled_from(("\n", "\r", "\0\n", "\x1c")))
def test_labels_of_a_recording_are_read_or_refused(tmp_path_factory, lines, ending):
    path = tmp_path_factory.getbasetemp() / "labels.csv"
    path.write_text(ending.join(lines), encoding="utf-8", newline="")
    told = refusal(
        lambda: read_spoken(path, seconds=10.0, labels=LABELS, keywords=LABELS[:2])
    )
    assert not told or f"--labels={path}" in told


# Reads the files that standard input names, and prints the growth of memory in bytes.
MEASURE = """
import re, sys
import numpy as np
from kws_jax.data import audio_files
from kws_jax.evaluation import windows
from kws_jax.errors import UserError

def memory(name):
    status = open("/proc/self/status").read()
    return 1024 * int(re.search(name + r":\\s+(\\d+)", status)[1])

def ask(path):
    heard = lambda clips: np.zeros((len(clips), 2), np.float32)
    return windows.heard_in(heard, audio_files.read_audio(path))

def listen(path):
    return sum(map(len, audio_files.audio_blocks(path)))

paths = sys.stdin.read().split()
for path in [paths[0], *paths]:
    for read in (audio_files.read_audio, ask, listen):
        open("/proc/self/clear_refs", "w").write("5")
        before = memory("VmRSS")
        try:
            result = read(path)
        except UserError:
            pass
        result = None
        print(path, memory("VmHWM") - before)
"""
# name -> container, sample format, rate, samples, channels
LARGE = {
    "long": ("WAV", "PCM_16", 16_000, 10_000_000, 1),
    "float": ("WAV", "FLOAT", 16_000, 5_000_000, 2),
    "slow": ("WAV", "PCM_16", 8_000, 6_000_000, 1),
    "fast": ("WAV", "PCM_24", 192_000, 1_000_000, 8),
    "flac": ("FLAC", "PCM_16", 44_100, 2_000_000, 1),
}


def large_files(folder):
    """path -> its decoded size in bytes, as read or as given, whichever is larger."""
    sizes = {}
    for name, (container, subtype, rate, samples, channels) in LARGE.items():
        path = folder / name
        with soundfile.SoundFile(
            path, "w", rate, channels, subtype, format=container
        ) as file:
            second = np.zeros((500_000, channels), np.float32)
            second[::100] = 0.1
            for _ in range(samples // 500_000):
                file.write(second)
        width = 2 if subtype == "PCM_16" else 4
        sizes[str(path)] = max(samples * channels * width, 2 * samples * 16_000 // rate)
    # A header that announces 2³⁶ − 1 samples.
    content = bytearray((folder / "flac").read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    (folder / "boast").write_bytes(content)
    sizes[str(folder / "boast")] = sizes[str(folder / "flac")]
    return sizes


def test_large_files_take_twice_their_size_at_most(tmp_path):
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not tell the peak of a program's memory")
    sizes = large_files(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        input="\n".join(sizes),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    lines = done.stdout.splitlines()[3:]  # the first file is read once to warm up
    assert len(lines) == 3 * len(sizes)
    assert f"{tmp_path}/boast" in refusal(audio_files.read_audio, tmp_path / "boast")
    for line in lines:
        path, grown = line.split()
        # Pieces that are being read come on top.
        assert int(grown) <= 2 * sizes[path] + 40e6, line


@pytest.mark.parametrize("samples", [1, 16_000, 16_001, 20_000, 300_123])
def test_windows_of_a_recording_are_a_quarter_second_apart(samples):
    audio = np.arange(samples, dtype=np.int64).astype(np.int16)
    sizes = []

    def first_and_last(clips):
        sizes.append(len(clips))
        return clips[:, [0, -1]]

    heard = windows.heard_in(first_and_last, audio)
    starts = [*range(0, max(samples - 16_000, 0), 4_000), max(samples - 16_000, 0)]
    padded = np.pad(audio, (0, max(16_000 - samples, 0)))
    expected = [(padded[start], padded[start + 15_999]) for start in starts]
    assert [tuple(row) for row in heard] == expected
    assert sizes == ([1] if samples <= 16_000 else [64] * -(-len(starts) // 64))
