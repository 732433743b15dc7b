"""Which division of a run is taken, and why."""
