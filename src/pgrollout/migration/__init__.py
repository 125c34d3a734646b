"""Reads migrations, classifies their statements and plans a run: pure functions, except `load` which reads files."""
