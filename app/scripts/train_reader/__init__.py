"""Trains the built-in reader: a small language model that chooses the sentences to quote."""
