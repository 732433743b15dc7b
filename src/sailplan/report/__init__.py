"""A run as one page, as pictures, and as numbers."""
