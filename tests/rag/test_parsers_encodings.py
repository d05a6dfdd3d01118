"""Texts in the encodings that files really come in, a line and a page of each."""

import pytest

from app.rag.parsers.encodings import decode

TEXTS = {
    "Japanese": (
        "年次有給休暇は、入社後六か月が経過した時点で付与されます。申請は三日前までに。",
        ("shift_jis", "cp932", "euc_jp", "iso2022_jp"),
    ),
    "Chinese (Taiwan)": ("員工自到職日起滿六個月，可享有三日特別休假。", ("big5", "cp950")),
    "Chinese": ("员工自入职之日起满六个月，可享受五天年假。", ("gbk", "gb18030", "gb2312")),
    "Korean": ("직원은 입사 후 여섯 달이 지나면 연차 휴가를 받을 수 있습니다.", ("cp949",)),
    "Russian": ("Сотрудники имеют право на пятнадцать дней отпуска в год.", ("cp1251",)),
    "Greek": ("Οι εργαζόμενοι δικαιούνται δεκαπέντε ημέρες άδειας το χρόνο.", ("cp1253",)),
    "Hebrew": ("העובדים זכאים לחמישה עשר ימי חופשה בשנה.", ("cp1255",)),
    "Arabic": ("يحق للموظفين خمسة عشر يوما من الإجازة في السنة.", ("cp1256",)),
    "Thai": ("พนักงานมีสิทธิลาพักร้อนสิบห้าวันต่อปี", ("cp874",)),
    "Turkish": (
        "Çalışanların yılda on beş gün izin hakkı vardır. Başvurular önceden yapılmalıdır.",
        ("cp1254", "iso8859_9"),
    ),
    "Polish": ("Pracownicy mają prawo do piętnastu dni urlopu. Wniosek należy złożyć wcześniej.",
               ("cp1250", "iso8859_2")),
    "Czech": ("Zaměstnanci mají nárok na patnáct dní dovolené ročně. Žádost podejte včas.",
              ("cp1250", "iso8859_2")),
    "Hungarian": ("A dolgozóknak évente tizenöt nap szabadság jár, előbb kérjék a vezetőtől.",
                  ("cp1250", "iso8859_2")),
    "Lithuanian": ("Darbuotojai turi teisę į penkiolika dienų atostogų. Prašymą pateikite, ačiū.",
                   ("cp1257",)),
    "German": ("Die Beschäftigten haben fünfzehn Tage Urlaub – Anträge bitte früh.", ("cp1252",)),
    "French": ("Les salariés ont droit à quinze jours. Présentez la demande à l’avance, s’il…",
               ("cp1252",)),
    "Icelandic": ("Starfsmenn eiga rétt á fimmtán daga orlofi. Það þarf að sækja um áður.",
                  ("cp1252",)),
    "English": ("The “leave” – 15 days – costs 20 € at most…", ("cp1252",)),
    "Unicode": ("Fifteen days. 十五天。", ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8")),
}  # fmt: skip
CASES = [(text, encoding) for text, encodings in TEXTS.values() for encoding in encodings]


@pytest.mark.parametrize(("text", "encoding"), CASES)
@pytest.mark.parametrize("num_lines", [1, 40])
def test_the_encoding_is_found(text, encoding, num_lines):
    page = "\n".join([text] * num_lines)
    assert decode(page.encode(encoding)) == page


def test_a_page_may_be_in_several_languages():
    lines = ["Sie aß köstlich.", "L’été était chaud.", "El niño comió.", "O João fez.", "Han åt."]
    page = "\n".join(lines)
    assert decode(page.encode("cp1252")) == page
