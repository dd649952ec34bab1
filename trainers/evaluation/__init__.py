"""What frozen features are worth: probes, ranks and spreads."""
