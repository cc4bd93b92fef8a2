"""
A comparison and its statistics
===============================

Which method is better, and is the difference more than chance? ``compare`` explains samples by several methods,
scores each map by several metrics, and ends with intervals, paired tests and effect sizes: in tables, and in an HTML
report.
"""

# %%
# Run it
# ------
#
# 24 scenes of handwritten digits, four methods, two metrics; a real comparison takes a hundred samples and more. The
# folder is the run: the same call again, with more methods or samples, computes only what is missing. On the command
# line: `xai-compare --methods cdam,attention,ixg,random --metrics token-faithfulness,removal-drop --limit 24 --out
# RUN`.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from xai_compare import compare

folder = Path(tempfile.mkdtemp()) / "run"
results = compare(
    "digits",
    out=folder,
    methods=["cdam", "attention", "ixg", "random"],
    metrics=["token-faithfulness", "removal-drop"],
    limit=24,
    resamples=500,
    gallery=2,
)

# %%
# The table
# ---------
#
# Of each metric and method the mean over the images with its 95 % bootstrap interval.

summary = results.summary()
print(
    summary[["metric", "direction", "method", "mean", "ci_low", "ci_high", "mean_rank"]].round(3).to_string(index=False)
)

# %%
# Intervals say how sure a mean is. They must not be compared with each other: all methods were scored on the same
# images, some of which are hard for all. The paired tests use that, and are corrected for their number (``p_holm``).

tests = results.tests()
columns = ["metric", "method_a", "method_b", "median_difference", "p_holm", "effect"]
print(tests[columns].round(3).to_string(index=False))

# %%
# A picture of your own
# ---------------------
#
# All tables are pandas' data frames.

metrics = list(summary.metric.unique())
figure, axes = plt.subplots(1, len(metrics), figsize=(7.5, 3.4), layout="constrained", sharey=True)
for axis, metric in zip(axes, metrics, strict=True):
    rows = summary[summary.metric == metric].set_index("method")
    best = rows["mean"].idxmax()
    for place, (name, row) in enumerate(rows.iterrows()):
        pairs = tests[
            (tests.metric == metric) & (tests.method_a.isin([name, best])) & (tests.method_b.isin([name, best]))
        ]
        behind = name != best and bool((pairs.p_holm < 0.05).any())
        colour = "tab:blue" if name == best else "tab:orange" if behind else "tab:gray"
        axis.plot([row.ci_low, row.ci_high], [place, place], color=colour, linewidth=3)
        axis.plot(row["mean"], place, "o", color=colour, markersize=9)
    axis.set_title(metric, fontsize=13)
    axis.set_xlabel("mean and 95 % interval", fontsize=11)
    axis.set_yticks(range(len(rows)), rows.index, fontsize=12)
    axis.grid(axis="x", alpha=0.3)
axes[0].invert_yaxis()
figure.suptitle("blue: the highest mean · orange: significantly behind it · grey: not", fontsize=12)
print(f"the report: {Path(results.report()).name}, {Path(results.report()).stat().st_size // 1024} KB")
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# It shows how to get from a model to a statement with its uncertainty, and ``results.report()`` is the page that
# shows all of it. A method that is not significantly behind is not shown to be as good: with few images hardly
# anything is significant. And a metric measures what it measures: two of them may well disagree about the winner.
# Look at the random maps first: where they are not behind, the metric cannot tell an explanation from noise with so
# few images.
