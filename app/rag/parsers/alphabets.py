"""Tells the single-byte code pages of Latin script apart, by the letters that languages use.

The bytes of Turkish are letters in Polish, too; but not letters that Polish has. A general
detector takes one for the other, also on whole pages.
"""

from collections import Counter
from collections.abc import Mapping

# Where two languages explain a text equally well the first one is taken.
_WESTERN = {
    "German": "äöüß",
    "French": "àâçéèêëîïôùûüÿœæ",
    "Spanish": "áéíñóúüºª",
    "Portuguese": "ãâáàçéêíóôõúºª",
    "Italian": "àèéìíòóù",
    "Dutch": "ëïéèöüáó",
    "Scandinavian": "åäöæøé",
    "Icelandic": "áðéíóúýþæö",
}
_CENTRAL = {
    "Polish": "ąćęłńóśźż",
    "Czech": "áčďéěíňóřšťúůýž",
    "Slovak": "áäčďéíĺľňóôŕšťúýž",
    "Hungarian": "áéíóöőúüű",
    "Romanian": "ăâîşţ",
    "Croatian": "čćđšž",
}
_BALTIC = {"Lithuanian": "ąčęėįšųūž", "Latvian": "āčēģīķļņōŗšūž", "Estonian": "äõöüšž"}
_LANGUAGES: Mapping[str, Mapping[str, str]] = {
    "cp1252": _WESTERN,
    "cp1250": _CENTRAL,
    "iso8859_2": _CENTRAL,
    "iso8859_16": {"Romanian": "ăâîșț"},
    "cp1254": {"Turkish": "çğıöşüâîû"},
    "cp1257": _BALTIC,
}
_SIGNS = "€‘’“”„–—…"  # where DOS and ISO have letters or controls
LATIN = frozenset(
    {*_LANGUAGES, "latin_1", "cp852", "cp1258", "cp775", "hp_roman8"}
    | {f"iso8859_{part}" for part in (3, 4, 9, 10, 13, 14, 15)}
)


def likeliest(sample: bytes, detected: str) -> str:
    """The code page whose best language has the most of the letters, and the fewest others.

    DOS's is among them only where the detector says so: its bytes are letters nearly all.
    """
    languages = dict(_LANGUAGES)
    if detected == "cp852":
        languages["cp852"] = _CENTRAL
    return max(languages, key=lambda encoding: _score(sample, encoding, languages[encoding]))


def _score(sample: bytes, encoding: str, languages: Mapping[str, str]) -> int:
    """The sum over lines, which may be in several languages."""
    lines = sample.decode(encoding, "replace").lower().splitlines()
    return sum(_line_score(line, languages) for line in lines if not line.isascii())


def _line_score(line: str, languages: Mapping[str, str]) -> int:
    """Letters and signs that a line of the best language has, less all that it has not."""
    counts = Counter(char for char in line if not char.isascii())
    num_signs = sum(counts[sign] for sign in _SIGNS)
    # other signs count for nothing, but controls and what is undefined in the code page do
    num_wrong = sum(n for char, n in counts.items() if char.isalpha() or not char.isprintable())
    num_wrong += counts["\ufffd"]
    most = max(sum(counts[letter] for letter in letters) for letters in languages.values())
    return num_signs + 2 * most - num_wrong
