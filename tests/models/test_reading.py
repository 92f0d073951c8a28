"""Learnt weighted sums of encoder layers that are stored side by side."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from helpers.search_case import choice

from multistill.errors import JobFileError, UsageError
from multistill.models.build import build
from multistill.models.presets import resolve
from multistill.models.spec import ModelSpec, StatePart
from multistill.pipeline import jobfile
from multistill.search.space import check_space

AUDIO, TEXT = 6, 4
STORED: dict[str, Any] = {"speech_layers": [3, 6, 9], "text_layers": [1, 2]}
DEEP = {"paths": "deep", "standardize": "none"}


def model_of(preset: str = "small-student", **keys: Any) -> Any:
    torch.manual_seed(0)
    spec = resolve(preset, {**STORED, **keys})
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    return build(spec, 3 * AUDIO, 2 * TEXT).eval()


def test_equal_weights_are_the_mean_of_the_layers_and_one_layer_may_win() -> None:
    audio, text = torch.randn(2, 5, 3 * AUDIO), torch.randn(2, 3, 2 * TEXT)
    mixed = model_of(layer_mix="weighted", **DEEP)
    mean = {
        "audio": audio.unflatten(-1, (3, AUDIO)).mean(-2),
        "text": text.unflatten(-1, (2, TEXT)).mean(-2),
    }
    single = build(resolve("small-student", DEEP), AUDIO, TEXT).eval()
    own = {k: v for k, v in mixed.state_dict().items() if not k.startswith("readers.")}
    single.load_state_dict(own)
    with torch.inference_mode():
        first = mixed(audio=audio, text=text).logits
        torch.testing.assert_close(first, single(**mean).logits)
        mixed.readers["audio"].mixes["0"].scores.copy_(torch.tensor([0.0, 40.0, 0.0]))
        chosen = {**mean, "audio": audio[..., AUDIO : 2 * AUDIO]}
        torch.testing.assert_close(mixed(audio=audio, text=text).logits, single(**chosen).logits)
    speech, words = mixed.layer_weights()
    assert speech["layers"] == [3, 6, 9] and speech["weights"] == [0.0, 1.0, 0.0]
    assert words == {"encoder": "text", "title": None, "layers": [1, 2], "weights": [0.5, 0.5]}


@pytest.mark.parametrize("mix", ["weighted", "normalized"])
@pytest.mark.parametrize("paths", ["deep", "both"])
def test_the_weights_learn_and_padding_changes_nothing(mix: str, paths: str) -> None:
    model = model_of(layer_mix=mix, paths=paths, context_turns=2)
    audio, text = torch.randn(2, 5, 3 * AUDIO), torch.randn(2, 3, 2 * TEXT)
    context = torch.randn(2, 2, 2 * TEXT + 3 * AUDIO)
    mask = torch.tensor([[True] * 5 + [False] * 4] * 2)
    longer = torch.cat((audio, torch.full((2, 4, 3 * AUDIO), 7.0)), dim=1)
    with torch.inference_mode():
        logits = model(audio=audio, text=text, context=context).logits
        padded = model(audio=longer, audio_mask=mask, text=text, context=context).logits
    torch.testing.assert_close(padded, logits)
    # The last layer of a deep path beside a wide one starts at zero.
    torch.nn.init.normal_(model.classifier[-1].weight)
    model(audio=audio, text=text, context=context).logits.square().sum().backward()
    for reader in model.readers.values():
        assert reader.mixes["0"].scores.grad.abs().max() > 0


def test_a_layer_with_large_values_counts_no_more_when_layers_are_normalized() -> None:
    audio = torch.randn(2, 5, 3 * AUDIO)
    louder = audio.clone()
    louder[..., :AUDIO] *= 1000
    for mix, same in (("weighted", False), ("normalized", True)):
        model = model_of("small-audio-student", layer_mix=mix, **DEEP)
        with torch.inference_mode():
            logits = model(audio=audio).logits
            change = (model(audio=louder).logits - logits).abs().max()
        assert (change < 1e-3) == same


def test_only_read_encoders_have_weights_and_each_part_its_own() -> None:
    """A parameter without a gradient would stop training on several workers."""
    assert len(model_of("small-audio-student", layer_mix="weighted").layer_weights()) == 1
    parts = (StatePart("a", 12, (1, 2)), StatePart("b", 5), StatePart("c", 6, (4, 5, 6)))
    keys = {"speech_layers": (), "speech_parts": parts, "layer_mix": "weighted"}
    spec = resolve("small-audio-student", keys)
    model = build(spec, 23, 4)
    assert [entry["title"] for entry in model.layer_weights()] == ["a", "c"]
    assert model.audio_projection is not None
    assert model.audio_projection.in_features == 6 + 5 + 2
    assert model(audio=torch.randn(1, 4, 23)).logits.shape == (1, 7)


def test_layers_that_cannot_be_summed_are_refused() -> None:
    with pytest.raises(UsageError, match="has no layers to sum"):
        build(resolve("small-student", {"layer_mix": "weighted"}), AUDIO, TEXT)
    with pytest.raises(UsageError, match="the wide path does not sum layers"):
        model_of(layer_mix="weighted", paths="wide")
    assert check_space({"model.layer_mix": choice("none", "weighted")}) == []


def problems(job: str) -> str:
    with pytest.raises(JobFileError) as caught:
        jobfile.parse(f"name: t\ncorpora: [{{kind: demo}}]\n{job}", "t.yaml")
    return "; ".join(text for _, text in caught.value.problems)


def test_a_job_that_sums_what_it_does_not_store_is_refused() -> None:
    model = "students: [{name: a, model: {preset: small-%sstudent, layer_mix: weighted%s}}]\n"
    speech = "features: {speech: {model: smart-turn, layers: [1, 2], combine: concat}}\n"
    assert "weighted has no layers to sum" in problems(model % ("", ""))
    assert "weighted has no layers to sum" in problems(speech + model % ("text-", ""))
    assert "no layers to sum" in problems(speech + model % ("audio-", ", speech_layer: 1"))
    searched = "search: {space: {model.layer_mix: {choices: [none, normalized]}}}"
    assert "normalized has no layers to sum" in problems(searched)
    valid = speech + model % ("", "") + searched
    assert jobfile.parse(f"name: t\ncorpora: [{{kind: demo}}]\n{valid}", "t.yaml")
