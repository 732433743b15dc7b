"""What an answer is worth against the one in the data, row by row and over all rows."""
