"""States of every clip with s3prl's wav2vec2 upstream, one file per clip.

    python extract_s3prl.py SETTINGS

`s3prl.hub` cannot be imported with torchaudio 2.9 and later (`No module named
'torchaudio.sox_effects'`), so the upstream is imported from its own module.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from s3prl.upstream.hf_wav2vec2.expert import UpstreamExpert
from spec import ENCODER_BATCH, read_corpus, settings


def main() -> None:
    given = settings(Path(sys.argv[1]))
    out = Path(given["out"])
    out.mkdir()
    rows = read_corpus(Path(given["corpus"]))
    upstream = UpstreamExpert(given["encoder"]).eval()
    rate = upstream.get_downsample_rates()
    for start in range(0, len(rows), ENCODER_BATCH):
        batch = rows[start : start + ENCODER_BATCH]
        waves = [
            torch.from_numpy(soundfile.read(row["audio_path"], dtype="float32")[0]) for row in batch
        ]
        with torch.inference_mode():
            states = upstream(waves)["hidden_states"][-1]
        for row, wave, values in zip(batch, waves, states, strict=True):
            length = min(len(values), (len(wave) - 400) // rate + 1)
            np.save(out / f"{row['utterance_id']}.npy", values[:length].numpy())


if __name__ == "__main__":
    main()
