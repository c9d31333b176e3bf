"""Times inference: `python -m benchmarks.infer`.

NAME/batch takes a batch of features to logits; NAME/window one second of audio to
probabilities, front end included.
"""

from benchmarks import command
from benchmarks.command import JAX, TORCH, Session
from benchmarks.networks import CASES, Case


def measure(session: Session, chosen: list[str]) -> None:
    """Both ways of inference of each chosen network, ours and its twin's."""
    for name in chosen:
        _batch(session, name, CASES[name])
        _window(session, name, CASES[name])


def _batch(session: Session, name: str, case: Case) -> None:
    from benchmarks import steps
    from kws_jax.frontends.registry import create_frontend

    batch, small = session.options.batch, session.options.small
    features = steps.random_features(create_frontend(case.frontend), batch)
    call, work = steps.inference(case.create(small=small), features)
    calls: dict[str, command.Call] = {JAX: call}
    if session.has_twins:
        from benchmarks.twins import steps as twin_steps

        twin = case.create_twin(small=small)
        calls[TORCH] = twin_steps.inference(twin, features)
    session.time(f"{name}/batch", calls, work, clips=batch)


def _window(session: Session, name: str, case: Case) -> None:
    from benchmarks import steps
    from kws_jax.frontends.registry import create_frontend

    small, audio = session.options.small, steps.random_audio(1)
    frontend = create_frontend(case.frontend)
    call, work = steps.window(case.create(small=small), frontend, audio)
    calls: dict[str, command.Call] = {JAX: call}
    if session.has_twins:
        from benchmarks.twins import steps as twin_steps

        twin = case.create_twin(small=small)
        calls[TORCH] = twin_steps.window(twin, case.frontend, audio)
    session.time(f"{name}/window", calls, work, clips=1)


if __name__ == "__main__":
    command.run("infer", tuple(CASES), measure)
