"""Loading models, and deciding which of their parameters train."""
