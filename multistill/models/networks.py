"""The networks that `ModelSpec.network` names: subclasses of `multistill.models.base.Network`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from multistill.models.base import Network

NETWORKS: Mapping[str, str] = {
    "head": "multistill.models.build:EmotionModel",
    "pooled": "multistill.models.pooled:PooledNetwork",
    "va-audio": "multistill.models.valence_arousal:AudioNetwork",
    "va-text": "multistill.models.valence_arousal:TextNetwork",
    "va-fusion": "multistill.models.valence_arousal:FusionNetwork",
    "fe2e": "multistill.models.end_to_end:EndToEnd",
    "mesm": "multistill.models.end_to_end:EndToEnd",
}
"""Name -> module and class, imported when a model of it is first made. What each reads of a
`ModelSpec` stands in `multistill.models.network_fields`."""


def network_class(name: str) -> type[Network]:
    """The class of that name; `ModelSpec` refuses names that are not here."""
    module, _, attribute = NETWORKS[name].partition(":")
    found: type[Network] = getattr(import_module(module), attribute)
    return found
