"""Any sharded checkpoint or adapter into one Hugging Face model: planned, proven, streamed."""
