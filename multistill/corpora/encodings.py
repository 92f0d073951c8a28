"""Which encoding text without a byte order mark is in, decided by how plausible each reading is.

Any bytes can be read in several encodings without an error: `’m` of Windows-1252 is a Hangul
syllable in CP949. So every candidate is tried, and the one wins that gives text which people
write: common letters of one script, no symbols inside words, no rare syllables.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

CANDIDATES = (
    "cp949",
    "cp1252",
    "cp932",
    "gb18030",
    "big5",
    "euc_jp",
    "cp1251",
    "koi8-r",
    "koi8-u",
    "cp866",
    "iso8859-5",
    "cp1250",
    "iso8859-2",
    "cp852",
    "cp1253",
    "cp737",
    "cp1254",
    "cp1255",
    "cp1256",
    "iso8859-6",
    "cp1257",
    "cp874",
    "mac-roman",
    "cp850",
    "utf-16-le",
    "utf-16-be",
)
"""Encodings considered for text that is not UTF-8; of equal readings, the first is named."""

KOREAN = ("cp949", "utf-16-le", "utf-16-be")
"""The candidates for corpora that are known to be Korean."""

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks. UTF-32 stands before UTF-16, whose mark its own begins with."""

UNDECODABLE = "\udcff"
"""Stands for bytes that cannot be decoded, in text decoded with `errors=KEEP_GOING`."""

KEEP_GOING = "multistill.undecodable"

MINIMUM = 0.5
MINIMUM_OF_ALPHABETS = 1.4
MARGIN = 0.4
"""Scores are from -5 to 3 for each character. Below the minimum a reading is not text; two
different readings within the margin cannot be told apart. Any bytes are letters of some Cyrillic,
Greek, Hebrew, Arabic or Thai code page, so most of these letters have to be common ones."""

codecs.register_error(KEEP_GOING, lambda error: (UNDECODABLE, error.end))  # type: ignore[attr-defined]

