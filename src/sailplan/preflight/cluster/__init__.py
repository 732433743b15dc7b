"""What the doctor proves of a cluster: its profile, its scripts, and its nodes by a small job."""
