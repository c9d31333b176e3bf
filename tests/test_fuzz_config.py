"""Values of every kind in every field of every config: taken, or answered for users."""

import dataclasses
import importlib
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from fake_speech_commands import BACKGROUND, tone, write_audio
from fuzzing import cases, refusal
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from kws_jax import config as configs
from kws_jax.data import simulated_rooms
from kws_jax.data.folder import open_folder
from kws_jax.errors import UserError
from kws_jax.frontends.registry import create_frontend
from kws_jax.parts import build_parts
from kws_jax.stages import detection, dispatch, proxyless_space, quantize, runner
from kws_jax.training.optimizers import create_optimizer

# One of each kind of network, stage, front end and filter.
EXPERIMENTS = (
    ("autokws", "noisydarts,cpu"),
    ("autokws", "random"),
    ("convmixer", "curriculum,cpu"),
    ("data_parameters", "joint,cpu"),
    ("data_parameters", "acoustic_dnn"),
    ("dynamic_filter", "din,cpu"),
    ("dynamic_filter", "dynamic_conv"),
    ("dynamic_filter", "light_conv"),
    ("end_to_end_nas", "sinc60,cpu"),
    ("network", "tenet12"),
    ("pair_loss", "cpu"),
    ("quantized", "w4a4,cpu"),
    ("tc_resnet", "8"),
)
NOT_A_NUMBER, HUGE = float("nan"), 10**400
VALUES = {
    bool: ("yes", 2, None, (), False, True),
    int: (-(2**63), -1, 0, 1, 2, 7, 2**31, 2**63, HUGE, 1.5, "1", None, True, (1,)),
    float: (
        *(NOT_A_NUMBER, float("inf"), -float("inf"), -1.0, 0.0, 0.5, 1.0, 1e-300),
        *(1e300, 3, "x", None, True, (1.0,)),
    ),
    str: ("", "no such name", "x" * 200_000, "\0", "é\n'\"", None, 3, ("a", "b")),
    tuple: (
        *((), (0,), (-1,), (1,), (0.5, 0.5), (NOT_A_NUMBER,), (float("inf"),)),
        *(("a",), ("SKIP",) * 6, (HUGE,), ((1, 2),), (1e300, 1), "abc", 3, None),
    ),
}


def fields(node, path=""):
    """(path, group that holds it, name) of every field that is no group."""
    if isinstance(node, ConfigDict):
        for name in node:
            value, here = node[name], f"{path}.{name}" if path else name
            if isinstance(value, ConfigDict) or is_stages(value):
                yield from fields(value, here)
            else:
                yield here, node, name
    else:
        for index, entry in enumerate(node):
            yield from fields(entry, f"{path}[{index}]")


