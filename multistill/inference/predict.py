"""Outputs of a trained head over a feature store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from multistill.corpora.manifest import read_manifest
from multistill.features.collate import (
    Batch,
    StateReader,
    collate,
    cut_by_padded_size,
    find,
    read_ahead,
)
from multistill.features.store import FeatureStore
from multistill.hardware import default_device
from multistill.models.base import keeping_sequences
from multistill.models.context import DialogueContext
from multistill.models.joint import JointModel, Model
from multistill.models.sequences import RaggedStates, segment_counts, segment_means
from multistill.typing import FloatArray, IntArray

_NO_STATES = np.zeros((0, 0), np.float16)

BATCH_FRAMES = 32_768
"""Padded audio frames plus text tokens per batch: about 128 MB at 1,024 values per frame."""
JOINT_BATCH_FRAMES = 4096
"""The same of a model that runs an encoder: 80 seconds of audio."""
_AHEAD = 1
"""Batches that the disk reads during the computation of one."""


def dialogue_context(model: Model, store: FeatureStore, manifest: Path) -> DialogueContext | None:
    """The reader of previous turns for a model with `context_turns`; None for any other model.

    Args:
        manifest: the manifest file or its folder; it holds the turns of all splits.
    """
    if not model.spec.context_turns:
        return None
    columns = read_manifest(manifest, ["utterance_id", "dialogue", "turn"]).to_pydict()
    return DialogueContext(store, columns, model.spec.context_turns)


@dataclass(frozen=True)
class Outputs:
    """A model's outputs.

    Attributes:
        logits: float32 [N, C].
        pooled: float32 [N, P], if requested.
        dimensions: float32 [N, D] on the scale from 1 to 5; D is 0 for a model without any.
        sequences: by modality, if requested: the sequences before they are pooled, in the segments
            of `multistill.models.sequences`.
    """

    logits: FloatArray
    pooled: FloatArray | None
    dimensions: FloatArray
    sequences: dict[str, RaggedStates] = field(default_factory=dict)


def predict(
    model: Model,
    store: StateReader,
    ids: Sequence[str],
    device: torch.device | str | None = None,
    max_frames: int | None = None,
    batch_frames: int | None = None,
    context: DialogueContext | None = None,
    keep_pooled: bool = True,
    keep_sequences: bool = False,
) -> Outputs:
    """Outputs in the order of `ids`, computed in eval mode; the model's mode is restored.

    Args:
        device: default: a GPU if available. The model is moved there.
        max_frames: audio frames to read per utterance, as in training.
        batch_frames: limit of padded frames plus tokens per batch; a longer utterance is a batch
            of one. Default: by the kind of model.
        context: required by a model with `context_turns`, see `dialogue_context`.
        keep_pooled: also return the pooled states; [N, D] is large for many utterances.
        keep_sequences: also return the sequences, which are several times larger.
    """
    if model.spec.context_turns and context is None:
        raise ValueError("this model reads previous turns: pass a DialogueContext")
    device = torch.device(device or default_device())
    if batch_frames is None:
        batch_frames = JOINT_BATCH_FRAMES if isinstance(model, JointModel) else BATCH_FRAMES
    _move(model, device)
    logits = np.zeros((len(ids), model.spec.num_classes), dtype=np.float32)
    pooled = np.zeros((len(ids), model.pooled_dim), dtype=np.float32) if keep_pooled else None
    dimensions = np.zeros((len(ids), len(model.spec.dimensions)), dtype=np.float32)
    frames, tokens = store.audio_frames(ids), store.text_tokens(ids)
    if max_frames is not None:
        frames = np.minimum(frames, max_frames)
    lengths = {"audio": frames, "text": tokens}
    counts = {name: segment_counts(name, each) for name, each in lengths.items()}
    segments: dict[str, list[npt.NDArray[np.float16]]] = {}
    training = model.training
    if training:
        model.eval()
    try:
        with torch.inference_mode(), keeping_sequences(model, keep_sequences):
            planned = list(_by_length(frames, tokens, batch_frames))
            batches = _batches(store, ids, planned, max_frames)
            for rows, read in zip(planned, batches, strict=True):
                batch = read.to(device)
                turns = context.batch(batch.ids) if model.spec.context_turns and context else None
                output = model(
                    batch.audio,
                    batch.audio_mask,
                    batch.text,
                    batch.text_mask,
                    *((tensor.to(device) for tensor in turns) if turns else ()),
                )
                logits[rows] = output.logits.float().cpu().numpy()
                if output.dimensions is not None:
                    dimensions[rows] = output.dimensions.cpu().numpy()
                if pooled is not None:
                    pooled[rows] = output.pooled.float().cpu().numpy()
                for name, (states, mask) in (output.sequences or {}).items():
                    found = segments.setdefault(name, [_NO_STATES] * len(ids))
                    of_rows = counts[name][rows]
                    width = max(1, int(of_rows.max()))
                    wanted = torch.from_numpy(of_rows).to(device)
                    means = segment_means(states.float(), mask, wanted, width).half().cpu().numpy()
                    for row, own, count in zip(rows, means, of_rows, strict=True):
                        found[row] = own[:count]
    finally:
        if training:
            model.train()
    sequences = {
        name: RaggedStates(np.concatenate(found), counts[name]) for name, found in segments.items()
    }
    return Outputs(logits, pooled, dimensions, sequences)


def predict_logits(
    model: Model,
    store: StateReader,
    ids: Sequence[str],
    device: torch.device | str | None = None,
    max_frames: int | None = None,
    batch_frames: int | None = None,
    context: DialogueContext | None = None,
) -> FloatArray:
    """Only the logits of `predict`, [N, C]."""
    return predict(
        model, store, ids, device, max_frames, batch_frames, context, keep_pooled=False
    ).logits


def _batches(
    store: StateReader, ids: Sequence[str], planned: Sequence[IntArray], max_frames: int | None
) -> Iterator[Batch]:
    """The states of each batch; the disk reads the next meanwhile."""
    parts = ([ids[row] for row in rows] for rows in planned)
    if len(planned) == 1:  # as of a clip that is served: a thread takes longer than asking
        yield collate(store, next(parts), max_frames)
        return
    for unread in read_ahead((find(store, part, max_frames) for part in parts), _AHEAD):
        yield unread.read()


def _move(model: Model, device: torch.device) -> None:
    """Move a model that is elsewhere; going through its modules takes longer than a short clip."""
    first = next(chain(model.parameters(), model.buffers()), None)
    if first is not None and first.device != device:
        model.to(device)


def _by_length(frames: IntArray, tokens: IntArray, budget: int) -> Iterator[IntArray]:
    """Rows of similar length in batches of at most `budget` frames and tokens, padding included."""
    order = np.argsort(frames, kind="stable")
    for cut in cut_by_padded_size(budget, frames[order], tokens[order]):
        yield order[cut]
