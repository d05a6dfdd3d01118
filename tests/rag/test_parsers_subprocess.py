"""The parser process: its limits hold, and whatever happens to it, the parent goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from app.domain import Box
from app.errors import ParseFailed, ParseLimitExceeded, UnsupportedFormat
from app.rag.parsers import SubprocessParser, ocr, parse_file
from app.rag.parsers.worker import _refuse_network
from tests.rag.files import show, write_pdf

TIMEOUT_S = 60
MEMORY_MB = 1024


@pytest.fixture
def parser():
    with closing(SubprocessParser(TIMEOUT_S, MEMORY_MB)) as parser:
        yield parser


@pytest.fixture
def note(tmp_path):
    path = tmp_path / "note.md"
    path.write_text("# 标题\n\nText", "utf-8")
    return path


@pytest.fixture
def slow(tmp_path):
    """A file that takes seconds to read."""
    path = tmp_path / "slow.csv"
    path.write_text("a,b,c\n" * 1_500_000)
    return path


def pids(parser):
    return [process._popen.pid for process in parser._idle]


def test_a_document_comes_through_unchanged(parser, tmp_path):
    path = write_pdf(tmp_path / "a.pdf", [show(50, 700, "Text with a box")])

    document = parser.parse(path, path.name, "application/pdf")

    assert document == parse_file(path, path.name, "")
    assert isinstance(document.blocks[0].boxes[0], Box)


def test_the_process_is_reused_also_after_a_file_that_cannot_be_read(parser, note, tmp_path):
    parser.parse(note, note.name, "")
    before = pids(parser)
    broken = tmp_path / "broken.docx"
    broken.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ParseFailed, match=r"broken\.docx"):
        parser.parse(broken, broken.name, "")

    parser.parse(note, note.name, "")

    assert pids(parser) == before


def test_a_file_name_that_is_not_unicode_is_no_problem(parser, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    path.write_text("coffee")

    assert parser.parse(path, path.name, "").text == "coffee"


def test_errors_keep_their_type(parser, tmp_path):
    path = tmp_path / "a.xyz"
    path.write_bytes(b"\x00")
    with pytest.raises(UnsupportedFormat):
        parser.parse(path, path.name, "")


def test_a_file_that_takes_too_long_is_given_up_and_the_next_is_read(slow, note):
    with closing(SubprocessParser(0.6, MEMORY_MB)) as parser:
        start = time.monotonic()
        with pytest.raises(ParseLimitExceeded, match=r"slow\.csv.*parse_timeout_s"):
            parser.parse(slow, slow.name, "")
        assert time.monotonic() - start < 5
        assert parser._idle == []


def test_a_file_that_needs_too_much_memory_is_given_up_and_the_next_is_read(tmp_path, note):
    path = tmp_path / "big.txt"
    with path.open("wb") as file:
        file.truncate(400 << 20)
    with closing(SubprocessParser(TIMEOUT_S, 256)) as parser:
        with pytest.raises(ParseLimitExceeded, match=r"big\.txt.*256 MB"):
            parser.parse(path, path.name, "")

        assert parser.parse(note, note.name, "").title == "标题"


def test_a_process_is_reused_however_large_the_appliance_is(note):
    ballast = bytearray(300 << 20)  # memory of ours, not of the parser's
    ballast[::4096] = b"x" * len(ballast[::4096])
    with closing(SubprocessParser(TIMEOUT_S, 512)) as parser:
        parser.parse(note, note.name, "")
        assert len(pids(parser)) == 1


def test_a_process_that_dies_between_files_is_replaced(parser, note):
    parser.parse(note, note.name, "")
    (dead,) = pids(parser)
    os.kill(dead, signal.SIGKILL)

    assert parser.parse(note, note.name, "").title == "标题"
    assert pids(parser) != [dead]


def test_a_process_that_dies_while_reading_fails_that_file_alone(parser, slow, note):
    def kill():
        while not (busy := list(parser._busy)):
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(busy[0]._popen.pid, signal.SIGSEGV)

    parser.parse(note, note.name, "")  # the process is up, and takes the next file at once
    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ParseFailed, match=r"crashed on “slow\.csv” \(SIGSEGV\)"):
        parser.parse(slow, slow.name, "")
    killer.join(TIMEOUT_S)

    assert parser.parse(note, note.name, "").title == "标题"


def test_interrupting_a_thread_ends_its_process_alone(parser, slow, note):
    parser.parse(note, note.name, "")
    caller = threading.get_ident()
    timer = threading.Timer(0.3, parser.interrupt, [caller])
    timer.start()
    with pytest.raises(ParseFailed, match="SIGKILL"):
        parser.parse(slow, slow.name, "")
    timer.join(TIMEOUT_S)

    parser.interrupt(caller)  # in no call: nothing happens
    assert parser.parse(note, note.name, "").title == "标题"


@pytest.fixture
def scan(tmp_path):
    if not ocr.is_available():
        pytest.skip("the OCR libraries are not installed")
    pages = [Image.new("RGB", (300, 80), "white") for _ in range(3)]
    for page in pages:
        ImageDraw.Draw(page).text((20, 20), "Holidays", fill="black", font_size=32)
    path = tmp_path / "scan.tiff"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


def test_pages_that_take_ocr_are_told_as_they_are_read(parser, scan):
    shares = []
    document = parser.parse(scan, scan.name, "image/tiff", shares.append)

    assert document.text.count("Holidays") == 3
    assert shares == [1 / 3, 2 / 3, 1.0]


def test_progress_that_raises_ends_the_call_and_its_process(parser, scan):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parser.parse(scan, scan.name, "image/tiff", stop)

    assert not parser._busy
    assert not parser._idle


def test_closing_ends_a_call_in_flight_and_every_process(slow):
    parser = SubprocessParser(TIMEOUT_S, MEMORY_MB)
    timer = threading.Timer(0.3, parser.close)
    timer.start()
    with pytest.raises(ParseFailed):
        parser.parse(slow, slow.name, "")
    timer.join(TIMEOUT_S)

    assert not parser._idle
    assert not parser._busy
    with pytest.raises(ParseFailed, match="closed"):
        parser.parse(slow, slow.name, "")


def test_two_threads_are_served_at_the_same_time(parser, note):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(parser.parse(note, note.name, "").title))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)

    assert results == ["标题"] * 3


def test_the_process_ends_when_its_parent_is_killed(tmp_path, note):
    script = (
        "import sys, time; from pathlib import Path; from app.rag.parsers import SubprocessParser\n"
        f"p = SubprocessParser(60, 512); p.parse(Path({str(note)!r}), 'note.md', '')\n"
        "print(p._idle[0]._popen.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and is_running(child):
        time.sleep(0.05)

    assert not is_running(child)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_network_is_refused():
    with pytest.raises(PermissionError, match="network"):
        _refuse_network("socket.connect", ())


def test_a_parser_process_starts_without_torch_and_the_heavy_libraries():
    code = (
        "import sys; import app.rag.parsers.worker; "
        "print([m for m in ('torch', 'numpy', 'lxml', 'docx', 'pypdfium2') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "[]"
