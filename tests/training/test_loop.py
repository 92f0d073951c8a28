"""The training loop: deterministic, resumable, and the same however its work is cut."""

from __future__ import annotations

import copy
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import TESTS
from helpers.training_corpus import (
    AUDIO_DIM,
    TEXT_DIM,
    make_corpus,
    make_task,
    with_dropout,
    with_states,
    with_teacher,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.distillation.representations import Hint
from multistill.distillation.targets import read_pooled, write_pooled, write_soft_targets
from multistill.errors import MultistillError
from multistill.inference.predict import predict
from multistill.models.build import build
from multistill.training.checkpoint import best_weights, load_checkpoint, newest_epoch
from multistill.training.data import TrainingData, micro_batches
from multistill.training.distributed import ProcessGroup
from multistill.training.loop import EpochReport, fit
from multistill.training.optimizer import NamedAdamW
from multistill.training.schedule import learning_rate
from multistill.training.task import TrainingTask, fold_tasks, seed_tasks


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def run(task: TrainingTask, state: Path, **more: object) -> list[EpochReport]:
    return list(fit(task, state_dir=state, device="cpu", **more))  # type: ignore[arg-type]


def losses(reports: list[EpochReport], name: str = "train_loss") -> list[float]:
    return [report.metrics[name] for report in reports]


def weights(state: Path) -> torch.Tensor:
    found, _ = best_weights(state)
    return torch.cat([found[name].flatten().double() for name in sorted(found)])


def test_it_learns(corpus, tmp_path):
    reports = run(make_task(corpus, epochs=8), tmp_path)
    assert reports[-1].metrics["valid_accuracy"] > 0.8
    assert losses(reports)[-1] < losses(reports)[0] * 0.6
    assert [report.epoch for report in reports] == list(range(1, 9))
    assert [report.stop for report in reports] == [False] * 7 + [True]


def test_two_runs_with_dropout_are_equal(corpus, tmp_path):
    task = with_dropout(make_task(corpus))
    first, second = run(task, tmp_path / "a"), run(task, tmp_path / "b")
    assert losses(first) == pytest.approx(losses(second), abs=1e-6)
    torch.testing.assert_close(weights(tmp_path / "a"), weights(tmp_path / "b"), atol=1e-6, rtol=0)
    other = run(replace(task, seed=4), tmp_path / "c")
    assert losses(other) != pytest.approx(losses(first), abs=1e-6)


def test_the_callers_random_state_neither_matters_nor_changes(corpus, tmp_path):
    task = with_dropout(make_task(corpus, epochs=2))
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = run(task, tmp_path / "a")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(1)
    assert losses(run(task, tmp_path / "b")) == losses(first)


def test_a_continued_training_gives_the_uninterrupted_weights(corpus, tmp_path):
    task = with_dropout(make_task(corpus, epochs=5))
    whole = run(task, tmp_path / "whole")
    parts = fit(task, state_dir=tmp_path / "parts", device="cpu")
    for _ in range(2):
        next(parts)
    parts.close()
    rest = run(task, tmp_path / "parts")
    assert [report.epoch for report in rest] == [3, 4, 5]
    assert losses(rest) == losses(whole)[2:]
    assert torch.equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


KILLED = """
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


def test_kill_in_mid_epoch_and_run_again_equals_uninterrupted(corpus, tmp_path):
    task = with_dropout(make_task(corpus, epochs=10, batch_size=4))
    (tmp_path / "task.json").write_text(json.dumps(task.to_dict()))
    state = tmp_path / "killed"
    # Equal sums need equal threads, and Ray tests before this one may have changed the default.
    arguments = [TESTS, tmp_path / "task.json", state, torch.get_num_threads()]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *map(str, arguments)], stdout=subprocess.PIPE
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
    rest = run(task, state)
    assert rest[0].epoch == reached + 1
    whole = run(task, tmp_path / "whole")
    assert losses(rest) == pytest.approx(losses(whole)[reached:], abs=1e-6)
    torch.testing.assert_close(weights(state), weights(tmp_path / "whole"), atol=1e-6, rtol=0)


def test_a_batch_on_a_cpu_is_cut_unless_its_rows_are_compared(corpus, tmp_path, monkeypatch):
    whole = run(make_task(corpus), tmp_path / "whole")
    monkeypatch.setattr("multistill.training.loop.CPU_STATES", 16 * 60)  # 60 frames, width 16
    sizes: list[int] = []

    def counted(lengths: object, *arguments: object) -> Iterator[np.ndarray]:
        for part in micro_batches(lengths, *arguments):  # type: ignore[arg-type]
            sizes.append(len(part))
            yield part

    monkeypatch.setattr("multistill.training.loop.micro_batches", counted)
    cut = run(make_task(corpus), tmp_path / "cut")
    assert max(sizes) < 16
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-5)
    sizes.clear()
    student = with_states(make_task(corpus, epochs=1), tmp_path / "soft.parquet", cka_weight=1.0)
    run(student, tmp_path / "cka")
    assert max(sizes) == 16


def test_a_compiled_training_has_the_losses_and_the_weights_of_a_plain_one(
    corpus, tmp_path, monkeypatch
):
    """Traced forward and backward, free lengths; without torch's C++ stage, which takes minutes."""
    asked: list[dict[str, object]] = []
    original = torch.nn.Module.compile

    def traced(self: torch.nn.Module, **options: object) -> None:
        asked.append(options)
        original(self, backend="aot_eager", fullgraph=True, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)

    def small(**train: object) -> TrainingTask:
        task = make_task(corpus, epochs=1, **train)  # the more operations, the longer it takes
        return replace(task, spec=replace(task.spec, modality="text", fusion="concat"))

    plain = run(small(), tmp_path / "plain")
    torch._dynamo.reset()
    compiled = run(small(compile=True), tmp_path / "compiled")
    traces = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert asked == [{"dynamic": True}]
    assert 1 <= traces <= 4  # not one for each new length
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)
    saved, _ = best_weights(tmp_path / "compiled")
    model = build(small().spec, AUDIO_DIM, TEXT_DIM)
    model.load_state_dict(saved)  # every name as in a plain model
    assert run(small(), tmp_path / "compiled") == []  # `compile` is no part of the identity


