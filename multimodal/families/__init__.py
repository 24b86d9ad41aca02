"""Layouts of other libraries for the towers and bridges here."""
