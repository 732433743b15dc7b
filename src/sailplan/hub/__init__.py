"""Repositories on the hub: their revisions, the local cache, downloads."""
