"""What hostile files ask for is not done: nothing is fetched, started, read or unpacked at will."""

import subprocess
import sys
import zipfile
import zlib
from contextlib import closing

import pytest

from app.domain import ParsedDocument
from app.errors import FolioError, ParseLimitExceeded
from app.rag.parsers import SubprocessParser
from tests.rag.files import shared_data
from tests.scripts.web_server import serve_site

SECRET = "the secret of the machine"


@pytest.fixture(scope="module")
def parser():
    with closing(SubprocessParser(60, 1024)) as parser:
        yield parser


@pytest.fixture
def site():
    with serve_site() as site:
        yield site


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    return path


def outcome(parser, path):
    """The text, or the reason why there is none."""
    try:
        result = parser.parse(path, path.name, "")
    except FolioError as error:
        return str(error)
    assert isinstance(result, ParsedDocument)
    return result.text


ENTITIES = (
    "<!DOCTYPE r [<!ENTITY file SYSTEM 'file://{secret}'><!ENTITY web SYSTEM '{url}/entity'>"
    "<!ENTITY % more SYSTEM '{url}/parameter'> %more;]>"
)
HOSTILE = {
    "a.xml": ENTITIES + "<r>&file; &web; words</r>",
    "b.xml": '<?xml-stylesheet href="{url}/style"?><r xmlns:xi="http://www.w3.org/2001/XInclude">'
    '<xi:include href="file://{secret}" parse="text"/><xi:include href="{url}/xi"/>words</r>',
    "c.html": '<base href="{url}/"><link rel=stylesheet href="{url}/css"><img src="{url}/img">'
    '<iframe src="{url}/frame"></iframe><script src="{url}/js"></script><object data="{url}/o">'
    '</object><svg><image href="{url}/svg"/><use href="{url}/use#a"/></svg><p>words</p>'
    '<meta http-equiv=refresh content="0;url={url}/refresh"><embed src="file://{secret}">',
    "d.md": "![x]({url}/img)\n\n<img src={url}/raw>\n\nwords",
    "e.rst": "words\n\n.. include:: {secret}\n\n.. raw:: html\n   :url: {url}/raw\n\n"
    ".. raw:: html\n   :file: {secret}\n\n.. csv-table::\n   :url: {url}/csv\n\n"
    ".. csv-table::\n   :file: {secret}\n\n.. image:: {url}/img\n",
    "f.adoc": "words\n\ninclude::{secret}[]\n\ninclude::{url}/inc[]\n\nimage::{url}/img[]\n",
    "g.rtf": r'{{\rtf1 words {{\field{{\*\fldinst INCLUDEPICTURE "{url}/img" \\d}}'
    r'{{\fldrslt x}}}}{{\field{{\*\fldinst INCLUDETEXT "{secret}"}}}}}}',
    "h.eml": "Subject: words\nContent-Type: text/html\n\n<img src={url}/img><p>words",
    "i.ipynb": '{{"cells":[{{"cell_type":"markdown","source":"![x]({url}/img) words",'
    '"metadata":{{}}}}],"metadata":{{}},"nbformat":4,"nbformat_minor":5}}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_a_text_file_refers_to_is_fetched_or_read(
    parser, site, secret, tmp_path, name
):
    path = tmp_path / name
    path.write_text(HOSTILE[name].format(url=site.url, secret=secret))
    text = outcome(parser, path)
    assert "words" in text
    assert SECRET not in text
    assert site.requests == []


RELATIONSHIPS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def with_external_parts(source, target, url, secret):
    """The container with links to a server and entities in each of its XML parts."""
    declaration = ENTITIES.format(url=url, secret=secret)
    link = (
        f'<Relationship Id="rIdX" Type="{RELATIONSHIPS}/image" Target="{url}/part" '
        'TargetMode="External"/></Relationships>'
    )
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith(".rels"):
                data = data.replace(b"</Relationships>", link.encode())
            elif data.startswith(b"<?xml"):
                head, _, rest = data.partition(b"?>")
                data = head + b"?>" + declaration.encode() + rest
            new.writestr(entry.filename, data)
    return target


