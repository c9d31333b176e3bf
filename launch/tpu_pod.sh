#!/usr/bin/env bash
# Runs an experiment on a TPU VM slice: makes the slice or takes the one of that name,
# installs this working tree's last commit with its pinned environment on all workers,
# starts the same command on each, and fetches the results.
set -euo pipefail

usage() {
  cat <<'EOF'
launch/tpu_pod.sh NAME --zone=ZONE [options] -- ARGUMENTS OF kws_jax.main

  --project=ID          Google Cloud project; else gcloud's own setting
  --accelerator=TYPE    of a new slice; v5litepod-8
  --version=RUNTIME     software of a new slice; v2-alpha-tpuv5-lite
  --spot                a new slice that may be taken away
  --python=COMMAND      3.11 or newer, installed with apt where it is missing; python3.11
  --nfs=HOST:/SHARE     mounted on all workers at /mnt/kws_jax, for the workdir and the
                        data
  --bucket=gs://…       for the workdir, gs://…/NAME; a slice of several workers needs
                        this or --nfs, a single one does not
  --fetch=FOLDER        gets the results on this machine, in FOLDER/NAME; runs
  --delete              delete the slice afterwards (else you are reminded of it)
  --dry-run             print every command and run none

The workdir is added to the arguments. Run again after a failure or a preemption, the
same command goes on from the last checkpoint, if its workdir is still there.
EOF
}

fail() {
  echo "error: $*" >&2
  exit 2
}

name="" zone="" project="" accelerator=v5litepod-8 version=v2-alpha-tpuv5-lite spot=""
python=python3.11 nfs="" bucket="" extras=tpu fetch=runs delete="" dry_run=""

while (($#)); do
  case "$1" in
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=yes ;;
    --python=*) python=${1#*=} ;;
    --nfs=*) nfs=${1#*=} ;;
    --bucket=gs://?*) bucket=${1#*=} extras=tpu,gcs ;;
    --bucket=*) fail "$1 names no bucket: give --bucket=gs://BUCKET/FOLDER." ;;
    --fetch=*) fetch=${1#*=} ;;
    --delete) delete=yes ;;
    --dry-run) dry_run=yes ;;
    --help | -h)
      usage
      exit
      ;;
    --)
      shift
      break
      ;;
    -*) fail "unknown option $1; what stands behind -- goes to kws_jax.main. See --help." ;;
    *)
      [[ -z $name ]] || fail "two names, $name and $1; see --help."
      name=$1
      ;;
  esac
  shift
done
[[ -n $name ]] || fail "give the slice a NAME; see --help."
[[ -n $zone ]] || fail "give --zone=ZONE, for example --zone=us-west4-a."
(($#)) || fail "give the arguments of kws_jax.main behind --, for example -- --config=configs/autokws.py '--config.stages[1].batch_size=128'"
for argument in "$@"; do
  [[ $argument != --workdir* ]] || fail "the workdir is chosen here: leave $argument out."
done
workdir=runs/$name fetch_from=kws_jax/runs/$name
if [[ -n $nfs ]]; then
  workdir=/mnt/kws_jax/runs/$name
  fetch_from=$workdir
fi
if [[ -n $bucket ]]; then
  workdir=${bucket%/}/$name
fi

# Runs a command, or prints it.
run() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# gcloud compute tpus tpu-vm COMMAND … in the zone and the project.
tpu() {
  run gcloud compute tpus tpu-vm "$@" --zone="$zone" ${project:+--project="$project"}
}

on_all_workers() {
  tpu ssh "$name" --worker=all --command="$1"
}

make_slice() {
  tpu create "$name" --accelerator-type="$accelerator" --version="$version" ${spot:+--spot}
}

copy_code() {
  local archive=${TMPDIR:-/tmp}/kws_jax-$name.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD
  tpu scp "$archive" "$name:kws_jax.tar.gz" --worker=all
  run rm "$archive"
}

install() {
  on_all_workers "set -e
mkdir -p kws_jax
tar -xzf kws_jax.tar.gz -C kws_jax
command -v $python >/dev/null ||
  { sudo apt-get update -q && sudo apt-get install -qy $python $python-venv; }
cd kws_jax
[ -d .venv ] || $python -m venv .venv
.venv/bin/python -m pip install --quiet -c constraints.txt '.[$extras]'"
}

mount_share() {
  on_all_workers "set -e
mountpoint -q /mnt/kws_jax && exit
command -v mount.nfs >/dev/null ||
  { sudo apt-get update -q && sudo apt-get install -qy nfs-common; }
sudo mkdir -p /mnt/kws_jax
sudo mount -t nfs $nfs /mnt/kws_jax
sudo chmod a+rwx /mnt/kws_jax"
}

# As where training has failed at once; the slice still costs, but has the only copy of the
# workdir where neither a share nor a bucket holds it.
nothing_fetched() {
  echo "note: nothing was fetched from $workdir." >&2
  ((code)) || code=1
  [[ -n $nfs$bucket ]] || delete=""
}

# KWS_JAX_CLUSTER=tpu: an error where the workers cannot find each other, instead of as
# many runs as there are workers.
train() {
  local arguments
  printf -v arguments ' %q' "$@" --workdir="$workdir"
  on_all_workers "cd kws_jax && KWS_JAX_CLUSTER=$cluster .venv/bin/python -m kws_jax.main$arguments"
}

# However this ends, from here on somebody pays for the slice.
# shellcheck disable=SC2329 # by the trap below
remind() {
  echo "The slice $name is still there and costs money. To delete it:"
  echo "  gcloud compute tpus tpu-vm delete $name --zone=$zone${project:+ --project=$project}"
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -n $dry_run ]]; then
  tpu describe "$name" --format='value(state)'
  echo "# where there is no such slice:"
  make_slice
elif ! tpu describe "$name" --format='value(state)' 2>/dev/null; then
  make_slice
fi
trap remind EXIT
copy_code
install
cluster=auto
if [[ -n $nfs ]]; then
  mount_share
fi
if [[ -n $nfs$bucket ]]; then
  cluster=tpu
fi
code=0
train "$@" || code=$?
run mkdir -p "$fetch"
if [[ -n $bucket ]]; then
  run gcloud storage cp --recursive "$workdir" "$fetch" || nothing_fetched
else
  tpu scp --recurse "$name:$fetch_from" "$fetch" --worker=0 || nothing_fetched
fi
if [[ -n $delete ]]; then
  tpu delete "$name" --quiet
  trap - EXIT
fi
exit "$code"
