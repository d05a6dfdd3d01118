"""Bytes to text when nobody says which encoding it is: Unicode, East Asian, Latin."""

import codecs

from charset_normalizer import from_bytes

from app.rag.parsers.alphabets import LATIN, likeliest

SAMPLE_BYTES = 64 * 1024
LAST_LEVEL_1_ROW = 0xD7  # first byte of the last of the 3 755 most common characters
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KOREAN = ("cp949", "euc_kr", "johab")
_ISO_2022_JP = (b"\x1b$B", b"\x1b$@")


def decode(data: bytes, declared: str | None = None) -> str:
    """Decode by byte order mark, as UTF-8, as declared, or as the bytes look, in this order.

    A declaration that cannot be right (unknown, or its decoding fails) is passed over.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    if data.isascii() and any(escape in data for escape in _ISO_2022_JP):
        return data.decode("iso2022_jp_2", "replace")
    try:
        if b"\x00" not in data[:SAMPLE_BYTES]:
            return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    if declared and (text := _decode_declared(data, declared)) is not None:
        return text
    return data.decode(detect(data), "replace")


def detect(data: bytes) -> str:
    """The encoding that the bytes look like; latin-1 where nothing fits."""
    sample = data[:SAMPLE_BYTES]
    if _is_damaged_utf8(sample):
        return "utf-8"
    best = from_bytes(sample).best()
    if best is None:
        return "gb18030" if _decodes(sample, "gb18030") else "cp1252"
    if best.encoding in _KOREAN and _looks_chinese(sample, best.encoding):
        return "gb18030"
    return likeliest(sample, best.encoding) if best.encoding in LATIN else best.encoding


def _decode_declared(data: bytes, declared: str) -> str | None:
    # Pages say gb2312 and shift_jis and mean their supersets.
    supersets = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949"}
    supersets |= {"iso-8859-1": "cp1252", "latin-1": "cp1252", "us-ascii": "utf-8"}
    try:
        return data.decode(supersets.get(declared.strip().lower(), declared.strip()))
    except (LookupError, UnicodeError):
        return None


def _is_damaged_utf8(sample: bytes) -> bool:
    """Whether all but a few of the multi-byte characters are valid UTF-8."""
    text = sample.decode("utf-8", "replace")
    num_bad = text.count("\ufffd")
    num_good = sum(1 for char in text if ord(char) > 127) - num_bad
    return num_good > 20 * num_bad and "\x00" not in text


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(sample)  # a cut last character is fine
    except UnicodeError:
        return False
    return True


def _looks_chinese(sample: bytes, korean: str) -> bool:
    """Read as Korean, Chinese text holds Hanja, and nearly all of them from GB 2312's level 1.

    Of the Hanja in Korean text, which is Hangul for the most part, two thirds lie outside it.
    """
    if not _decodes(sample, "gb18030"):
        return False
    hanja = [char for char in sample.decode(korean, "replace") if "\u4e00" <= char <= "\u9fff"]
    num_common = sum(char.encode(korean)[0] <= LAST_LEVEL_1_ROW for char in hanja)
    return bool(hanja) and num_common >= 0.75 * len(hanja)
