"""Parsers: a file's bytes to text with structure. They know nothing of chunks, stores or jobs."""

from app.rag.parsers.formats import SUPPORTED_SUFFIXES, media_type_of, parse_file
from app.rag.parsers.subprocess_parser import SubprocessParser

__all__ = ["SUPPORTED_SUFFIXES", "SubprocessParser", "media_type_of", "parse_file"]
