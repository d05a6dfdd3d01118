"""Measures the engine; every command makes the models that it needs and prints a table."""
