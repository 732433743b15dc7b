"""Looks through a run's data before it is trained on: what is wrong, and what will be trained."""
