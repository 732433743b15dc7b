"""What goes on around a run's launches: how one ended, what is told, and what comes next."""
