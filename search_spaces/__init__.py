"""What may vary in a sweep, and the recipes it varies. Knows Optuna's suggest calls and the configs of `trainers`."""
