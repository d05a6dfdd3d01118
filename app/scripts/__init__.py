"""Command line programs of the appliance."""
