"""Universal Sentence Encoder, multilingual, v3: its published arrays under the names of torch.

The network is Google's (Yang et al., 2019, arXiv:1907.04307). The package holds its weights as an
archive of NumPy arrays: the embedding quantised to 6 bits in 17 parts, token i in part i mod 17,
each part with a scale and an offset, and everything else in float32. Here the embedding stays
quantised, in the order of the tokens. What follows the sum over the tokens is left out.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from multistill.encoders.sentence_pieces import read_model
from multistill.workspace import to_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PARTS = 17
ORDERS = (2, 3, 5)
"""Tokens that a convolution of each branch sees."""

NOTICE = "use-notice.txt"
"""What has to be told beside the licence in the wheel; a file beside this module."""


def use_tensors(archive: bytes) -> dict[str, NDArray[np.generic]]:
    """Weights of `use_network.UniversalSentenceEncoder` by name.

    Args:
        archive: the published .npz file.

    Raises:
        KeyError: an array is missing.
        ValueError: it is not such an archive.
    """
    import numpy as np

    with np.load(io.BytesIO(archive), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}

    def by_token(parts: NDArray[Any]) -> NDArray[Any]:
        """[17, rows, ...] as [17 x rows, ...]: token i is row i // 17 of part i mod 17."""
        return np.ascontiguousarray(parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:]))

    table = by_token(np.stack([arrays[f"q{part + 1}"] for part in range(PARTS)]))
    repeats = len(table) // PARTS
    tensors: dict[str, NDArray[np.generic]] = {
        "embeddings.table": table,
        "embeddings.scale": np.tile(arrays["scale"], repeats),
        "embeddings.offset": np.tile(arrays["lo"], repeats),
    }
    layer = "encoder.layer.0."
    # Matrices multiply from the right, [in, out]; torch's Linear holds [out, in].
    projections = [arrays[f"proj{order}"] for order in ORDERS]
    tensors[f"{layer}projection.weight"] = np.concatenate(projections, axis=1).T
    for name, key in (
        ("projection.bias", "proj_b"),
        ("norm.weight", "ln_g"),
        ("norm.bias", "ln_b"),
    ):
        tensors[layer + name] = np.concatenate([arrays[f"{key}{order}"] for order in ORDERS])
    for branch, order in enumerate(ORDERS):
        for number in (1, 2):
            name = f"{layer}branches.{branch}.{number - 1}."
            matrix = arrays[f"w{number}_{order}"]
            # Rows are the channels of the first token, then those of the next.
            width = matrix.shape[1]
            kernel = matrix.reshape(order, width, width)
            tensors[f"{name}weight"] = kernel.transpose(2, 1, 0)
            tensors[f"{name}bias"] = arrays[f"b{number}_{order}"]
    tensors[f"{layer}output_norm.weight"] = arrays["ln_g"]
    tensors[f"{layer}output_norm.bias"] = arrays["ln_b"]
    tensors[f"{layer}output.weight"] = arrays["cnn_W"].T
    tensors[f"{layer}output.bias"] = arrays["cnn_b"]
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def use_tokenizer(model: bytes) -> bytes:
    """Arguments of `SentencePieces` as JSON, from the published SentencePiece model.

    Raises:
        InvalidMessageError: the file is damaged.
    """
    return to_json(read_model(model)).encode()
