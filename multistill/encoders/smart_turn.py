"""Smart Turn v3.2: the Whisper-tiny encoder of an end-of-turn detector, its first two layers.

The published file is quantised: int8 weights with a scale and a zero point per output channel.
Only the first two of its four layers are kept. Above them the int8 activations of the published
network clip, and for emotion they were worse (docs/features.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LAYERS = 2
WIDTH, HEADS, HIDDEN, POSITIONS, BANDS = 384, 6, 1536, 400, 80

NOTICE = "smart-turn-notice.txt"
"""The notice of everybody but Daily, whose licence lies in the wheel; a file beside this module."""

# The exporter named the weights of linear layers by their place in the graph.
_LINEAR = {
    "layers.0.self_attn.q_proj": "val_17",
    "layers.0.self_attn.k_proj": "val_25",
    "layers.0.self_attn.v_proj": "val_32",
    "layers.0.self_attn.out_proj": "val_75",
    "layers.0.fc1": "val_79",
    "layers.0.fc2": "val_88",
    "layers.1.self_attn.q_proj": "val_92",
    "layers.1.self_attn.k_proj": "val_100",
    "layers.1.self_attn.v_proj": "val_107",
    "layers.1.self_attn.out_proj": "val_148",
    "layers.1.fc1": "val_152",
    "layers.1.fc2": "val_161",
}
_ENCODER = "inner.encoder."


def smart_turn_tensors(model: bytes) -> dict[str, NDArray[np.generic]]:
    """Weights of `empty_encoder` by name, float32, from the published ONNX file.

    Raises:
        InvalidMessageError: the bytes are not an ONNX file.
        KeyError: a tensor is missing.
    """
    import numpy as np

    from multistill.encoders.onnx_tensors import read_tensors

    stored = read_tensors(model)

    def dequantised(values: str, scale: str, zero: str, axis: int) -> NDArray[np.float32]:
        quantised = stored[values].astype(np.int32)
        shape = [1] * quantised.ndim
        shape[axis] = -1
        shifted = (quantised - stored[zero].astype(np.int32).reshape(shape)).astype(np.float32)
        return shifted * stored[scale].reshape(shape).astype(np.float32)

    tensors: dict[str, NDArray[np.generic]] = {}
    for name, value in _LINEAR.items():
        # MatMul multiplies by [in, out]; torch's Linear holds [out, in].
        matrix = dequantised(f"{value}_quantized", f"{value}_scale", f"{value}_zero_point", axis=1)
        tensors[f"{name}.weight"] = np.ascontiguousarray(matrix.T)
    for conv in ("conv1", "conv2"):
        weight, bias = f"{_ENCODER}{conv}.weight", f"{_ENCODER}{conv}.bias_quantized"
        parts = (f"{weight}_quantized", f"{weight}_scale", f"{weight}_zero_point")
        tensors[f"{conv}.weight"] = dequantised(*parts, axis=0)
        tensors[f"{conv}.bias"] = dequantised(bias, f"{bias}_scale", f"{bias}_zero_point", axis=0)
    kept = ("embed_positions.", *(f"layers.{number}." for number in range(LAYERS)))
    for name, array in stored.items():
        inner = name.removeprefix(_ENCODER)
        if inner != name and inner.startswith(kept):
            tensors[inner] = array.astype(np.float32)
    return tensors


def empty_encoder() -> Any:
    """A `transformers` WhisperEncoder of this size without a final norm, and without weights."""
    import torch
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    settings = WhisperConfig(
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=HIDDEN,
        max_source_positions=POSITIONS,
        num_mel_bins=BANDS,
    )
    with torch.random.fork_rng(devices=[]):
        encoder = WhisperEncoder(settings)
    # The published norm follows the fourth layer.
    encoder.layer_norm = torch.nn.Identity()
    return encoder
