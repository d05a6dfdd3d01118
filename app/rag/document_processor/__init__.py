"""Ingestion: files become searchable documents, by durable jobs on worker threads."""

from app.rag.document_processor.files import FileStore
from app.rag.document_processor.ingestion import Stages
from app.rag.document_processor.processor import (
    DocumentProcessor,
    IngestRecords,
    ProcessorConfig,
)
from app.rag.document_processor.workers import WorkerConfig

__all__ = [
    "DocumentProcessor",
    "FileStore",
    "IngestRecords",
    "ProcessorConfig",
    "Stages",
    "WorkerConfig",
]
