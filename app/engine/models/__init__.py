"""Decoder families."""
