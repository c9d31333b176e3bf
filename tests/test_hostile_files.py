"""Archives, stores and names that were made to do harm: they do none."""

import ast
import html
import html.parser
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import fake_speech_commands as fake
import numpy as np
import pytest
from fuzzing import refusal
from tensorflow_datasets.core.download import extractor, resource
from test_report import edit, make_workdir

from kws_jax.comparison.rows import read_rows
from kws_jax.data import speech_commands_builder as builders
from kws_jax.data import store
from kws_jax.report.page import write_report

PACKAGE = Path(store.__file__).parents[1]


def sound(key):
    path = io.BytesIO()
    fake.soundfile.write(path, fake.tone(key), 16_000, format="WAV")
    return path.getvalue()


def hostile_archive(folder, secret):
    """Google's layout, with members that would leave the folder of the archive."""
    main = fake.write_archives(folder, "0.01")["speech_commands_v0.01.tar.gz"]
    with tarfile.open(main) as archive:
        members = [(m, archive.extractfile(m).read()) for m in archive if m.isfile()]
    path = folder / "hostile.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
        for name in (
            "../yes/00000009_nohash_0.wav",
            "../../../../../../../../tmp/yes/00000009_nohash_1.wav",
            str(folder / "outside/yes/00000009_nohash_2.wav"),
            "./yes/../../outside/yes/00000009_nohash_3.wav",
            "yes/.hidden_nohash_0.wav",
        ):
            member = tarfile.TarInfo(name)
            content = sound(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for kind, name, target in (
            (tarfile.SYMTYPE, "./yes/00000010_nohash_0.wav", str(secret)),
            (tarfile.LNKTYPE, "./yes/00000010_nohash_1.wav", str(secret)),
            (tarfile.SYMTYPE, "./yes/00000010_nohash_2.wav", "../../../secret.wav"),
            (tarfile.SYMTYPE, "./no", str(secret.parent)),
            (tarfile.FIFOTYPE, "./yes/00000010_nohash_3.wav", ""),
            (tarfile.CHRTYPE, "./yes/00000010_nohash_4.wav", ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return path


def everything_below(folder):
    return {path: path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_members_of_an_archive_reach_nothing_outside_of_it(tmp_path):
    secret = tmp_path / "secret.wav"
    secret.write_bytes(sound("secret"))
    archive = hostile_archive(tmp_path / "archives", secret)
    before = everything_below(tmp_path)
    builder = builders.KwsSpeechCommands(config="v1_30", data_dir=tmp_path / "none")

    def members():
        return extractor.iter_archive(archive, resource.ExtractMethod.TAR_GZ)

    splits = builders._read_splits(members(), archive)
    clips = {}
    for split in ("train", "validation", "test", "background"):
        clips |= dict(builder._generate_examples(members(), split, splits))
    expected = {f"{w}/{n}" for part in fake.MAIN_CLIPS.values() for w, n in part}
    background = {f"_background_noise_/{name}.wav" for name in fake.BACKGROUND}
    assert set(clips) == expected | background
    taken = {clip["audio"].tobytes() for clip in clips.values()}
    assert fake.tone("secret").tobytes() not in taken
    assert everything_below(tmp_path) == before
    assert not Path("/tmp/yes").exists()


def test_an_archive_without_its_lists_is_refused(tmp_path):
    path = tmp_path / "empty.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    told = refusal(builders._read_splits, iter(()), path)
    assert str(path) in told
    assert "testing_list.txt" in told


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_that_is_pickled_is_ever_loaded(tmp_path):
    harm = tmp_path / "harm"
    objects = np.array([Harm(harm)], object)
    workdir = make_workdir(tmp_path)
    np.savez(workdir / "embeddings.npz", clean=objects)
    told = refusal(write_report, workdir)
    assert "embeddings.npz cannot be read" in told
    (workdir / "embeddings.npz").unlink()
    edit(workdir, "config.json", lambda config: config["data"].update(seed=0))
    (workdir / "predictions.npz").write_bytes(pickle.dumps(objects))
    told = refusal(read_rows, [workdir])
    assert "predictions.npz cannot be read" in told
    clip = ("yes/a.wav", "yes", "a", "train", np.ones(9, np.int16))
    place = tmp_path / "store"
    store.write_store(place, [clip], {}, {}, {})
    index = json.loads((place / "index.json").read_text())
    np.savez(place / "rows.npz", **dict.fromkeys(index, objects), names=objects)
    index["sizes"]["rows.npz"] = (place / "rows.npz").stat().st_size
    (place / "index.json").write_text(json.dumps(index))
    assert f"{place} are damaged" in refusal(store.open_store, place)
    assert not harm.exists()


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_no_module_unpickles_evaluates_or_writes_raw_html(path):
    tree = ast.parse(path.read_text())
    imported = {
        name.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    } | {
        (node.module or "").partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    assert not imported & {"pickle", "dill", "shelve", "marshal", "joblib", "yaml"}
    for function, call in calls(tree):
        assert function not in ("eval", "exec", "os.system", "torch.load")
        if function in ("np.load", "numpy.load"):
            settings = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
            assert settings == {"allow_pickle": False}
        if function == "Markup" and path.name != "markup.py":
            assert [ast.unparse(argument) for argument in call.args] == ["CSS"]


class Structure(html.parser.HTMLParser):
    """Elements and names of their attributes, without what users wrote."""

    def __init__(self, source):
        super().__init__()
        self.found = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag):
        self.found.append(("/" + tag, ()))

    def handle_comment(self, data):
        self.found.append(("comment", ()))


HARMLESS = "x"
HARMFUL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></svg></title><script>alert(1)</script>",
    "<!-- ",
    "&lt;script&gt;",
    "]]><script>",
)


def page_with(folder, name, text):
    """The page of a run in whose files `text` stands wherever `name` stood."""
    folder.mkdir()
    make_workdir(folder)
    started_with = ["--config=yes.py", "--config.data.dir=my clips"]
    (folder / "command.json").write_text(json.dumps(started_with))
    quoted = json.dumps(text)[1:-1]
    for path in [*folder.glob("*.json"), *folder.glob("*.jsonl")]:
        content = path.read_text()
        for before, behind in (
            ('"', '"'),
            ("", ","),
            ("/", '"'),
            ('"', ","),
            ("=", '"'),
        ):
            content = content.replace(
                f"{before}{name}{behind}", f"{before}{quoted}{behind}"
            )
        path.write_text(content)
    return write_report(folder).read_text()


@pytest.mark.parametrize("name", ["yes", "autokws", "my clips"])
def test_no_name_changes_what_the_page_is_made_of(tmp_path, name):
    harmless = Structure(page_with(tmp_path / "harmless", name, HARMLESS)).found
    for number, text in enumerate(HARMFUL):
        text = text.replace(",", "")
        source = page_with(tmp_path / str(number), name, text)
        assert Structure(source).found == harmless
        assert "<script" not in source
        assert html.escape(text) in source
