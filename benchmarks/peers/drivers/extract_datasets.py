"""States of every clip with `datasets.map` and transformers, as their documentation shows.

    python extract_datasets.py SETTINGS

With `processes: 2`, clips are sorted by length and each of two processes has one thread: what
somebody would do who knows that padding and threads cost time.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import soundfile
import torch
from datasets import Dataset
from spec import ENCODER_BATCH, SAMPLE_RATE, read_corpus, settings
from transformers import AutoFeatureExtractor, AutoModel


class Encode:
    """Loads the model once in each process."""

    def __init__(self, folder: str, threads: int | None) -> None:
        self.folder, self.threads, self.model = folder, threads, None

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if self.model is None:
            if self.threads:
                torch.set_num_threads(self.threads)
            self.extractor = AutoFeatureExtractor.from_pretrained(self.folder)
            self.model = AutoModel.from_pretrained(self.folder).eval()
        waves = [soundfile.read(path, dtype="float32")[0] for path in batch["audio_path"]]
        inputs = self.extractor(waves, sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt")
        with torch.inference_mode():
            states = self.model(**inputs).last_hidden_state
        lengths = self.model._get_feat_extract_output_lengths(
            torch.tensor([len(wave) for wave in waves])
        )
        return {
            "states": [
                row[:length].numpy() for row, length in zip(states, lengths.tolist(), strict=True)
            ]
        }


def main() -> None:
    given = settings(Path(sys.argv[1]))
    rows = read_corpus(Path(given["corpus"]))
    processes = given["processes"]
    if processes > 1:
        rows.sort(key=lambda row: soundfile.info(row["audio_path"]).frames)
    encoded = Dataset.from_list(rows).map(
        Encode(given["encoder"], 1 if processes > 1 else None),
        batched=True,
        batch_size=ENCODER_BATCH,
        num_proc=processes if processes > 1 else None,
        writer_batch_size=64,
    )
    encoded.save_to_disk(given["out"])


if __name__ == "__main__":
    main()
