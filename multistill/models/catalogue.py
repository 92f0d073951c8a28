"""The table of presets and parameter counts that `multistill models` prints."""

from __future__ import annotations

from typing import Any

from multistill.models.presets import PRESETS

PAPER_DIMS = (1024, 768)
"""Widths of wav2vec2-large and KoELECTRA-base, for which the published counts hold."""

SMALL_DIMS = (80, 256)
"""Widths of the log-mel and the untrained ELECTRA encoder."""

VALENCE_AROUSAL_DIMS = (128, 768)
"""Widths of log-mel energies in 128 bands and of KoBERT, for which the published counts hold."""


def catalogue() -> list[dict[str, Any]]:
    """One row per preset: hyperparameters, state widths and number of trainable parameters."""
    import torch

    from multistill.models.build import build, count_parameters

    rows = []
    for name, spec in PRESETS.items():
        audio_dim, text_dim = PAPER_DIMS
        if name.startswith(("small-", "light-")):
            audio_dim, text_dim = SMALL_DIMS
        elif spec.network.startswith("va-"):
            audio_dim, text_dim = VALENCE_AROUSAL_DIMS
        with torch.device("meta"):  # nothing is allocated
            params = count_parameters(build(spec, audio_dim, text_dim))
        rows.append(
            {
                "preset": name,
                "modality": spec.modality,
                "fusion": spec.fusion,
                "layers": spec.layers,
                "width": spec.width,
                "audio_dim": audio_dim,
                "text_dim": text_dim,
                "params_trainable": params,
                "note": "with the unused audio projection, as published"
                if spec.keep_unused_projection
                else "",
            }
        )
    return rows


def render(rows: list[dict[str, Any]]) -> None:
    """Print the catalogue as a table."""
    from rich.console import Console, JustifyMethod
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("preset", "modality", "layers", "width", "states", "trainable", "note"):
        justify: JustifyMethod = "right" if title in {"layers", "trainable"} else "left"
        table.add_column(title, justify=justify, no_wrap=title != "note")
    for row in rows:
        table.add_row(
            row["preset"],
            row["modality"],
            str(row["layers"]),
            str(row["width"]),
            f"{row['audio_dim']} + {row['text_dim']}",
            f"{row['params_trainable']:,}",
            row["note"],
        )
    Console(highlight=False, markup=False, emoji=False).print(table)
