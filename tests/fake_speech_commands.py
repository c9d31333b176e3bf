"""Tiny Speech Commands of the real layout, as folders and as archives."""

import io
import tarfile
from pathlib import Path

import numpy as np
import soundfile

BACKGROUND = (
    "doing_the_dishes",
    "dude_miaowing",
    "exercise_bike",
    "pink_noise",
    "running_tap",
    "white_noise",
)
# (word, file) of each clip, with the split of the two lists.
MAIN_CLIPS = {
    "train": [
        ("yes", "00000001_nohash_0.wav"),
        ("yes", "00000001_nohash_1.wav"),
        ("no", "00000002_nohash_0.wav"),
        ("bed", "00000002_nohash_0.wav"),
    ],
    "validation": [("yes", "00000003_nohash_0.wav"), ("cat", "00000003_nohash_0.wav")],
    "test": [("no", "00000004_nohash_0.wav"), ("bed", "00000004_nohash_1.wav")],
}
# The separate test archive names unknown and silence by its folders.
TEST_CLIPS = [
    ("yes", "00000005_nohash_0.wav"),
    ("_unknown_", "00000006_nohash_0.wav"),
    ("_silence_", "0.wav"),
]
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
CLIP_SAMPLES, BACKGROUND_SAMPLES = 12_000, 33_000


def tone(key: str, samples: int = CLIP_SAMPLES) -> np.ndarray:
    """A different sound for every key: int16 [samples]."""
    generator = np.random.default_rng(list(key.encode()))
    return generator.integers(-20_000, 20_000, samples).astype(np.int16)


def write_audio(path: Path, audio: np.ndarray, rate: int = 16_000, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate, **options)


def write_folder(
    root: Path, *, suffix: str = ".wav", lists: bool = True, background: bool = True
) -> Path:
    """The main archive, unpacked; the lists name .wav files whatever `suffix` is."""
    for split, clips in MAIN_CLIPS.items():
        for word, name in clips:
            file = root / word / name.replace(".wav", suffix)
            write_audio(file, tone(f"{word}/{name}"))
        if lists and split in LISTS:
            lines = "".join(f"{word}/{file}\n" for word, file in clips)
            (root / LISTS[split]).write_text(lines)
    for name in BACKGROUND if background else ():
        audio = tone(name, BACKGROUND_SAMPLES)
        write_audio(root / "_background_noise_" / f"{name}{suffix}", audio)
    return root


def write_archives(folder: Path, version: str) -> dict[str, Path]:
    """Both archives of a version, by the names that Google gives them."""
    main = folder / f"speech_commands_v{version}.tar.gz"
    files = {}
    for split, clips in MAIN_CLIPS.items():
        for word, name in clips:
            files[f"{word}/{name}"] = _wav(tone(f"{word}/{name}"))
        if split in LISTS:
            lines = "".join(f"{word}/{name}\n" for word, name in clips)
            files[LISTS[split]] = lines.encode()
    for name in BACKGROUND:
        files[f"_background_noise_/{name}.wav"] = _wav(tone(name, BACKGROUND_SAMPLES))
    files["_background_noise_/README.md"] = b"about the recordings"
    files["LICENSE"] = b"a licence"
    _write_tar(main, files)
    test = folder / f"speech_commands_test_set_v{version}.tar.gz"
    files = {f"{w}/{n}": _wav(tone(f"{w}/{n}")) for w, n in TEST_CLIPS}
    _write_tar(test, files | {"README.md": b"about the test set"})
    return {path.name: path for path in (main, test)}


def _wav(audio: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, 16_000, format="WAV")
    return buffer.getvalue()


def _write_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            # Google's archives begin every name with "./".
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