def test_a_finished_training_yields_nothing_and_keeps_its_weights(corpus, tmp_path):
    task = make_task(corpus, epochs=2)
    run(task, tmp_path)
    before = weights(tmp_path)
    assert run(task, tmp_path) == []
    assert torch.equal(weights(tmp_path), before)


def test_a_checkpoint_of_an_edited_job_is_refused_by_the_name_of_the_field(corpus, tmp_path):
    run(make_task(corpus, epochs=1), tmp_path)
    with pytest.raises(MultistillError, match=r"`train\.learning_rate` was 0\.003 and is 0\.004"):
        run(make_task(corpus, epochs=1, learning_rate=4e-3), tmp_path)
    with pytest.raises(MultistillError, match=r"`model\.layers` was 1 and is 2"):
        task = make_task(corpus, epochs=1)
        run(replace(task, spec=replace(task.spec, layers=2)), tmp_path)


@pytest.mark.parametrize(
    "cut", [{"accumulation": 3}, {"batch_frames": 60}, {"accumulation": 2, "batch_frames": 100}]
)
def test_cutting_batches_into_pieces_changes_no_loss(corpus, tmp_path, cut):
    whole = run(make_task(corpus), tmp_path / "whole")
    pieces = run(make_task(corpus, **cut), tmp_path / "pieces")
    assert losses(pieces) == pytest.approx(losses(whole), abs=1e-5)
    assert losses(pieces, "valid_loss") == pytest.approx(losses(whole, "valid_loss"), abs=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 50), max_size=30),
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(1, 200)),
)
def test_pieces_hold_every_row_once_and_keep_the_frame_budget(lengths, pieces, frames):
    rows = np.arange(len(lengths))[::-1].copy()
    table = np.asarray(lengths, dtype=np.int64)
    parts = list(micro_batches(rows, table, pieces, frames))
    assert sorted(np.concatenate(parts).tolist() if parts else []) == list(range(len(lengths)))
    assert all(len(part) for part in parts)
    assert len(parts) >= min(pieces, len(lengths))
    if frames is not None:
        for part in parts:
            assert len(part) == 1 or len(part) * table[part].max() <= frames


