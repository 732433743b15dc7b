"""Callbacks that stop a run which cannot go right."""
