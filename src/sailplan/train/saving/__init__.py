"""How checkpoints are saved: with room, whole or not at all, and looked at afterwards."""
