"""The benchmarks' own arithmetic, and a small run of each command."""

import io
import json
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_values import QUICK
from rich.console import Console

from benchmarks import (
    command,
    frontend,
    infer,
    limits,
    machine,
    options,
    paths,
    pipeline,
    pod_steps,
    pods,
    search,
    seeds,
    steps,
    train,
)
from benchmarks import compile as compilation
from benchmarks.networks import CASES
from benchmarks.options import Options
from benchmarks.results import Work, make_row
from benchmarks.timing import Timing, fastest, interleaved
from kws_jax.errors import UserError
from kws_jax.frontends.registry import create_frontend
from kws_jax.search.supernet import SuperNet


def test_median_and_quartiles_of_a_timing():
    timing = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert (timing.median, timing.iqr, timing.best) == (3.0, 2.0, 1.0)
    assert Timing((7.0,)).iqr == 0


def test_calls_are_timed_by_turns_after_an_untimed_call_each():
    now, called = [0.0], []

    def call(name, seconds):
        def inner():
            called.append(name)
            now[0] += seconds

        return inner

    calls = {"slow": call("slow", 3.0), "fast": call("fast", 0.5)}
    timings = interleaved(calls, repeats=2, warm_up=1, clock=lambda: now[0])
    assert timings["slow"].seconds == (3.0, 3.0)
    assert timings["fast"].seconds == (0.5, 0.5)
    turn = ["slow", "slow", "fast", "fast"]
    assert called == ["slow", "fast", *turn, *turn]


def test_fastest_is_the_best_of_all_calls():
    waits = [lambda: None, lambda: sum(range(100_000))]
    assert 0 < fastest(waits, repeats=3) < fastest(waits[1:], repeats=3)


def test_floor_is_the_larger_of_operations_and_traffic():
    # 10 operations at 5 a second take 2 s; 12 bytes at 3 a second 4 s.
    assert Work(10, 12).floor(5, 3) == 4
    assert Work(10, 3).floor(5, 3) == 2


def test_fraction_of_limit_is_floor_over_median():
    row = make_row("net", "JAX", Timing((4.0, 8.0, 6.0)), 32, 1.5)
    assert row.fraction_of_limit == 0.25
    assert (row.median_s, row.iqr_s, row.repeats, row.clips) == (6.0, 2.0, 3, 32)
    assert make_row("net", "JAX", Timing((4.0,)), 32).fraction_of_limit is None


def test_bytes_are_those_of_arguments_and_results():
    x, y = jnp.zeros((3, 4), jnp.float32), jnp.zeros(5, jnp.int16)
    work = steps.work_of(lambda x, y: {"sum": x.sum(), "y": y}, x, y, operations=7)
    assert (work.operations, work.bytes) == (7, 4 * 12 + 2 * 5 + 4 + 2 * 5)


def test_operations_are_twice_the_published_macs_and_thrice_in_training():
    published, batch = 6_677_136, 2
    model = CASES["tc_resnet14-1.5"].create()
    features = steps.random_features(create_frontend("mfcc"), batch)
    _, inference = steps.inference(model, features)
    assert inference.operations == 2 * batch * published
    # at least all weights and all features
    assert inference.bytes > 4 * (303_000 + batch * 98 * 40)
    _, training = steps.training(model, features)
    assert training.operations == 3 * inference.operations
    # weights and momentum are read and written
    assert training.bytes > 4 * 4 * 303_000


def test_limits_are_positive_rates():
    found = limits.measure(small=True)
    assert found.flops > 0
    assert found.bandwidth > 0


def test_busy_cores_are_those_that_were_not_idle():
    # 100 ticks on each of two cores, of which 120 idle and 30 waiting for a disk.
    before = "cpu 10 0 10 100 5 0 0 0 0 0\ncpu0 0 0\ncpu1 0 0\nintr 5"
    after = "cpu 40 5 25 220 35 0 0 0 0 0\ncpu0 0 0\ncpu1 0 0\nintr 9"
    assert machine.busy_between(before, after) == pytest.approx(0.5)
    assert 0 <= machine.busy_cores(0.01) <= os.cpu_count()


