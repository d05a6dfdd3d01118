"""JSON and XML: names and values as lines that read alone, lists of records as tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

from lxml import etree

from app.domain import ParsedDocument
from app.errors import ParseFailed
from app.rag.parsers.archives import parse_xml
from app.rag.parsers.builder import DocumentBuilder, file_title, one_line
from app.rag.parsers.encodings import decode
from app.rag.parsers.html import add_html, declared_encoding

_FEED_BODIES = ("encoded", "content", "description", "summary")
MAX_DEPTH = 100
MAX_COLUMNS = 12
MAX_CELL_CHARS = 200
Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


def parse(path: Path, name: str) -> ParsedDocument:
    """Read a JSON, JSON lines or XML file."""
    if PurePath(name).suffix.lower() in (".xml", ".rss", ".atom"):
        return _parse_xml_file(path, name)
    return _parse_json_file(path, name)


def _parse_json_file(path: Path, name: str) -> ParsedDocument:
    text = decode(path.read_bytes())
    try:
        try:
            value: Json = json.loads(text)
        except json.JSONDecodeError:
            value = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (json.JSONDecodeError, RecursionError) as error:
        raise ParseFailed(f"“{name}” is not JSON that can be read: {error}") from error
    builder = DocumentBuilder()
    _add_json(builder, value, ())
    title = value.get("title") if isinstance(value, Mapping) else None
    return builder.build(title if isinstance(title, str) else file_title(name))


def _add_json(builder: DocumentBuilder, value: Json, path: tuple[str, ...]) -> None:
    """Scalars of an object make one paragraph of `name: value` lines; what is below, its own."""
    if len(path) > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        scalars = {key: item for key, item in value.items() if not _is_container(item)}
        prefix = "".join(f"{part}." for part in path if not part.isdigit())
        builder.paragraph(
            "\n".join(f"{prefix}{key}: {_text(item)}" for key, item in scalars.items())
        )
        for key, item in value.items():
            if _is_container(item):
                _add_json(builder, item, (*path, key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        _add_list(builder, value, path)
    else:
        builder.paragraph(_text(value))


def _add_list(builder: DocumentBuilder, values: Sequence[Json], path: tuple[str, ...]) -> None:
    records = [value for value in values if isinstance(value, Mapping)]
    columns = list(dict.fromkeys(key for record in records for key in record))
    is_table = len(records) == len(values) > 1 and 1 < len(columns) <= MAX_COLUMNS
    cells = [value for record in records for value in record.values()]
    if is_table and not any(_is_container(c) or len(_text(c)) > MAX_CELL_CHARS for c in cells):
        rows = [[_text(record.get(column)) for column in columns] for record in records]
        builder.paragraph(".".join(part for part in path if not part.isdigit()))
        builder.table([columns, *rows])
    elif not any(_is_container(value) for value in values):
        prefix = ".".join(part for part in path if not part.isdigit())
        text = "\n".join(_text(value) for value in values)
        builder.paragraph(f"{prefix}:\n{text}" if prefix else text)
    else:
        for index, value in enumerate(values):
            _add_json(builder, value, (*path, str(index)))


def _is_container(value: Json) -> bool:
    return isinstance(value, Mapping | Sequence) and not isinstance(value, str) and bool(value)


def _text(value: Json) -> str:
    if value is None or value in ([], {}):
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parse_xml_file(path: Path, name: str) -> ParsedDocument:
    data = path.read_bytes()
    text = decode(data, declared_encoding(data))
    # Decoded here: the declaration may be wrong, and lxml believes it.
    declaration_end = text.find("?>") + 2 if text.lstrip().startswith("<?xml") else 0
    root = parse_xml(text[declaration_end:].encode(), name)
    builder = DocumentBuilder()
    feed_title = _add_feed(builder, root)
    if builder.is_empty:
        _add_element(builder, root, 0)
    return builder.build(feed_title or file_title(name))


def _add_feed(builder: DocumentBuilder, root: etree._Element) -> str:
    """Entries of RSS and Atom under their titles; return the feed's title."""
    items = [e for e in root.iter() if _tag(e) in ("item", "entry")]
    if _tag(root) not in ("rss", "feed", "rdf") or not items:
        return ""
    for item in items:
        children = {_tag(child): child for child in item}
        if "title" in children:
            builder.heading("".join(children["title"].itertext()), 2)
        bodies = [children[tag] for tag in _FEED_BODIES if tag in children]
        for body in bodies[:1]:  # the others are its beginning
            add_html(builder, "".join(body.itertext()))
    titles = (e for e in root.iter() if _tag(e) == "title")
    title = next(titles, None)
    return "".join(title.itertext()) if title is not None else ""


def _add_element(builder: DocumentBuilder, element: etree._Element, depth: int) -> None:
    """An element whose children are leaves is a paragraph of `name: value` lines."""
    lines = list(_own_lines(element))
    children = [child for child in element if isinstance(child.tag, str)]
    inner = [child for child in children if len(child)]
    lines += [line for child in children if not len(child) for line in _leaf_lines(child)]
    builder.paragraph("\n".join(lines))
    if depth < MAX_DEPTH:
        for child in inner:
            _add_element(builder, child, depth + 1)


def _own_lines(element: etree._Element) -> Iterator[str]:
    for name, value in element.attrib.items():
        yield f"{_tag(element)} {etree.QName(name).localname}: {one_line(value)}"
    texts = [element.text, *(child.tail for child in element)]
    if text := one_line(" ".join(filter(None, texts))):
        yield text


def _leaf_lines(element: etree._Element) -> Iterator[str]:
    attributes = [f"{etree.QName(k).localname}={one_line(v)}" for k, v in element.attrib.items()]
    label = " ".join([_tag(element), *attributes])
    if text := one_line(element.text or ""):
        yield f"{label}: {text}"
    elif attributes:
        yield label


def _tag(element: etree._Element) -> str:
    return etree.QName(element).localname.lower() if isinstance(element.tag, str) else ""
