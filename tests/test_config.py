"""Configs and command lines: mistakes are told in one line, without importing JAX."""

import itertools
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import (
    autokws,
    convmixer,
    data_parameters,
    dynamic_filter,
    end_to_end_nas,
    network,
    pair_loss,
    quantized,
    tc_resnet,
)
from kws_jax import command_line, config_fields
from kws_jax import config as configs
from kws_jax.errors import UserError
from kws_jax.training.optimizers import create_schedule

ROOT = Path(__file__).parents[1]
SIZES = ("", "paper", "cpu", "demo")
ARGUMENTS = {
    "autokws": itertools.product(
        ("", "noisydarts", "darts", "fairdarts", "random"), (*SIZES, "w2a2")
    ),
    "tc_resnet": itertools.product(("", "8", "8-1.5", "14", "14-1.5"), SIZES),
    "network": [
        *itertools.product(("", *network.NETWORKS, *network.TC_RESNETS), SIZES),
        ("tenet6_narrow", "mtconv"),
    ],
    "convmixer": [
        *itertools.product(("", *convmixer.PLANS), SIZES),
        *itertools.product(convmixer.NETWORKS, ("demo",)),
        ("din", "tc_resnet8"),
    ],
    "pair_loss": itertools.product(
        ("", *pair_loss.LOSSES), ("", "res15", "tc_resnet8", "conv_mixer"), SIZES
    ),
    "data_parameters": itertools.product(("", *data_parameters.MODES), SIZES),
    "dynamic_filter": [
        *itertools.product(("", *dynamic_filter.FILTERS), SIZES),
        *((name, "light_conv") for name in ("tc_resnet8", "searched", "conv_mixer")),
        ("mtconv", "w4a4"),
    ],
    "quantized": [
        *itertools.product(("", "w1a1", "w4a8", "learned_bits"), SIZES),
        *itertools.product(quantized.NETWORKS, ("cpu",)),
        ("tenet12", "mtconv", "cpu"),
    ],
    "end_to_end_nas": [
        *itertools.product(("", "random"), SIZES),
        *((frontend,) for frontend in end_to_end_nas.FRONTENDS),
        *itertools.product(("w2a2", "learned_bits"), SIZES),
    ],
}
EXPERIMENTS = [
    f"{name}:{','.join(filter(None, words))}"
    for name, choices in ARGUMENTS.items()
    for words in choices
]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def load(experiment: str) -> ConfigDict:
    name, _, words = experiment.partition(":")
    return configs.load_file(f"configs/{name}.py:{words}")


