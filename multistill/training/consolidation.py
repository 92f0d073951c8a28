"""Elastic weight consolidation: what a model learnt of earlier corpora holds its weights back.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017
(arXiv:1612.00796), equation 3. With several earlier corpora, their Fisher information is summed and
the penalty is centred at the weights after the last of them (Huszár, "Note on the quadratic
penalties in elastic weight consolidation", 2018).

    fisher.safetensors      by name of the parameter, as `named_parameters` of the model
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multistill.corpora.manifest import label_arrays, read_manifest
from multistill.errors import MultistillError
from multistill.features.cache import open_store
from multistill.features.collate import collate
from multistill.hardware import default_device
from multistill.inference.predict import dialogue_context
from multistill.models.files import load_model, read_model_config
from multistill.models.tensors_file import write_tensors
from multistill.training.labelled import rows_of_corpora
from multistill.training.schedule import derived_seed
from multistill.workspace import atomic_path

FISHER = "fisher.safetensors"
_STREAM = 0xF15E4
"""Keeps the draw of clips apart from other draws by the same seed."""


class QuadraticPenalty:
    """weight / 2 * sum of F (theta - theta*)^2, theta* being the parameters as they are now.

    Args:
        parameters: of the model, by name; those without Fisher information are free.
        folder: of `write_fisher`.
        weight: lambda.

    Raises:
        MultistillError: the information is of another architecture.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], folder: Path, weight: float) -> None:
        self.weight = weight
        self._terms: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        for name, fisher in load_file(folder / FISHER).items():
            parameter = parameters.get(name)
            if parameter is None:  # it is not trained
                continue
            if parameter.shape != fisher.shape:
                raise MultistillError(
                    f"{folder / FISHER}: {name} is {list(fisher.shape)} there and "
                    f"{list(parameter.shape)} in the model; remove that folder and run the job "
                    "again"
                )
            start = parameter.detach().clone()
            self._terms.append((parameter, fisher.to(parameter.device), start))

    def __call__(self) -> Tensor:
        """The penalty, a scalar."""
        terms = [
            (fisher * (parameter.float() - start).square()).sum()
            for parameter, fisher, start in self._terms
        ]
        # Where the whole model is a new classifier, there is nothing to hold back.
        return self.weight / 2 * torch.stack(terms).sum() if terms else torch.zeros(())


def write_fisher(
    folder: Path,
    manifest: Path,
    features: Path,
    corpus: str,
    out: Path,
    of: Literal["model", "labels"] = "model",
    clips: int | None = None,
    seed: int = 0,
    earlier: Path | None = None,
) -> dict[str, int]:
    """Diagonal Fisher information of a trained model on the training clips of one corpus.

    Mean over the clips, each on its own, in evaluation mode, of the squared gradients of
    log p(class | clip): of all classes weighted by p(class | clip), or of the label alone
    (Kunstner et al., "Limitations of the empirical Fisher approximation", 2019, on the difference).

    Args:
        folder: of the model.
        corpus: that the model has just learnt.
        out: gets `fisher.safetensors`.
        of: which classes; clips whose votes tie have no label, and are left out of `labels`.
        clips: how many are drawn by `seed`; None: all.
        earlier: folder with the information of corpora before this one, which is added.

    Returns:
        JSON summary: `clips`.

    Raises:
        MultistillError: the corpus has no training clip with features, or with a label.
    """
    config, model, store = read_model_config(folder), load_model(folder), open_store(features)
    table = read_manifest(manifest, ["utterance_id", "corpus", "split", "label", "label_soft"])
    labels, _ = label_arrays(table)
    split = table.column("split").to_numpy()
    read = rows_of_corpora({corpus: 1.0}, table.column("corpus").to_numpy(), split, labels, seed)
    ids = table.column("utterance_id").to_pylist()
    read &= (split == "train") & (labels >= (0 if of == "labels" else -1))
    rows = np.array([row for row in np.flatnonzero(read) if ids[row] in store], dtype=np.int64)
    if not len(rows):
        raise MultistillError(
            f"`{corpus}` has no training clip with features and a label, so there is nothing to "
            "measure the Fisher information on; raise the share of train, or remove `ewc` from "
            "`continual.methods`"
        )
    if clips is not None and clips < len(rows):
        random = np.random.default_rng(derived_seed(seed, _STREAM))
        rows = np.sort(random.choice(rows, clips, replace=False))
    device = default_device()
    model.to(device).eval()
    context = dialogue_context(model, store, manifest)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    # The backward pass of cuDNN's recurrent layers is of training mode alone.
    with torch.backends.cudnn.flags(enabled=False):
        for row in rows:
            batch = collate(store, [ids[row]], config["max_frames"]).to(device)
            turns = context.batch([ids[row]]) if context is not None else ()
            output = model(
                batch.audio,
                batch.audio_mask,
                batch.text,
                batch.text_mask,
                *(tensor.to(device) for tensor in turns),
            )
            logarithms = output.logits[0].float().log_softmax(dim=-1)
            weights = logarithms.detach().exp()
            if of == "labels":
                weights = nn.functional.one_hot(torch.tensor(labels[row]), len(weights))
            for index, weight in enumerate(weights.tolist()):
                if not weight:
                    continue
                gradients = torch.autograd.grad(
                    logarithms[index],
                    list(parameters.values()),
                    retain_graph=True,
                    allow_unused=True,
                )
                for sums, gradient in zip(total.values(), gradients, strict=True):
                    if gradient is not None:
                        sums.add_(gradient.float().square(), alpha=weight / len(rows))
    if earlier is not None:
        for name, tensor in load_file(earlier / FISHER).items():
            if name in total and total[name].shape == tensor.shape:
                total[name] += tensor.to(device)
    with atomic_path(out / FISHER, concurrent=True) as partial:
        write_tensors(partial, total)
    return {"clips": len(rows)}
