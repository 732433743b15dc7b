"""A real Slurm cluster on this machine: every node with a network and processes of its own."""

from tests.slurm.cluster.cluster import Cluster
from tests.slurm.cluster.needs import what_is_missing

__all__ = ["Cluster", "what_is_missing"]
