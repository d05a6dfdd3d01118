"""The composition root: the only place that builds objects from Settings.

`appliance` builds what the role all needs at once, and `loading` its heavy parts in the
background; `engine` builds the language model, for that role and for generate.
"""
