"""Which encoding a corpus is in: right in every language, or refused."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.corpora.encodings import AmbiguousEncodingError, choose

ENGLISH = [
    "I’m fine, don’t worry",
    "It’s late",
    "“Hello,” she said",
    "No — never",
    "Wait… what?",
    "a naïve idea, he said",
    "That’s 5 € please",
    "we’ll see",
]
GERMAN = [
    "Ärger",
    "Das ist für dich",
    "Über die Straße",
    "Grüße aus München",
    "Ich hätte gern ein schönes Stück",
    "Warum fährst du so spät?",
    "ÄRGER IM BÜRO",
    "Heute abend könnte ich es ihm sagen.",
]
FRENCH = [
    "Ça va très bien",
    "à la française",
    "c’est déjà fini",
    "Où êtes-vous allés?",
    "Je suis désolé",
    "la tête me tourne, naïf",
    "Noël à l’hôtel",
    "être ou ne pas être",
]
SPANISH = [
    "El niño está aquí",
    "¿Qué pasó?",
    "¡Qué alegría!",
    "Mañana será otro día",
    "No sé qué decir, señor",
    "Él también llegó",
    "un pingüino enorme",
    "después de la canción",
]
PORTUGUESE = [
    "São Paulo não é longe",
    "informações",
    "Não estão à espera",
    "Você é tão bonita",
    "o coração da mãe",
    "até amanhã",
    "três irmãos",
    "às vezes eu choro",
]
NORDIC = [
    "jeg kan ikke høre på",
    "smörgåsbord",
    "Hyvää päivää",
    "Hvad så, hvor går du?",
    "Åh nej, det är för mycket",
    "blåbærsyltetøy",
    "på en ø",
    "Ännu mer kött",
]
KOREAN = [
    "어제 눈이 왔어",
    "정말 좋다",
    "TV를 봤어",
    "나는 SNS에 글을 썼다",
    "글쎄요…",
    "짜증나",
    "웬만하면 그만해!",
    "AI가 뭐예요",
]
JAPANESE = [
    "昨日は雪が降った",
    "おはよう",
    "ありがとうございます",
    "カメラを買いました",
    "東京へ行きます",
    "いいえ、違います。",
    "うん",
    "とても悲しい",
]
SIMPLIFIED = [
    "昨天下雪了",
    "你好吗",
    "我很高兴",
    "他走了，我很难过。",
    "是的，我知道",
    "不要这样说",
    "我们一起去吧",
    "为什么呢",
]
TRADITIONAL = [
    "昨天下雪了",
    "你好嗎",
    "我很高興",
    "他走了，我很難過。",
    "是的，我知道",
    "不要這樣說",
    "我們一起去吧",
    "為什麼呢",
]
RUSSIAN = [
    "Привет",
    "Как дела?",
    "Нет, я не знаю",
    "ОЧЕНЬ ХОРОШО",
    "Мне грустно",
    "да",
    "Что случилось",
    "мы идём домой",
]
POLISH = [
    "Zażółć gęślą jaźń",
    "Dziękuję, cześć",
    "łzy i śmiech",
    "Jestem bardzo zmęczony",
    "Źle się czuję",
    "Proszę przyjść później",
    "Ależ oczywiście, że tak",
    "są już wszędzie",
]
CZECH = [
    "Příliš žluťoučký kůň",
    "děkuji, jak se máš",
    "To je hrozné",
    "včera sněžilo",
    "Nevím, co říct",
    "Už mě to nebaví",
    "těším se na tebe",
    "štěstí a smůla",
]
UKRAINIAN = [
    "доброго ранку",
    "дякую",
    "ні, не треба",
    "чому ти плачеш?",
    "мені дуже сумно",
    "що сталося",
    "Я їду додому",
    "скажи мені правду",
]
BULGARIAN = [
    "добро утро",
    "благодаря",
    "не знам",
    "какво стана",
    "много съм тъжен",
    "защо плачеш?",
    "Ще дойда утре",
    "обичам те",
]
GREEK = [
    "καλημέρα",
    "ευχαριστώ",
    "όχι, δεν θέλω",
    "τι κάνεις;",
    "γιατί κλαις",
    "δεν ξέρω",
    "Είμαι πολύ λυπημένος",
    "Πού πας;",
]
HEBREW = [
    "בוקר טוב",
    "תודה רבה",
    "אני לא יודע",
    "למה אתה בוכה?",
    "שלום לכולם",
    "אני עצוב מאוד",
    "מה קרה?",
    "בוא נלך הביתה",
]
ARABIC = [
    "صباح الخير",
    "شكرا جزيلا",
    "لا أعرف",
    "كيف حالك؟",
    "هذا جميل جدا",
    "أنا حزين اليوم",
    "ماذا حدث",
    "تعال إلى البيت",
]
THAI = [
    "สวัสดีครับ",
    "ขอบคุณมาก",
    "ฉันไม่รู้",
    "ทำไมเธอร้องไห้",
    "ฉันเศร้ามาก",
    "เกิดอะไรขึ้น",
    "วันนี้อากาศดี",
    "ไปบ้านกันเถอะ",
]
TURKISH = [
    "günaydın",
    "şimdi değil",
    "çok teşekkür ederim",
    "hayır, bilmiyorum",
    "neden ağlıyorsun?",
    "çok üzgünüm",
    "İyi akşamlar",
    "eve gidiyoruz, değil mi",
]
LITHUANIAN = [
    "labas rytas",
    "ačiū labai",
    "kodėl verki?",
    "man labai liūdna",
    "šiandien žmonės",
    "kas atsitiko jūsų namuose",
    "einame į namus",
    "ką tu darai",
]
CORPORA = [
    ("cp1252", ENGLISH),
    ("cp1252", GERMAN),
    ("cp1252", FRENCH),
    ("cp1252", SPANISH),
    ("cp1252", PORTUGUESE),
    ("cp1252", NORDIC),
    ("cp1252", ENGLISH + GERMAN),
    ("cp1252", GERMAN + FRENCH),
    ("cp949", KOREAN),
    ("cp949", [*KOREAN, "It works", "plain"]),
    ("cp932", JAPANESE),
    ("gb18030", SIMPLIFIED),
    ("big5", TRADITIONAL),
    ("cp1251", RUSSIAN),
    ("cp1251", UKRAINIAN),
    ("cp1251", BULGARIAN),
    ("koi8-r", RUSSIAN),
    ("cp866", RUSSIAN),
    ("iso8859-5", RUSSIAN),
    ("cp1253", GREEK),
    ("iso8859-7", GREEK),
    ("cp737", GREEK),
    ("cp1255", HEBREW),
    ("iso8859-8", HEBREW),
    ("cp1256", ARABIC),
    ("iso8859-6", ARABIC),
    ("cp874", THAI),
    ("euc_jp", JAPANESE),
    ("cp1250", POLISH),
    ("cp1250", CZECH),
    ("utf-16-le", ENGLISH),
    ("utf-16-be", GERMAN),
    ("utf-16-le", KOREAN),
    ("utf-16-be", KOREAN),
]
# Few of their letters tell them from other code pages, so only the corpus as a whole is certain.
WHOLE = [
    ("iso8859-2", POLISH),
    ("cp852", POLISH),
    ("cp852", CZECH),
    ("cp1254", TURKISH),
    ("cp1257", LITHUANIAN),
    ("mac-roman", ENGLISH),
    ("mac-roman", GERMAN),
    ("mac-roman", FRENCH),
    ("mac-roman", SPANISH),
    ("cp850", GERMAN),
    ("cp850", [line.replace("’", "'") for line in FRENCH]),
    ("cp850", SPANISH),
    ("cp437", GERMAN),
]
# Code pages that are not tried, or not to be told from others.
UNTOLD = [
    ("mac-greek", GREEK),
    ("cp862", HEBREW),
    ("cp720", ARABIC),
    ("cp857", TURKISH),
    ("johab", KOREAN),
    ("cp949", ["뷁", "쀍", "똠방각하"]),
]
NAMES = [f"{encoding}-{lines[0]}" for encoding, lines in CORPORA]


@pytest.mark.parametrize(
    ("encoding", "lines"), [*CORPORA, *WHOLE], ids=[*NAMES, *(f"{e}-{t[0]}" for e, t in WHOLE)]
)
def test_a_corpus_is_read_as_what_it_is(encoding: str, lines: list[str]) -> None:
    pieces = [line.encode(encoding) for line in lines]
    chosen = choose(pieces)
    assert [piece.decode(chosen) for piece in pieces] == lines


@pytest.mark.parametrize(("encoding", "lines"), CORPORA, ids=NAMES)
@settings(deadline=None, max_examples=25)
@given(st.data())
def test_any_part_of_a_corpus_is_read_rightly_or_not_at_all(
    encoding: str, lines: list[str], data: st.DataObject
) -> None:
    part = data.draw(st.lists(st.sampled_from(lines), min_size=3, max_size=8, unique=True))
    pieces = [line.encode(encoding) for line in part]
    try:
        chosen = choose(pieces)
    except AmbiguousEncodingError:
        return
    assert [piece.decode(chosen) for piece in pieces] == part


@pytest.mark.parametrize("encoding", ["cp949", "cp1252"])
def test_one_short_line_of_the_two_commonest_encodings_is_enough(encoding: str) -> None:
    lines = KOREAN if encoding == "cp949" else ENGLISH + GERMAN + FRENCH
    for line in lines:
        data = line.encode(encoding)
        assert data.decode(choose([data])) == line


@pytest.mark.parametrize(("encoding", "lines"), UNTOLD)
def test_a_corpus_that_cannot_be_told_is_not_read_as_something_else(
    encoding: str, lines: list[str]
) -> None:
    data = [line.encode(encoding, "ignore") for line in lines]
    with pytest.raises(AmbiguousEncodingError):
        choose([line for line in data if not line.isascii()])


@pytest.mark.parametrize(
    "line",
    ["5 £ please", "£5", "It costs £20.", "20° outside", "½ cup", "5 ¢", "la 2ª vez", "© me, ®, ™"],
)
def test_signs_of_western_text_are_not_letters_of_other_languages(line: str) -> None:
    data = line.encode("cp1252")
    assert data.decode(choose([data])) == line


def test_damaged_lines_do_not_decide() -> None:
    noise = random.Random(1)
    damaged = [noise.randbytes(300) for _ in range(3)]
    assert choose([*damaged, *(line.encode("cp949") for line in KOREAN)]) == "cp949"
    with pytest.raises(AmbiguousEncodingError, match="not plausible"):
        choose(damaged)


def test_the_choice_is_the_same_in_any_order() -> None:
    pieces = [line.encode("cp1252") for line in ENGLISH + GERMAN]
    shuffled = random.Random(0).sample(pieces, len(pieces))
    assert choose(pieces) == choose(shuffled) == "cp1252"
