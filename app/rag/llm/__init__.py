"""The generators behind one protocol, and the choice between them at the start."""

from app.rag.llm.discovery import DEFAULT_MODEL, ModelChoice, resolve_generator
from app.rag.llm.engine import EngineGenerator
from app.rag.llm.extractive import ExtractiveGenerator
from app.rag.llm.reader import ReaderGenerator
from app.rag.llm.remote import OpenAIGenerator

__all__ = [
    "DEFAULT_MODEL",
    "EngineGenerator",
    "ExtractiveGenerator",
    "ModelChoice",
    "OpenAIGenerator",
    "ReaderGenerator",
    "resolve_generator",
]
