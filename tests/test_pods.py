"""Several processes compute what one does, agree, and end together.

Pods are rehearsed by `launch/local_pod.py`. The matrix of layouts, experiments and
restarts takes minutes: `pytest -m slow tests/test_pods.py`.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src.clusters import cloud_tpu_cluster
from ml_collections import ConfigDict

from benchmarks import collectives
from configs import tc_resnet
from kws_jax import clusters, distributed, scaling
from kws_jax import config as configs
from kws_jax.errors import UserError
from kws_jax.training.stopping_together import StoppingTogether

ROOT = Path(__file__).parents[1]
CASES = ("searching", "data_parameters", "curriculum", "one_path", "learned_bits")
# Until a rehearsed pod has saved its first checkpoint, on a machine with other work.
START_SECONDS = 90
# What is compared needs no fast programs.
XLA_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


def rehearse(layout, out, steps, *cases, expected=0):
    """Runs `pod_rehearsal` in processes × devices; returns output and seconds.

    `steps` may also be one of its other errands.
    """
    out.mkdir(parents=True, exist_ok=True)
    processes, devices = layout
    began = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "launch/local_pod.py", f"--processes={processes}"),
            *(f"--devices={devices}", "--module=pod_rehearsal", "--grace=70"),
            *("--", str(out), str(steps), *cases),
        ],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": "tests", "XLA_FLAGS": XLA_FLAGS, "TF_CPP_MIN_LOG_LEVEL": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == expected, done.stdout[-5000:]
    return done.stdout, time.monotonic() - began


def gap(one, other, case, *, optimizers=False):
    """The largest difference of what two runs have learned, or of their optimisers.

    That of a leaf with values above 1, as momenta have, is relative to the largest.
    """
    states = [dict(np.load(folder / f"{case}.npz")) for folder in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert states[0]
    return max(
        float(np.abs(np.float64(value) - states[1][name]).max())
        / max(1.0, float(np.abs(value).max()))
        for name, value in states[0].items()
        if ("opt_state" in name) == optimizers
    )


def equal(one, other, case):
    """Whether two states are the same to the bit."""
    return gap(one, other, case) == gap(one, other, case, optimizers=True) == 0


def lines(folder, case):
    """(stage, split, step) -> the losses and accuracies that were logged there."""
    text = (folder / case / "metrics.jsonl").read_text()
    return {
        (line["stage"], line["split"], line["step"]): [line["loss"], line["accuracy"]]
        for line in map(json.loads, text.splitlines())
    }


def rows(folder, case):
    """Rows of results that tell no time: what was measured -> (value, count)."""
    found = json.loads((folder / f"{case}.json").read_text())["rows"]
    return {
        (row["stage"], row["split"], row["condition"], row["metric"]): (
            row["value"],
            row["count"],
        )
        for row in found
        if row["metric"] not in ("seconds", "clips_per_second")
    }


def check_alike(one, other, case):
    """Parameters, optimisers, statistics, losses, test results and records agree.

    Momenta are sums of gradients, which lose two digits on their way through the batch
    norms; statistics of a device's own share would be off by tenths.
    """
    assert gap(one, other, case, optimizers=True) < 1e-4
    assert gap(one, other, case) < 1e-5
    logged, expected = lines(other, case), lines(one, case)
    assert logged.keys() == expected.keys()
    for place, (loss, accuracy) in expected.items():
        assert logged[place][0] == pytest.approx(loss, abs=1e-5), place
        # A clip of a batch of eight: logits of four bits are nearly equal now and then.
        tie = 1 / 8 if place[:2] == ("quantize", "train") else 1e-6
        assert logged[place][1] == pytest.approx(accuracy, abs=tie), place
    measured, right = rows(other, case), rows(one, case)
    assert measured.keys() == right.keys()
    for name, (value, count) in right.items():
        assert measured[name][1] == count, name
        np.testing.assert_allclose(measured[name][0], value, atol=1e-4, err_msg=name)
    for record in (one / case).glob("*.json"):
        assert (other / case / record.name).exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The first stage with data parameters alone, and in two processes of two devices.

    Layout -> its folder.
    """
    found = {}
    for layout in ((1, 1), (2, 2)):
        found[layout] = tmp_path_factory.mktemp(f"pod{layout[0]}{layout[1]}")
        rehearse(layout, found[layout], 4, "data_parameters:0")
    return found


