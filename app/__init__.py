"""Folio: a retrieval-augmented generation appliance in one process."""

__version__ = "0.1.0"
