"""The run file: what to train, typed and strict, and where a run keeps its files."""