def test_two_processes_of_two_devices_train_as_one(small):
    check_alike(small[1, 1], small[2, 2], "data_parameters")


def test_several_seeds_are_trained_at_once_as_on_one_device(tmp_path):
    one, other = tmp_path / "11", tmp_path / "22"
    rehearse((1, 1), one, "seeds")
    rehearse((2, 2), other, "seeds")
    for seed in ("seed-0", "seed-1"):
        assert gap(one, other, seed) < 1e-5
        logged, expected = lines(other, seed), lines(one, seed)
        assert logged.keys() == expected.keys()
        for place, (loss, accuracy) in expected.items():
            assert logged[place] == pytest.approx([loss, accuracy], abs=1e-5), place
    # They are two.
    states = [np.load(other / f"seed-{seed}.npz") for seed in range(2)]
    name = next(name for name in states[0].files if name.endswith("['kernel']"))
    assert not np.array_equal(states[0][name], states[1][name])


def test_every_example_of_all_processes_is_in_the_records(small):
    one, other = (
        (small[layout] / "data_parameters" / "data_parameters.jsonl").read_text()
        for layout in ((1, 1), (2, 2))
    )
    for line, expected in zip(other.splitlines(), one.splitlines(), strict=True):
        here, there = json.loads(line), json.loads(expected)
        assert here["instance"].keys() == there["instance"].keys()
        for group, sigma in there["instance"].items():
            assert here["instance"][group] == pytest.approx(sigma, abs=2e-5)


def test_what_a_pod_has_saved_is_taken_up_by_one_process(small, tmp_path):
    again = _without_ends(small[2, 2], tmp_path / "again")
    rehearse((1, 1), again, 4, "data_parameters:0")
    assert equal(small[2, 2], again, "data_parameters")


def _without_ends(folder, copy):
    """A copy in which no stage is done, so that each takes up its last checkpoint."""
    shutil.copytree(folder, copy)
    for done in copy.rglob("done.json"):
        done.unlink()
    return copy


def test_a_pod_ends_with_the_test_of_a_network_of_few_bits(tmp_path):
    one, other = tmp_path / "11", tmp_path / "21"
    rehearse((1, 1), one, 2, "learned_bits")
    rehearse((2, 1), other, 2, "learned_bits")
    check_alike(one, other, "learned_bits")
    told = {name: value for (*_, name), value in rows(other, "learned_bits").items()}
    assert told["packed_bytes"][0] > 1000


@pytest.mark.parametrize(
    ("kind", "code", "told"),
    [
        ("user", 2, "process 1 has found something wrong"),
        ("bug", 1, "RuntimeError('process 1 has a bug')"),
        ("asked", 75, "SIGTERM: what was saved before stays"),
    ],
)
def test_an_error_in_one_process_ends_all(tmp_path, kind, code, told):
    output, seconds = rehearse((2, 1), tmp_path, "fail", kind, expected=code)
    asked, failed = "process 1 was asked to stop", "error: process 1 has failed"
    what = asked if kind == "asked" else failed
    expected = f"[0] {what}, so process 0 ends too: {told}"
    assert expected in output
    assert seconds < 60


@pytest.mark.slow
def test_the_death_of_a_process_takes_the_others_down(tmp_path):
    output, seconds = rehearse((2, 1), tmp_path, "fail", "kill", expected=137)
    assert "another task died" in output
    assert seconds < 60


@pytest.mark.parametrize("number", [0, 1])
def test_a_pod_of_which_a_process_was_killed_is_taken_up(small, tmp_path, number):
    killed = ("data_parameters:0",)
    _, seconds = rehearse((2, 2), tmp_path, f"die,{number},4", *killed, expected=137)
    print(f"process {number} killed: over after {seconds:.0f} s, from the start")
    assert not (tmp_path / "data_parameters.npz").exists()
    saved = tmp_path / "data_parameters" / "stages"
    assert [p.name for p in saved.glob("*/last/*") if p.name.isdigit()] == ["2"]
    assert seconds < 60 + START_SECONDS
    rehearse((2, 2), tmp_path, 4, *killed)
    assert equal(small[2, 2], tmp_path, "data_parameters")
    check_alike(small[2, 2], tmp_path, "data_parameters")


