"""
A task whose answer is known
============================

Scores compare explanations with each other. Here the right explanation is known on paper: a small transformer, made
by hand, reads one marked patch less another, and nothing else. A map must be positive on the first and negative on
the second.
"""

# %%
# Run the arena
# -------------
#
# ``arena`` makes the model and the samples, explains them by each method, and says who passes. Random maps are always
# a row. The same on the command line: ``xai-compare --arena difference --methods cdam,attention,relevance,saliency``.

import tempfile

import matplotlib.pyplot as plt

from captum_ext import CDAM, AttentionMap, RelevancePropagation, signed_overlay
from xai_compare import arena
from xai_compare.known_answers import Conditions, tasks_named

names = ["cdam", "token-ablation", "attention", "relevance", "saliency"]
with tempfile.TemporaryDirectory() as folder:
    table = arena("difference", names, out=folder, limit=24)
first = table[table.score == "signs"].set_index("method")
print(first[["mean", "ci_low", "ci_high", "random", "verdict"]])

# %%
# Look at one sample
# ------------------
#
# The problem is an ordinary model with ordinary inputs. ``truth`` holds the two patches that are read.

(task,) = tasks_named("difference")
problem = task.make(Conditions(samples=1, seed=0, cache=None))
image, target = problem.inputs, problem.targets
maps = {
    "CDAM": CDAM(problem.model).attribute(image, target),
    "relevance propagation": RelevancePropagation(problem.model).attribute(image, target),
    "attention": AttentionMap(problem.model).attribute(image),
}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 3.3), layout="constrained")
for axis, (name, heat), method in zip(axes, maps.items(), ["cdam", "relevance", "attention"], strict=True):
    axis.imshow(signed_overlay(0.6 + 0.2 * image[0, :1], heat[0, 0]), interpolation="nearest")
    for truth, sign in (("first", "+"), ("second", "-")):
        row, column = divmod(int(problem.truth[truth][0]), 4)
        axis.add_patch(plt.Rectangle((8 * column - 0.5, 8 * row - 0.5), 8, 8, fill=False, linewidth=2.5))
        axis.text(8 * column + 3.5, 8 * row + 3.5, sign, fontsize=22, ha="center", va="center", weight="bold")
    verdict = first.verdict[method]
    axis.set_title(f"{name}\n{first['mean'][method]:.2f}: {verdict}", fontsize=12)
    axis.set_axis_off()
figure.suptitle("The model reads the patch “+” less the patch “-”", fontsize=13)
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# A method that fails here is wrong about the sign or the place of what a model reads, and no score is needed to see
# it. Attention has no sign: it looks at both patches alike. Relevance propagation keeps the positive part only, so
# the patch that is subtracted is lost. A method that passes has passed one easy question: in a model of one block
# nothing is moved between tokens beforehand. The arena has harder tasks, with trained models.
