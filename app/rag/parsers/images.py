"""Pictures: their text, read by OCR; each frame of a TIFF is a page."""

from pathlib import Path

from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from app.domain import BlockKind, Box, ParsedDocument
from app.errors import ParseFailed, ParseLimitExceeded
from app.rag.parsers import ocr
from app.rag.parsers.builder import DocumentBuilder, file_title
from app.rag.parsers.pdf_blocks import block_text, group, vocabulary
from app.rag.parsers.progress import Report, ignore_progress

MAX_PIXELS = 100_000_000
MAX_SIDE = 2000
MAX_FRAMES = 500


def parse(path: Path, name: str, report: Report = ignore_progress) -> ParsedDocument:
    """Read the text in a picture."""
    if not ocr.is_available():
        raise ParseFailed(
            f"“{name}” is a picture: install rapidocr and onnxruntime to read its text"
        )
    builder = DocumentBuilder()
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ParseLimitExceeded(
                    f"“{name}” has {image.width} x {image.height} pixels, "
                    f"{MAX_PIXELS:,} is the most: scale it down"
                )
            num_pages = min(getattr(image, "n_frames", 1), MAX_FRAMES)
            for page, frame in enumerate(ImageSequence.Iterator(image), start=1):
                if page > num_pages:
                    break
                _add_frame(builder, frame, page)
                report(page, num_pages)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ParseFailed(f"“{name}” is not a picture that can be read: {error}") from error
    if builder.is_empty:
        raise ParseFailed(f"OCR found no text in “{name}”")
    return builder.build(file_title(name), num_pages=num_pages)


def _add_frame(builder: DocumentBuilder, frame: Image.Image, page: int) -> None:
    upright = ImageOps.exif_transpose(frame)
    upright.thumbnail((MAX_SIDE, MAX_SIDE))
    lines = ocr.read_lines(upright, page, upright.width, upright.height)
    words = vocabulary([lines])
    for block in group([lines]):
        boxes = [
            Box(
                page,
                line.rect.left / upright.width,
                line.rect.top / upright.height,
                line.rect.right / upright.width,
                line.rect.bottom / upright.height,
            )
            for line in block.lines
        ]
        if block.kind is BlockKind.TABLE:
            builder.table(block.rows, page=page, boxes=boxes)
        else:
            text = block_text(block, words)
            builder.add(block.kind, text, level=block.level, page=page, boxes=boxes)
