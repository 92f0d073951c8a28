"""Generate the packaged demo corpus: Korean sentences spoken by eSpeak NG voices.

    python scripts/make_demo_corpus.py [--out multistill/corpora/data] [--seed 2023]

For maintainers only: the result is part of the package. It needs `espeak-ng` with the voice `ko`
on the PATH. It contains no recording of a person and nothing from a licensed corpus: the
sentences were written for this file.

Neither the words nor the voice alone determine the emotion. The seven classes are grouped twice,
and the groupings cross:

    words   {angry, disgust} {happy, surprise} {sad, fear}     {neutral}
    voice   {angry, happy}   {disgust, sad}    {surprise, fear} {neutral}

The words of an utterance are drawn from its own class, often from its partner in the word
grouping, and sometimes from any class; its voice likewise. Ten simulated raters confuse it with
its partners and with neutral. A few transcripts have KEMDy's tags.

The same seed gives the same samples. The files still differ in a few bytes from run to run, since
libsndfile assigns a random number to each Ogg stream.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from scipy.signal import lfilter, resample_poly

CLASSES = ("neutral", "happy", "surprise", "angry", "sad", "disgust", "fear")
RATE = 16_000
RATERS = 10
DIALOGUES, TURNS = 6, 6
GAP = 800  # samples between utterances, so that the lossy codec does not mix them

SHARES = {
    "neutral": 0.20,
    "happy": 0.15,
    "surprise": 0.12,
    "angry": 0.15,
    "sad": 0.15,
    "disgust": 0.11,
    "fear": 0.12,
}
WORD_PARTNER = {
    "angry": "disgust",
    "disgust": "angry",
    "happy": "surprise",
    "surprise": "happy",
    "sad": "fear",
    "fear": "sad",
    "neutral": "neutral",
}
VOICE_PARTNER = {
    "angry": "happy",
    "happy": "angry",
    "disgust": "sad",
    "sad": "disgust",
    "surprise": "fear",
    "fear": "surprise",
    "neutral": "neutral",
}

SITUATIONS = (
    "어제 회의 결과를 들었는데",
    "방금 전화를 받았는데",
    "아침에 버스를 탔는데",
    "친구가 약속을 바꿨는데",
    "새로 온 팀장님을 만났는데",
    "주문한 택배가 왔는데",
    "시험 점수가 나왔는데",
    "옆집 사람이 찾아왔는데",
    "동생이 방을 치웠는데",
    "병원에서 연락이 왔는데",
    "저녁 메뉴가 정해졌는데",
    "고양이가 창문으로 들어왔는데",
    "휴가 일정이 나왔는데",
    "작년에 심은 나무를 봤는데",
    "엄마가 반찬을 보내셨는데",
    "집주인이 문자를 보냈는데",
    "면접 연락이 왔는데",
    "예전 사진을 찾았는데",
    "오랜만에 고향에 갔는데",
    "지하철에서 그 사람을 봤는데",
    "냉장고를 열어 봤는데",
    "밤에 혼자 집에 왔는데",
    "선배가 부탁을 했는데",
    "통장을 확인했는데",
)

REACTIONS: dict[str, tuple[str, ...]] = {
    "neutral": (
        "그냥 그렇게 됐어",
        "다음 주에 다시 이야기하자",
        "특별한 일은 없었어",
        "내일 다시 확인해 볼게",
        "평소하고 똑같았어",
        "일단 그렇게 알고 있어",
        "보통 때하고 비슷해",
        "아직 정해진 건 없어",
        "나중에 다시 알려 줄게",
    ),
    "happy": (
        "정말 기뻐서 웃음이 나와",
        "너무 좋아서 춤추고 싶어",
        "기분이 최고야 고마워",
        "이렇게 행복한 날은 처음이야",
        "드디어 됐어 정말 신난다",
        "생각할수록 기분이 좋아",
        "다 같이 축하하자 신난다",
        "고마워서 자꾸 웃음이 나",
    ),
    "surprise": (
        "세상에 이게 웬일이야",
        "깜짝 놀라서 믿을 수가 없어",
        "와 이렇게 좋을 줄은 몰랐어",
        "정말이야 깜짝 놀랐어",
        "세상에 꿈인 줄 알았어",
        "상상도 못 했어 웬일이야",
        "와 눈을 의심했어",
        "갑자기 이런 선물이라니 놀라워",
    ),
    "angry": (
        "정말 화가 나서 참을 수가 없어",
        "어떻게 나한테 이럴 수가 있어",
        "이건 너무하잖아 짜증 나",
        "도대체 왜 말을 안 들어",
        "화가 나서 소리를 질렀어",
        "이제 그만 좀 해 짜증 나",
        "당장 사과하라고 해 너무하잖아",
        "도대체 누가 이런 짓을 했어",
    ),
    "disgust": (
        "보기만 해도 속이 울렁거려",
        "너무 더럽고 역겨워",
        "생각만 해도 징그럽고 싫어",
        "냄새가 지독해서 정말 싫어",
        "그런 짓은 정말 질색이야",
        "더러워서 손도 대기 싫어",
        "역겨워서 쳐다보기도 싫어",
        "짜증 나고 징그러워 치워 줘",
    ),
    "sad": (
        "자꾸 눈물이 나",
        "마음이 너무 아파서 힘들어",
        "혼자 남아서 너무 외로워",
        "보고 싶어서 많이 울었어",
        "이제 다 끝나서 슬퍼",
        "아무것도 하기 싫고 힘들어",
        "눈물이 나서 말을 못 했어",
        "마음이 텅 빈 것 같아 슬퍼",
    ),
    "fear": (
        "무서워서 손이 떨려",
        "불안해서 잠을 못 자겠어",
        "어떡하지 너무 겁이 나",
        "누가 따라올까 봐 무서워",
        "잘못될까 봐 불안해서 힘들어",
        "겁이 나서 말을 못 했어",
        "심장이 뛰고 손이 떨려",
        "어떡하지 숨을 못 쉬겠어",
    ),
}
OPENERS: dict[str, tuple[str, ...]] = {
    "neutral": ("글쎄", "음", "그래서"),
    "happy": ("와", "있잖아", "야"),
    "surprise": ("와", "뭐", "어머"),
    "angry": ("아니", "야", "진짜"),
    "sad": ("있잖아", "휴", "저기"),
    "disgust": ("으", "아니", "진짜"),
    "fear": ("저기", "어머", "음"),
}
TAGS = ("b/ ", "n/ ", "l/ ", "c/ ")


@dataclass(frozen=True)
class Voice:
    """Voice of a class relative to the speaker: rate factor, pitch offset in espeak's steps
    (0-99), level in dB, spectral tilt (above 0 is brighter: more vocal effort)."""

    rate: float
    pitch: float
    level: float
    tilt: float


VOICES = {
    "neutral": Voice(1.00, 0, 0.0, 0.00),
    "happy": Voice(1.16, 12, 3.0, 0.38),
    "angry": Voice(1.26, 4, 5.0, 0.52),
    "disgust": Voice(0.84, -12, -3.0, -0.38),
    "sad": Voice(0.76, -16, -6.0, -0.48),
    "surprise": Voice(1.14, 40, 2.0, 0.08),
    "fear": Voice(1.30, 34, -2.0, -0.06),
}
AFFECT = {  # valence and arousal, 1 to 5
    "neutral": (3.0, 3.0),
    "happy": (4.3, 3.8),
    "surprise": (3.4, 4.1),
    "angry": (1.7, 4.3),
    "sad": (1.8, 2.2),
    "disgust": (1.6, 3.3),
    "fear": (1.9, 3.9),
}

SPEAKERS = (  # two per session: sex, espeak variant, base pitch
    ("F", "f1", 52), ("M", "m1", 40),
    ("M", "m2", 44), ("F", "f2", 50),
    ("F", "f3", 46), ("F", "f4", 54),
    ("M", "m3", 42), ("F", "Annie", 50),
    ("M", "m4", 46), ("M", "m5", 38),
    ("F", "f5", 48), ("M", "m6", 44),
    ("F", "Andrea", 50), ("M", "m7", 42),
    ("M", "m8", 40), ("F", "Linda", 48),
    ("F", "anika", 50), ("F", "Alicia", 52),
    ("M", "Lee", 44), ("F", "Steph", 48),
    ("M", "Max", 42), ("M", "Michael", 46),
    ("F", "Belinda", 50), ("M", "Denis", 44),
    ("M", "Alex", 42), ("F", "aunty", 50),
    ("M", "david", 44), ("F", "steph3", 48),
    ("M", "edward", 40), ("M", "Mario", 44),
    ("M", "antonio", 42), ("F", "steph2", 50),
)  # fmt: skip


@dataclass(frozen=True)
class Utterance:
    """One utterance before synthesis. `emotion` is the intended class; only votes are packaged."""

    utterance_id: str
    session: int
    sex: str
    variant: str
    emotion: str
    text: str
    spoken_text: str
    rate: float
    pitch: float
    level: float
    tilt: float
    emotions: tuple[str, ...]
    valences: tuple[int, ...]
    arousals: tuple[int, ...]


def pick(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[int(rng.integers(len(items)))]


def draw_class(
    rng: np.random.Generator, emotion: str, partner: str, own: float, other: float, neutral: float
) -> str:
    """Draw the class used for words, voice or a rater: own, its partner, neutral or any."""
    draw = rng.random()
    if draw < own:
        return emotion
    if draw < own + other:
        return partner
    if draw < own + other + neutral:
        return "neutral"
    return pick(rng, CLASSES)


def draw_classes(rng: np.random.Generator, count: int) -> list[str]:
    """Classes with the frequencies in `SHARES`, shuffled."""
    exact = np.array([SHARES[name] for name in CLASSES]) * count
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact)[: count - counts.sum()]:
        counts[index] += 1
    classes = [name for name, times in zip(CLASSES, counts, strict=True) for _ in range(times)]
    return [classes[i] for i in rng.permutation(len(classes))]


def sentence(rng: np.random.Generator, emotion: str) -> tuple[str, str]:
    """The transcript (occasionally with a tag) and the spoken words."""
    source = draw_class(rng, emotion, WORD_PARTNER[emotion], 0.54, 0.34, 0.07)
    words = f"{pick(rng, SITUATIONS)} {pick(rng, REACTIONS[source])}"
    if rng.random() < 0.35:
        words = f"{pick(rng, OPENERS[source])} {words}"
    tag = pick(rng, TAGS) if rng.random() < 0.08 else ""
    return f"{tag}{words}.", words


def draw_ratings(
    rng: np.random.Generator, emotion: str, doubt: float
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """Ten raters: class, valence and arousal of each."""
    emotions, valences, arousals = [], [], []
    for _ in range(RATERS):
        partner = (WORD_PARTNER if rng.random() < 0.5 else VOICE_PARTNER)[emotion]
        rating = draw_class(rng, emotion, partner, 1 - doubt, doubt * 0.5, doubt * 0.35)
        valence, arousal = AFFECT[rating]
        emotions.append(rating)
        valences.append(int(np.clip(round(rng.normal(valence, 0.5)), 1, 5)))
        arousals.append(int(np.clip(round(rng.normal(arousal, 0.5)), 1, 5)))
    return tuple(emotions), tuple(valences), tuple(arousals)


def plan(seed: int) -> list[Utterance]:
    """All utterances in order; every random choice is made here, none during synthesis."""
    rng = np.random.default_rng(seed)
    result = []
    for session in range(1, len(SPEAKERS) // 2 + 1):
        pair = SPEAKERS[2 * session - 2 : 2 * session]
        classes = draw_classes(rng, DIALOGUES * TURNS)
        for number, emotion in enumerate(classes):
            dialogue, turn = number // TURNS + 1, number % TURNS + 1
            which = (turn + dialogue) % 2
            sex, variant, base = pair[which]
            user = 2 * session - 1 + which
            voice = VOICES[draw_class(rng, emotion, VOICE_PARTNER[emotion], 0.68, 0.26, 0.03)]
            text, spoken_text = sentence(rng, emotion)
            emotions, valences, arousals = draw_ratings(rng, emotion, float(rng.beta(2.0, 3.2)))
            result.append(
                Utterance(
                    f"Sess{session:02d}_script{dialogue:02d}_User{user:03d}{sex}_{turn:03d}",
                    session,
                    sex,
                    variant,
                    emotion,
                    text,
                    spoken_text,
                    rate=195 * voice.rate * float(np.exp(rng.normal(0, 0.06))),
                    pitch=float(np.clip(base + voice.pitch + rng.normal(0, 4), 0, 99)),
                    level=-24 + voice.level + float(rng.normal(0, 1.5)),
                    tilt=voice.tilt + float(rng.normal(0, 0.06)),
                    emotions=emotions,
                    valences=valences,
                    arousals=arousals,
                )
            )
    return result


def synthesize(utterance: Utterance) -> npt.NDArray[np.float32]:
    """Mono samples at 16 kHz, trimmed, with the utterance's tilt and level, and faint noise."""
    command = ["espeak-ng", "-v", f"ko+{utterance.variant}", "-s", str(round(utterance.rate))]
    command += ["-p", str(round(utterance.pitch)), "--stdin", "--stdout", "-b", "1"]
    text = utterance.spoken_text.encode()
    process = subprocess.run(command, input=text, capture_output=True, check=True)
    # espeak-ng writes a header without length to a pipe, so the PCM is read from after it.
    start = process.stdout.index(b"data") + 8
    rate = int.from_bytes(process.stdout[24:28], "little")
    samples = np.frombuffer(process.stdout[start:], dtype="<i2").astype(np.float64) / 32768
    samples = resample_poly(samples, RATE // 50, rate // 50)
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    samples = samples[max(loud[0] - 800, 0) : loud[-1] + 1600]
    if utterance.tilt >= 0:
        samples = lfilter([1, -utterance.tilt], [1], samples)
    else:
        samples = lfilter([1], [1, utterance.tilt], samples)
    samples *= 10 ** (utterance.level / 20) / np.sqrt(np.mean(samples**2))
    seed = int.from_bytes(hashlib.sha256(utterance.utterance_id.encode()).digest()[:8], "little")
    samples += np.random.default_rng(seed).normal(0, 3e-4, len(samples))
    return np.clip(samples, -0.98, 0.98).astype(np.float32)


def encode(samples: npt.NDArray[np.float32], quality: float) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, RATE, format="OGG", subtype="OPUS", compression_level=quality)
    return stream.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("multistill/corpora/data"))
    parser.add_argument("--seed", type=int, default=2023)
    parser.add_argument("--quality", type=float, default=0.98, help="0 best to 1 smallest")
    arguments = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        print("espeak-ng is not installed: apt-get install espeak-ng", file=sys.stderr)
        return 1
    utterances = plan(arguments.seed)
    with ThreadPoolExecutor(4) as pool:
        clips = list(pool.map(synthesize, utterances))
    version = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    sessions, size = [], 0
    for number in sorted({item.session for item in utterances}):
        rows, parts, offset = [], [], 0
        for item, clip in zip(utterances, clips, strict=True):
            if item.session != number:
                continue
            rows.append(
                {
                    "id": item.utterance_id,
                    "start": offset,
                    "frames": len(clip),
                    "text": item.text,
                    "emotion": "".join(str(CLASSES.index(name)) for name in item.emotions),
                    "valence": "".join(map(str, item.valences)),
                    "arousal": "".join(map(str, item.arousals)),
                }
            )
            parts += [clip, np.zeros(GAP, np.float32)]
            offset += len(clip) + GAP
        data = encode(np.concatenate(parts), arguments.quality)
        name = f"demo-session{number:02d}.ogg"
        (arguments.out / name).write_bytes(data)
        size += len(data)
        digest = hashlib.sha256(data).hexdigest()
        sessions.append({"session": number, "audio": name, "sha256": digest, "utterances": rows})
    index = {
        "format": 1,
        "title": "multistill demo corpus",
        "synthetic": True,
        "note": "SYNTHETIC: every clip is spoken by eSpeak NG and every vote is simulated; "
        "no person was recorded and no licensed corpus was used. Good for trying the program, "
        "not for any claim about emotion in speech.",
        "made_by": f"scripts/make_demo_corpus.py --seed {arguments.seed}, "
        + version.stdout.split(" Data at")[0].strip(),
        "sample_rate": RATE,
        "classes": list(CLASSES),
        "sessions": sessions,
    }
    (arguments.out / "demo.json").write_text(
        json.dumps(index, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    seconds = sum(len(clip) for clip in clips) / RATE
    print(f"{len(clips)} utterances, {seconds / 60:.1f} min, {size / 1e6:.2f} MB of audio")
    return 0


if __name__ == "__main__":
    sys.exit(main())