def test_every_config_file_is_in_the_table_of_experiments():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert files - {"__init__", "common"} == set(ARGUMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_passes_the_checks(experiment):
    config = load(experiment)
    configs.check(config)
    words = experiment.partition(":")[2].split(",")
    few_bits = experiment.startswith("quantized") or set(words) & set(quantized.BITS)
    assert config.stages[-1].kind == ("quantize" if few_bits else "train")
    assert config.is_locked


@pytest.mark.parametrize(
    "experiment",
    [
        "autokws:",
        "autokws:random,cpu",
        "tc_resnet:",
        "network:mbconv",
        "pair_loss:",
        "end_to_end_nas:",
    ],
)
def test_a_stored_config_is_the_same_experiment(experiment, tmp_path):
    config = load(experiment)
    (tmp_path / "config.json").write_text(configs.to_json(config))
    stored = configs.load_workdir(tmp_path)
    assert _equal(stored, config)
    configs.check_same(config, stored, tmp_path)


def _equal(one, other):
    """Equality of values and kinds, through tuples of groups."""
    if isinstance(one, ConfigDict):
        return isinstance(other, ConfigDict) and (
            one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
        )
    if isinstance(one, tuple):
        return (
            isinstance(other, tuple)
            and len(one) == len(other)
            and all(map(_equal, one, other))
        )
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("noisydart", "'noisydart' after the colon: did you mean 'noisydarts'"),
        ("cpu,darts,xyzzy", "'xyzzy' after the colon: known: noisydarts, darts"),
        ("darts,fairdarts", "'darts' and 'fairdarts' exclude each other"),
        ("cpu,demo", "'cpu' and 'demo' exclude each other"),
    ],
)
def test_wrong_words_after_the_colon_are_told(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load(f"autokws:{words}")


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        ("convmixer:acoustic_dnn", "Unknown config argument 'acoustic_dnn'"),
        ("pair_loss:acoustic_dnn", "Unknown config argument 'acoustic_dnn'"),
        ("quantized:acoustic_dnn", "Unknown config argument 'acoustic_dnn'"),
        ("dynamic_filter:acoustic_dnn", "not with 'din' and 'float': say 'tenet'"),
        ("dynamic_filter:acoustic_dnn,light_conv", "not with 'light_conv' and 'float'"),
        ("dynamic_filter:acoustic_dnn,tenet,w8a8", "not with 'tenet' and 'w8a8'"),
    ],
)
def test_the_acoustic_model_is_not_offered_where_it_cannot_run(experiment, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load(experiment)


def test_the_acoustic_model_may_be_named_without_a_filter():
    assert load("dynamic_filter:acoustic_dnn,tenet").front_filter.name == "none"


def test_a_word_may_be_given_twice_and_in_any_order():
    assert load("autokws:cpu,darts,cpu") == load("autokws:darts,cpu")


def test_a_missing_config_file_names_the_nearest():
    with pytest.raises(UserError, match=r"no file 'configs/autokw\.py'.*autokws\.py"):
        configs.load_file("configs/autokw.py:demo")
    with pytest.raises(UserError, match=r"no file 'nowhere/tc_resnet\.py'.*configs/tc"):
        configs.load_file("nowhere/tc_resnet.py")


def test_a_file_without_get_config_is_refused(tmp_path):
    file = tmp_path / "empty.py"
    file.write_text("x = 1\n")
    with pytest.raises(UserError, match="defines no get_config"):
        configs.load_file(str(file))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.data.sorce=folder",
            "config.data has no field 'sorce'; did you mean",
        ),
        ("--config.sed=1", "config has no field 'sed'; did you mean 'seed'"),
        ("--config.stages[0].epoch=1", r"config.stages[0] has no field 'epoch'"),
        ("--config.stages[7].epochs=1", "config.stages has 2 entries"),
        ("--config.seed.x=1", "config.seed is a value, not a group"),
        ("-config.data.sorce", "config.data has no field 'sorce'"),
    ],
)
def test_an_unknown_field_is_told_with_the_nearest(argument, message):
    with pytest.raises(UserError, match=re.escape(message)):
        configs.check_overrides(load("autokws:"), ["main", argument], "config")


def test_known_fields_and_other_flags_pass():
    arguments = [
        "main",
        "--config=configs/autokws.py",
        "--config.data.dir=/somewhere/config.data.sorce=x",
        "--config.stages[1].optimizer.learning_rate=0.1",
        "--workdir=x",
        "--data.nonsense=1",
    ]
    configs.check_overrides(load("autokws:"), arguments, "config")
    with pytest.raises(UserError, match=r"--data\.nonsense: config\.data has no field"):
        configs.check_overrides(load("autokws:"), arguments, "data")


