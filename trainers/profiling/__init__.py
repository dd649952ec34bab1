"""What a run takes, measured on this machine, part by part. Nothing of it trains anything that is kept."""