@pytest.mark.slow
def test_every_layout_computes_what_one_device_does(tmp_path):
    steps = int(os.environ.get("KWS_JAX_POD_STEPS", "20"))
    layouts = ((1, 1), (1, 4), (2, 2), (4, 1))
    folders = {layout: tmp_path / f"{layout[0]}x{layout[1]}" for layout in layouts}
    for layout, folder in folders.items():
        _, seconds = rehearse(layout, folder, steps, *CASES)
        for case in CASES:
            learned, moved = (
                gap(folders[1, 1], folder, case, optimizers=which)
                for which in (False, True)
            )
            print(f"{layout} {seconds:.0f} s {case}: {learned:.1e} {moved:.1e}")
        for case in CASES:
            check_alike(folders[1, 1], folder, case)
    for number, layout in enumerate(((1, 1), (2, 1))):
        again = _without_ends(folders[4, 1], tmp_path / f"again{number}")
        rehearse(layout, again, steps, *CASES)
        for case in CASES:
            assert equal(folders[4, 1], again, case)


def settings(**given):
    return dict.fromkeys(distributed.VARIABLES, "") | given


def test_flags_come_before_the_environment(monkeypatch):
    monkeypatch.setenv("KWS_JAX_PROCESS_ID", "3")
    monkeypatch.setenv("KWS_JAX_NUM_PROCESSES", "4")
    found = distributed.settings({"process_id": "0", "coordinator": None})
    assert found == settings(process_id="0", num_processes="4")


def test_a_place_is_told_by_three_settings():
    assert distributed.place_of(settings()) is None
    given = settings(coordinator="10.0.0.1:8476", num_processes="4", process_id="0")
    assert distributed.place_of(given) == distributed.Place("10.0.0.1:8476", 4, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"process_id": "0"}, "not --coordinator .* and --num_processes"),
        ({"coordinator": "a:1", "num_processes": "2"}, r"not --process_id \(KWS_JAX"),
        ({"coordinator": "a", "num_processes": "2", "process_id": "0"}, "HOST:PORT"),
        ({"coordinator": "a:1", "num_processes": "2", "process_id": "2"}, "0 … 1"),
        ({"coordinator": "a:1", "num_processes": "x", "process_id": "0"}, "whole"),
        ({"cluster": "slurm", "process_id": "0"}, "give one of them"),
    ],
)
def test_settings_that_are_half_given_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        distributed.place_of(settings(**given))


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def test_clusters_are_found_as_jax_finds_them(monkeypatch):
    assert clusters.detected("auto") is None
    with pytest.raises(UserError, match="--cluster=slurm, but"):
        clusters.detected("slurm")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    found = clusters.detected("auto")
    assert found is clusters.detected("slurm")
    assert (found.get_process_count(), found.get_process_id()) == (2, 1)
    assert clusters.detected("none") is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert clusters.detected("slurm") is None
    with pytest.raises(UserError, match="did you mean 'slurm'"):
        clusters.detected("slrum")


@pytest.mark.parametrize("wanted", ["auto", "kubernetes"])
def test_a_pod_that_cannot_ask_for_the_others_does_not_run_alone(monkeypatch, wanted):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    if wanted == "auto":
        # A pod of any other kind is alone.
        assert clusters.detected(wanted) is None
        monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install kubernetes"):
        clusters.detected(wanted)
    assert clusters.detected("none") is None