# Syllables that make up most of Korean text, characters that make up half of Chinese text, and
# the accented letters and signs of the languages written in Windows-1252 and Windows-1250.
_HANGUL = frozenset(
    "이다는을가에고지하의은로아그도나사기어를서한리시자인라있해정거것게요내보들일수만니면대안네없너"
    "우좀말오제스여야되전으구부상저마장주진세무과생소원동었할았했적래런던데와까때잘못좋싫왜뭐미"
    "알겠습좀건간신같모두난널걸위러려비공유조실당경화연성분발방식문물학교회계관국개중후심감각결"
    "단달남녀양명선음악반바밖밤밥밝박발배백번별병복본볼봐빠빨뿐살새색설속손쉬쓰씨약언얼업얘엄엔역"
    "열영예옆온올옷완왔운움월웃응잊작잖잡재절점접종죄줄줘즐직질집짜쪽차착참찾책처천첫청체초최추출"
    "충치친침카커코크큰타택터토통트특파판펴평포표품프피필함합항행향험현형호혼황희힘떤떻또께꼭꽃끝날"
    "낮년노놀누눈느늘능담답더도독돌돈됐된될둘뒤드든듣들등따딸땅렇렸많맛맞맨먹먼며목몇몰몸민믿받버벌"
    "법변슬퍼픈쁘쁜기분화나무서워놀람행복혐오중립녕어제왔헐흑흥엉앗쩔짱쳇칫풉큭꺄쉿꽝졸존갑값"
)
_HANZI = frozenset(
    "的一是不了在人有我他这这個为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能"
    "对着事其里所去行过家十用发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面"
    "又定见只主没公从說國來們時過後會對著裡為無這經進種將還見沒從今很吗吧呢啊她開心難過生氣害怕昨雪"
    "怎什誰谁想知别別哭笑爱愛走让讓真太快高兴興開雨"
)
_MARKS = "’‘“”„…–—«»€§°•·©®™"
_WESTERN_MARKS = _MARKS + "£¢½¼¾ªº"
_WESTERN = (
    "äöüßÄÖÜ",  # German
    "éèêëàâçîïôùûœæÉÈÊÀÂÇÔ",  # French
    "áéíóúüñÁÉÍÓÚÑ¿¡",  # Spanish
    "áâãàçéêíóôõúÁÂÃÀÇÉÊÍÓÔÕÚ",  # Portuguese
    "àèéìòùÀÈÉ",  # Italian
    "åäöæøéÅÄÖÆØÉ",  # the Nordic languages
    "ëïéèóüöä",  # Dutch
)
_CENTRAL = (
    "ąćęłńóśźżĄĆĘŁŃÓŚŹŻ",  # Polish
    "áčďéěíňóřšťúůýžľĺôäÁČĎÉĚÍŇÓŘŠŤÚŮÝŽĽ",  # Czech and Slovak
    "áéíóöőúüűÁÉÍÓÖŐÚÜŰ",  # Hungarian
    "ăâîşţĂÂÎŞŢ",  # Romanian
    "čćđšžČĆĐŠŽ",  # Croatian
)
_TURKISH = ("çğıöşüâîÇĞİÖŞÜ",)
_BALTIC = (
    "āčēģīķļņšūžĀČĒĢĪĶĻŅŠŪŽ",  # Latvian
    "ąčęėįšųūžĄČĘĖĮŠŲŪŽ",  # Lithuanian
    "äöõüšžÄÖÕÜŠŽ",  # Estonian
)
# The letters of alphabets other than the Latin one, the commonest first. Bytes of one code page
# are letters of all the others; that they are the common ones tells which page is right.
_ALPHABETS = {
    "cyrillic": "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъ",
    "greek": "αοιετνσηρπκμυλςίωάγδέχόθήφύώβξζψ",
    "hebrew": "יהולארתבשמםנעדכחקפןסטזצגךףץ",
    "arabic": "اليمنوترهبعدسفةكحقأجشطصخىذإضزغثءئآظؤ",
    "thai": "านรอกเงมยลวด่ทส้ตะัิปี์คจหพแขุใชไบึผธศถซโณญำูฟฉฎษภฐฏ๊๋ฆฮฌฒๆฯฤฑ",
}
_RANKED = {
    script: {
        letter: min(3.0, 4.0 - 6.0 * rank / len(letters)) for rank, letter in enumerate(letters)
    }
    for script, letters in _ALPHABETS.items()
}
_BLOCKS = {
    "cyrillic": ("\u0400", "\u04ff"),
    "greek": ("\u0386", "\u03ff"),
    "hebrew": ("\u05d0", "\u05ea"),
    "arabic": ("\u0620", "\u06d3"),
    "thai": ("\u0e01", "\u0e5b"),
}
_EAST_ASIAN_MARKS = "’‘“”…—·「」『』、。！？《》，；：（）～\u3000"
_COMMON = {
    "cp949": (_HANGUL | set(_EAST_ASIAN_MARKS) | set("ㄱㄴㄷㅇㅋㅎㅠㅜㅡ"),),
    **dict.fromkeys(
        ("cp1252", "mac-roman", "cp850"),
        tuple(frozenset(language + _WESTERN_MARKS) for language in _WESTERN),
    ),
    **dict.fromkeys(
        ("cp1250", "iso8859-2", "cp852"),
        tuple(frozenset(language + _MARKS) for language in _CENTRAL),
    ),
    "cp1254": tuple(frozenset(language + _WESTERN_MARKS) for language in _TURKISH),
    "cp1257": tuple(frozenset(language + _MARKS) for language in _BALTIC),
    **dict.fromkeys(
        ("cp1251", "koi8-r", "koi8-u", "cp866", "iso8859-5", "cp1253", "cp737", "cp1255"),
        (frozenset(_MARKS),),
    ),
    **dict.fromkeys(("cp1256", "iso8859-6"), (frozenset(_MARKS + "،؛؟"),)),
    "cp874": (frozenset(_MARKS),),
    **dict.fromkeys(
        ("cp932", "euc_jp"),
        (_HANZI | set(_EAST_ASIAN_MARKS) | set("今日本人私何東京行見言"),),
    ),
    "gb18030": (_HANZI | set(_EAST_ASIAN_MARKS),),
    "big5": (_HANZI | set(_EAST_ASIAN_MARKS),),
}
_ALL_COMMON = tuple(dict.fromkeys(common for sets in _COMMON.values() for common in sets))
_SCRIPTS = {
    "cp949": "hangul",
    **dict.fromkeys(("cp1252", "mac-roman", "cp850", "cp1250", "iso8859-2", "cp852"), "latin"),
    **dict.fromkeys(("cp1254", "cp1257"), "latin"),
    **dict.fromkeys(("cp932", "euc_jp"), "kana han"),
    **dict.fromkeys(("gb18030", "big5"), "han"),
    **dict.fromkeys(("cp1251", "koi8-r", "koi8-u", "cp866", "iso8859-5"), "cyrillic"),
    **dict.fromkeys(("cp1253", "cp737"), "greek"),
    "cp1255": "hebrew",
    **dict.fromkeys(("cp1256", "iso8859-6"), "arabic"),
    "cp874": "thai",
}
"""Scripts that an encoding was made for; letters of others that it has too are no evidence."""