class Threads:
    """Ranks as threads: the same sums as between processes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.shared: list[torch.Tensor] = []
        self.exchanged = 0

    def world(self, rank: int) -> ProcessGroup:
        def all_reduce(tensor: torch.Tensor) -> None:
            if self.barrier.wait() == 0:
                self.shared = []
                self.exchanged += 1
            self.barrier.wait()
            self.shared.append(tensor.clone())
            self.barrier.wait()
            total = torch.stack(sorted(self.shared, key=lambda t: t.double().sum().item())).sum(0)
            tensor.copy_(total)
            self.barrier.wait()

        return ProcessGroup(rank, self.size, all_reduce)

    def fit(self, task: TrainingTask, state: Path) -> list[list[EpochReport]]:
        found: list[list[EpochReport]] = [[] for _ in range(self.size)]
        failed: list[BaseException] = []

        def work(rank: int) -> None:
            try:
                found[rank] = run(task, state, world=self.world(rank))
            except BaseException as error:
                failed.append(error)
                if not isinstance(error, MultistillError):  # those are raised on all ranks
                    self.barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [error for error in failed if not isinstance(error, threading.BrokenBarrierError)]
        if errors:
            raise errors[0]
        return found


@pytest.fixture
def one_initialisation(corpus, monkeypatch) -> None:
    """Threads share torch's random state, so they must not draw weights at the same time."""
    task = make_task(corpus)
    torch.manual_seed(task.seed)
    model = build(task.spec, AUDIO_DIM, TEXT_DIM)
    monkeypatch.setattr("multistill.training.loop.build", lambda *_: copy.deepcopy(model))


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_follow_one_worker(corpus, tmp_path, workers, one_initialisation):
    """72 rows in batches of 16: the last has 8; in batches of 71: the last has 1."""
    for batch_size in (16, 71):
        task = make_task(corpus, batch_size=batch_size, accumulation=2)
        alone = run(task, tmp_path / f"1-{batch_size}")
        ranks = Threads(workers).fit(task, tmp_path / f"{workers}-{batch_size}")
        for reports in ranks:
            assert losses(reports) == pytest.approx(losses(alone), abs=1e-4)
            names = ("valid_loss", "valid_macro_f1", "valid_uar")
            for name in names:
                assert losses(reports, name) == pytest.approx(losses(alone, name), abs=1e-4)


def test_gradients_are_exchanged_once_per_step_whatever_the_accumulation(corpus, tmp_path):
    def exchanges(**train: int) -> int:
        threads = Threads(2)
        threads.fit(make_task(corpus, epochs=1, **train), tmp_path / str(sorted(train.items())))
        return threads.exchanged

    assert exchanges(accumulation=4) == exchanges(accumulation=1)
    # 72 rows: 5 steps of 16, 9 of 8.
    assert exchanges(batch_size=8) - exchanges(batch_size=16) == 9 - 5


def test_the_learning_rate_rises_then_falls_to_zero():
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[9] == max(rates) == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[0] > 0
    assert rates[-1] < 0.001
    assert learning_rate(0, 1, 1.0, 0.0) == 1.0


def test_early_stopping_and_the_best_epoch_by_the_chosen_metric(corpus, tmp_path):
    task = make_task(corpus, epochs=40, learning_rate=0.05, metric="loss", patience=2)
    reports = run(task, tmp_path)
    found = losses(reports, "valid_loss")
    best = int(np.argmin(found)) + 1
    assert len(reports) < 40
    assert len(reports) == best + 2
    assert [report.best for report in reports].index(True) == 0
    _, progress = best_weights(tmp_path)
    assert progress.best_epoch == best
    assert progress.stopped


def test_without_validation_rows_the_newest_weights_are_the_result(corpus, tmp_path):
    data = TrainingData.open(make_task(corpus))
    nothing = replace(
        data.valid, ids=[], shares=data.valid.shares[:0], winner=data.valid.winner[:0]
    )
    reports = run(make_task(corpus, epochs=2), tmp_path, data=replace(data, valid=nothing))
    assert best_weights(tmp_path)[1].best_epoch == 2
    assert not any(name.startswith("valid") for name in reports[-1].metrics)


