"""Each format to text and blocks, on files written here."""

import docx
import openpyxl
import pptx
import pytest
from docx.oxml.ns import qn

from app.domain import BlockKind
from app.errors import ParseFailed, ParseLimitExceeded, UnsupportedFormat
from app.rag.parsers import SUPPORTED_SUFFIXES, media_type_of, parse_file
from app.rag.parsers.encodings import decode
from tests.rag.files import blocks, show, texts, write_pdf, write_zip

CHINESE = "第二十章：课程学习提示。全部的人生而自由，在尊严和权利上一律平等。"
TAIWANESE = "第二十章：課程學習提示。人人生而自由，在尊嚴和權利上一律平等。"
JAPANESE = "全部の人間は、生まれながらにして自由であり、佐藤太郎 名古屋"
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다"
FRENCH = "Où est l’été ? Voilà, ça coûte 2,50 € à Noël"


def parse(path):
    return parse_file(path, path.name, "")


def parse_text(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return parse(path)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CHINESE, "utf-8-sig"),
        (CHINESE, "gbk"),
        (CHINESE, "gb18030"),
        (CHINESE, "utf-16"),
        (CHINESE, "utf-16-le"),
        (CHINESE, "utf-16-be"),
        ("姓名,年龄\n张三,20\n", "gbk"),
        (TAIWANESE, "big5"),
        (JAPANESE, "cp932"),
        (KOREAN, "euc-kr"),
        (FRENCH, "cp1252"),
        ("Все люди рождаются свободными и равными в своём достоинстве", "cp1251"),
    ],
)
def test_text_is_decoded_without_being_told_its_encoding(text, encoding):
    assert decode(text.encode(encoding)) == text


def test_a_wrong_declaration_is_passed_over():
    assert decode(CHINESE.encode(), "big5") == CHINESE


def test_offsets_of_blocks_cut_their_text(tmp_path):
    source = "# One\n\nTwo\n\n- three\n- four\n\n```\nfive\n```\n"
    document = parse_text(tmp_path, "a.md", source)

    assert blocks(document) == [
        ("heading", "One"),
        ("paragraph", "Two"),
        ("list_item", "- three"),
        ("list_item", "- four"),
        ("code", "five"),
    ]
    assert document.text == "One\n\nTwo\n\n- three\n- four\n\nfive"


MARKDOWN = """---
title: The manual
tags: [a, b]
---
<!-- a comment -->
# Start {#start}

A **bold** [link](http://example.com) with `code`,
and ![a picture](x.png) <b>inline</b> HTML.

/// tip | Mind this

Text in a box.

///

| Name | Price |
|---|---:|
| Apple | 2 |

1. first
2. second
   - inner

```python
def f(**kwargs):
    return {1: "| not a table |"}
```

## 中文

这是**“协程”**的
第二行。
"""


def test_markdown_reads_as_its_reader_sees_it(tmp_path):
    document = parse_text(tmp_path, "a.md", MARKDOWN)

    assert document.title == "The manual"
    assert blocks(document) == [
        ("heading", "Start"),
        ("paragraph", "A bold link with code, and a picture inline HTML."),
        ("paragraph", "Mind this"),
        ("paragraph", "Text in a box."),
        ("table", "Name | Price\nApple | 2"),
        ("list_item", "1. first"),
        ("list_item", "2. second"),
        ("list_item", "- inner"),
        ("code", 'def f(**kwargs):\n    return {1: "| not a table |"}'),
        ("heading", "中文"),
        ("paragraph", "这是“协程”的第二行。"),
    ]
    assert [b.level for b in document.blocks if b.kind is BlockKind.HEADING] == [1, 2]


HTML = """<html><head><title>The page</title><style>p {color: red}</style></head><body>
<nav><a href="/">Home</a></nav><script>alert(1)</script>
<h1>Head<span>ing</span></h1><p>One<br>two &amp; <b>three</b></p>
<div style="display: none">hidden</div>
<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol><li>x</li><li>y</li></ol>
<table><caption>Sizes</caption><thead><tr><th>Name</th><th>Size</th></tr></thead>
<tbody><tr><td>Ant<br>eater</td><td>1</td></tr></tbody></table>
<pre>  keep
    this</pre><img src="http://example.com/x.png" alt="a drawing">
</body></html>"""


