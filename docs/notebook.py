# %% [markdown]
# # In a notebook
#
# A small sweep on the built-in digits, what came out of it, and the trained encoder on images of one's own. It takes
# about a minute on two cores. This page is `docs/notebook.py`, whose cells Jupyter (with jupytext), VS Code and PyCharm
# show; a test runs it.

# %%
import numpy as np
from sklearn.datasets import load_digits

import pretune
import trainers

# %% [markdown]
# ## A sweep
#
# `pretune.run` takes what `pretune sweep` takes, and refuses what it refuses, before anything starts. Two trials of two
# epochs are enough to see the tables; more are better. A sweep that is there already, or that runs elsewhere, is
# opened: `pretune.open("sweeps/NAME")`. In a cell, `sweep` alone shows its trials, the best first.

# %%
sweep = pretune.run("kernels", "sfrik_tiny", trials=2, epochs=2, slots=1, set={"batch_size": 128}, quiet=True)
print(sweep)

# %% [markdown]
# Trials as a pandas DataFrame: state, value, parameters, and the metrics of the last epoch.

# %%
print(sweep.trials[["state", "epochs", "value", "params.objective.mmd.kernel", "loss/total", "seconds"]])

# %% [markdown]
# Curves: one row per trial and epoch. Where matplotlib is installed, `.plot()` draws them.

# %%
print(sweep.curves.pivot(index="epoch", columns="trial", values="probe/linear"))

# %% [markdown]
# The best trial, with the config that replays it (`sweep.config(0)` is that of trial 0).

# %%
best = sweep.best
assert best is not None, "no trial was completed"
print(f"trial {best.id}: {sweep.metric} {best.value}")
print(best.config.objective["mmd"])

# %% [markdown]
# ## Its encoder
#
# A `torch.nn.Module` from images to features. It normalizes by itself, with `encoder.mean` and `encoder.std`.

# %%
assert best.checkpoint is not None, "it was removed"
assert best.checkpoint is not None, "its checkpoint was not kept"
encoder = trainers.load_encoder(best.checkpoint)
print(f"{encoder.width} features of images of {encoder.size} px, mean {encoder.mean.tolist()}")

# %% [markdown]
# Images of any size go through `encoder.features`: paths, Pillow's images or arrays of bytes. They are prepared as for
# the probe that judged the trials. Here, the digits' nearest neighbors among each other, by the cosine of their
# features:

# %%
digits = load_digits()
images = np.round(digits.images[:200] * (255 / 16)).astype(np.uint8)
features = encoder.features(images)
features /= np.linalg.norm(features, axis=1, keepdims=True)
similarities = features @ features.T
np.fill_diagonal(similarities, -1.0)
nearest = similarities.argmax(axis=1)
labels = digits.target[:200]
print(f"of {len(images)} digits, {np.mean(labels[nearest] == labels):.0%} have a neighbor of their own class")