_PRIOR = {"cp1252": 0.5}
"""English text, which is everywhere, has too few accented letters to tell its code page."""

# What does not happen inside the words of people, and does in a reading in a wrong encoding.
_MISTAKES = (
    # A letter of another script inside a Latin word; a Korean particle behind one is fine.
    re.compile(r"(?<=[A-Za-z])[가-힣](?=[a-z])"),
    re.compile(r"(?<=[a-z])[\u3400-\u9fff\uff61-\uff9f]|[\u3400-\u9fff\uff61-\uff9f](?=[a-z])"),
    re.compile(
        r"(?<=[A-Za-z\u00c0-\u024f])[\u0370-\u07ff\u0e00-\u0e7f]"
        r"|[\u0370-\u07ff\u0e00-\u0e7f](?=[A-Za-z\u00c0-\u024f])"
    ),
    # A capital inside a word in small letters.
    re.compile(r"(?<=[a-zß-öø-ÿ])[À-ÖØ-ÞĄĆĘŁŃŚŹŻČĎŇŘŠŤŽ](?=[a-zß-öø-ÿ])"),
    re.compile(r"(?<=[а-яё])[А-ЯЁ]|(?<=[ά-ώ])[Ά-Ώ]"),
    # Letters that only end a word inside one, and the reverse.
    re.compile(r"ς(?=[ά-ώ])|(?<=[ά-ώ])σ(?![ά-ώ])|[ךםןףץ](?=[א-ת])|ة(?=[ء-ي])"),
    # Signs of Thai without the consonant that they belong to, and digits inside words.
    re.compile(
        r"(?<![\u0e01-\u0e2e\u0e31-\u0e3a\u0e47-\u0e4e])[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]"
        r"|[\u0e40-\u0e44](?![\u0e01-\u0e2e])|(?<=[\u0e01-\u0e4e])[\u0e50-\u0e59]"
    ),
    # Frames inside words.
    re.compile(r"(?<=[^\W\d_])[\u2500-\u259f]|[\u2500-\u259f](?=[^\W\d_])"),
    # Signs of prices, fractions and ordinals at letters.
    re.compile(r"[£¢½¼¾ªº](?=[^\W\d_])|(?<=[a-zß-ÿ])[£¢½¼¾ªº]"),
    # A sign inside a word, or one that opens a sentence behind a letter.
    re.compile(r"(?<=[A-Za-z])[¢-¬®-¶¸-º¼-¾×÷†‡ˆ‰‹›˜™](?=[A-Za-z])|(?<=[A-Za-z])[¿¡]"),
)
# Accented letters are few in a word: neither three in a row nor a word of nothing else.
_LATIN_RUN = re.compile(
    r"[\u0080-\u024f]{3,}|(?<![A-Za-z\u0080-\u024f])[\u00a1-\u024f]{2}(?![A-Za-z\u0080-\u024f])"
)


class AmbiguousEncodingError(ValueError):
    """No candidate, or more than one, gives plausible text; the message is the reason."""


def mark_of(data: bytes) -> str | None:
    """The encoding that a byte order mark names."""
    return next((name for mark, name in MARKS if data.startswith(mark)), None)