def changed(field, value, experiment="autokws:cpu"):
    config = load(experiment)
    *groups, name = re.findall(r"[^.\[\]]+", field)
    here = config
    for group in groups:
        here = here[int(group)] if group.isdigit() else here[group]
    here[name] = value
    return config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.source", "tdfs", "config.data.source = 'tdfs' is unknown; did you mean"),
        (
            "stages[0].kind",
            "serch",
            "stages[0].kind = 'serch' is unknown; did you mean",
        ),
        ("stages[1].name", "search", "the names ['search', 'search'] must differ"),
        ("stages[1].epochs", 0.0, "config.stages[1] has epochs = 0 and steps = 0"),
        ("stages[1].steps", 10, "config.stages[1] has epochs = 30 and steps = 10"),
        (
            "stages[0].batch_size",
            0,
            "stages[0].batch_size = 0: give a whole number from 1",
        ),
        ("stages[0].eval_every_epochs", 0.0, "stages[0].eval_every_epochs"),
        ("stages[1].condition.clean_fraction", 1.5, "condition.clean_fraction"),
        ("stages[1].condition.background_probability", -0.1, "background_probability"),
        ("log_every_steps", 0, "config.log_every_steps = 0: give a whole number fr"),
        ("data.threads", 0, "config.data.threads = 0"),
        ("data.threads", 300, "threads = 300: give a whole number from 1 to 256."),
        ("steps_per_call", 0, "config.steps_per_call = 0: give a whole number from 1"),
        ("search.order", 3, "config.search.order = 3: give 1 or 2."),
        ("steps_per_call", 4, "steps_per_call = 4 needs batches that are made on"),
        ("steps_per_call", 4, "set config.data.on_device to True"),
        ("compute_dtype", "bfloat", "'bfloat' is unknown; did you mean 'bfloat16'?"),
        ("compute_dtype", "flot32", "'flot32' is unknown; did you mean 'float32'?"),
        ("evaluation.batch_size", -1, "config.evaluation.batch_size = -1"),
        ("stages", (), "config.stages is empty"),
    ],
)
def test_values_that_cannot_work_are_refused(field, value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        configs.check(changed(field, value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 7),
        ("data.keywords", "yes,no"),
        ("stages[0].optimizer.learning_rate", 0.5),
        ("stages[1].condition.snr_db", (10.0,)),
        ("network.dropout", 0.0),
    ],
)
def test_another_experiment_is_told_by_the_field_that_differs(field, value):
    here, there = changed(field, value), load("autokws:cpu")
    with pytest.raises(UserError, match="belongs to another experiment") as caught:
        configs.check_same(here, there, Path("runs/x"))
    lines = [line for line in str(caught.value).splitlines() if " there, " in line]
    assert len(lines) == 1
    assert lines[0].strip().startswith(f"config.{field}: ")
    assert "--workdir=runs/x" in str(caught.value)


def test_supernets_of_before_shared_no_weights():
    there, asked = load("end_to_end_nas:"), load("end_to_end_nas:").unlock()
    del there.unlock().search.nested
    configs.check_same(load("end_to_end_nas:"), there, Path("x"))
    asked.search.nested = True
    with pytest.raises(UserError, match="nested: False there, True here"):
        configs.check_same(asked, there, Path("x"))


@pytest.mark.parametrize(
    ("words", "share"),
    [("w8a8", 0.1), ("w5a8", 0.1), ("w4a8", 1), ("w8a2", 1), ("learned_bits", 1)],
)
def test_few_bits_are_trained_at_the_rate_of_training(words, share):
    train, quantize = load(f"quantized:{words},cpu").stages
    expected = share * train.optimizer.learning_rate
    assert quantize.optimizer.learning_rate == pytest.approx(expected)


@pytest.mark.parametrize(
    ("size", "nested", "warm_up", "architecture"),
    [("paper", False, 0.05, 4e-3), ("cpu", True, 0.2, 0.2), ("demo", True, 0.2, 0.2)],
)
def test_short_searches_share_weights_and_the_paper_does_not(
    size, nested, warm_up, architecture
):
    config = load(f"end_to_end_nas:{size}")
    assert config.search.nested is nested
    warming, search, _ = config.stages
    assert warming.optimizer.learning_rate == warm_up
    assert search.architecture_optimizer.learning_rate == architecture


@pytest.mark.parametrize(
    ("words", "rate"), [("joint,tc_resnet8", 1e-3), ("joint,acoustic_dnn", 1e-5)]
)
def test_states_have_a_smaller_rate_of_temperatures_than_words(words, rate):
    (train,) = load(f"data_parameters:{words},cpu").stages
    assert train.data_parameters.class_learning_rate == rate


