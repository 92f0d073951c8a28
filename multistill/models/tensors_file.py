"""Writing a safetensors file that the other accounts of a team can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from multistill.typing import AnyArray


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor] | Mapping[str, AnyArray],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write tensors, wherever they are; not atomic.

    safetensors creates a file that only its owner can read.
    """
    state = {
        name: torch.as_tensor(values).detach().cpu().contiguous()
        for name, values in tensors.items()
    }
    save_file(state, path, metadata=metadata)
    path.chmod(0o644)