def test_names_to_measure_keep_their_order():
    known = ("a", "b", "c")
    assert Options().chosen(known) == ["a", "b", "c"]
    assert Options(only=("c", "a")).chosen(known) == ["a", "c"]
    with pytest.raises(UserError, match="did you mean 'tc_resnet8'"):
        Options(only=("tc_resnet9",)).chosen(tuple(CASES))


def test_a_json_file_that_cannot_be_written_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        options.check_json(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        options.check_json(tmp_path / "nowhere" / "file.json")
    options.check_json(tmp_path / "file.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=tc_resnet9"], "did you mean 'tc_resnet8'"),
        (["--batch=0"], "--batch"),
        (["--repeat=3"], "repeat"),
        (["tc_resnet8"], "Unexpected arguments"),
    ],
)
def test_wrong_arguments_end_with_code_2(arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def one_core(monkeypatch):
    """PyTorch's waiting threads slow each other down where other programs run."""
    monkeypatch.setattr(machine, "cores", lambda: 1)


def small_session(**wanted):
    console = Console(file=io.StringIO(), width=200)
    wanted = {"small": True, "batch": 2, "repeats": 2, **wanted}
    return command.Session(Options(**wanted), console)


FRAMEWORKS = ["JAX", *(["PyTorch"] if machine.has_torch() else [])]


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(
    ("program", "names", "rows"),
    [
        (train, ["tc_resnet8"], ["tc_resnet8"]),
        (infer, ["tc_resnet8"], ["tc_resnet8/batch", "tc_resnet8/window"]),
        (frontend, ["mfcc", "log_mel"], ["mfcc", "log_mel"]),
    ],
)
def test_every_network_is_measured_beside_its_twin(program, names, rows):
    session = small_session()
    program.measure(session, names)
    found = [(r.name, r.framework) for r in session.rows if r.framework != "librosa"]
    assert found == [(row, f) for row in rows for f in FRAMEWORKS]
    for row in session.rows:
        assert row.median_s > 0
        assert row.fraction_of_limit == pytest.approx(row.floor_s / row.median_s)


@pytest.mark.usefixtures("one_core")
def test_a_search_step_is_measured_beside_the_plain_supernet_and_the_twin():
    session = small_session()
    search.measure(session, ["autokws"])
    names = ["JAX", "JAX separate", *FRAMEWORKS[1:]]
    assert [row.framework for row in session.rows] == names
    assert len({row.floor_s for row in session.rows}) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_a_path_is_measured_beside_its_network_alone():
    session = small_session()
    paths.measure(session, ["E1K3"])
    told = ["JAX", "JAX, a path", "JAX, a nested path"]
    assert [row.framework for row in session.rows] == told
    assert all(row.median_s > 0 for row in session.rows)


@pytest.mark.parametrize("nested", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_measured_step_goes_along_its_path_alone(nested):
    space = paths.space_for(small=True, nested=nested)
    layers = ("E2K3", "E1K3", "SKIP", "E1K3", "E2K3", "SKIP")
    features = np.float32(np.random.default_rng(0).normal(size=(4, 20, 8)))
    step, (state, *arguments) = steps.path_step(space, layers, features, 5)
    run = jax.jit(step, compiler_options=QUICK)
    after, measures = run(state, *arguments)
    assert np.isfinite(measures["loss"])
    before = state.trees["weights"]
    for number, operation in enumerate(layers):
        moved = jax.tree.map(
            lambda a, b: not np.array_equal(a, b),
            before[f"layers_{number}"],
            after.trees["weights"][f"layers_{number}"],
        )
        assert any(jax.tree.leaves(moved)) == (operation != "SKIP"), number


def test_paths_are_of_the_named_operation():
    space = paths.space_for(small=False, nested=False)
    assert paths.layers_of("E3K5", space) == ("E3K5",) * 6
    drawn = paths.layers_of("random", space)
    assert len(set(drawn)) > 1
    assert all(o in names for o, names in zip(drawn, space.candidates))


@pytest.mark.usefixtures("one_core")
def test_a_step_is_measured_in_every_layout_of_a_pod(monkeypatch):
    monkeypatch.setattr(pods, "LAYOUTS", ((1, 1), (2, 2)))
    session = small_session(batch=8, repeats=1)
    pods.measure(session, ["tc_resnet8-own_norms"])
    assert [row.framework for row in session.rows] == ["1×1", "2×2"]
    assert all(row.median_s > 0 for row in session.rows)


def test_a_batch_that_a_pod_cannot_divide_is_refused():
    session = small_session(batch=6)
    with pytest.raises(UserError, match="cannot be divided over 4 devices"):
        pods.measure(session, ["tc_resnet8"])


@pytest.mark.parametrize("name", pods.NAMES)
def test_every_step_of_pods_learns_from_finite_losses(name):
    step, arguments = pod_steps.step_of(name, 4, 10, small=True)
    state, measures = jax.jit(step)(*arguments)
    assert np.isfinite(measures["loss"]).all()
    before = jax.tree.leaves(arguments[0].trees)
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(before, jax.tree.leaves(state.trees), strict=True)
    ]
    assert np.mean(moved) > 0.9


def test_the_plain_supernet_computes_what_the_merged_one_does():
    space, features = search.space_for(small=True), np.ones((2, 98, 40), np.float32)
    losses = []
    for create in (SuperNet, steps.SeparateSuperNet):
        step, arguments, _ = steps.search_step(space, features, 12, create)
        losses.append(jax.jit(step)(*arguments)[1])
    chex.assert_trees_all_close(*losses, rtol=1e-4)
    assert steps.SeparateSuperNet.layer is not SuperNet.layer


@pytest.mark.usefixtures("one_core")
def test_seeds_at_once_are_measured_beside_seeds_in_turn():
    session = small_session()
    seeds.measure(session, ["tc_resnet8"])
    assert [row.framework for row in session.rows] == ["JAX in turn", "JAX at once"]
    in_turn, at_once = session.rows
    assert in_turn.clips == at_once.clips == 8 * 2
    assert in_turn.floor_s == at_once.floor_s > 0


@pytest.mark.usefixtures("one_core")
def test_pipeline_is_measured_in_each_condition_and_size():
    session = small_session()
    pipeline.measure(session, list(pipeline.NAMES))
    names = ["clean", "shift_background", "snr_noise", "growth/20", "growth/40"]
    assert [row.name for row in session.rows] == names
    assert all(row.median_s > 0 for row in session.rows)


@pytest.mark.usefixtures("one_core")
def test_compilation_is_measured_cold_and_cached():
    session = small_session(repeats=1)
    compilation.measure(session, ["tc_resnet8"])
    cold, cached = session.rows
    assert (cold.framework, cached.framework) == ("JAX cold", "JAX cached")
    assert cold.median_s > cached.median_s > 0
    assert cold.floor_s is None


@pytest.mark.usefixtures("one_core")
def test_without_pytorch_jax_is_measured_alone_and_one_message_says_so(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(machine, "has_torch", lambda: False)
    file = tmp_path / "results.json"
    session = small_session(json=file)
    frontend.measure(session, ["mfcc"])
    command.report("frontend", session)
    printed = session.console.file.getvalue()
    assert printed.count("PyTorch is not installed") == 1
    content = json.loads(file.read_text())
    (row,) = [row for row in content["rows"] if row["framework"] != "librosa"]
    assert (row["name"], row["framework"]) == ("mfcc", "JAX")
    assert row.keys() == {
        "name",
        "framework",
        "median_s",
        "iqr_s",
        "repeats",
        "clips",
        "floor_s",
        "fraction_of_limit",
    }
    assert content["machine"].keys() >= {"cpu", "cores", "device", "versions"}
    assert content["limits"].keys() == {"flops", "bandwidth"}
    assert (content["command"], content["batch"], content["threads"]) == (
        "frontend",
        2,
        1,
    )


def test_floor_of_the_search_step_counts_the_products_of_the_candidates_alone():
    space = search.space_for(small=True)
    features = np.zeros((2, 98, 40), np.float32)
    _, work = steps.search(space, features, 12)
    stem_and_linear = 98 * 3 * 40 * 8 + 8 * 12
    convolutions = sum(2 * 98 * k * 2 * 8 * 8 for k in (3, 5, 7, 9))
    squeeze_excite = 4 * 2 * 8 * 2
    forward = stem_and_linear + convolutions + squeeze_excite
    # two clips; two passes for the architecture, three for the weights
    assert work.operations == 2 * 2 * (2 + 3) * forward
