"""A head trained by Lightning's Trainer; the epoch that is best on validation is tested.

python head_lightning.py SETTINGS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from spec import BATCH, LEARNING_RATE, SEED, WEIGHT_DECAY, settings
from states import Batch, Head, collate, load_part, uar
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Training(lightning.LightningModule):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.head = Head(dim)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Batch, _: int) -> Tensor:
        states, mask, labels = batch
        return nn.functional.cross_entropy(self.head(states, mask), labels)

    def validation_step(self, batch: Batch, _: int) -> None:
        states, mask, labels = batch
        self.seen.append((labels, self.head(states, mask).argmax(dim=1)))

    def test_step(self, batch: Batch, number: int) -> None:
        self.validation_step(batch, number)

    def _log(self, name: str) -> None:
        labels, answers = (torch.cat(values) for values in zip(*self.seen, strict=True))
        self.seen.clear()
        self.log(name, uar(labels, answers))

    def on_validation_epoch_end(self) -> None:
        self._log("valid_uar")

    def on_test_epoch_end(self) -> None:
        self._log("test_uar")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def main() -> None:
    given = settings(Path(sys.argv[1]))
    out = Path(given["out"])
    lightning.seed_everything(SEED)
    parts = {part: load_part(given, part) for part in ("train", "valid", "test")}
    loaders = {
        part: DataLoader(items, BATCH, shuffle=part == "train", collate_fn=collate)
        for part, items in parts.items()
    }
    best = ModelCheckpoint(out, monitor="valid_uar", mode="max")
    trainer = lightning.Trainer(
        max_epochs=given["epochs"],
        accelerator="cpu",
        devices=1,
        callbacks=[best],
        logger=CSVLogger(out),
        log_every_n_steps=len(loaders["train"]),
        num_sanity_val_steps=0,
        enable_progress_bar=False,
    )
    trainer.fit(Training(parts["train"][0][0].shape[1]), loaders["train"], loaders["valid"])
    [tested] = trainer.test(ckpt_path="best", dataloaders=loaders["test"], verbose=False)
    scores = {"valid_uar": float(best.best_model_score), **tested}
    (out / "scores.json").write_text(json.dumps(scores), encoding="utf-8")


if __name__ == "__main__":
    main()
