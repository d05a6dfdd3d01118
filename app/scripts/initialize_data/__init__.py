"""Adding files and folders from the command line: run it with `python -m`."""
