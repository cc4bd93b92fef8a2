"""
From Quantus
============

A benchmark with Quantus: explanations by Captum, two metrics, one table. Below it the same benchmark with this
project's metrics and methods in it; the scores that were there before do not change.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import quantus
from captum.attr import InputXGradient

import quantus_metrics  # registers thirteen metrics
from captum_ext import CDAM
from quantus_metrics import explain_func
from xai_compare import digit_scenes, digit_vit

model = digit_vit.load()
scenes = digit_scenes.make_scenes(6, digits=2, seed=3)
x, y = scenes.images.numpy(), scenes.labels[:, 0].numpy()


def input_x_gradient(model, inputs, targets, **_):
    """An explanation function as Quantus wants it: arrays in, arrays out, channels summed."""
    import torch

    maps = InputXGradient(model).attribute(torch.as_tensor(inputs).requires_grad_(), torch.as_tensor(targets))
    return maps.detach().numpy().sum(1, keepdims=True)


# %%
# Before
# ------

options = {"disable_warnings": True}
before = quantus.evaluate(
    metrics={"Sparseness": quantus.Sparseness(**options), "Complexity": quantus.Complexity(**options)},
    xai_methods={"Input x Gradient": input_x_gradient},
    model=model,
    x_batch=x,
    y_batch=y,
    explain_func_kwargs={},
    agg_func=np.mean,
)

# %%
# After
# -----
# `import quantus_metrics` adds metrics to `quantus`; `explain_func` makes any class of Captum or pytorch-grad-cam an
# explanation function.

after = quantus.evaluate(
    metrics={
        "Sparseness": quantus.Sparseness(**options),
        "Complexity": quantus.Complexity(**options),
        "Box sensitivity": quantus.BoxSensitivity(num_boxes=20),
        "Token faithfulness": quantus.TokenFaithfulness(),
    },
    xai_methods={"Input x Gradient": explain_func(InputXGradient), "CDAM": explain_func(CDAM)},
    model=model,
    x_batch=x,
    y_batch=y,
    explain_func_kwargs={},
    agg_func=np.mean,
)

for metric, score in before["Input x Gradient"].items():
    np.testing.assert_allclose(after["Input x Gradient"][metric], score, rtol=1e-4)
table = pd.DataFrame(after).T
print(table.round(3).to_string())

# %%
# What you gain
# -------------
# Scores of the map's sign and of the exact effects of tokens, with the predictions of perturbed images shared by all
# maps. For intervals and paired tests use `xai_compare.compare`.

figure, sides = plt.subplots(1, 2, figsize=(6.4, 2.4), layout="constrained")
for axes, name in zip(sides, ("Box sensitivity", "Token faithfulness"), strict=True):
    axes.barh(table.index, table[name], color="#0b5394")
    axes.set_title(name, fontsize=10)
    axes.axvline(0, color="black", linewidth=0.8)
plt.show()
