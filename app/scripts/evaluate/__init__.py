"""Measures of what the appliance finds: run `python -m app.scripts.evaluate --help`."""
