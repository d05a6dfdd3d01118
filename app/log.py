"""Logging set-up: one event per line, as text or as JSON; third parties speak from warning on.

It must know nothing of the application: the entry points call `configure` once.
"""

import json
import logging
import sys
import time
from typing import Literal

QUIET = (
    *("alembic", "asyncio", "faiss", "httpcore", "httpx", "huggingface_hub", "jieba"),
    *("milvus_lite", "openai", "pymilvus", "python_multipart", "sentence_transformers"),
    *("transformers", "uvicorn"),
)
# Milvus Lite's server logs a traceback for each call that it does not implement; clients know.
SILENT = ("grpc._server",)


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO app.main event key=value`; tracebacks follow on own lines."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Keep the event on one line, whatever a value in it holds."""
        return super().formatMessage(record).replace("\r", "").replace("\n", "\\n")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message and, if there is one, traceback."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


def is_json() -> bool:
    """Whether events are written as JSON, so that nothing else should be."""
    handlers = logging.getLogger().handlers
    return any(isinstance(handler.formatter, JsonFormatter) for handler in handlers)


def configure(level: str, log_format: Literal["text", "json"]) -> None:
    """Send everything from `level` on to standard error, replacing earlier handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL)
