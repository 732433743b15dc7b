"""From the user's rows to batches: sources, formats, images, labels, collation."""
