"""What each rank runs."""
