"""Images to batches: sources, splits, FFCV files, loaders, augmented views."""