def choose(pieces: Sequence[bytes], candidates: Sequence[str] = CANDIDATES) -> str:
    """The encoding in which all pieces together are the most plausible text.

    Args:
        pieces: files or lines, none of them UTF-8. Those that are text in no encoding are damaged
            and do not count, unless most are.

    Raises:
        AmbiguousEncodingError: no candidate, or more than one, is plausible.
    """
    readings = {name: [piece.decode(name, KEEP_GOING) for piece in pieces] for name in candidates}
    usable = [
        any(plausibility(readings[name][row], name) >= MINIMUM for name in candidates)
        for row in range(len(pieces))
    ]
    if sum(usable) * 2 < len(pieces):
        raise AmbiguousEncodingError("is not plausible text in any known encoding")
    ranked = []
    for name, lines in readings.items():
        text = "\n".join(line for line, use in zip(lines, usable, strict=True) if use)
        ranked.append((plausibility(text, name), name, text))
    ranked.sort(key=lambda entry: -entry[0])  # stable: equal scores keep the candidates' order
    score, name, text = ranked[0]
    rivals = [other for s, other, reading in ranked[1:] if score - s < MARGIN and reading != text]
    if rivals:
        raise AmbiguousEncodingError(f"can be read as {name} and as {rivals[0]}")
    if score < (MINIMUM_OF_ALPHABETS if _SCRIPTS.get(name) in _ALPHABETS else MINIMUM):
        raise AmbiguousEncodingError("is not plausible text in any known encoding")
    return name


def plausibility(text: str, encoding: str) -> float:
    """Mean score of the characters outside ASCII, from -5 to 3; 3 if there are none.

    Args:
        encoding: the candidate that gave the text, whose languages decide what is common.
    """
    counts = Counter(text)
    odd = [(c, n) for c, n in counts.items() if not (" " <= c <= "~" or c in "\r\n\t")]
    if not odd:
        return 3.0
    scripts = _SCRIPTS.get(encoding, "hangul kana han cyrillic greek hebrew arabic latin")
    total = max(
        sum(n * (3.0 if c in common else _score(c, scripts)) for c, n in odd)
        for common in _COMMON.get(encoding, _ALL_COMMON)
    )
    total -= 4.0 * sum(1 for pattern in _MISTAKES for _ in pattern.finditer(text))
    total -= 3.0 * sum(len(run[0]) for run in _LATIN_RUN.finditer(text))
    return max(-5.0, total / sum(n for _, n in odd) + _PRIOR.get(encoding, 0.0))


@lru_cache(65_536)
def _score(character: str, scripts: str) -> float:
    """How likely a character is that is in no list of common ones."""
    if "가" <= character <= "힣":
        if "hangul" not in scripts:
            return -1.0
        return 1.0 if _in_ks_x_1001(character) else -3.0
    if "ぁ" <= character <= "ー":
        if "kana" not in scripts:
            return -1.0
        return 3.0 if character <= "ん" else 2.0
    for script, (first, last) in _BLOCKS.items():
        if first <= character <= last:
            if script not in scripts:
                return -1.0
            rank = _RANKED[script].get(character.lower(), 0.5)
            return rank - 0.5 if character.isupper() else rank
    if "\u4e00" <= character <= "\u9fff":
        return 0.0 if "han" in scripts.split() else -1.0
    category = unicodedata.category(character)
    if category in ("Cc", "Cs", "Co", "Cn"):
        return -5.0
    if category in ("Ll", "Lu") and character < "\u0250":
        return 0.0 if "latin" in scripts else -1.0
    if "\u2500" <= character <= "\u259f":  # frames, of which DOS and KOI8 have many
        return -3.0
    if "｡" <= character <= "ﾟ":  # halfwidth katakana: any byte from A1 to DF in CP932
        return -2.0
    return -1.0


def _in_ks_x_1001(syllable: str) -> bool:
    """Whether a syllable is one of the 2350 of KS X 1001, which nearly all of Korean text uses."""
    try:
        return len(syllable.encode("euc_kr")) == 2
    except UnicodeEncodeError:
        return False
