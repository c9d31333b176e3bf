"""Batches: order and draws, and that any step and process can be made alone."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from tiny_parts import train_batches

from kws_jax.data import pipeline
from kws_jax.data.conditions import CLEAN, Condition
from kws_jax.data.corpus import CLIP_SAMPLES, Recording, Split
from kws_jax.data.noise import NoiseBank
from kws_jax.errors import UserError

CLIPS = 23
FULL = Condition(
    shift_ms=100,
    background_probability=0.8,
    background_volume=0.1,
    snr_db=(20.0, 5.0, -5.0),
    clean_fraction=0.2,
)


def _random_audio(seed, shape):
    return np.random.default_rng(seed).integers(-6000, 6000, shape).astype(np.int16)


AUDIO = _random_audio(0, (CLIPS, CLIP_SAMPLES))
BANK = NoiseBank.from_recordings(
    [Recording(str(i), _random_audio(i, 40_000 + 1000 * i)) for i in range(3)]
)
BANKS = {"background": BANK, "noise": BANK}


def _split(read=lambda rows: AUDIO[rows], clips=CLIPS):
    names = np.array([f"clip{i}" for i in range(clips)], str)
    return Split("train", np.arange(clips, dtype=np.int32) % 5, names, names, read)


def _train(condition=FULL, steps=6, **kwargs):
    kwargs = {"batch_size": 10, "seed": 3, "num_steps": steps, **BANKS, **kwargs}
    return list(train_batches(_split(), condition, **kwargs))


def _assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for field in batch:
            np.testing.assert_array_equal(batch[field], other[field], err_msg=field)


def _stack(batches, field):
    return np.concatenate([batch[field] for batch in batches])


def test_batch_has_the_stated_fields_and_types():
    (batch,) = _train(steps=1)
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "audio": ("int16", (10, CLIP_SAMPLES)),
        "label": ("int32", (10,)),
        "index": ("int32", (10,)),
        "mask": ("bool", (10,)),
        "noise_level": ("float32", (10,)),
    }
    np.testing.assert_array_equal(batch["label"], batch["index"] % 5)
    assert batch["mask"].all()


def test_every_epoch_holds_every_clip_once_in_another_order():
    index = _stack(_train(CLEAN, steps=7), "index")  # three epochs of 23 and one more
    epochs = index[: 3 * CLIPS].reshape(3, CLIPS)
    np.testing.assert_array_equal(
        np.sort(epochs, 1), np.arange(CLIPS)[None].repeat(3, 0)
    )
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_clean_audio_is_the_clip_itself():
    batches = _train(CLEAN, steps=3, background=None, noise=None)
    np.testing.assert_array_equal(
        _stack(batches, "audio"), AUDIO[_stack(batches, "index")]
    )


def test_full_condition_changes_the_audio():
    batches = _train(steps=3)
    same = (_stack(batches, "audio") == AUDIO[_stack(batches, "index")]).all(1)
    assert same.mean() < 0.1


def test_same_seed_gives_the_same_batches_and_another_does_not():
    first = _train()
    _assert_same(first, _train())
    other = _train(seed=4)
    assert not np.array_equal(first[0]["index"], other[0]["index"])


@pytest.mark.parametrize("start", [1, 4])
def test_starting_at_any_step_gives_the_identical_batches(start):
    _assert_same(_train()[start:], _train(steps=6 - start, start_step=start))


def test_threads_and_prefetch_do_not_change_the_batches():
    _assert_same(_train(), _train(threads=4, prefetch=1))


@pytest.mark.parametrize("processes", [2, 5])
def test_processes_together_see_the_global_batch(processes):
    parts = [_train(process_index=i, process_count=processes) for i in range(processes)]
    joined = [
        {field: np.concatenate([p[field] for p in step]) for field in step[0]}
        for step in zip(*parts, strict=True)
    ]
    _assert_same(_train(), joined)


def test_batch_larger_than_the_split_runs_on_into_the_next_epoch():
    (batch,) = _train(CLEAN, steps=1, batch_size=50)
    counts = np.bincount(batch["index"], minlength=CLIPS)
    assert counts.min() >= 2
    assert counts.sum() == 50


def _evaluate(condition=FULL, split=None, **kwargs):
    kwargs = {"batch_size": 10, "seed": 3, **BANKS, **kwargs}
    return list(pipeline.eval_batches(split or _split(), condition, **kwargs))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_counts_every_clip_once_with_equally_many_batches(processes):
    parts = [
        _evaluate(batch_size=16, process_index=i, process_count=processes)
        for i in range(processes)
    ]
    assert {len(batches) for batches in parts} == {2}
    kept = [_stack(p, "index")[_stack(p, "mask")] for p in parts]
    np.testing.assert_array_equal(np.sort(np.concatenate(kept)), np.arange(CLIPS))


def test_evaluation_pads_with_silence_that_is_masked():
    last = _evaluate()[-1]
    np.testing.assert_array_equal(last["mask"], np.arange(10) < 3)
    for field in ("audio", "label", "index"):
        assert not last[field][3:].any()
        assert last[field][:3].any()


@pytest.mark.parametrize("batch_size", [7, 23, 64])
def test_evaluation_clip_does_not_depend_on_the_batch_size(batch_size):
    def audio(batches):
        return _stack(batches, "audio")[_stack(batches, "mask")]

    np.testing.assert_array_equal(
        audio(_evaluate()), audio(_evaluate(batch_size=batch_size))
    )


def test_evaluation_noise_has_the_asked_snr():
    batches = _evaluate(Condition(snr_db=(10.0,)), background=None)
    audio = _stack(batches, "audio")[:CLIPS].astype(float)
    clips = AUDIO.astype(float)
    # Independent noise: the mixture's power is (1 + 10^(-snr/10)) times the clip's.
    ratio = np.mean(audio**2, 1) / np.mean(clips**2, 1)
    np.testing.assert_allclose(ratio, 1.1, rtol=0.02)


def test_silence_label_takes_the_reference_level():
    batches = _evaluate(Condition(snr_db=(0.0,)), silence_label=2, reference_rms=0.3)
    audio, label = _stack(batches, "audio")[:CLIPS], _stack(batches, "label")[:CLIPS]
    rms = np.sqrt(np.mean((audio / 32768) ** 2, 1))
    assert rms[label == 2].min() > 0.3
    assert rms[label != 2].max() < 0.2


def test_median_rms_is_that_of_the_keywords():
    labels = np.arange(CLIPS) % 5
    expected = np.median(np.sqrt(np.mean((AUDIO[labels < 3] / 32768.0) ** 2, axis=1)))
    assert pipeline.median_rms(_split(), 3) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(UserError, match="no clip of a keyword"):
        pipeline.median_rms(_split(), 0)


def test_error_of_the_reader_reaches_the_user_unwrapped():
    def read(rows):
        raise UserError("clip7.wav is gone; put it back.")

    batches = train_batches(_split(read), CLEAN, batch_size=4, seed=0)
    with pytest.raises(UserError, match=r"clip7\.wav is gone"):
        next(batches)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"background": None}, "background"),
        ({"noise": None}, "noise recordings"),
        ({"batch_size": 0}, "batch size"),
        ({"process_count": 3}, "batch size is 10"),
        ({"process_index": 2, "process_count": 2}, "Process 2"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_batch(kwargs, message):
    with pytest.raises(UserError, match=message):
        train_batches(
            _split(), FULL, **{"batch_size": 10, "seed": 0, **BANKS, **kwargs}
        )


def test_empty_split_is_refused():
    for batches in (train_batches, pipeline.eval_batches):
        with pytest.raises(UserError, match="train split is empty"):
            batches(_split(clips=0), CLEAN, batch_size=4, seed=0)


def test_throughput_counts_the_clips_and_not_the_padding(monkeypatch):
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: next(clock))
    batch = {"mask": np.array([True, True, False])}
    assert pipeline.measure_throughput(iter([batch] * 9), 5, warm_up=2) == 5 * 2 / 2.0


def test_program_ends_while_an_endless_stream_is_open():
    program = """
        import time
        import numpy as np
        from kws_jax.data import pipeline
        from kws_jax.data.conditions import CLEAN
        from kws_jax.data.corpus import Split
        from kws_jax.data.draws import Recipe, training_selection

        def read(rows):
            time.sleep(0.01)  # so that batches are in the making at the end
            return np.zeros((len(rows), 16000), np.int16)

        names = np.array(["a"] * 50)
        split = Split("train", np.zeros(50, np.int32), names, names, read)
        select = training_selection(50, batch_size=10, seed=0)
        batches = pipeline.selected_batches(Recipe(split, CLEAN), select)
        next(batches)
        print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
