"""Ingestion: files become searchable documents, by durable jobs on worker threads."""

from app.rag.document_processor.files import FileStore
from app.rag.document_processor.ingestion import Advance, Read, ReadElsewhere, Reading, Stages
from app.rag.document_processor.processor import (
    DocumentProcessor,
    IngestRecords,
    ProcessorConfig,
)
from app.rag.document_processor.workers import WorkerConfig

__all__ = [
    "Advance",
    "DocumentProcessor",
    "FileStore",
    "IngestRecords",
    "ProcessorConfig",
    "Read",
    "ReadElsewhere",
    "Reading",
    "Stages",
    "WorkerConfig",
]
