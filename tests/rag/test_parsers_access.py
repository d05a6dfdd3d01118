"""Passwords, and files inside files."""

import io
import zipfile
from email.message import EmailMessage

import msoffcrypto
import pypdf
import pytest
from msoffcrypto.format.ooxml import OOXMLFile

from app.domain import BlockKind
from app.errors import ParseFailed, ParseLimitExceeded
from app.rag.parsers import SubprocessParser, bundle, parse_file
from app.rag.parsers.access import Access
from app.rag.parsers.pdf import unread_note
from tests.rag.files import shared_data, show, write_pdf

PASSWORDS = Access(passwords=("wrong", "test", "tika", "1234"))


def read(path, access=PASSWORDS):
    return parse_file(path, path.name, "", access=access)


@pytest.mark.parametrize(
    "name",
    [
        "testWORD_protected_passtika.docx",
        "testPPT_protected_passtika.pptx",
        "testEXCEL_protected_passtika.xlsx",
        "password-example.pdf",
        "2206.01062_pg3.pdf",
    ],
)
def test_protected_files_open_with_a_password_of_the_list(name):
    path = shared_data("malformed") / name
    assert len(read(path).text) > 20
    with pytest.raises(ParseFailed, match="FOLIO_DOCUMENT_PASSWORDS"):
        read(path, Access(passwords=("wrong",)))


def test_passwords_reach_the_parser_process(tmp_path):
    path = protect_pdf(tmp_path / "secret.pdf", "a,b")
    parser = SubprocessParser(60, 1024, ["x", "a,b"])
    try:
        assert "Holidays" in parser.parse(path, path.name, "").text
    finally:
        parser.close()


def protect_pdf(path, password):
    write_pdf(path, [show(50, 700, "Holidays")])
    writer = pypdf.PdfWriter(clone_from=path)
    writer.encrypt(password, algorithm="AES-256")
    writer.write(path)
    return path


def test_a_workbook_that_is_only_closed_to_changes_needs_no_password(tmp_path):
    plain = next(shared_data("formats").glob("stanley-cups.xlsx"))
    path = tmp_path / "closed.xlsx"
    with plain.open("rb") as source, path.open("wb") as target:
        OOXMLFile(source).encrypt("VelvetSweatshop", target)
    with path.open("rb") as file:
        assert msoffcrypto.OfficeFile(file).is_encrypted()
    assert read(path, Access()).text == read(plain, Access()).text


def bundle_of(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "."), content)
    return path


def test_a_zip_is_read_file_by_file_under_their_names(tmp_path):
    path = bundle_of(
        tmp_path / "papers.zip",
        a__md="# Holidays\n\nFifteen days.",
        b__csv="x,y\n1,2\n",
        c__exe="MZ",
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/._a.md", "hidden")
    document = read(path)
    headings = [
        document.text[block.start : block.end]
        for block in document.blocks
        if block.kind is BlockKind.HEADING
    ]
    assert headings == ["a.md", "Holidays", "b.csv", "c.exe"]
    assert "Fifteen days." in document.text
    assert "hidden" not in document.text


def test_names_of_an_old_chinese_zip_are_read(tmp_path):
    name = "年假.txt"
    path = tmp_path / "old.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0123.txt", "Fifteen days")
    raw = name.encode("gb18030")
    path.write_bytes(path.read_bytes().replace(b"0123.txt", raw))
    assert "年假.txt" in read(path).text


def test_two_files_of_one_name_in_a_zip_are_both_read(tmp_path):
    path = tmp_path / "twins.zip"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.md", "the first")
        archive.writestr("a.md", "the second")
    text = read(path).text
    assert ("the first" in text, "the second" in text) == (True, True)


def test_a_zip_without_a_file_that_is_read_says_so(tmp_path):
    with pytest.raises(ParseFailed, match="no file that can be read"):
        read(bundle_of(tmp_path / "tools.zip", a__exe="MZ"))


def test_a_zip_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_FILES", 1)
    with pytest.raises(ParseLimitExceeded, match="add the folder"):
        read(bundle_of(tmp_path / "many.zip", a__md="a", b__md="b"))


def test_files_lie_at_most_two_deep(tmp_path):
    """A ZIP that holds itself ends."""
    innermost = bundle_of(tmp_path / "3.zip", deep__md="too deep")
    middle = bundle_of(tmp_path / "2.zip", note__md="read", inner__zip=innermost.read_bytes())
    mail = EmailMessage()
    mail["Subject"] = "Papers"
    mail.set_content("See the files.")
    mail.add_attachment(
        middle.read_bytes(), maintype="application", subtype="zip", filename="papers.zip"
    )
    path = tmp_path / "mail.eml"
    path.write_bytes(mail.as_bytes())
    text = read(path).text
    assert ("See the files." in text, "read" in text, "inner.zip" in text) == (True, True, True)
    assert "too deep" not in text


def test_a_protected_file_in_a_zip_opens_too(tmp_path):
    secret = protect_pdf(tmp_path / "secret.pdf", "tika")
    path = bundle_of(tmp_path / "papers.zip", s__pdf=secret.read_bytes())
    assert "Holidays" in read(path).text


def test_a_bomb_in_a_zip_ends_the_whole_file(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"\0" * (100 << 20))
    path = bundle_of(tmp_path / "outer.zip", inner__zip=inner.getvalue())
    with pytest.raises(ParseLimitExceeded, match=r"inner\.zip"):
        read(path)


def test_pages_that_were_not_read_are_told_by_their_numbers():
    assert unread_note([], 3) is None
    assert unread_note([2], 3) == "1 of 3 pages are damaged and were not read: 2"
    assert unread_note(list(range(1, 20)), 30).endswith("11, 12, …")
