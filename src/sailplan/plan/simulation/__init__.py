"""A micro batch without memory: the model, its batch, and the record of what is alive when."""