@pytest.mark.parametrize(
    "name", ["simple.docx", "test.pptx", "stanley-cups.xlsx", "simple.odt", "test.epub"]
)
def test_nothing_that_a_container_refers_to_is_fetched_or_read(
    parser, site, secret, tmp_path, name
):
    source = shared_data("formats") / name
    path = with_external_parts(source, tmp_path / name, site.url, secret)
    text = outcome(parser, path)
    assert text
    assert SECRET not in text
    assert site.requests == []


def test_the_real_document_with_external_references_is_read(parser):
    path = shared_data("malformed") / "testExternalRefs.docx"
    assert outcome(parser, path)


@pytest.mark.parametrize("name", ["a.xml", "content.docx", "content.xlsx", "content.odt"])
def test_entities_within_entities_end_in_text_or_a_reason(parser, tmp_path, name):
    levels = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 12))
    laughs = f"<?xml version='1.0'?><!DOCTYPE r [<!ENTITY e0 'ha'>{levels}]><r>&e11;</r>"
    path = tmp_path / name
    if name.endswith(".xml"):
        path.write_text(laughs)
    else:
        parts = ("[Content_Types].xml", "content.xml", "xl/workbook.xml", "word/document.xml")
        with zipfile.ZipFile(path, "w") as archive:
            for part in (*parts, "_rels/.rels"):
                archive.writestr(part, laughs)
    assert len(outcome(parser, path)) < 100_000


def test_bombs_are_refused_for_what_they_would_become(parser, tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bytes(200 << 20))
    with pytest.raises(ParseLimitExceeded, match="unpacks to 200 MiB"):
        parser.parse(bomb, bomb.name, "")


def test_a_bomb_that_lies_about_its_size_is_bounded(parser, tmp_path):
    """The directory says ten bytes; what comes out is more, and is not taken."""
    bomb = tmp_path / "liar.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"a" * (200 << 20))
    size = (200 << 20).to_bytes(4, "little")
    data = bomb.read_bytes()
    assert data.count(size) == 2
    bomb.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    assert len(outcome(parser, bomb)) < 1000


def test_a_compressed_stream_in_a_pdf_cannot_take_the_memory(tmp_path):
    """Memory is the process's limit, and the next file is read."""
    content = zlib.compress(b"q Q\n" * (150 << 20))
    bomb = tmp_path / "bomb.pdf"
    bomb.write_bytes(
        b"%%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
        b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R>>endobj\n"
        b"4 0 obj<</Filter/FlateDecode/Length %d>>stream\n%s\nendstream endobj\n"
        b"trailer<</Root 1 0 R>>\n%%%%EOF\n" % (len(content), content)
    )
    with closing(SubprocessParser(60, 256)) as parser:
        assert "bomb.pdf" in outcome(parser, bomb)
        note = tmp_path / "note.md"
        note.write_text("words")
        assert outcome(parser, note) == "words"


IN_A_SANDBOX = """
import ctypes, os, socket, sys
from app.rag.parsers import sandbox
assert sandbox.restrict()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.socket(int(socket.AF_INET), int(socket.SOCK_STREAM), 0) == -1, "a socket"
assert ctypes.get_errno() == 1
assert libc.socket(int(socket.AF_INET6), int(socket.SOCK_DGRAM), 0) == -1, "a socket of IPv6"
libc.execv(b"/bin/true", (ctypes.c_char_p * 2)(b"true", None))
assert ctypes.get_errno() == 1, "another program"
try:
    os.posix_spawn("/bin/true", ["true"], {})
    sys.exit("spawned")
except PermissionError:
    pass
socket.socket(socket.AF_UNIX).close()
print("held")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_the_kernel_refuses_network_and_programs_to_libraries_in_c():
    result = subprocess.run(
        [sys.executable, "-c", IN_A_SANDBOX],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.stdout.strip(), result.stderr) == ("held", "")
