"""What starts runs on several machines: scripts and manifests, without the machines."""

import copy
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from kws_jax import distributed

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = ("tpu_pod.sh", "slurm.sbatch")
MANIFESTS = ("gke_jobset_tpu.yaml", "gke_jobset_gpu.yaml")
KUBERNETES = "1.37.0"
JOBSET_SCHEMA = json.loads((ROOT / "tests" / "jobset_schema.json").read_text())
ARGUMENTS = ["--config=configs/autokws.py:cpu", "--config.data.keywords=a b,'c'"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run(
        [str(shellcheck), str(LAUNCH / script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


# A stand-in for a program: it writes down its arguments, and ends with the code of the
# first part of a command line in codes.json that is in its own.
_STAND_IN = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__)
with here.with_suffix(".log").open("a") as log:
    log.write(json.dumps([here.name, *sys.argv[1:]]) + "\\n")
codes = json.loads((here.parent / "codes.json").read_text())
text = " ".join(sys.argv)
sys.exit(next((code for part, code in codes.items() if part in text), 0))
"""


@pytest.fixture
def stand_ins(tmp_path):
    """Makes programs that only write down what they are called with."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(*names, codes):
        (folder / "codes.json").write_text(json.dumps(codes))
        for name in names:
            (folder / name).write_text(_STAND_IN.format(python=sys.executable))
            (folder / name).chmod(0o755)
        return folder

    return make


def calls(folder, name):
    log = folder / f"{name}.log"
    return [json.loads(s) for s in log.read_text().splitlines()] if log.exists() else []


def start(folder, *command, **more):
    path = os.pathsep.join([str(folder), "/usr/bin", "/bin"])
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": path, "TMPDIR": str(folder), **more},
    )


def tpu_pod(folder, *options, arguments=ARGUMENTS):
    script = str(LAUNCH / "tpu_pod.sh")
    return start(folder, script, *options, "--", *arguments)


def verbs(made):
    """Which commands of `gcloud compute tpus tpu-vm` were called."""
    assert all(call[:4] == ["gcloud", "compute", "tpus", "tpu-vm"] for call in made)
    return [call[4] for call in made]


def remote_commands(made):
    return [
        option.removeprefix("--command=")
        for call in made
        for option in call
        if option.startswith("--command=")
    ]


def test_a_dry_run_prints_what_a_run_calls_and_calls_nothing(stand_ins, tmp_path):
    options = ("pod", "--zone=z", f"--fetch={tmp_path}/got", "--nfs=10.0.0.2:/s")
    folder = stand_ins("gcloud", "git", "rm", codes={"describe": 1})
    dry = tpu_pod(folder, *options, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert calls(folder, "gcloud") == calls(folder, "git") == []
    done = tpu_pod(folder, *options)
    assert done.returncode == 0, done.stderr
    called = calls(folder, "gcloud")
    expected = ["describe", "create", "scp", "ssh", "ssh", "ssh", "scp"]
    assert verbs(called) == expected
    assert "gcloud compute tpus tpu-vm delete pod --zone=z" in done.stdout
    # What was printed is what was called, word by word, as a shell takes it.
    commands = dry.stdout.partition("The slice")[0]
    start(folder, shutil.which("bash"), "-c", commands)
    assert calls(folder, "gcloud") == called * 2


def test_a_bucket_holds_the_workdir_and_is_what_is_fetched(stand_ins, tmp_path):
    folder = stand_ins("gcloud", "git", "rm", codes={})
    options = ("pod", "--zone=z", f"--fetch={tmp_path}/got", "--bucket=gs://b/runs/")
    done = tpu_pod(folder, *options)
    assert done.returncode == 0, done.stderr
    made = calls(folder, "gcloud")
    fetched = ["gcloud", "storage", "cp", "--recursive", "gs://b/runs/pod"]
    assert made[-1] == [*fetched, f"{tmp_path}/got"]
    install, command = remote_commands(made)
    assert "'.[tpu,gcs]'" in install
    assert f"{distributed.VARIABLES['cluster']}=tpu" in command
    words = shlex.split(command.partition("kws_jax.main")[2])
    assert words == [*ARGUMENTS, "--workdir=gs://b/runs/pod"]
    for wrong in ("b/runs", "gs://", ""):
        refused = tpu_pod(folder, "pod", "--zone=z", f"--bucket={wrong}")
        assert refused.returncode == 2
        assert "give --bucket=gs://BUCKET/FOLDER" in refused.stderr


@pytest.mark.parametrize("where", [(), ("--bucket=gs://b/runs",)])
def test_where_nothing_can_be_fetched_the_slice_is_still_told(
    stand_ins, tmp_path, where
):
    folder = stand_ins("gcloud", "git", "rm", codes={"kws_jax.main": 2, "runs/pod": 1})
    done = tpu_pod(folder, "pod", "--zone=z", f"--fetch={tmp_path}/got", *where)
    assert "tpu-vm delete pod" in done.stdout
    assert "nothing was fetched" in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize("step", ["scp", "pip install"])
def test_a_slice_on_which_nothing_could_be_begun_is_told(stand_ins, tmp_path, step):
    folder = stand_ins("gcloud", "git", "rm", codes={step: 1})
    options = ("pod", "--zone=z", "--delete", f"--fetch={tmp_path}/got")
    done = tpu_pod(folder, *options)
    assert done.returncode == 1
    assert "tpu-vm delete pod" in done.stdout
    assert "kws_jax.main" not in str(calls(folder, "gcloud"))


@pytest.mark.parametrize("code", [0, 75])
def test_a_slice_with_the_only_copy_of_the_results_is_kept(stand_ins, tmp_path, code):
    # The first of them is in the command of the training, too.
    codes = {"kws_jax.main": code, "pod:kws_jax/runs/pod": 1, "gs://b/runs/pod": 1}
    folder = stand_ins("gcloud", "git", "rm", codes=codes)
    options = ("pod", "--zone=z", "--delete", f"--fetch={tmp_path}/got")
    done = tpu_pod(folder, *options)
    assert done.returncode == (code or 1)
    assert "delete" not in verbs(calls(folder, "gcloud"))
    assert "tpu-vm delete pod" in done.stdout
    # A bucket has them still.
    assert tpu_pod(folder, *options, "--bucket=gs://b/runs").returncode == (code or 1)
    assert "delete" in calls(folder, "gcloud")[-1]


def test_every_worker_gets_the_arguments_as_they_were_given(stand_ins, tmp_path):
    folder = stand_ins("gcloud", "git", "rm", codes={})
    done = tpu_pod(folder, "pod", "--zone=z", f"--fetch={tmp_path}/got")
    assert done.returncode == 0, done.stderr
    made = calls(folder, "gcloud")
    # The slice is there already.
    assert verbs(made) == ["describe", "scp", "ssh", "ssh", "scp"]
    assert all("--zone=z" in call for call in made)
    command = remote_commands(made)[-1]
    assert f"{distributed.VARIABLES['cluster']}=auto" in command
    # As the worker's shell splits it.
    words = shlex.split(command.partition("kws_jax.main")[2])
    assert words == [*ARGUMENTS, "--workdir=runs/pod"]


def test_results_are_fetched_after_a_failure_and_its_code_is_kept(stand_ins, tmp_path):
    folder = stand_ins("gcloud", "git", "rm", codes={"kws_jax.main": 75})
    done = tpu_pod(folder, "pod", "--zone=z", "--delete", f"--fetch={tmp_path}/got")
    assert done.returncode == 75
    assert verbs(calls(folder, "gcloud"))[-3:] == ["ssh", "scp", "delete"]


@pytest.mark.parametrize(
    ("options", "arguments", "told"),
    [
        (("pod",), ARGUMENTS, "--zone=ZONE"),
        (("--zone=z",), ARGUMENTS, "NAME"),
        (("pod", "--zone=z", "--spott"), ARGUMENTS, "unknown option --spott"),
        (("pod", "--zone=z"), [], "behind --"),
        (("pod", "--zone=z"), ["--workdir=w"], "leave --workdir=w out"),
    ],
)
def test_wrong_options_are_told_before_anything_is_called(
    options, arguments, told, stand_ins
):
    folder = stand_ins("gcloud", "git", codes={})
    done = tpu_pod(folder, *options, arguments=arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert calls(folder, "gcloud") == []


@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (75, True)])
def test_a_job_that_was_asked_to_stop_goes_into_the_queue_again(code, again, stand_ins):
    folder = stand_ins("srun", "scontrol", codes={"kws_jax.main": code})
    script = str(LAUNCH / "slurm.sbatch")
    bash = shutil.which("bash")
    done = start(folder, bash, script, *ARGUMENTS, SLURM_JOB_ID="7")
    assert done.returncode == code, done.stderr
    ((*_, module, first, second),) = calls(folder, "srun")
    assert [module, first, second] == ["kws_jax.main", *ARGUMENTS]
    requeued = [["scontrol", "requeue", "7"]] if again else []
    assert calls(folder, "scontrol") == requeued


@pytest.fixture(params=MANIFESTS)
def manifest(request):
    return yaml.safe_load((LAUNCH / request.param).read_text())


def job_of(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    return job


def container_of(manifest):
    (container,) = job_of(manifest)["template"]["spec"]["template"]["spec"][
        "containers"
    ]
    return container


def check_manifest(manifest):
    jsonschema.validate(manifest, JOBSET_SCHEMA)
    for job in manifest["spec"]["replicatedJobs"]:
        whole = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": job["name"]},
            **job["template"],
        }
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)


def test_manifests_have_the_fields_of_jobset_and_kubernetes(manifest):
    check_manifest(manifest)


def test_a_misspelt_field_is_found(manifest):
    for spoil in (
        lambda m: m["spec"].update(failurePolcy={}),
        lambda m: m["spec"]["failurePolicy"]["rules"][0].update(action="Fail"),
        lambda m: job_of(m)["template"]["spec"].update(paralelism=2),
        lambda m: container_of(m).update(args="--config"),
    ):
        spoilt = copy.deepcopy(manifest)
        spoil(spoilt)
        with pytest.raises(jsonschema.ValidationError):
            check_manifest(spoilt)


def test_all_processes_are_started_at_once_and_share_a_folder(manifest):
    spec = job_of(manifest)["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]
    container = container_of(manifest)
    (mount,) = container["volumeMounts"]
    (workdir,) = (a for a in container["args"] if a.startswith("--workdir="))
    assert workdir.startswith(f"--workdir={mount['mountPath']}/")
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert {v["name"] for v in container["env"]} <= {*distributed.VARIABLES.values()}


def test_chips_of_the_slice_are_those_of_its_machines():
    manifest = yaml.safe_load((LAUNCH / "gke_jobset_tpu.yaml").read_text())
    spec = job_of(manifest)["template"]["spec"]
    selector = spec["template"]["spec"]["nodeSelector"]
    topology = selector["cloud.google.com/gke-tpu-topology"]
    chips = container_of(manifest)["resources"]["limits"]["google.com/tpu"]
    assert math.prod(map(int, topology.split("x"))) == chips * spec["completions"]


def test_processes_with_gpus_find_the_first_of_them():
    manifest = yaml.safe_load((LAUNCH / "gke_jobset_gpu.yaml").read_text())
    container, job = container_of(manifest), job_of(manifest)
    given = {v["name"]: v.get("value", "0") for v in container["env"]}
    settings = {
        name: given.get(variable, "")
        for name, variable in distributed.VARIABLES.items()
    }
    place = distributed.place_of(settings)
    name = manifest["metadata"]["name"]
    host, _, port = place.coordinator.partition(":")
    assert host == f"{name}-{job['name']}-0-0.{name}"
    assert int(port) in [p["containerPort"] for p in container["ports"]]
    assert place.num_processes == job["template"]["spec"]["completions"]