def test_another_number_of_stages_is_another_experiment():
    with pytest.raises(UserError, match="belongs to another experiment"):
        configs.check_same(load("tc_resnet:"), load("autokws:"), Path("x"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.dir", "/elsewhere"),
        ("data.cache_dir", "/elsewhere"),
        ("data.threads", 7),
        ("data.noise_seen", "/elsewhere"),
        ("data.noise_unseen", "/elsewhere"),
        ("log_every_steps", 3),
        ("evaluation.snr_db", (10.0,)),
    ],
)
def test_where_things_lie_and_how_they_are_shown_may_differ(field, value):
    configs.check_same(changed(field, value), load("autokws:cpu"), Path("x"))


@pytest.mark.parametrize("name", ["quantized", "end_to_end_nas", "autokws"])
@pytest.mark.parametrize("size", ["paper", "cpu"])
def test_few_bits_learn_in_half_of_a_training_as_long_as_that_in_float(name, size):
    *_, train, quantize = load(f"{name}:few_bits,{size}").stages
    *_, learned = load(f"{name}:learned_bits,{size}").stages
    assert (quantize.steps, quantize.epochs) == (train.steps, train.epochs)
    assert quantize.bits.learned
    assert quantize.bits.per_channel
    assert quantize.weight_bits_penalty > learned.weight_bits_penalty
    assert quantize.activation_bits_penalty > learned.activation_bits_penalty
    rate = create_schedule(quantize.bits_optimizer, 10, steps_per_epoch=1.0)
    rates = [float(rate(step)) for step in range(10)]
    assert rates == pytest.approx([0.02] * 5 + [0.0] * 5)


@pytest.mark.parametrize(
    "file",
    [autokws, dynamic_filter, end_to_end_nas, quantized],
    ids=lambda f: f.__name__,
)
def test_all_words_for_few_bits_are_told_where_they_are_taken(file):
    told = set(re.findall(r"\w+", file.__doc__))
    taken = (word for word in quantized.FLOAT_OR_BITS if not re.match(r"w\da\d", word))
    for word in taken:
        # One of them is for configs that end in few bits anyway.
        assert word in told or (file, word) == (quantized, quantized.FLOAT)
    assert {"w1a1", "w8a8"} <= told


