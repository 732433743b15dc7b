"""Jobs of a Slurm cluster: how they are asked for, written, queued, and how they stand."""
