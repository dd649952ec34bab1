"""What came out of sweeps, computed. Nothing here prints."""
