"""The whole loop on any machine: a drawn catalogue, a small model, two ways of training."""
