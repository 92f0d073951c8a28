"""Embeddings of every clip with autrainer's inference: one vector per clip, its states' mean.

    python extract_autrainer.py SETTINGS prepare|embed

autrainer stores no states over time (its `W2V2Backbone` returns `features.mean(1)`). What it offers
for an encoder is `Inference.embed_directory` with a model folder of its own; `prepare` writes such
a folder (not measured), whose wav2vec2 has the weights of the encoder. `autrainer inference
--embeddings` would run the model twice, since it predicts as well.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from spec import CLASSES, SAMPLE_RATE, settings


def prepare(encoder: str, folder: Path) -> None:
    from autrainer.datasets.utils import AudioFileHandler, LabelEncoder
    from autrainer.models import W2V2FFNN
    from autrainer.transforms import FeatureExtractor, SmartCompose

    model = W2V2FFNN(
        output_dim=len(CLASSES),
        model_name=encoder,
        freeze_extractor=True,
        hidden_size=64,
        transfer=True,
    )
    weights = folder / "_best"
    weights.mkdir(parents=True)
    torch.save(model.state_dict(), weights / "model.pt")
    extractor = SmartCompose([FeatureExtractor("W2V2", encoder, SAMPLE_RATE)])
    parts = {
        "model": model,
        "file_handler": AudioFileHandler(),
        "preprocess_file_handler": AudioFileHandler(),
        "target_transform": LabelEncoder(sorted(CLASSES.values())),
        "inference_transform": extractor,
        "preprocess_pipeline": SmartCompose([]),
    }
    for name, part in parts.items():
        part.to_yaml(str(folder / f"{name}.yaml"))


def main() -> None:
    given = settings(Path(sys.argv[1]))
    model = Path(given["model"])
    if sys.argv[2] == "prepare":
        prepare(given["encoder"], model)
        return
    from autrainer.serving import Inference

    inference = Inference(str(model), device="cpu")
    found = inference.embed_directory(given["audio"], "wav", update_frequency=0)
    inference.save_embeddings(found, given["out"], "wav")


if __name__ == "__main__":
    main()
