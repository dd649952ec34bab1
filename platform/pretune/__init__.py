"""Runs explorations: sweeps of self-supervised pretraining on Ray, searched by Optuna. Knows no loss and no layer."""
