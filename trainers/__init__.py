"""One self-supervised pretraining run, from config to probe. Knows torch and FFCV; has never heard of Ray or Optuna."""
