"""Cheap checks before anything is launched."""