def test_html_keeps_structure_and_drops_what_is_not_shown(tmp_path):
    document = parse_text(tmp_path, "a.html", HTML)

    assert document.title == "The page"
    assert blocks(document) == [
        ("heading", "Heading"),
        ("paragraph", "One\ntwo & three"),
        ("list_item", "- a"),
        ("list_item", "- b"),
        ("list_item", "- c"),
        ("list_item", "1. x"),
        ("list_item", "2. y"),
        ("caption", "Sizes"),
        ("table", "Name | Size\nAnt eater | 1"),
        ("code", "  keep\n    this"),
        ("paragraph", "a drawing"),
    ]


def test_html_in_gbk_is_read_by_its_declaration(tmp_path):
    path = tmp_path / "a.html"
    path.write_bytes(f'<meta charset="gb2312"><p>{CHINESE}</p>'.encode("gb18030"))

    assert texts(parse(path), BlockKind.PARAGRAPH) == [CHINESE]


def test_deeply_nested_html_is_survived(tmp_path):
    depth = 20_000
    document = parse_text(
        tmp_path, "a.html", "<p>Top</p>" + "<div>" * depth + "deep" + "</div>" * depth
    )

    assert document.text == "Top\n\ndeep"


def test_word_document_has_headings_lists_tables_text_boxes_and_no_deleted_text(tmp_path):
    document = docx.Document()
    document.core_properties.title = "Report"
    document.add_heading("Findings", level=2)
    paragraph = document.add_paragraph("Kept ")
    deleted = paragraph._p.makeelement(qn("w:del"), {})
    run = paragraph.add_run("gone")
    deleted.append(run._r)
    paragraph._p.append(deleted)
    document.add_paragraph("Point", style="List Bullet")
    table = document.add_table(rows=2, cols=3)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "Wide"
    table.cell(0, 2).text = "C"
    table.cell(1, 0).text = "a\nb"
    table.cell(1, 2).add_table(1, 1).cell(0, 0).text = "nested"
    document.save(tmp_path / "a.docx")

    parsed = parse(tmp_path / "a.docx")

    assert parsed.title == "Report"
    assert blocks(parsed) == [
        ("heading", "Findings"),
        ("paragraph", "Kept"),
        ("list_item", "- Point"),
        ("table", "Wide | C\na b |  | nested"),
    ]
    assert parsed.blocks[0].level == 2


def test_slides_have_pages_titles_tables_and_notes(tmp_path):
    presentation = pptx.Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[1])
    slide.shapes.title.text = "Plan"
    slide.placeholders[1].text = "one\ntwo"
    slide.notes_slide.notes_text_frame.text = "Say hello"
    second = presentation.slides.add_slide(presentation.slide_layouts[5])
    second.shapes.title.text = "Numbers"
    table = second.shapes.add_table(1, 2, 0, 0, 100, 100).table
    table.cell(0, 0).text, table.cell(0, 1).text = "x", "y"
    presentation.save(tmp_path / "a.pptx")

    document = parse(tmp_path / "a.pptx")

    assert document.num_pages == 2
    assert document.title == "Plan"
    assert [(b.page, *pair) for b, pair in zip(document.blocks, blocks(document), strict=True)] == [
        (1, "heading", "Plan"),
        (1, "list_item", "- one"),
        (1, "list_item", "- two"),
        (1, "paragraph", "Say hello"),
        (2, "heading", "Numbers"),
        (2, "table", "x | y"),
    ]


