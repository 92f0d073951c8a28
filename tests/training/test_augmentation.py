"""Augmentation of training states: what each change does, and that nothing else decides it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training_corpus import (
    AUDIO_DIM,
    TEXT_DIM,
    ThreadGroup,
    losses,
    make_copies,
    make_corpus,
    make_task,
    run,
    weights,
    with_dropout,
    with_teacher,
)
from hypothesis import given
from hypothesis import strategies as st

from multistill.config import AugmentationConfig
from multistill.errors import MultistillError
from multistill.models.build import build
from multistill.models.losses import label_loss
from multistill.models.spec import ModelSpec
from multistill.training.augmentation import StateAugmentation
from multistill.training.checkpoint import best_weights
from multistill.training.data import TrainingData
from multistill.training.epochs import Epoch, EpochPlanner
from multistill.training.loop import fit
from multistill.training.objective import Objective
from multistill.training.prefetch import MicroBatch, Prefetcher
from multistill.training.task import TrainingTask
from multistill.typing import IntArray

ALL = {
    "mixup": 0.4,
    "time_masks": 2,
    "feature_masks": 1,
    "noise": 0.3,
    "word_dropout": 0.2,
    "word_swap": 0.3,
}
KINDS: dict[str, dict[str, Any]] = {
    **{name: {name: value} for name, value in ALL.items()},
    "pooled": {"mixup": 0.4, "mixup_of": "pooled"},
    "all": ALL,
    "all, pooled": {**ALL, "mixup_of": "pooled"},
}


@pytest.fixture(scope="module")
def copied(corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_copies(corpus, tmp_path_factory.mktemp("copies"), copies=2)


def augmented(corpus: tuple[Path, Path], kind: str, **train: Any) -> TrainingTask:
    return make_task(corpus, augmentation=KINDS[kind], **train)


def read(task: TrainingTask, epoch: int = 1) -> tuple[Epoch, MicroBatch, MicroBatch]:
    """The first batch of an epoch, as it is trained on, and as it stands in the store."""
    data = TrainingData.open(task)
    planned = EpochPlanner(task, data).plan(epoch)
    config = task.train.augmentation
    change = StateAugmentation(config, data.statistics(task), task.spec, data.classes)
    device = torch.device("cpu")
    group = [planned.batches[0]]
    changed = Prefetcher(data.store, device, None, None, change)
    plain = Prefetcher(data.store, device, None)
    [left] = changed.micro_batches(data.train, group, planned)
    [right] = plain.micro_batches(data.train, group, planned)
    return planned, left, right


# --- what decides the draws ---


@pytest.mark.usefixtures("shared_initialisation")
@pytest.mark.parametrize("kind", KINDS)
def test_workers_and_pieces_change_no_loss(corpus, copied, tmp_path, kind):
    task = replace(augmented(corpus, kind, epochs=2, oversample=True), copies=str(copied))
    plain = run(replace(make_task(corpus, epochs=2, oversample=True)), tmp_path / "plain")
    single = run(task, tmp_path / "single")
    assert losses(single) != pytest.approx(losses(plain), abs=1e-3)
    pieces = run(task.with_train(accumulation=3, batch_frames=60), tmp_path / "pieces")
    assert losses(pieces) == pytest.approx(losses(single), abs=1e-5)
    for reports in ThreadGroup(2).fit(task, tmp_path / "ranks"):
        assert losses(reports) == pytest.approx(losses(single), abs=1e-4)
        assert losses(reports, "valid_loss") == pytest.approx(
            losses(single, "valid_loss"), abs=1e-4
        )


@pytest.mark.parametrize("kind", ["all", "all, pooled"])
def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(
    corpus, copied, tmp_path, kind
):
    task = replace(with_dropout(augmented(corpus, kind, epochs=3)), copies=str(copied))
    run(task, tmp_path / "uninterrupted")
    interrupted = fit(task, state_dir=tmp_path / "resumed", device="cpu")
    next(interrupted)
    interrupted.close()
    assert [report.epoch for report in run(task, tmp_path / "resumed")] == [2, 3]
    assert torch.equal(weights(tmp_path / "resumed"), weights(tmp_path / "uninterrupted"))


def test_every_place_of_every_epoch_has_draws_of_its_own(corpus, copied):
    task = replace(augmented(corpus, "all", oversample=True), copies=str(copied))
    data = TrainingData.open(task)
    planner = EpochPlanner(task, data)
    epochs = [planner.plan(number) for number in (1, 2)]
    keys = [key for epoch in epochs for key in epoch.keys]
    assert len(set(keys)) == len(keys) == 2 * len(data.train)
    assert max(np.bincount(epochs[0].rows)) > 1, "a clip is drawn twice"
    draws = {float(epoch.random(place).random()) for epoch in epochs for place in range(72)}
    assert len(draws) == 144
    assert {0, 1, 2} == set(epochs[0].copies.tolist())
    assert epochs[0].mixing.min() >= 0.5


def test_the_draws_of_a_clip_do_not_depend_on_other_clips(corpus):
    task = augmented(corpus, "all")
    data = TrainingData.open(task)
    train = data.train.take(np.arange(0, len(data.train), 2))
    half = replace(data, train=train, part=train.ids)
    everything, fewer = (EpochPlanner(task, each).plan(1) for each in (data, half))
    assert [everything.keys[place] for place in range(0, 72, 2)] == list(fewer.keys)
    np.testing.assert_array_equal(everything.mixing[::2], fewer.mixing)


def test_an_epoch_of_several_passes_has_all_places_of_each(corpus):
    task = augmented(corpus, "all")
    data = TrainingData.open(task)
    few = replace(data, train=data.train.take(np.arange(24)))  # three passes
    planner = EpochPlanner(task, few)
    epoch = planner.plan(2)
    assert len(epoch.rows) == len(set(epoch.keys)) == 72
    assert sorted(np.concatenate(epoch.batches).tolist()) == list(range(72))
    np.testing.assert_array_equal(epoch.partners // 24, np.arange(72) // 24)
    assert {key[1] for key in epoch.keys} == {4, 5, 6}


def test_validation_and_standardisation_see_the_clips_as_they_are(corpus, copied, tmp_path):
    """A training that hardly moves has the validation losses of one without augmentation."""
    plain = make_task(corpus, epochs=1, learning_rate=1e-12)
    task = replace(plain, copies=str(copied)).with_train(augmentation=ALL)
    one, other = run(plain, tmp_path / "plain"), run(task, tmp_path / "augmented")
    assert losses(other, "valid_loss") == pytest.approx(losses(one, "valid_loss"), abs=1e-6)
    assert losses(other) != pytest.approx(losses(one), abs=1e-3)
    buffers = [best_weights(tmp_path / name)[0] for name in ("plain", "augmented")]
    for name, tensor in buffers[0].items():
        if name.endswith((".centre", ".scale")):
            assert torch.equal(tensor, buffers[1][name])


@pytest.mark.parametrize("kind", ["mixup", "pooled"])
def test_a_clip_with_bad_states_is_named_and_not_those_that_it_was_drawn_for(tmp_path, kind):
    corpus = make_corpus(tmp_path / "corpus", broken=13)
    with pytest.raises(MultistillError, match=r"not finite.*\(utterance utt-013\)"):
        run(augmented(corpus, kind), tmp_path / "state")


# --- mixing ---


def pair(lengths: tuple[int, int], tokens: tuple[int, int]) -> MicroBatch:
    """Two clips of constant states -1 and 1 with one-hot labels 0 and 1."""
    from multistill.features.collate import Batch

    def padded(sizes: tuple[int, int], dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.arange(max(1, *sizes)) < torch.tensor(sizes)[:, None]
        values = torch.tensor([-1.0, 1.0])[:, None, None].expand(2, mask.shape[1], dim)
        return values * mask[:, :, None], mask

    audio, text = padded(lengths, 3), padded(tokens, 2)
    return MicroBatch(
        rows=[0, 1],
        states=Batch(["a", "b"], *audio, *text),
        shares=torch.eye(2),
        labels=torch.tensor([0, 1]),
        dimensions=torch.tensor(
            [[1.0, 2.0, torch.nan, torch.nan], [3.0, torch.nan, 4.0, torch.nan]]
        ),
    )


def one_place(mixing: float) -> Epoch:
    places: IntArray = np.array([0, 1])
    shares = np.array([mixing, 1.0], np.float32)
    return Epoch(places, places, places, places[::-1].copy(), shares, [places], [(0,), (1,)])


@given(
    st.tuples(st.integers(1, 9), st.integers(0, 9)),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.floats(0.5, 1.0, width=32),
)
def test_a_mixture_has_the_clips_length_and_means_mixed_by_the_share(lengths, tokens, share):
    change = StateAugmentation(AugmentationConfig(mixup=1.0), None, ModelSpec("multimodal"), [])
    mixed = change(pair(lengths, tokens), one_place(share), np.array([0]))
    states, mean = mixed.states, (1 - share) - share
    for values, mask, (own, other) in (
        (states.audio, states.audio_mask, lengths),
        (states.text, states.text_mask, tokens),
    ):
        assert int(mask.sum()) == own
        expected = mean if other else -1.0
        np.testing.assert_allclose(values[mask].numpy(), expected, atol=1e-6)
    assert mixed.partner is not None and mixed.mixing is not None
    assert (mixed.labels.tolist(), mixed.partner.labels.tolist()) == ([0], [1])
    np.testing.assert_allclose(mixed.dimensions[0, 0], share * 1 + (1 - share) * 3, rtol=1e-6)
    assert mixed.dimensions[0, 1] == 2.0 and mixed.partner.dimensions[0, 2] == 4.0
    assert mixed.dimensions[0, 2:].isnan().all() and mixed.partner.dimensions[0, 1].isnan()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_mixture_is_that_against_the_mixed_shares(corpus, smoothing):
    task = augmented(corpus, "mixup", label_smoothing=smoothing, class_weights="inverse")
    data = TrainingData.open(task)
    _, batch, _ = read(task)
    model = build(task.spec, AUDIO_DIM, TEXT_DIM).eval()
    objective = Objective(task, data.train, model.pooled_dim)
    states = batch.states
    output = model(states.audio, states.audio_mask, states.text, states.text_mask)
    assert batch.partner is not None and batch.mixing is not None
    shares = batch.partner.shares.lerp(batch.shares, batch.mixing[:, None])
    expected = label_loss(
        output.logits, shares, batch.labels, "soft-cross-entropy", "shares",
        objective.class_weights, smoothing,
    )  # fmt: skip
    torch.testing.assert_close(objective(output, batch, 0.0), expected)


def test_teacher_targets_are_mixed_like_labels(corpus, tmp_path):
    """The gradient of a distilled mixture is that against the mixed softened probabilities."""
    task = with_teacher(augmented(corpus, "mixup"), tmp_path / "soft.parquet", 1.0)
    data = TrainingData.open(task)
    _, batch, _ = read(task)
    assert batch.partner is not None and batch.mixing is not None
    logits = torch.randn(len(batch.labels), 7, requires_grad=True)
    output = (
        build(task.spec, AUDIO_DIM, TEXT_DIM)
        .eval()(
            batch.states.audio, batch.states.audio_mask, batch.states.text, batch.states.text_mask
        )
        ._replace(logits=logits)
    )
    Objective(task, data.train, 1)(output, batch, 0.0).sum().backward()
    soft = [
        torch.softmax(each.teacher_logits / 3.0, dim=1)  # type: ignore[operator]
        for each in (batch, batch.partner)
    ]
    target = soft[1].lerp(soft[0], batch.mixing[:, None])
    # d/dz of T^2 KL(p || softmax(z / T)) is T (softmax(z / T) - p).
    expected = 3.0 * (torch.softmax(logits.detach() / 3.0, dim=1) - target)
    torch.testing.assert_close(logits.grad, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("paths", ["wide", "deep", "both"])
def test_manifold_mixup_mixes_what_the_classifier_reads(corpus, paths):
    task = augmented(corpus, "pooled")
    spec = replace(task.spec, paths=paths)
    torch.manual_seed(0)
    model = build(spec, AUDIO_DIM, TEXT_DIM).eval()
    _, batch, plain = read(replace(task, spec=spec))
    states, clean = batch.states, plain.states
    assert batch.mixing is not None
    both = (states.audio, states.audio_mask, states.text, states.text_mask)
    alone = model(clean.audio, clean.audio_mask, clean.text, clean.text_mask)
    whole = model(*both, mixing=torch.ones_like(batch.mixing))
    torch.testing.assert_close(whole.logits, alone.logits, atol=1e-5, rtol=1e-4)
    pooled = model(*both).pooled
    expected = pooled[len(clean) :].lerp(pooled[: len(clean)], batch.mixing[:, None])
    mixed = model(*both, mixing=batch.mixing)
    torch.testing.assert_close(mixed.pooled, expected, atol=1e-5, rtol=1e-4)
    if paths == "wide":  # linear: the logits are mixed as the states are
        logits = model(*both).logits
        mixture = logits[len(clean) :].lerp(logits[: len(clean)], batch.mixing[:, None])
        torch.testing.assert_close(mixed.logits, mixture, atol=1e-5, rtol=1e-4)


# --- changes of states ---


def test_masks_set_stretches_to_the_mean_of_the_training_part(corpus):
    task = make_task(corpus, augmentation={"time_masks": 1, "time_width": 0.5, "feature_masks": 1})
    _, batch, plain = read(task)
    mean = torch.from_numpy(TrainingData.open(task).statistics(task).audio.mean).float()
    masked_frames = 0
    for row, mask in enumerate(plain.states.audio_mask):
        before, after = plain.states.audio[row, mask], batch.states.audio[row, mask]
        changed = before != after
        torch.testing.assert_close(after[changed], mean.expand_as(after)[changed])
        frames = changed.all(dim=1).nonzero().flatten()
        masked_frames += len(frames)
        assert len(frames) <= len(after) // 2
        assert len(frames) == 0 or int(frames[-1] - frames[0]) == len(frames) - 1
    assert masked_frames > 0
    assert torch.equal(batch.states.text, plain.states.text)


def test_noise_has_the_deviation_of_the_training_part(corpus):
    _, batch, plain = read(make_task(corpus, augmentation={"noise": 0.5}, batch_size=72))
    statistics = TrainingData.open(make_task(corpus)).statistics(make_task(corpus))
    for name, moments in (("audio", statistics.audio), ("text", statistics.text)):
        mask = getattr(plain.states, f"{name}_mask")
        noise = (getattr(batch.states, name) - getattr(plain.states, name))[mask]
        ratio = noise.std(dim=0).numpy() / moments.deviation
        np.testing.assert_allclose(ratio, 0.5, rtol=0.15)


def test_words_are_swapped_and_left_out_but_never_the_first(corpus):
    kept = []
    for epoch in range(1, 6):
        swapped = make_task(corpus, augmentation={"word_swap": 1.0}, batch_size=72)
        _, batch, plain = read(swapped, epoch)
        for row, mask in enumerate(plain.states.text_mask):
            before, after = plain.states.text[row, mask], batch.states.text[row, mask]
            assert torch.equal(before[:1], after[:1])
            assert {tuple(each) for each in before.tolist()} == {
                tuple(each) for each in after.tolist()
            }
        assert not torch.equal(batch.states.text, plain.states.text)
        _, batch, plain = read(
            make_task(corpus, augmentation={"word_dropout": 0.3}, batch_size=72), epoch
        )
        before, after = plain.states.text_mask, batch.states.text_mask
        assert torch.equal(before[:, 0], after[:, 0])
        assert not (after & ~before).any()
        assert not (after[:, 1:] & ~after[:, :-1]).any(), "padding comes last"
        for row in range(len(after)):
            tokens = iter(plain.states.text[row, before[row]].tolist())
            assert all(token in tokens for token in batch.states.text[row, after[row]].tolist())
        kept.append(float(after[:, 1:].sum() / before[:, 1:].sum()))
    assert np.mean(kept) == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_what_a_model_does_not_read_may_be_the_input_of_an_encoder_that_others_train(
    corpus, modality
):
    task = augmented(corpus, "all")
    statistics = TrainingData.open(task).statistics(task)
    change = StateAugmentation(
        task.train.augmentation, statistics, replace(task.spec, modality=modality), []
    )
    batch = pair((4, 3), (4, 3))
    audio, text = torch.zeros(2, 4, AUDIO_DIM), torch.zeros(2, 4, TEXT_DIM)
    if modality == "text":
        audio = torch.ones(2, 4, 321, dtype=torch.int16)
    else:
        text = torch.ones(2, 4, 1, dtype=torch.int32)
    batch = replace(batch, states=replace(batch.states, audio=audio, text=text))
    changed = change(batch, one_place(0.7), np.array([0])).states
    assert getattr(changed, modality).any()
    other = changed.text if modality == "audio" else changed.audio
    assert not other.is_floating_point() and (other == 1).all()


@pytest.mark.parametrize("mixup", [{}, {"mixup": 0.5, "mixup_of": "pooled"}])
def test_clips_of_the_chosen_classes_alone_are_changed(corpus, mixup):
    only = ["happy", "angry"]
    task = make_task(corpus, augmentation={"noise": 0.5, "only": only, **mixup})
    classes = TrainingData.open(task).classes
    planned, changed, plain = read(task)
    places = planned.batches[0]
    if mixup:
        places = np.concatenate([places, planned.partners[places]])
    data = TrainingData.open(task)
    labels = data.train.labels[planned.rows[places]]
    device = torch.device("cpu")
    [plain] = Prefetcher(data.store, device, None).micro_batches(data.train, [places], planned)
    differs = (changed.states.audio != plain.states.audio).flatten(1).any(dim=1)
    wanted = np.isin(labels, [classes.index(name) for name in only])
    assert differs.tolist() == wanted.tolist()
    assert wanted.any() and not wanted.all()
