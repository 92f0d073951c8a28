"""Find and load Hugging Face models, from a local folder, the local cache or the hub.

A name is resolved to a commit once, on the driver, and every worker loads that commit: a model
that changes on the hub while a corpus is being encoded cannot lead to a mix of two versions.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multistill.config import OneSpeechEncoderConfig, TextEncoderConfig

HUB_TIMEOUT_S = 10.0

_IGNORED = {".gitattributes", "README.md"}


class UnavailableModelError(Exception):
    """A model cannot be found or loaded; the message is the reason, without advice."""


def resolve(model: str, revision: str | None) -> str:
    """Identity of a model's weights: a digest of the local folder, or a hub commit.

    Raises:
        UnavailableModelError: the model is neither on this machine nor reachable.
    """
    folder = _path(model)
    if is_folder(model):
        return f"folder-{_folder_digest(folder)}"
    if model.startswith((".", "/", "~")):
        raise UnavailableModelError(f"there is no folder {model}")
    return _commit(model, revision)


def is_folder(model: str) -> bool:
    """Whether a model's name is a local folder."""
    return os.path.isdir(_path(model))  # noqa: PTH112, Path.is_dir raises for what cannot be one


def _path(model: str) -> Path:
    return Path(os.path.expanduser(model))  # noqa: PTH111, Path's raises for an unknown user


def local_folder(config: OneSpeechEncoderConfig | TextEncoderConfig) -> Path | None:
    """The folder that holds a model on this machine: its own, or that of the hub's cache."""
    if is_folder(config.model):
        return _path(config.model)
    if config.model.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(config.model, "config.json", revision=config.revision)
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _commit(model: str, revision: str | None) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    unreachable = f"`{model}` is not on this machine and the model hub cannot be reached"
    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        if isinstance(cached, str):
            # <cache>/models--owner--name/snapshots/<commit>/config.json
            return Path(cached).parent.name
        return str(HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT_S).sha)
    except HFValidationError as error:
        raise UnavailableModelError(
            f"`{model}` is neither a folder nor a name on the model hub"
        ) from error
    except RepositoryNotFoundError as error:
        raise UnavailableModelError(f"the model hub has no `{model}`") from error
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        raise UnavailableModelError(unreachable) from error
    except Exception as error:
        # Errors of the HTTP client are not OSErrors, and neither is what offline mode raises; which
        # client it is depends on the version of huggingface_hub (requests, httpx, httpx2).
        if type(error).__module__.split(".")[0] == "builtins":
            raise
        raise UnavailableModelError(unreachable) from error


def load_model(model: str, resolved: str | None) -> Any:
    """Load an AutoModel in eval mode, all of whose weights are in the checkpoint.

    Args:
        resolved: from `resolve`; the revision to load from the hub.

    Raises:
        UnavailableModelError: the model cannot be loaded or its checkpoint is incomplete.
    """
    from transformers import AutoModel

    return _load_weights(AutoModel.from_pretrained, model, resolved)


def _load_weights(
    from_pretrained: Callable[..., Any], model: str, resolved: str | None, **options: Any
) -> Any:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loaded, info = _load(from_pretrained, model, resolved, output_loading_info=True, **options)
    # The SpecAugment vector and the pooler have no influence on hidden states.
    missing = [
        name
        for name in sorted(info["missing_keys"])
        if "masked_spec_embed" not in name and not name.startswith("pooler.")
    ]
    if missing:
        raise UnavailableModelError(
            f"the checkpoint `{model}` lacks weights of its architecture "
            f"({len(missing)}, first {missing[0]})"
        )
    return loaded.eval()


def load_settings(model: str, resolved: str | None) -> Any:
    """Load an AutoConfig; arguments and errors as for `load_model`."""
    from transformers import AutoConfig

    return _load(AutoConfig.from_pretrained, model, resolved)


def model_type(model: str, resolved: str | None) -> str | None:
    """`model_type` of a model's config.json; arguments and errors as for `load_model`."""
    from transformers import PretrainedConfig

    settings, _ = _load(PretrainedConfig.get_config_dict, model, resolved)
    found = settings.get("model_type")
    return None if found is None else str(found)


def file_of(model: str, resolved: str | None, name: str) -> str:
    """Path of one file of a model; arguments and errors as for `load_model`."""
    from transformers.utils import cached_file

    def path_of(model: str, **options: Any) -> Any:
        return cached_file(model, name, **options)

    return str(_load(path_of, model, resolved))


def load_whisper_encoder(model: str, resolved: str | None) -> Any:
    """The encoder half of a Whisper checkpoint; the decoder's weights are not read.

    Arguments and errors as for `load_model`.
    """
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    # Checkpoints of WhisperModel and of the models with a head name the encoder differently.
    return _load_weights(
        WhisperEncoder.from_pretrained,
        model,
        resolved,
        key_mapping={r"^(model\.)?encoder\.": ""},
    )


def scales_waves(model: str, resolved: str | None) -> bool:
    """Whether a model's own feature extractor scales waves to unit variance (`do_normalize`)."""
    from transformers import WhisperFeatureExtractor

    try:
        settings, _ = _load(WhisperFeatureExtractor.get_feature_extractor_dict, model, resolved)
    except UnavailableModelError:  # a folder with the model alone
        return False
    return bool(settings.get("do_normalize"))


def load_tokenizer(model: str, resolved: str | None) -> Any:
    """Load an AutoTokenizer; arguments and errors as for `load_model`."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer.from_pretrained, model, resolved)


def _load(
    from_pretrained: Callable[..., Any], model: str, resolved: str | None, **options: Any
) -> Any:
    try:
        if is_folder(model):
            return from_pretrained(str(_path(model)), **options)
        return from_pretrained(model, revision=resolved, **options)
    except Exception as error:
        # A folder with other content can raise any exception in the code of transformers.
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UnavailableModelError(f"`{model}` cannot be loaded ({first})") from error


def _folder_digest(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name in _IGNORED or path.name.startswith("."):
            continue
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()
