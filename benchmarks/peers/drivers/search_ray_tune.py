"""A search by Ray Tune's OptunaSearch, each trial a TorchTrainer, as Ray's documentation shows.

    python search_ray_tune.py SETTINGS

Trials are stopped by ASHA with the settings of multistill. The driver of a trial takes a CPU of
Ray and its worker another, so Ray is told of two per core.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from spec import (
    BATCH,
    DROPOUTS,
    GRACE_EPOCHS,
    LEARNING_RATES,
    REDUCTION,
    SEED,
    WEIGHT_DECAYS,
    settings,
)
from states import Head, Item, collate, load_part, uar
from torch import nn
from torch.utils.data import DataLoader


def score(head: Head, items: list[Item]) -> float:
    head.eval()
    with torch.inference_mode():
        batches = [
            (labels, head(states, mask).argmax(dim=1))
            for states, mask, labels in DataLoader(items, BATCH, collate_fn=collate)
        ]
    labels, answers = (torch.cat(values) for values in zip(*batches, strict=True))
    return uar(labels, answers)


def train(config: dict[str, Any]) -> None:
    """In a worker of Ray Train."""
    given = config["given"]
    torch.manual_seed(SEED)
    items, valid = load_part(given, "train"), load_part(given, "valid")
    head = Head(items[0][0].shape[1], config["classifier_dropout"])
    optimizer = torch.optim.AdamW(
        head.parameters(), config["learning_rate"], weight_decay=config["weight_decay"]
    )
    best = -1.0
    for _ in range(given["epochs"]):
        head.train()
        for states, mask, labels in DataLoader(items, BATCH, shuffle=True, collate_fn=collate):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(states, mask), labels).backward()
            optimizer.step()
        reached = score(head, valid)
        if reached > best:
            best = reached
            torch.save(head.state_dict(), config["weights"])
        ray.train.report({"valid_uar": best})


def trial(config: dict[str, Any]) -> None:
    """Starts the training of one trial."""
    name = tune.get_context().get_trial_id()
    out = Path(config["given"]["out"])
    TorchTrainer(
        train,
        train_loop_config={**config, "weights": str(out / f"{name}.pt")},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            name=f"train-{name}", storage_path=str(out), callbacks=[TuneReportCallback()]
        ),
    ).fit()


def main() -> None:
    given = settings(Path(sys.argv[1]))
    out, cores = Path(given["out"]), len(os.sched_getaffinity(0))
    ray.init(num_cpus=2 * cores)
    tuner = tune.Tuner(
        trial,
        param_space={
            "given": given,
            "learning_rate": tune.loguniform(*LEARNING_RATES),
            "weight_decay": tune.loguniform(*WEIGHT_DECAYS),
            "classifier_dropout": tune.uniform(*DROPOUTS),
        },
        tune_config=tune.TuneConfig(
            metric="valid_uar",
            mode="max",
            num_samples=given["trials"],
            max_concurrent_trials=cores,
            search_alg=OptunaSearch(seed=SEED),
            scheduler=ASHAScheduler(
                max_t=given["epochs"],
                grace_period=min(GRACE_EPOCHS, given["epochs"]),
                reduction_factor=REDUCTION,
            ),
        ),
        run_config=tune.RunConfig(name="search", storage_path=str(out)),
    )
    results = tuner.fit()
    best = results.get_best_result(scope="all")
    test = load_part(given, "test")
    head = Head(test[0][0].shape[1], best.config["classifier_dropout"])
    weights = out / f"{best.metrics['trial_id']}.pt"
    head.load_state_dict(torch.load(weights, weights_only=True))
    scores = {
        "valid_uar": best.metrics["valid_uar"],
        "test_uar": score(head, test),
        "trials": len(results),
        "failed": results.num_errors,
    }
    (out / "scores.json").write_text(json.dumps(scores), encoding="utf-8")


if __name__ == "__main__":
    main()
