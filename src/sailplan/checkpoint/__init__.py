"""What lies in a checkpoint: its files, its tensors, and where each of their bytes is."""
