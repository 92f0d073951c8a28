"""Names of emotions in several languages, so that a label is recognised however it is written."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

SYNONYMS: dict[str, tuple[str, ...]] = {
    "neutral": (
        *("neutrality", "neu", "no emotion", "중립", "무감정", "neutre", "neutro", "neutrale"),
        *("中性", "中立", "平静", "平常", "нейтральный"),
    ),
    "happy": (
        *("happiness", "hap", "joy", "joyful", "기쁨", "행복", "freude", "freudig", "joie"),
        *("heureux", "alegría", "alegria", "feliz", "felicidad", "gioia", "felicità", "高兴"),
        *("快乐", "开心", "喜び", "喜", "радость"),
    ),
    "surprise": (
        *("surprised", "sur", "놀람", "überraschung", "überrascht", "surpris", "sorpresa"),
        *("surpresa", "惊讶", "惊奇", "惊喜", "驚き", "удивление"),
    ),
    "angry": (
        *("anger", "ang", "분노", "화남", "wut", "ärger", "zorn", "wütend", "colère", "en colère"),
        *("enfado", "ira", "enojo", "raiva", "rabbia", "愤怒", "生气", "怒り", "怒"),
        *("гнев", "злость"),
    ),
    "sad": (
        *("sadness", "슬픔", "trauer", "traurig", "traurigkeit", "tristesse", "triste", "tristeza"),
        *("tristezza", "悲伤", "伤心", "难过", "悲しみ", "哀", "грусть", "печаль"),
    ),
    "disgust": (
        # `disqust` is the spelling in KEMDy20's Total Evaluation.
        *("disqust", "disgusted", "dis", "혐오", "ekel", "dégoût", "asco", "nojo", "disgusto"),
        *("厌恶", "嫌悪", "отвращение"),
    ),
    "fear": (
        *("fearful", "fea", "afraid", "scared", "anxiety/fear", "fear/anxiety", "공포", "두려움"),
        *("angst", "furcht", "ängstlich", "peur", "miedo", "medo", "paura", "害怕", "恐惧", "恐れ"),
        "страх",
    ),
    "boredom": ("bored", "지루함", "langeweile", "gelangweilt", "ennui", "aburrimiento", "noia"),
    "contempt": ("contemptuous", "경멸", "verachtung", "mépris", "desprecio", "蔑视", "軽蔑"),
    "excited": ("excitement", "exc", "흥분", "aufgeregt", "excité", "excitación", "兴奋"),
    "frustrated": ("frustration", "fru", "좌절", "frustriert", "frustré", "frustración", "沮丧"),
    "calm": ("calmness", "차분함", "ruhig", "calme", "calma", "冷静"),
    "anxious": ("anxiety", "불안", "anxieux", "ansiedad", "焦虑", "不安"),
    "embarrassed": ("embarrassment", "당황", "verlegen", "尴尬"),
    "hurt": ("상처",),
    "other": ("others", "oth", "기타", "andere", "autre", "otro", "其他", "その他"),
}
"""Emotion -> further spellings. Codes of one letter are in no list: `A` is anger in one corpus and
Angst, fear, in another; a corpus's `labels` says which."""

_EMOTION_OF = {
    spelling: emotion for emotion, names in SYNONYMS.items() for spelling in (emotion, *names)
}


def emotion_key(name: str) -> str:
    """The name as it is compared: Unicode NFKC, case folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def emotion_of(name: str, synonyms: Mapping[str, Sequence[str]] | None = None) -> str:
    """The emotion that a name stands for; a name that no table has stands for itself.

    Args:
        synonyms: further spellings of emotions, which take precedence.

    Examples:
        >>> emotion_of("Freude"), emotion_of("Amused"), emotion_of("amused", {"joy": ["Amused"]})
        ('happy', 'amused', 'happy')
    """
    key = emotion_key(name)
    for emotion, spellings in (synonyms or {}).items():
        if key in map(emotion_key, spellings):
            key = emotion_key(emotion)
            break
    return _EMOTION_OF.get(key, key)
