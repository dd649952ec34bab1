"""One self-supervised pretraining run: configs, data, views, model, objective, loop, probe. Knows torch and FFCV; nothing of Ray or Optuna."""
