"""Quantus scores of the demo's maps: is the relevance on the digit asked for, does it move the model, is it sparse?"""

import numpy as np
import numpy.typing as npt
import pandas as pd
import quantus
from torch import Tensor, nn
from tqdm import tqdm

import quantus_metrics

# The maps are given as they are: Quantus would normalise them over the whole batch.
_PLAIN = {"normalise": False, "disable_warnings": True}


def metrics() -> dict[str, quantus.Metric]:
    """Quantus' own scores, and this project's. The two that blur boxes share the model's predictions."""
    box = quantus_metrics.BoxSensitivity(num_boxes=25, disable_warnings=True)  # 100 would take minutes
    return {
        "location: share in digit": quantus.RelevanceMassAccuracy(**_PLAIN),
        "location: top pixels": quantus.RelevanceRankAccuracy(**_PLAIN),
        "faithfulness": quantus.FaithfulnessCorrelation(
            nr_runs=50, subset_size=144, perturb_baseline="black", abs=False, return_aggregate=False, **_PLAIN
        ),
        "sparseness": quantus.Sparseness(abs=True, **_PLAIN),
        "SAD": quantus_metrics.SoftAverageDrop(disable_warnings=True),
        "EAD": quantus_metrics.EffectiveAverageDrop(disable_warnings=True),
        "box sensitivity": box,
        "class discrimination": quantus_metrics.ClassDiscrimination(box, disable_warnings=True),
    }


def score(model: nn.Module, images: Tensor, targets: Tensor, digits: Tensor, maps: dict[str, Tensor]) -> pd.DataFrame:
    """One row for each sample, method and metric.

    Args:
        model: The model that is explained.
        images: (samples, 1, height, width).
        targets: (samples,), the digit asked for; samples 2 i and 2 i + 1 are of one image.
        digits: (samples, 1, height, width) booleans, where that digit is.
        maps: The maps (samples, 1, height, width) of each method.
    """
    rows = []
    chosen = metrics()
    with tqdm(total=len(maps) * len(chosen), desc="scoring with Quantus", unit="score") as bar:
        for method, heat in maps.items():
            for name, metric in chosen.items():
                # Only evidence for the digit has a place: a share of the relevance needs it to be positive.
                given = heat.clamp(min=0) if name.startswith("location") else heat
                rows += [
                    {"sample": i, "target": int(targets[i]), "method": method, "metric": name, "score": value}
                    for i, value in enumerate(_call(metric, model, images, targets, digits, given))
                ]
                bar.update()
    return pd.DataFrame(rows)


def _call(
    metric: quantus.Metric, model: nn.Module, images: Tensor, targets: Tensor, digits: Tensor, heat: Tensor
) -> npt.NDArray[np.floating]:
    # Samples are in pairs, each scene asked for two digits: the other one's map is that of the wrong class.
    other = {"wrong_a_batch": heat.unflatten(0, (-1, 2)).flip(1).flatten(0, 1).double().numpy()}
    scores = metric(
        model=model,
        x_batch=images.numpy(),
        y_batch=targets.numpy(),
        a_batch=heat.double().numpy().copy(),
        s_batch=digits.numpy(),
        device="cpu",
        softmax=False,
        **(other if isinstance(metric, quantus_metrics.ClassDiscrimination) else {}),
    )
    return np.asarray(scores, dtype=float)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each method and metric, methods in the order they were given."""
    table = scores.pivot_table(index="method", columns="metric", values="score", aggfunc="mean", sort=False)
    return table.rename_axis(index=None, columns=None)


def winners_over(table: pd.DataFrame, reference: str) -> dict[str, list[str]]:
    """For each metric, the methods whose mean is above the reference's; all metrics here are better when higher."""
    return {name: list(column[column > column[reference]].index) for name, column in table.items()}
