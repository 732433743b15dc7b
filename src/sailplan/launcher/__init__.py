"""From a run and a machine to a command line, and carrying it out."""
