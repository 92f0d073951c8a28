"""The training loop: deterministic, resumable, and independent of how batches are split."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.paths import TESTS
from helpers.training_corpus import (
    AUDIO_DIM,
    TEXT_DIM,
    losses,
    make_corpus,
    make_task,
    run,
    weights,
    with_dropout,
    with_states,
)

from multistill.errors import MultistillError
from multistill.models.build import build
from multistill.models.spec import Paths, Standardize
from multistill.training.checkpoint import best_weights, newest_epoch
from multistill.training.data import TrainingData, split_micro_batches
from multistill.training.loop import fit
from multistill.training.task import TrainingTask

SCRIPT = """
import json
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from multistill.training.loop import fit
from multistill.training.task import TrainingTask
torch.set_num_threads(int(sys.argv[4]))
task = TrainingTask.from_dict(json.loads(Path(sys.argv[2]).read_text()))
for report in fit(task, state_dir=Path(sys.argv[3]), device="cpu"):
    print(report.epoch, flush=True)
"""
"""Trains in a separate process; arguments: folder of the tests, task file, state, threads."""


def test_training_lowers_the_loss_and_reaches_high_accuracy(corpus, tmp_path):
    reports = run(make_task(corpus, epochs=8), tmp_path)
    assert reports[-1].metrics["valid_accuracy"] > 0.8
    assert losses(reports)[-1] < losses(reports)[0] * 0.6
    assert [report.epoch for report in reports] == list(range(1, 9))
    assert [report.stop for report in reports] == [False] * 7 + [True]


@pytest.mark.parametrize(
    "train",
    [
        {"loss": "focal"},
        {"loss": "cross-entropy", "label_source": "winner", "class_weights": "inverse"},
        {"loss": "mse", "class_weights": "effective"},
        {"oversample": True},
        {"precision": "bfloat16"},
        {"max_frames": 8},
        {"average_epochs": 2.0, "label_smoothing": 0.1},
        {"loss": "mse", "label_smoothing": 0.2},
    ],
)
def test_training_works_with_every_loss_and_option(corpus, tmp_path, train):
    reports = run(make_task(corpus, epochs=8, **train), tmp_path)
    assert losses(reports)[-1] < losses(reports)[0]
    assert all(math.isfinite(value) for report in reports for value in report.metrics.values())
    assert max(losses(reports, "valid_accuracy")) > 0.5


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_unimodal_models_with_dialogue_context_can_be_trained(corpus, tmp_path, modality):
    task = make_task(corpus, epochs=3)
    spec = replace(task.spec, modality=modality, context_turns=2)
    reports = run(replace(task, spec=spec), tmp_path)
    assert losses(reports)[-1] < losses(reports)[0]


# --- determinism and resuming ---


def test_two_runs_with_dropout_are_equal(corpus, tmp_path):
    task = with_dropout(make_task(corpus))
    first, second = run(task, tmp_path / "a"), run(task, tmp_path / "b")
    assert losses(first) == pytest.approx(losses(second), abs=1e-6)
    torch.testing.assert_close(weights(tmp_path / "a"), weights(tmp_path / "b"), atol=1e-6, rtol=0)
    other = run(replace(task, seed=4), tmp_path / "c")
    assert losses(other) != pytest.approx(losses(first), abs=1e-6)


def test_the_callers_random_state_has_no_effect_and_is_restored(corpus, tmp_path):
    task = with_dropout(make_task(corpus, epochs=2))
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = run(task, tmp_path / "a")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(1)
    assert losses(run(task, tmp_path / "b")) == losses(first)


@pytest.mark.parametrize(
    "train", [{}, {"average_epochs": 1.5, "select_window": 3}, {"average_epochs": 10.0}]
)
def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(corpus, tmp_path, train):
    task = with_dropout(make_task(corpus, epochs=5, **train))
    uninterrupted = run(task, tmp_path / "uninterrupted")
    interrupted = fit(task, state_dir=tmp_path / "resumed", device="cpu")
    for _ in range(2):
        next(interrupted)
    interrupted.close()
    resumed = run(task, tmp_path / "resumed")
    assert [report.epoch for report in resumed] == [3, 4, 5]
    for name in ("train_loss", "valid_loss", "valid_macro_f1"):
        assert losses(resumed, name) == losses(uninterrupted, name)[2:]
    assert torch.equal(weights(tmp_path / "resumed"), weights(tmp_path / "uninterrupted"))
    progress = [best_weights(tmp_path / name)[1] for name in ("resumed", "uninterrupted")]
    assert progress[0].best_epoch == progress[1].best_epoch
    assert progress[0].best == progress[1].best


def test_a_training_killed_during_an_epoch_resumes_to_the_uninterrupted_weights(corpus, tmp_path):
    task = with_dropout(make_task(corpus, epochs=10, batch_size=4, average_epochs=2.0))
    (tmp_path / "task.json").write_text(json.dumps(task.to_dict()))
    state = tmp_path / "killed"
    # Equal sums need equal threads, and Ray tests before this one may have changed the default.
    arguments = [TESTS, tmp_path / "task.json", state, torch.get_num_threads()]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(2):
        process.stdout.readline()
    time.sleep(0.02)  # into the next epoch
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached, problems = newest_epoch(state)
    assert 2 <= reached < 10
    assert problems == []
    resumed = run(task, state)
    assert resumed[0].epoch == reached + 1
    uninterrupted = run(task, tmp_path / "uninterrupted")
    assert losses(resumed) == pytest.approx(losses(uninterrupted)[reached:], abs=1e-6)
    torch.testing.assert_close(
        weights(state), weights(tmp_path / "uninterrupted"), atol=1e-6, rtol=0
    )


def test_a_finished_training_yields_nothing_and_keeps_its_weights(corpus, tmp_path):
    task = make_task(corpus, epochs=2)
    run(task, tmp_path)
    before = weights(tmp_path)
    assert run(task, tmp_path) == []
    assert torch.equal(weights(tmp_path), before)


def test_the_checkpoint_of_an_edited_job_is_refused_with_the_changed_field(corpus, tmp_path):
    run(make_task(corpus, epochs=1), tmp_path)
    with pytest.raises(MultistillError, match=r"`train\.learning_rate` was 0\.003 and is 0\.004"):
        run(make_task(corpus, epochs=1, learning_rate=4e-3), tmp_path)
    with pytest.raises(MultistillError, match=r"`model\.layers` was 1 and is 2"):
        task = make_task(corpus, epochs=1)
        run(replace(task, spec=replace(task.spec, layers=2)), tmp_path)


# --- micro-batches and compilation ---


@pytest.mark.parametrize(
    "split", [{"accumulation": 3}, {"batch_frames": 60}, {"accumulation": 2, "batch_frames": 100}]
)
def test_splitting_batches_into_micro_batches_changes_no_loss(corpus, tmp_path, split):
    whole = run(make_task(corpus), tmp_path / "whole")
    parts = run(make_task(corpus, **split), tmp_path / "parts")
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    assert losses(parts, "valid_loss") == pytest.approx(losses(whole, "valid_loss"), abs=1e-5)


def test_batches_on_a_cpu_are_split_unless_the_loss_compares_their_rows(
    corpus, tmp_path, monkeypatch
):
    whole = run(make_task(corpus), tmp_path / "whole")
    # 60 frames at width 16
    monkeypatch.setattr("multistill.training.loop.CPU_MICRO_BATCH_VALUES", 16 * 60)
    sizes: list[int] = []

    def recorded(*arguments: object) -> Iterator[np.ndarray]:
        for part in split_micro_batches(*arguments):  # type: ignore[arg-type]
            sizes.append(len(part))
            yield part

    monkeypatch.setattr("multistill.training.loop.split_micro_batches", recorded)
    parts = run(make_task(corpus), tmp_path / "parts")
    assert max(sizes) < 16
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    sizes.clear()
    student = with_states(make_task(corpus, epochs=1), tmp_path / "soft.parquet", cka_weight=1.0)
    run(student, tmp_path / "cka")
    assert max(sizes) == 16


def test_compiled_training_gives_the_losses_and_weight_names_of_eager_training(
    corpus, tmp_path, monkeypatch
):
    """Traces forward and backward with dynamic lengths, but skips inductor, which takes minutes."""
    compile_options: list[dict[str, object]] = []
    original = torch.nn.Module.compile

    def traced(self: torch.nn.Module, **options: object) -> None:
        compile_options.append(options)
        original(self, backend="aot_eager", fullgraph=True, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)

    def small(**train: object) -> TrainingTask:
        task = make_task(corpus, epochs=1, **train)  # the more operations, the longer it takes
        return replace(task, spec=replace(task.spec, modality="text", fusion="concat"))

    eager = run(small(), tmp_path / "eager")
    torch._dynamo.reset()
    compiled = run(small(compile=True), tmp_path / "compiled")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compile_options == [{"dynamic": True}]
    assert 1 <= graphs <= 4  # not one for each new length
    assert losses(compiled) == pytest.approx(losses(eager), abs=1e-5)
    saved, _ = best_weights(tmp_path / "compiled")
    model = build(small().spec, AUDIO_DIM, TEXT_DIM)
    model.load_state_dict(saved)  # the names are those of an eager model
    assert run(small(), tmp_path / "compiled") == []  # `compile` is not part of the identity


# --- the best epoch ---


def test_patience_stops_the_training_and_the_best_epoch_follows_the_metric(corpus, tmp_path):
    task = make_task(corpus, epochs=40, learning_rate=0.05, metric="loss", patience=2)
    reports = run(task, tmp_path)
    best = int(np.argmin(losses(reports, "valid_loss"))) + 1
    assert len(reports) < 40
    assert len(reports) == best + 2
    _, progress = best_weights(tmp_path)
    assert progress.best_epoch == best
    assert progress.stopped


def test_patience_counts_epochs_without_a_better_mean_over_the_window(
    corpus, tmp_path, monkeypatch
):
    """Epoch 2 is lucky; the mean over three epochs is highest at epoch 6."""
    curve = [0.2, 0.9, 0.2, 0.7, 0.8, 0.7, 0.1, 0.1, 0.1, 0.1]

    def scripted(training: Any) -> dict[str, float]:
        return {"valid_macro_f1": curve[training.progress.epoch], "valid_loss": 1.0}

    monkeypatch.setattr("multistill.training.loop._Training._validate", scripted)
    for window, best in ((1, 2), (3, 6)):
        task = make_task(corpus, epochs=10, patience=4, select_window=window)
        state = tmp_path / str(window)
        for _ in zip(range(best), fit(task, state_dir=state, device="cpu"), strict=False):
            pass  # and the rest after a restart
        run(task, state)
        progress = best_weights(state)[1]
        assert (progress.best_epoch, progress.epoch) == (best, min(10, best + 4))


def test_without_validation_rows_the_newest_weights_are_the_result(corpus, tmp_path):
    data = TrainingData.open(make_task(corpus))
    nothing = replace(
        data.valid, ids=[], shares=data.valid.shares[:0], labels=data.valid.labels[:0]
    )
    reports = run(make_task(corpus, epochs=2), tmp_path, data=replace(data, valid=nothing))
    assert best_weights(tmp_path)[1].best_epoch == 2
    assert not any(name.startswith("valid") for name in reports[-1].metrics)


# --- errors and imports ---


def test_a_validation_clip_with_non_finite_outputs_is_named(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", broken=18)  # session 8 is for validation
    with pytest.raises(MultistillError, match=r"validation utterances.*utt-018"):
        run(make_task(corpus), tmp_path / "state")


def test_out_of_gpu_memory_names_the_setting_to_lower(corpus, tmp_path, monkeypatch):
    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("multistill.training.loop.training_step", out_of_memory)
    with pytest.raises(MultistillError, match=r"train\.batch_frames"):
        run(make_task(corpus), tmp_path)


def test_the_loop_does_not_import_ray(corpus, tmp_path):
    (tmp_path / "task.json").write_text(json.dumps(make_task(corpus, epochs=1).to_dict()))
    code = SCRIPT + "\nassert 'ray' not in sys.modules"
    arguments = [str(TESTS), tmp_path / "task.json", tmp_path / "state", "1"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


@pytest.mark.parametrize("paths", ["deep", "wide", "both"])
@pytest.mark.parametrize("standardize", ["none", "encoder"])
def test_all_that_a_head_standardises_is_set_from_the_training_utterances(
    tmp_path: Path, paths: Paths, standardize: Standardize
) -> None:
    task = make_task(make_corpus(tmp_path / "corpus", offset=3.0), epochs=1)
    task = replace(task, spec=replace(task.spec, paths=paths, standardize=standardize))
    run(task, tmp_path / "state")
    tensors, _ = best_weights(tmp_path / "state")
    centres = [tensor for name, tensor in tensors.items() if name.endswith(".centre")]
    assert bool(centres) == (paths != "deep" or standardize != "none")
    assert all((centre != 0).all() for centre in centres)