def test_a_loss_that_is_not_finite_stops_and_names_the_utterance(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", broken=21)
    with pytest.raises(MultistillError, match=r"utt-021.*not-finite\.json"):
        run(make_task(corpus), tmp_path / "state")
    report = json.loads((tmp_path / "state" / "not-finite.json").read_text())
    assert report["not_finite"] == ["utt-021"]
    assert "utt-021" in report["utterance_ids"]
    assert len(report["utterance_ids"]) <= 16
    assert report["epoch"] == 1


def test_every_rank_stops_at_the_same_bad_batch(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", broken=21)
    with pytest.raises(MultistillError, match="utt-021"):
        Threads(2).fit(make_task(corpus), tmp_path / "state")
    report = json.loads((tmp_path / "state" / "not-finite.json").read_text())
    assert report["not_finite"] == ["utt-021"]


def test_a_left_out_fold_is_not_trained_on_and_validation_stays(corpus):
    base = make_task(corpus)
    everything = TrainingData.open(base)
    seen: list[str] = []
    for task in fold_tasks(base, range(4)):
        data = TrainingData.open(task)
        assert data.valid.ids == everything.valid.ids
        left_out = set(everything.train.ids) - set(data.train.ids)
        assert left_out
        seen += sorted(left_out)
    assert sorted(seen) == sorted(everything.train.ids)


def test_quarantined_clips_are_counted_and_test_rows_never_read(corpus):
    data = TrainingData.open(make_task(corpus))
    # Two clips have no features: one in the validation split, one in test.
    assert data.missing == 1
    assert not any(int(name[-1]) == 9 for name in (*data.train.ids, *data.valid.ids))


def test_a_student_at_weight_zero_is_its_control_and_otherwise_not(corpus, tmp_path):
    control = with_dropout(make_task(corpus))
    alone = run(control, tmp_path / "control")
    path = tmp_path / "soft.parquet"
    same = run(with_teacher(control, path, 0.0), tmp_path / "zero")
    assert losses(same) == pytest.approx(losses(alone), abs=1e-6)
    taught = run(with_teacher(control, path, 0.7), tmp_path / "taught")
    assert losses(taught) != pytest.approx(losses(alone), abs=1e-2)


def hint_of(task: TrainingTask, state: Path, epoch: int) -> float:
    """Mean hint loss over the training rows under a checkpoint."""
    data = TrainingData.open(task)
    taught = data.train.states
    assert taught is not None
    kept = load_checkpoint(state, epoch)
    model = build(task.spec, AUDIO_DIM, TEXT_DIM)
    model.load_state_dict(kept.model)
    pooled = predict(model, data.store, data.train.ids, "cpu").pooled
    [projection] = [tensor for name, tensor in kept.optimizer.items() if name.endswith("weight")]
    hint = Hint(model.pooled_dim, taught.table.shape[1], taught.spaces)
    hint.projection.weight.data = projection
    space = torch.from_numpy(taught.space)
    return hint(torch.tensor(pooled), taught.table[taught.place], space).mean().item()


@pytest.mark.parametrize("folds", [1, 3])
def test_a_hint_brings_the_student_to_its_teachers_and_goes_on_after_a_stop(
    corpus, tmp_path, folds
):
    task = with_dropout(make_task(corpus, epochs=6))
    student = with_states(task, tmp_path / "soft.parquet", folds, hint_weight=2.0)
    assert student.distillation is not None
    whole = run(student, tmp_path / "whole")
    parts = fit(student, state_dir=tmp_path / "parts", device="cpu")
    for _ in range(2):
        next(parts)
    parts.close()
    first = hint_of(student, tmp_path / "parts", 1)
    assert hint_of(student, tmp_path / "whole", 6) < 0.5 * first
    rest = run(student, tmp_path / "parts")
    assert losses(rest) == losses(whole)[2:]
    ended = [load_checkpoint(tmp_path / name, 6) for name in ("whole", "parts")]
    assert ended[0].optimizer.keys() == ended[1].optimizer.keys()
    for kind in ("model", "optimizer"):
        a, b = (getattr(checkpoint, kind) for checkpoint in ended)
        assert all(torch.equal(a[name], b[name]) for name in a)
    # What is handed over is the control's model: the projection is thrown away.
    names, _ = best_weights(tmp_path / "whole")
    run(task.with_train(epochs=1), tmp_path / "control")
    assert names.keys() == best_weights(tmp_path / "control")[0].keys()


def test_cka_changes_what_is_learnt_and_schedules_hold_for_it(corpus, tmp_path):
    task = make_task(corpus, epochs=2)
    control = run(task, tmp_path / "control")
    path = tmp_path / "soft.parquet"
    nothing = run(with_states(task, path, cka_weight=0.0), tmp_path / "0")
    assert losses(nothing) == pytest.approx(losses(control), abs=1e-6)
    taught = run(with_states(task, path, cka_weight=1.0), tmp_path / "1")
    assert losses(taught)[0] > losses(control)[0] + 0.1
    assert losses(taught, "valid_loss") != losses(control, "valid_loss")
    rising = {"cka_weight": 1.0, "schedule": "rise", "schedule_share": 1.0}
    late = run(with_states(task, path, **rising), tmp_path / "rise")
    assert losses(control)[0] < losses(late)[0] < losses(taught)[0]


def test_representations_that_lack_a_row_are_refused(corpus, tmp_path):
    path = tmp_path / "soft.parquet"
    student = with_states(make_task(corpus), path, hint_weight=1.0)
    rows, pooled = read_pooled(path)
    write_pooled(path, rows[1:], pooled[1:])
    with pytest.raises(MultistillError, match="lack 1 of 72 training utterances"):
        run(student, tmp_path / "state")
    (tmp_path / "pooled.safetensors").unlink()
    with pytest.raises(MultistillError, match=r"pooled\.safetensors is missing"):
        run(student, tmp_path / "state")


def test_soft_targets_that_lack_rows_are_refused(corpus, tmp_path):
    task = make_task(corpus)
    path = tmp_path / "soft.parquet"
    student = with_teacher(task, path, 0.5)
    ids = TrainingData.open(task).train.ids[1:]
    write_soft_targets(path, ids, np.zeros((len(ids), 7)), "t", np.zeros(len(ids)))
    with pytest.raises(MultistillError, match="lack 1 of 72 training utterances"):
        run(student, tmp_path / "state")


@pytest.mark.parametrize(
    "train",
    [
        {"loss": "focal"},
        {"loss": "cross-entropy", "label_source": "winner", "class_weights": "inverse"},
        {"loss": "mse", "class_weights": "effective"},
        {"oversample": True},
        {"precision": "bfloat16"},
        {"max_frames": 8},
    ],
)
def test_every_way_to_train_learns(corpus, tmp_path, train):
    reports = run(make_task(corpus, epochs=8, **train), tmp_path)
    assert losses(reports)[-1] < losses(reports)[0]
    assert all(math.isfinite(value) for report in reports for value in report.metrics.values())
    assert max(losses(reports, "valid_accuracy")) > 0.5


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_unimodal_models_and_dialogue_context_train(corpus, tmp_path, modality):
    task = make_task(corpus, epochs=3)
    spec = replace(task.spec, modality=modality, context_turns=2)
    reports = run(replace(task, spec=spec), tmp_path)
    assert losses(reports)[-1] < losses(reports)[0]


def test_tasks_travel_as_json(corpus):
    for task in [*seed_tasks(make_task(corpus, "t"), 3), *fold_tasks(make_task(corpus), range(2))]:
        assert TrainingTask.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert [task.name for task in seed_tasks(make_task(corpus, "t"), 2)] == ["t-seed0", "t-seed1"]
    assert seed_tasks(make_task(corpus, "t"), 1)[0].name == "t"


def test_a_validation_clip_that_is_not_finite_is_named(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", broken=18)  # sessions 8 are for validation
    with pytest.raises(MultistillError, match=r"validation utterances.*utt-018"):
        run(make_task(corpus), tmp_path / "state")


def test_a_full_gpu_gives_advice(corpus, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("multistill.training.loop.training_step", full)
    with pytest.raises(MultistillError, match=r"train\.batch_frames"):
        run(make_task(corpus), tmp_path)


def test_the_optimiser_is_torchs_adamw():
    torch.manual_seed(0)
    ours = torch.nn.Linear(5, 3)
    theirs = copy.deepcopy(ours)
    mine = NamedAdamW(ours.named_parameters(), weight_decay=0.1)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.02, weight_decay=0.1)
    for _ in range(5):
        x = torch.randn(4, 5)
        for model in (ours, theirs):
            model.zero_grad()
            model(x).square().mean().backward()
        mine.step(0.02)
        reference.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)
    again = NamedAdamW(ours.named_parameters(), weight_decay=0.1)
    again.load(mine.tensors())
    assert again.tensors().keys() == mine.tensors().keys()
    assert all(torch.equal(again.tensors()[name], t) for name, t in mine.tensors().items())
    ours.zero_grad()
    restored = copy.deepcopy(ours)
    third = NamedAdamW(restored.named_parameters(), weight_decay=0.1)
    third.load(mine.tensors())
    for model, optimizer in ((ours, mine), (restored, third)):
        model(torch.ones(2, 5)).sum().backward()
        optimizer.step(0.01)
    assert torch.equal(ours.weight, restored.weight)


def test_training_does_not_import_ray(corpus, tmp_path):
    (tmp_path / "task.json").write_text(json.dumps(make_task(corpus, epochs=1).to_dict()))
    code = KILLED + "\nassert 'ray' not in sys.modules"
    arguments = [str(TESTS), tmp_path / "task.json", tmp_path / "state", "1"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
