"""What autrainer's configuration names: padding of batches, and the head as a model of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from autrainer.core.structs import AbstractDataItem, DataBatch
from autrainer.datasets import BaseClassificationDataset
from autrainer.models import AbstractModel
from autrainer.transforms import AbstractTransform
from states import Head, pad
from torch import Tensor


class States(BaseClassificationDataset):
    """Stored states and the parts in train.csv, dev.csv and test.csv."""


class PadBatch(AbstractTransform):
    """Pads to the longest clip of the batch; the default collation takes equal lengths only."""

    def __call__(self, item: AbstractDataItem) -> AbstractDataItem:
        return item

    @staticmethod
    def get_collate_fn(data: object, default: Callable[..., object]) -> Callable[..., object]:
        return collate


def collate(items: list[AbstractDataItem]) -> DataBatch:
    features, _ = pad([item.features for item in items])
    return DataBatch(
        features=features,
        target=torch.tensor([item.target for item in items]),
        index=torch.tensor([item.index for item in items]),
    )


class StatesHead(AbstractModel):
    """The head of all peers; frames of zeros are padding."""

    def __init__(
        self, output_dim: int, dim: int, classifier_dropout: float, transfer: bool | None = None
    ) -> None:
        super().__init__(output_dim, None)
        self.dim, self.classifier_dropout = dim, classifier_dropout
        self.head = Head(dim, classifier_dropout)

    def embeddings(self, features: Tensor) -> Tensor:
        return self(features)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features, features.any(dim=-1))
        return logits
