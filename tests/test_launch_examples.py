"""The commands and manifests of launch/: each trains a config that its devices can."""

import math
import re
import shlex
from pathlib import Path

import pytest
import yaml
from absl import flags
from ml_collections import config_flags

from kws_jax import config as configs

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
MANIFESTS = ("gke_jobset_tpu.yaml", "gke_jobset_gpu.yaml")
PROGRAMS = ("launch/tpu_pod.sh", "sbatch")
CHIPS = ("google.com/tpu", "nvidia.com/gpu")
# File -> how many of its commands start a run.
COMMANDS = {"README.md": 2, "slurm.sbatch": 1}


def read(name):
    return (LAUNCH / name).read_text()


def commands_in(name):
    """The words of each command of PROGRAMS in a file, as a shell splits them."""
    text = re.sub(r"^#", "", read(name), flags=re.MULTILINE)
    lines = [line.strip() for line in re.sub(r"\\\n", " ", text).splitlines()]
    return [shlex.split(x) for x in lines if x.startswith(PROGRAMS) and "--config" in x]


def devices_of(words):
    """On how many devices a command runs, by its options and the script's own."""
    if words[0] == "sbatch":
        own = " ".join(re.findall(r"^#SBATCH (.*)", read("slurm.sbatch"), re.MULTILINE))
        patterns = (r"--nodes=(\d+)", r"--ntasks-per-node=(\d+)")
    else:
        own, patterns = read("tpu_pod.sh"), (r"\baccelerator=v5litepod-(\d+)",)
    given = " ".join(words)
    found = [re.search(p, given) or re.search(p, own) for p in patterns]
    return math.prod(int(match[1]) for match in found)


def check_batches(arguments, devices):
    """Asserts that every stage's batch has as many rows for each device."""
    line, values = ["main", *arguments], flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=line)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    assert values(line) == ["main"]
    config = values.config
    configs.check(config)
    sizes = {stage.name: stage.batch_size for stage in config.stages}
    assert [name for name, size in sizes.items() if size % devices] == []


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", MANIFESTS)
def test_batches_of_a_manifest_can_be_divided_over_its_devices(name):
    manifest = yaml.safe_load(read(name))
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    (chips,) = (count for name, count in limits.items() if name in CHIPS)
    check_batches(container["args"], chips * spec["completions"])


@pytest.mark.parametrize("name", COMMANDS)
def test_batches_of_an_example_can_be_divided_over_its_devices(name):
    commands = commands_in(name)
    assert len(commands) == COMMANDS[name]
    for words in commands:
        (first,) = (i for i, word in enumerate(words) if word.startswith("--config="))
        devices = devices_of(words[:first])
        assert devices == 8
        check_batches(words[first:], devices)


def test_the_hint_of_the_script_is_such_an_example():
    pattern = r"for example -- (--config.*)\"$"
    (hint,) = re.findall(pattern, read("tpu_pod.sh"), re.MULTILINE)
    check_batches(shlex.split(hint), devices_of(["launch/tpu_pod.sh"]))
