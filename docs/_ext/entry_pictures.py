"""Pictures of the pages of methods and metrics, computed at each build."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from captum_ext import overlay_figure


def draw_methods(folder: Path, methods: Mapping[str, Any]) -> None:
    """The maps of both digits of a scene, by each method."""
    from xai_compare import digit_scenes, digit_vit

    model, scenes = digit_vit.load(), digit_scenes.make_scenes(1, digits=2, seed=3)
    image, digits = scenes.images, scenes.labels[0].tolist()
    for name, method in methods.items():
        torch.manual_seed(0)
        explainer = method.make(model)
        maps = {f"digit {digit}": explainer.attribute(image, target=digit) for digit in digits}
        overlay_figure(image.clamp(0, 1), maps, path=folder / f"{name}.png")


def draw_metrics(folder: Path, run: Path, metrics: Sequence[str], methods: Sequence[str], samples: int) -> None:
    """The mean scores of methods with their intervals, by each metric; what an earlier build computed is kept."""
    from xai_compare import Comparison
    from xai_compare.cli import main as compare

    names = ["--methods", ",".join(methods), "--metrics", ",".join(metrics)]
    fewer = ("insertion.steps", "deletion.steps", "fidelity.steps", "box-sensitivity.num_boxes")
    names += [part for name in fewer for part in ("--option", f"{name}=20")]
    compare([*names, "--limit", str(samples), "--gallery", "0", "--out", str(run)])
    table = Comparison(run).summary()
    for metric in metrics:
        rows = table[table.metric == metric].set_index("method").reindex(methods)
        figure = Figure(figsize=(6.4, 2.9), layout="constrained", dpi=110)
        axes = figure.subplots()
        spread = [(rows["mean"] - rows["ci_low"]).clip(0), (rows["ci_high"] - rows["mean"]).clip(0)]
        axes.errorbar(rows["mean"], range(len(rows)), xerr=spread, fmt="o", color="#0b5394", capsize=3)
        axes.set_yticks(range(len(rows)), rows.index)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel(metric)
        figure.savefig(folder / f"{metric}.png")