def test_workbook_has_a_table_for_each_block_of_rows_under_the_sheets_name(tmp_path):
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    sheet.title = "2024"
    for row in (["Item", "Sum"], ["Ink", 2.50], [], ["Other", None, True]):
        sheet.append(row)
    workbook.create_sheet("Empty")
    workbook.save(tmp_path / "a.xlsx")

    assert blocks(parse(tmp_path / "a.xlsx")) == [
        ("heading", "2024"),
        ("table", "Item | Sum\nInk | 2.5"),
        ("table", "Other |  | True"),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimited_files_are_tables_whatever_the_delimiter(tmp_path, delimiter):
    path = tmp_path / "a.csv"
    path.write_bytes(f'名称{delimiter}价格\r\n"墨水, 黑\n大"{delimiter}2\r\n'.encode("gb18030"))

    assert blocks(parse(path)) == [("table", "名称 | 价格\n墨水, 黑大 | 2")]


def test_text_has_paragraphs_lists_and_numbered_headings(tmp_path):
    text = "第一章 总则\n本法适用。\n\n- a\n- b\n\nCosts 1.5 euros\nand more."
    document = parse_text(tmp_path, "law.txt", text)

    assert document.title == "第一章 总则"
    assert blocks(document) == [
        ("heading", "第一章 总则"),
        ("paragraph", "本法适用。"),
        ("list_item", "- a"),
        ("list_item", "- b"),
        ("paragraph", "Costs 1.5 euros\nand more."),
    ]


def test_long_runs_of_spaces_do_not_take_long(tmp_path):
    assert parse_text(tmp_path, "a.txt", "a" + " " * 300_000 + "b").text.endswith("b")


def test_source_code_is_kept_and_cut_between_definitions(tmp_path):
    code = "import x\n\ndef a():\n    b()\n\n    c()\n\ndef d():\n    pass\n"
    document = parse_text(tmp_path, "a.py", code)

    assert texts(document, BlockKind.CODE) == [
        "import x",
        "def a():\n    b()\n\n    c()",
        "def d():\n    pass",
    ]


def test_rst_has_sections_lists_and_code_and_includes_nothing(tmp_path):
    (tmp_path / "secret.txt").write_text("SECRET")
    source = (
        "Title\n=====\n\n:ref:`Named <there>` text.\n\n* a\n* b\n\n.. code:: python\n\n   x = 1\n\n"
        ".. include:: secret.txt\n\n.. raw:: html\n   :url: http://example.com/\n\nEnd\n"
    )
    document = parse_text(tmp_path, "a.rst", source)

    assert blocks(document) == [
        ("heading", "Title"),
        ("paragraph", "Named text."),
        ("list_item", "- a"),
        ("list_item", "- b"),
        ("code", "x = 1"),
        ("paragraph", "End"),
    ]


def test_asciidoc_has_titles_lists_listings_and_tables(tmp_path):
    source = (
        "= Top\n:toc:\n\nSome *bold* https://example.com[link].\n\n* a\n\n----\nx  = 1\n----\n\n\
|===\n|A |B\n|1 |2\n|===\n"
    )
    assert blocks(parse_text(tmp_path, "a.adoc", source)) == [
        ("heading", "Top"),
        ("paragraph", "Some bold link."),
        ("list_item", "- a"),
        ("code", "x  = 1"),
        ("table", "A | B\n1 | 2"),
    ]


def test_json_reads_as_lines_and_tables(tmp_path):
    source = '{"title": "T", "a": {"b": 1}, "rows": [{"x": 1, "y": "二"}, {"x": 3, "y": null}]}'
    document = parse_text(tmp_path, "a.json", source)

    assert document.title == "T"
    assert blocks(document) == [
        ("paragraph", "title: T"),
        ("paragraph", "a.b: 1"),
        ("paragraph", "rows"),
        ("table", "x | y\n1 | 二\n3"),
    ]


def test_xml_entities_are_not_expanded_and_files_not_read(tmp_path):
    (tmp_path / "secret.txt").write_text("SECRET")
    document = parse_text(
        tmp_path,
        "a.xml",
        f'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY s SYSTEM "file://{tmp_path}/secret.txt">'
        '<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><r><name>Ann</name><x>&s;</x><y>&b;</y></r>',
    )

    assert blocks(document) == [("paragraph", "name: Ann")]


def test_email_has_envelope_body_and_attachments(tmp_path):
    source = """From: a@example.com
To: b@example.com
Subject: =?utf-8?B?5Lya6K6u?=
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=X

--X
Content-Type: text/plain; charset=utf-8

Hello
--X
Content-Type: text/csv; name=t.csv
Content-Disposition: attachment; filename=t.csv

a,b
1,2
--X--
"""
    document = parse_text(tmp_path, "a.eml", source)

    assert document.title == "会议"
    assert blocks(document) == [
        ("heading", "会议"),
        ("paragraph", "From: a@example.com\nTo: b@example.com"),
        ("paragraph", "Hello"),
        ("heading", "t.csv"),
        ("table", "a | b\n1 | 2"),
    ]


def test_pdf_lines_become_headings_paragraphs_and_lists_with_boxes(tmp_path):
    page = show(50, 740, "Big title", size=24)
    page += show(50, 700, "This is the first line of a para-")
    page += show(50, 688, "graph that goes on for a while.")
    page += show(50, 660, "1. one") + show(50, 648, "2. two")
    document = parse(write_pdf(tmp_path / "a.pdf", [page, show(50, 400, "Second page text")]))

    assert document.num_pages == 2
    assert document.title == "Big title"
    assert blocks(document) == [
        ("heading", "Big title"),
        ("paragraph", "This is the first line of a paragraph that goes on for a while."),
        ("list_item", "1. one"),
        ("list_item", "2. two"),
        ("paragraph", "Second page text"),
    ]
    first, paragraph, last = document.blocks[0], document.blocks[1], document.blocks[-1]
    assert [box.page for box in paragraph.boxes] == [1, 1]
    assert last.page == last.boxes[0].page == 2
    assert first.boxes[0].left == pytest.approx(50 / 600, abs=0.01)
    assert first.boxes[0].top < 1 - 740 / 800 < first.boxes[0].bottom
    assert last.boxes[0].top < 0.5 < last.boxes[0].bottom


@pytest.mark.parametrize(
    ("rotate", "expected"),
    [(0, (0.1, 0.1)), (90, (0.9, 0.1)), (180, (0.9, 0.9)), (270, (0.1, 0.9))],
)
def test_boxes_of_a_rotated_page_lie_where_it_is_displayed(tmp_path, rotate, expected):
    path = write_pdf(tmp_path / "a.pdf", [show(60, 720, "Mark and more", size=1)], rotate=rotate)

    box = parse(path).blocks[0].boxes[0]
    nearest = (
        min((box.left, box.right), key=lambda x: abs(x - expected[0])),
        min((box.top, box.bottom), key=lambda y: abs(y - expected[1])),
    )

    assert nearest == pytest.approx(expected, abs=0.01)


def test_ruled_table_in_a_pdf_becomes_rows(tmp_path):
    lines = "".join(f"50 {y} m 350 {y} l S\n" for y in (600, 570, 540))
    lines += "".join(f"{x} 600 m {x} 540 l S\n" for x in (50, 150, 350))
    page = show(50, 650, "Before the table there is text.") + lines
    page += show(60, 580, "Name") + show(160, 580, "Price of it")
    page += show(60, 550, "Apple") + show(160, 550, "2")
    document = parse(write_pdf(tmp_path / "a.pdf", [page]))

    assert blocks(document) == [
        ("paragraph", "Before the table there is text."),
        ("table", "Name | Price of it\nApple | 2"),
    ]


def test_columns_written_across_the_gutter_are_read_one_after_the_other(tmp_path):
    page = ""
    for row in range(10):
        y = 700 - 12 * row
        page += show(40, y, f"left column line number {row} is here")
        page += show(320, y, f"right column line number {row} is here")
    text = parse(write_pdf(tmp_path / "a.pdf", [page])).text

    assert text.index("left column line number 9") < text.index("right column line number 0")


def test_running_headers_and_page_numbers_are_said_once(tmp_path):
    pages = [
        show(50, 780, "Annual report") + show(50, 400, f"Text of part {n}.") + show(300, 20, f"{n}")
        for n in range(1, 7)
    ]
    text = parse(write_pdf(tmp_path / "a.pdf", pages)).text

    assert text.count("Annual report") == 1
    assert [f"Text of part {n}." in text for n in range(1, 7)] == [True] * 6
    assert not text.rstrip().endswith("6")


def test_code_in_a_pdf_keeps_lines_and_indentation(tmp_path):
    prose = "".join(show(50, 700 - 12 * n, "prose " * 15) for n in range(8))
    code = show(50, 500, "def f():", font="F2") + show(74, 488, "return 1", font="F2")
    document = parse(write_pdf(tmp_path / "a.pdf", [prose + code], second_font="Courier"))

    assert texts(document, BlockKind.CODE) == ["def f():\n    return 1"]


def test_short_bold_lines_in_a_pdf_are_headings(tmp_path):
    page = show(50, 700, "Summary", font="F2") + show(50, 680, "The body text is plain and longer.")
    document = parse(write_pdf(tmp_path / "a.pdf", [page]))

    assert texts(document, BlockKind.HEADING) == ["Summary"]


def test_protected_pdf_says_so_and_the_way_out(tmp_path):
    from pypdf import PdfWriter

    writer = PdfWriter(write_pdf(tmp_path / "a.pdf", [show(50, 700, "Secret text")]))
    writer.encrypt("secret")
    writer.write(tmp_path / "b.pdf")

    with pytest.raises(ParseFailed, match="password"):
        parse(tmp_path / "b.pdf")


def test_truncated_pdf_is_read_as_far_as_it_goes(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", [show(50, 700, "Still here after all")])
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"xref\n0 ")])

    assert "Still here after all" in parse(path).text