def is_stages(value):
    return isinstance(value, tuple) and any(isinstance(v, ConfigDict) for v in value)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Where a folder of three words lies, and what the config says of it."""
    folder = tmp_path_factory.mktemp("data")
    words = ("yes", "no", "other")
    for word in words:
        for name in ("00000001", "00000002", "00000003", "00000004"):
            path = folder / "words" / word / f"{name}_nohash_0.wav"
            write_audio(path, tone(f"{word}/{name}"))
    for number, name in enumerate(("validation_list", "testing_list"), 3):
        lines = (
            f"{word}/0000000{number}_nohash_0.wav" for word in ("yes", "no", "other")
        )
        (folder / "words" / f"{name}.txt").write_text("\n".join(lines))
    for name in BACKGROUND[:3]:
        path = folder / "words" / "_background_noise_" / f"{name}.wav"
        write_audio(path, tone(name, 33_000))
    return {
        "source": "folder",
        "dir": str(folder / "words"),
        "cache_dir": str(folder / "cache"),
        "keywords": "yes,no",
        "unknown_percent": 50.0,
        "silence_percent": 50.0,
        "rooms": "simulated",
    }


def load(data, name, argument):
    config = importlib.import_module(f"configs.{name}").get_config(argument).unlock()
    config.data.update(data)
    config.detection.update(final_test=True, hours=0.01)
    if name == "end_to_end_nas":
        # So few clips are less than a step an epoch.
        config.stages[1].update(architecture_every=1, warmup_epochs=0.0)
    return config


TC_RESNET = importlib.import_module("configs.tc_resnet").get_config("8")
CONSOLE = Console(file=io.StringIO())


@pytest.fixture(scope="module", autouse=True)
def rooms_at_once():
    """Rooms that are simulated in no time, without echoes."""
    room = SimpleNamespace(size=np.ones(3), t60=0.5), np.ones(10, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated_rooms, "_simulated", lambda *_: room)
        yield


@pytest.fixture(scope="module")
def whole_parts(data):
    return build_parts(load(data, "tc_resnet", "8"), CONSOLE)


@pytest.fixture
def quick(monkeypatch):
    """Without what looks through whole networks, which takes seconds for each."""
    monkeypatch.setattr(quantize, "check", lambda *_: None)
    monkeypatch.setattr(proxyless_space, "check", lambda *_: None)


def prepare(parts, config, folder, path):
    """All that an experiment does before it trains; the data stays as it is opened
    where the field has to do with other things."""
    configs.check(config)
    if path.startswith("data."):
        parts = build_parts(config, CONSOLE)
    else:
        settings = {k: v for k, v in config.frontend.items() if k != "name"}
        frontend = create_frontend(config.frontend.name, **settings)
        parts = dataclasses.replace(parts, config=config, frontend=frontend)
    dispatch.check(parts, folder)
    if path.startswith("detection."):
        detection.check(parts)
    for index, stage in enumerate(config.stages):
        if stage.kind != "random_search":
            runner.plan_of(parts, index, 1_000)
        if "optimizer" in stage:
            _, schedule = create_optimizer(stage.optimizer, 100, steps_per_epoch=10.0)
            assert all(np.isfinite(float(schedule(step))) for step in (0, 50, 99))


def try_all(config, prepare, folder, known, wanted=lambda path: True):
    """Tries all values in all fields; the number of cases, and what went wrong."""
    tried, wrong = 0, []
    for path, group, name in fields(config):
        before = group[name]
        what = (re.sub(r"\[\d+\]", "", path), repr(before))
        if not wanted(path) or what in known:
            continue
        known.add(what)
        with group.ignore_type():
            for value in VALUES[type(before)]:
                group[name] = value
                tried += 1
                try:
                    told = refusal(prepare, config, folder, path)
                except Exception as error:
                    wrong.append(f"{path} = {value!r:.60}: {error!r:.200}")
                else:
                    # A "name" or "kind" goes by what it names: "there is no front end
                    # 'mfc'".
                    if told and name not in ("name", "kind") and name not in told:
                        wrong.append(f"{path} = {value!r:.60}: only {told!r:.200}")
            group[name] = before
    return tried, wrong


def test_every_value_in_every_field_is_taken_or_answered(
    data, whole_parts, quick, tmp_path
):
    tried, wrong, known = 0, [], set()
    for name, argument in EXPERIMENTS:
        config = load(data, name, argument)
        more, bad = try_all(
            config,
            lambda *case: prepare(whole_parts, *case),
            tmp_path,
            known,
            # The cache has a test of its own, since folders are made there.
            lambda path: path != "data.cache_dir",
        )
        tried, wrong = tried + more, wrong + [f"{name}: {b}" for b in bad]
    assert not wrong, "\n".join(wrong)
    assert tried > 1_500


# What a hurried user types behind a flag.
TEXTS = st.one_of(
    st.sampled_from(
        (
            *("", "nan", "inf", "-1", "0", "1", "1e400", "9" * 400, "0x10", "None"),
            *("True", "yes", "()", "(,)", "(1", "(1,2)", "(nan,)", "('a',)", "[1]"),
            *(
                "{}",
                "[[]]",
                "1,2",
                "a b",
                "'",
                '"',
                "\\",
                "__import__('os')",
                "(" * 300,
            ),
        )
    ),
    st.text(max_size=8),
    st.floats().map(str),
    st.integers().map(str),
)
PATHS = [path for path, _, _ in fields(TC_RESNET)]
ODD_PATHS = (
    *(
        "",
        ".",
        "data",
        "data.",
        ".data",
        "stages",
        "stages[0]",
        "stages[0].",
        "stages[]",
    ),
    *("stages[1].epochs", "stages[-1].epochs", "stages[x].epochs", "stages.epochs"),
    *("stages[0][0].epochs", "stages[0].optimizer", "seed.seed", "data.keyword", "é"),
    *("data.keywords[0]", "stages[99999999999999999999].epochs", "__class__", "items"),
    *(
        "data.__init__",
        "stages[0].__dict__",
        "evaluation.snr_db[0]",
        "seed[0]",
        "a" * 500,
    ),
)


@cases(300)
@given(st.one_of(st.sampled_from(PATHS), st.sampled_from(ODD_PATHS)), TEXTS)
def test_every_text_behind_a_flag_is_taken_or_answered(path, text):
    config = importlib.import_module("configs.tc_resnet").get_config("8")
    argument = f"--config.{path}={text}"

    def start():
        configs.check_overrides(config, [argument], "config")
        values = flags.FlagValues()
        config_flags.DEFINE_config_dict("config", config, flag_values=values)
        try:
            values(["program", argument])
        except flags.Error as error:  # which the programs answer with its text
            raise UserError(str(error)) from error
        configs.check(values.config)

    refusal(start)


@pytest.mark.parametrize("place", ["/dev/null/below", "x" * 300, "/proc/none"])
def test_a_cache_that_cannot_be_is_refused(data, place):
    told = refusal(lambda: open_folder(data["dir"], cache_dir=place))
    assert "config.data.cache_dir" in told