def test_a_folder_without_an_experiment_is_told(tmp_path):
    with pytest.raises(UserError, match="holds no experiment"):
        configs.load_workdir(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": 0, "da')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        configs.load_workdir(tmp_path)


def test_an_experiment_of_a_version_that_lacked_a_field_is_told(tmp_path):
    config = load("autokws:cpu").unlock()
    (tmp_path / "config.json").write_text(configs.to_json(config))
    assert configs.load_complete(tmp_path) == configs.load_workdir(tmp_path)
    del config.data["flip_labels"]
    (tmp_path / "config.json").write_text(configs.to_json(config))
    with pytest.raises(UserError, match=r"earlier version.*config\.data\.flip_labels"):
        configs.load_complete(tmp_path)
    # For what needs no data, it still loads.
    assert "flip_labels" not in configs.load_workdir(tmp_path).data


def test_the_last_value_of_a_flag_counts():
    argv = ["main", "--config=a.py", "-workdir", "w", "--config", "b.py", "--configs=c"]
    assert command_line.value_of("config", argv) == "b.py"
    assert command_line.value_of("workdir", argv) == "w"
    assert command_line.value_of("output", argv) == ""


# Says on its last line of stderr which of the slow libraries were imported.
_WATCHED = """
import atexit, runpy, sys
slow = ("jax", "tensorflow", "flax", "matplotlib", "scipy")
atexit.register(lambda: print([m for m in slow if m in sys.modules], file=sys.stderr))
program, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_module(program, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (
            "main",
            ["--config=configs/autokws.py", "--config.data.sorce=x", "--workdir=w"],
            "--config.data.sorce: config.data has no field 'sorce'; did you mean "
            "'source'?",
        ),
        (
            "main",
            ["--config=configs/autokws.py:cpu", "--config.seed=abc", "--workdir=w"],
            "abc",
        ),
        ("main", ["--config=configs/autokws.py:tiny", "--workdir=w"], "'tiny'"),
        ("main", ["--config=configs/autokws.py", "--workdr=w"], "workdr"),
        (
            "main",
            [
                "--config=configs/tc_resnet.py",
                "--config.network.name=tenet",
                "--workdir=w",
            ],
            "config.network.name = 'tenet' is unknown; did you mean 'tenet6'?",
        ),
        ("compare", [], "Give the workdirs"),
        ("compare", ["configs"], "error: configs holds no experiment"),
        ("export", ["--workdir=configs", "--format=onnx"], "holds no experiment"),
        ("main", ["--config=configs/autokws.py", "word", "--workdir=w"], "['word']"),
        ("main", ["--config=configs/autokws.py"], "--workdir=DIR"),
        ("evaluate", ["--workdir=configs"], "--workdir=configs holds no experiment"),
        ("evaluate", [], "--workdir=DIR"),
        ("predict", ["--workdir=configs", "x.wav"], "--workdir=configs holds no exp"),
        ("predict", ["--workdir=configs"], "at least one audio file"),
        ("detect", ["--workdir=configs"], "--workdir=configs holds no experiment"),
        ("detect", ["--audio=x.wav"], "--workdir=DIR"),
        ("detect", ["--keep_thresholds"], "give --audio=FILE and --labels=FILE too"),
        ("detect", ["--keep_thresholds", "--audio=x.wav"], "and --labels=FILE too"),
    ],
)
def test_programs_end_with_one_message_and_without_jax(program, arguments, message):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, f"kws_jax.{program}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    seconds = time.monotonic() - began
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    *told, imported = done.stderr.strip().splitlines()
    assert told[0].startswith("error: ")
    assert message in "\n".join(told)
    assert "Traceback" not in done.stderr
    assert imported == "[]"
    # About 0.5 s alone; the limit leaves room for other work on the machine.
    assert seconds < 5


def test_names_are_those_of_the_registries():
    from kws_jax.frontends.registry import FRONTENDS
    from kws_jax.models.front_filter import FILTERS, NONE
    from kws_jax.models.registry import MODELS

    for field, known in (
        ("network.name", MODELS),
        ("frontend.name", FRONTENDS),
        ("front_filter.name", (*FILTERS, NONE)),
    ):
        assert sorted(config_fields.NAMES[field]) == sorted(known)


def test_calls_that_would_never_be_made_are_refused():
    config = tc_resnet.get_config("8").unlock()
    config.data.on_device = True
    config.steps_per_call = config.log_every_steps
    configs.check(config)
    config.steps_per_call += 1
    with pytest.raises(UserError, match=r"at most config\.log_every_steps = 20"):
        configs.check(config)


@pytest.mark.parametrize(
    "program", ["main", "predict", "evaluate", "detect", "compare", "export"]
)
def test_help_needs_nothing_slow(program):
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, f"kws_jax.{program}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "--workdir" in done.stdout or program == "compare"
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_mtconv_is_a_word_of_tenets_alone():
    config = load("dynamic_filter:din,tenet6,mtconv")
    assert config.network.mtconv
    assert not load("dynamic_filter:din,tenet6").network.mtconv
    config = load("quantized:tenet12,mtconv,w4a4")
    assert config.network.mtconv
    assert config.stages[-1].bits.weights == 4
    for words in (
        "network:res15,mtconv",
        "network:mtconv,tc_resnet8",
        "quantized:mtconv",
    ):
        with pytest.raises(UserError, match="'mtconv' is of TENets, and the network"):
            load(words)


@pytest.mark.parametrize(
    ("size", "early"),
    [("paper", range(5)), ("cpu", [4]), ("demo", [0])],
)
def test_stages_of_the_curriculum_that_may_end_early_are_those_told(size, early):
    stages = load(f"convmixer:curriculum,{size}").stages
    # Of the first validation the criterion is 0, whatever it measures.
    first_ends = [(1 + s.stop.patience) * s.eval_every_epochs for s in stages]
    assert [i for i, s in enumerate(stages) if s.epochs > first_ends[i]] == list(early)


def test_filters_have_their_settings_under_the_curriculum_too():
    config = load("convmixer:no_din,tc_resnet8")
    assert config.front_filter.to_dict() == {"name": "dynamic", "din": False}
    assert len(config.stages) == 5