def test_pdf_without_anything_fails_with_a_reason(tmp_path):
    with pytest.raises(ParseFailed, match="has no text"):
        parse(write_pdf(tmp_path / "a.pdf", [""]))


def test_an_ole_container_that_is_not_encrypted_is_called_damaged(tmp_path):
    path = tmp_path / "a.docx"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1000))

    with pytest.raises(ParseFailed, match="damaged"):
        parse(path)


def test_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = write_zip(tmp_path / "a.docx", {"word/document.xml": bytes(100 << 20)})

    with pytest.raises(ParseLimitExceeded, match="unpacks to 100 MiB"):
        parse(path)


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx", ".odt", ".epub"])
def test_container_without_its_parts_fails_with_a_reason(tmp_path, suffix):
    with pytest.raises(ParseFailed, match=r"a\."):
        parse(write_zip(tmp_path / f"a{suffix}", {"nothing.txt": b"here"}))


def test_empty_file_fails_with_a_reason(tmp_path):
    with pytest.raises(ParseFailed, match="empty"):
        parse_text(tmp_path, "a.txt", "")


def test_file_of_blanks_fails_with_a_reason(tmp_path):
    with pytest.raises(ParseFailed, match="no text"):
        parse_text(tmp_path, "a.txt", " \n\n \n")


def test_unknown_format_is_refused_with_what_can_be_read(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(256)))

    with pytest.raises(UnsupportedFormat, match="PDF"):
        parse(path)


def test_media_type_goes_by_the_first_bytes_where_they_are_certain():
    assert media_type_of("a.txt", b"%PDF-1.7\n") == "application/pdf"
    assert media_type_of("a.pdf", b"\x00junk before it %PDF-1.7\n") == "application/pdf"
    assert media_type_of("a.md", b"A PDF file begins with %PDF-1.7.") == "text/markdown"
    assert media_type_of("a.md", b"# x") == "text/markdown"
    assert media_type_of("README", b"plain text") == "text/plain"
    assert media_type_of("a.xyz", b"\x00\x01") == "application/octet-stream"


def test_the_required_formats_are_supported():
    required = {".pdf", ".docx", ".pptx", ".xlsx", ".html", ".htm", ".md", ".csv", ".txt"}
    assert required <= SUPPORTED_SUFFIXES
