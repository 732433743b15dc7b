"""The report as one HTML file: what it shows, how it looks, and what its script does."""
