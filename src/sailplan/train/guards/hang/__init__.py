"""Finds a run that makes no progress, says which rank holds it up and where, and ends it."""
