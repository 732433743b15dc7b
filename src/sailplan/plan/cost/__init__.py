"""What a division of a run costs: memory by phase and kind, time, the host, the disk, steps."""
