"""What is known of a run beforehand: its model, its rows, its GPUs, its precision."""