TPU = {
    "MEGASCALE_NUM_SLICES": "1",
    "MEGASCALE_SLICE_ID": "0",
    "TPU_WORKER_HOSTNAMES": "host-0,host-1",
    "TPU_WORKER_ID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.0.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}


@pytest.mark.parametrize(("name", "told"), [("ompi", OPEN_MPI), ("tpu", TPU)])
def test_other_clusters_are_found_by_their_variables(monkeypatch, name, told):
    # As where libtpu is installed.
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    for variable, value in told.items():
        monkeypatch.setenv(variable, value)
    found = clusters.detected(name)
    assert (found.get_process_count(), found.get_process_id()) == (2, 1)


def test_a_process_that_nobody_asked_for_others_is_alone():
    assert not distributed.start(settings())
    alone = settings(coordinator="a:1", num_processes="1", process_id="0")
    assert not distributed.start(alone)
    assert distributed.client() is None


class Coordinator:
    """One that has heard of no failure for a day, and then of one, or of its end."""

    def __init__(self, then):
        self.answers = [RuntimeError("DEADLINE_EXCEEDED: a day is over"), then]

    def blocking_key_value_get(self, key, milliseconds):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("then", "codes"),
    [('[1, 2, "a wrong flag"]', [2]), (RuntimeError("UNAVAILABLE: it has ended"), [])],
)
def test_a_failure_is_heard_of_after_a_day_too(then, codes, monkeypatch, capsys):
    ended, coordinator = [], Coordinator(then)
    monkeypatch.setattr(distributed, "client", lambda: coordinator)
    monkeypatch.setattr(distributed, "_exit", ended.append)
    monkeypatch.setattr(distributed, "_FAREWELL_SECONDS", 0)
    distributed._watch()
    assert ended == codes
    assert ("a wrong flag" in capsys.readouterr().err) == bool(codes)


def test_the_end_waits_for_all_threads_that_ask(monkeypatch):
    over = threading.Event()

    class Slow:
        """A connection whose waits end some time after it is closed."""

        def blocking_key_value_get(self, key, milliseconds):
            over.wait()
            time.sleep(0.3)
            raise RuntimeError("CANCELLED: the connection is closed")

        def key_value_try_get(self, key):
            time.sleep(0.3)
            raise RuntimeError("NOT_FOUND")

    monkeypatch.setattr(distributed, "client", Slow)
    monkeypatch.setattr(jax.distributed, "shutdown", over.set)
    monkeypatch.setattr(distributed, "OVER", threading.Event())
    monkeypatch.setattr(distributed, "_threads", [])
    distributed.in_background(distributed._watch, "failures")
    agreement = StoppingTogether(Slow(), 0, 2, lambda: False, distributed.OVER)
    distributed.in_background(agreement.listen, "requests")
    distributed.finish()
    assert len(distributed._threads) == 2
    assert not any(thread.is_alive() for thread in distributed._threads)


def scaled(rule, **changes):
    config = tc_resnet.get_config("8").unlock()
    config.update(batch_size_of="device", learning_rate_scaling=rule, **changes)
    configs.check(config)
    told = []
    return scaling.resolve(config, 4, told.append), told


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("linear", 4), ("sqrt", 2)])
def test_batches_and_rates_grow_with_the_devices(rule, factor):
    config, told = scaled(rule)
    assert config.stages[0].batch_size == 400
    assert config.stages[0].optimizer.learning_rate == pytest.approx(0.1 * factor)
    assert config.batch_size_of == "global"
    assert scaling.resolve(config, 4, told.append) is config
    assert told == [
        "Stage 'train': batch_size 100 × 4 devices = 400; learning rate 0.1 -> "
        f"{0.1 * factor:g} ({rule})"
    ]


def test_nothing_grows_unless_it_is_asked_for():
    config = tc_resnet.get_config("8")
    assert scaling.resolve(config, 4, pytest.fail) is config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size_of": "devise"}, "did you mean 'device'"),
        ({"learning_rate_scaling": "squared"}, "did you mean 'sqrt'"),
        ({"learning_rate_scaling": "linear"}, "say 'device'"),
    ],
)
def test_scalings_that_cannot_work_are_refused(changes, message):
    config = tc_resnet.get_config("8").unlock()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        configs.check(ConfigDict(config))


def test_collectives_are_counted_from_the_text_of_a_program():
    program = """
      %a = f32[48,9]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}
      %b = (f32[3]{0}, bf16[2,2]{1,0}) all-reduce(%x, %y), channel_id=2
      %c = s32[] all-reduce-start(%z), channel_id=3
      %d = f32[8]{0} all-gather(%p), dimensions={0}
      %e = f32[8]{0} add(%d, %d)
    """
    assert collectives.count(program) == {
        "all-reduce": (3, 48 * 9 * 4 + 12 + 8 + 4),
        "all-gather": (1, 32),
    }
