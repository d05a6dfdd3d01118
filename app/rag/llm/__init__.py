"""The three generators behind one protocol, and the choice between them at the start."""
