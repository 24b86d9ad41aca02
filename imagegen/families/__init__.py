"""Layouts of other libraries, both ways: one file per architecture."""
