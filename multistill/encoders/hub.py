"""Find and load Hugging Face models, from a folder, the local cache or the hub.

Names are resolved to a commit once, on the driver; every worker then loads that commit,
so a model that changes on the hub while a corpus is encoded cannot mix two versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multistill.errors import MultistillError

SPEECH_STAND_INS = ("log-mel", "untrained-wav2vec2")
TEXT_STAND_INS = ("untrained-electra",)
HUB_TIMEOUT_S = 10.0

_IGNORED = {".gitattributes", "README.md"}


def is_stand_in(model: str) -> bool:
    return model in SPEECH_STAND_INS or model in TEXT_STAND_INS


def resolve(model: str, revision: str | None, where: str) -> str | None:
    """What decides the weights: a digest of a local folder, a hub commit, None for a stand-in.

    Args:
        where: the job-file section, `features.speech` or `features.text`.
    Raises:
        MultistillError: the model is neither on this machine nor reachable.
    """
    if is_stand_in(model):
        return None
    folder = Path(model).expanduser()
    if folder.is_dir():
        return f"folder-{_folder_digest(folder)}"
    if model.startswith((".", "/", "~")):
        raise MultistillError(f"{where}.model: there is no folder {model}; {_advice(where)}")
    return _commit(model, revision, where)


def _commit(model: str, revision: str | None, where: str) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        if isinstance(cached, str):
            # <cache>/models--owner--name/snapshots/<commit>/config.json
            return Path(cached).parent.name
        found = HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT_S).sha
    except HFValidationError:
        raise MultistillError(
            f"{where}.model: `{model}` is neither a folder nor a name on the model hub; "
            f"{_advice(where)}"
        ) from None
    except RepositoryNotFoundError:
        raise MultistillError(
            f"{where}.model: the model hub has no `{model}`; {_advice(where)}"
        ) from None
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        raise MultistillError(_unreachable(model, where)) from error
    except Exception as error:
        # httpx errors are no subclass of OSError, and offline mode raises its own.
        if type(error).__module__.split(".")[0] in {"httpx", "huggingface_hub", "requests"}:
            raise MultistillError(_unreachable(model, where)) from error
        raise
    return str(found)


def load(model: str, resolved: str | None, where: str, loader: Callable[..., Any]) -> Any:
    """Call a `from_pretrained` with the resolved weights.

    Raises:
        MultistillError: it cannot be loaded, and what to do.
    """
    folder = Path(model).expanduser()
    local = folder.is_dir()
    arguments = {} if local else {"revision": resolved}
    try:
        return loader(str(folder) if local else model, **arguments)
    except Exception as error:
        # Loaders of many authors: a wrong folder may raise anything.
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise MultistillError(
            f"{where}.model: `{model}` cannot be loaded ({first}); {_advice(where)}"
        ) from error


def load_model(model: str, resolved: str | None, where: str) -> Any:
    """An AutoModel in eval mode, all of whose weights came from the checkpoint."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def loader(source: str, **arguments: Any) -> Any:
        return AutoModel.from_pretrained(source, output_loading_info=True, **arguments)

    loaded, info = load(model, resolved, where, loader)
    # The SpecAugment vector and the pooler never touch the states that are kept.
    missing = [
        name
        for name in sorted(info["missing_keys"])
        if "masked_spec_embed" not in name and not name.startswith("pooler.")
    ]
    if missing:
        raise MultistillError(
            f"{where}.model: the checkpoint `{model}` lacks weights of its architecture "
            f"({len(missing)}, first {missing[0]}); give a complete checkpoint"
        )
    return loaded.eval()


def _folder_digest(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name in _IGNORED or path.name.startswith("."):
            continue
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()


def _advice(where: str) -> str:
    names = SPEECH_STAND_INS if where.endswith("speech") else TEXT_STAND_INS
    stand_ins = " or ".join(f"`{name}`" for name in names)
    return f"give a local folder with the model, or use {stand_ins}"


def _unreachable(model: str, where: str) -> str:
    return (
        f"{where}.model: `{model}` is not on this machine and the model hub cannot be reached; "
        f"{_advice(where)}"
    )
