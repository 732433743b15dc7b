"""What the doctor runs in child processes, because it may crash, hang or load gigabytes."""
