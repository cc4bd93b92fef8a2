"""All scores, Quantus' own and ours, in one call on the demo's scenes."""

import math

import numpy as np
import pytest
import quantus
from captum.attr import InputXGradient
from torch import nn

from captum_ext import CDAM
from quantus_metrics import BoxSensitivity, ClassDiscrimination, explain_func
from xai_compare import digit_vit
from xai_compare.digit_scenes import make_scenes

pytestmark = pytest.mark.slow

SMALLER = {
    "FaithfulnessCorrelation": {"nr_runs": 3, "subset_size": 100},
    "FaithfulnessEstimate": {"features_in_step": 576},
    "PixelFlipping": {"features_in_step": 576},
    "RegionPerturbation": {"patch_size": 8, "regions_evaluation": 2},
    "Monotonicity": {"features_in_step": 576},
    "MonotonicityCorrelation": {"nr_samples": 2, "features_in_step": 1152},
    "Selectivity": {"patch_size": 24},
    "SensitivityN": {"features_in_step": 576},
    "Infidelity": {"perturb_patch_sizes": [24], "n_perturb_samples": 1},
    "LocalLipschitzEstimate": {"nr_samples": 2},
    "MaxSensitivity": {"nr_samples": 2},
    "AvgSensitivity": {"nr_samples": 2},
    "RelativeInputStability": {"nr_samples": 2},
    "RelativeOutputStability": {"nr_samples": 2},
    "RelativeRepresentationStability": {"nr_samples": 2},
    "TopKIntersection": {"k": 50},
    "RandomLogit": {"num_classes": 10},
    "ROAD": {"percentages": [50]},
    "BoxSensitivity": {"num_boxes": 4},
    "Fidelity": {"steps": 4},
    "Insertion": {"steps": 4},
    "Deletion": {"steps": 4},
    "ClassDiscrimination": {"metric": BoxSensitivity(num_boxes=4)},
}
NOT_HERE = {
    "IROF": "calls numpy.trapz, which numpy 2.4 lacks",
    "Focus": "needs mosaics of images",
    "SmoothMPRT": "calls quantus.explain itself",
    "MPRT": "explains once a layer: slow",
    "InputInvariance": "reads out_channels of the model's first module",
    "Continuity": "slow",
    "NonSensitivity": "slow",
}


@pytest.mark.filterwarnings("ignore")  # Quantus' own
def test_all_metrics_run_together_on_the_digit_scenes(capsys):
    known = [metric for metrics in quantus.AVAILABLE_METRICS.values() for metric in metrics.values()]
    metrics = {m.name: m(**SMALLER.get(m.__name__, {})) for m in known if m.__name__ not in NOT_HERE}
    ours = {m.name for m in known if m.__module__.startswith("quantus_metrics")}
    scenes = make_scenes(2, digits=2, seed=2)
    scores = quantus.evaluate(
        metrics=metrics,
        xai_methods={"CDAM": explain_func(CDAM), "Input x Gradient": explain_func(InputXGradient)},
        model=digit_vit.load(),
        x_batch=scenes.images.numpy(),
        y_batch=scenes.labels[:, 0].numpy(),
        s_batch=scenes.mask(0).numpy(),
        explain_func_kwargs={},
    )
    assert "Failed to evaluate" not in capsys.readouterr().out
    assert len(ours) == 13
    for row in scores.values():
        assert set(row) == set(metrics)
        assert all(len(row[name]) == 2 and all(map(math.isfinite, row[name])) for name in ours)
    differing = [name for name in ours if not np.allclose(*(row[name] for row in scores.values()))]
    assert set(differing) == ours - {"Average Increase"} or set(differing) == ours


def test_a_batch_is_evaluated_by_quantus_contract_alone():
    rng = np.random.default_rng(0)
    x, y, right, wrong = rng.normal(size=(3, 1, 8, 8)), np.array([0, 1, 1]), *rng.normal(size=(2, 3, 1, 8, 8))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    box, difference = BoxSensitivity([2, 4], 9), ClassDiscrimination(BoxSensitivity([2, 4], 9))
    expected = box(model, x, y, right)
    assert box.evaluate_batch(model, x, y, right, None) == expected
    less = np.subtract(expected, box(model, x, y, wrong))
    assert np.allclose(difference(model, x, y, right, custom_batch=wrong), less)
    assert np.allclose(difference.evaluate_batch(model, x, y, right, None, wrong_a_batch=wrong), less)
    with pytest.raises(TypeError, match="wrong_a_batch"):
        difference.evaluate_batch(model, x, y, right, None)
