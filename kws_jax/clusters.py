"""Which cluster this process belongs to, as JAX itself finds out.

JAX's detection says where a process is; what is added is when to believe it without
being asked, so that no program waits for others that were never started.
"""

import importlib.util
import os
from typing import Any

from kws_jax.errors import UserError, nearest

AUTO, NONE = "auto", "none"
# What users call a cluster -> JAX's classes for it, in jax._src.clusters.
_CLUSTERS = {
    "tpu": ("GceTpuCluster", "GkeTpuCluster"),
    "slurm": ("SlurmCluster",),
    "kubernetes": ("K8sCluster",),
    "ompi": ("OmpiCluster",),
}
NAMES = (AUTO, NONE, *_CLUSTERS)


def detected(wanted: str) -> Any:
    """JAX's class for the cluster that this is a process of, None for one alone.

    Raises:
      UserError: a name that is not in NAMES, a cluster that is not here, or one that
        does not answer.
    """
    from jax._src import clusters

    if wanted not in NAMES:
        raise UserError(f"--cluster={wanted} is unknown; {nearest(wanted, NAMES)}")
    if wanted == NONE:
        return None
    names = [n for c in _CLUSTERS if wanted in (AUTO, c) for n in _CLUSTERS[c]]
    # Any pod of Kubernetes looks like a cluster; those of an indexed job have this.
    if wanted == AUTO and "JOB_COMPLETION_INDEX" not in os.environ:
        names = [name for name in names if name != "K8sCluster"]
    try:
        for cluster in clusters.ClusterEnv._cluster_types:
            if cluster.__name__ in names and cluster.is_env_present():
                return cluster if cluster.get_process_count() > 1 else None
    except Exception as error:  # whatever a metadata server or Kubernetes answers
        raise UserError(
            f"This seems to be part of a cluster, which does not say of how many "
            f"processes ({error!r}). Give --coordinator, --num_processes and "
            "--process_id, or --cluster=none to run alone."
        ) from error
    in_job = "JOB_COMPLETION_INDEX" in os.environ or wanted == "kubernetes"
    asked = "KUBERNETES_SERVICE_HOST" in os.environ and in_job
    if asked and not importlib.util.find_spec("kubernetes"):
        # Without it JAX takes every pod of the job for a program of its own.
        raise UserError(
            "This is a pod of an indexed job of Kubernetes, which the package "
            "'kubernetes' asks for the others: pip install kubernetes. Or give "
            "--coordinator, --num_processes and --process_id (as "
            "launch/gke_jobset_gpu.yaml does), or --cluster=none to run alone."
        )
    if wanted != AUTO:
        raise UserError(
            f"--cluster={wanted}, but its environment is not here. Start the program "
            "through it (for example with srun), or leave --cluster out."
        )
    return None
