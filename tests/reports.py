"""Reports of runs that never were: plausible scores, curves, pictures and facts."""

import json
import math
import re
from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import rankdata, wilcoxon
from sklearn.datasets import load_digits

from xai_compare._critical_difference import Ranking, _groups
from xai_compare._report import Curve, Picture, render

METRICS = {
    "fidelity": ("Fidelity", "higher"),
    "box": ("Box sensitivity", "higher"),
    "sad": ("Soft Average Drop", "higher"),
    "ad": ("Average Drop", "lower"),
    "insertion": ("Insertion", "higher"),
    "deletion": ("Deletion", "lower"),
    "discrimination": ("Class discrimination", "higher"),
    "compactness": ("Compactness", ""),
}
METHODS = {
    "cdam": ("CDAM", "captum_ext.CDAM"),
    "smooth": ("Smooth CDAM", "captum_ext.SmoothCDAM"),
    "integrated": ("Integrated CDAM", "captum_ext.IntegratedCDAM"),
    "attention": ("Last attention", "captum_ext.RawAttention"),
    "ig": ("Integrated Gradients", "captum.attr.IntegratedGradients"),
    "ixg": ("Input x Gradient", "captum.attr.InputXGradient"),
    "smoothgrad": ("SmoothGrad", "captum.attr.NoiseTunnel"),
    "gradcam": ("Grad-CAM", "pytorch_grad_cam.GradCAM"),
    "hirescam": ("HiResCAM", "pytorch_grad_cam.HiResCAM"),
    "random": ("Random", "xai_compare.random_map"),
}
SUMMARY = ["metric", "direction", "method", "n", "failed", "mean", "ci_low", "ci_high", "mean_rank"]
SUMMARY += ["seconds", "explain_seconds", "explain_forwards"]
TESTS = [
    "metric",
    "method_a",
    "method_b",
    "n",
    "median_difference",
    "effect",
    "effect_low",
    "effect_high",
    "p",
    "p_holm",
]
PAIRS = ["method_a", "method_b", "n", "mean", "ci_low", "ci_high"]
CURVES = {
    "fidelity": ("MIF", "LIF", "blurred pixels in percent", 100.0),
    "box": ("correlation", "box size in pixels", 56.0),
    "insertion": ("probability", "fraction of pixels in insertion", 1.0),
    "deletion": ("probability", "fraction of pixels in deletion", 1.0),
}


@cache
def fake_scores(samples=48):
    """Plausible scores of all methods: (summary, tests)."""
    draw = np.random.default_rng(1)
    rows, pairs = [], []
    for metric, (_, direction) in METRICS.items():
        hard = draw.normal(0, 0.1, samples)
        level = {method: draw.uniform(0.2, 0.8) for method in METHODS}
        scores = {method: level[method] + hard + draw.normal(0, 0.06, samples) for method in METHODS}
        ranks = rankdata([one if direction == "lower" else -one for one in scores.values()], axis=0).mean(1)
        for (method, one), rank in zip(scores.items(), ranks, strict=True):
            mean, half = one.mean(), 1.96 * one.std() / samples**0.5
            cost = 0.0041 + 0.9 * (method in ("ig", "smoothgrad")) + 0.001 * level[method]
            interval = mean - half, mean + half
            rows.append((metric, direction, method, samples, 0, mean, *interval, rank, 0.31, cost, cost / 0.004))
        found = [(a, b, scores[a] - scores[b]) for a, b in combinations(METHODS, 2)]
        p = np.array([wilcoxon(difference).pvalue for *_, difference in found])
        order, holm = p.argsort(), np.empty(len(p))
        holm[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
        effects = [_effect(difference) for *_, difference in found]
        sizes = [
            (np.median(d), e, max(-1, e - 0.2), min(1, e + 0.2)) for (*_, d), e in zip(found, effects, strict=True)
        ]
        pairs += [(metric, *found[k][:2], samples, *sizes[k], p[k], holm[k]) for k in range(len(p))]
    summary = pd.DataFrame(rows, columns=SUMMARY)
    failed = (summary.metric == "discrimination") & (summary.method == "attention")
    summary.loc[failed, ["n", "failed", "mean", "ci_low", "ci_high", "mean_rank"]] = [0, 48, *[math.nan] * 4]
    return summary, pd.DataFrame(pairs, columns=TESTS)


def _effect(difference):
    ranks = rankdata(np.abs(difference))
    return (np.sign(difference) * ranks).sum() / ranks.sum()


@cache
def fake_rankings():
    """Of each metric with a direction, as the summary and the tests say."""
    summary, tests = fake_scores()
    found = []
    for metric, (_, direction) in METRICS.items():
        rows = summary[(summary.metric == metric) & summary.mean_rank.notna()].sort_values("mean_rank")
        order = list(zip(rows.method, rows.mean_rank, strict=True))
        groups = _groups(list(rows.method), tests[tests.metric == metric])
        found += [Ranking(metric, 48, order, groups, 1e-5)] if direction else []
    return found


def fake_agreement(samples=48):
    """(by pair, by sample), of samples that are named as the pictures."""
    draw, methods = np.random.default_rng(4), list(METHODS)
    rows = [(a, b, samples, draw.uniform(-0.3, 0.98)) for a, b in combinations(methods, 2)]
    pairs = pd.DataFrame([(*row, row[3] - 0.03, row[3] + 0.02) for row in rows], columns=PAIRS)
    names = [f"scenes/{at}.png" for at in range(samples)]
    lowest = pd.DataFrame({"sample": range(samples), "name": names, "agreement": draw.uniform(-0.1, 0.8, samples)})
    return pairs, lowest.assign(n_pairs=45).sort_values("agreement", ignore_index=True)


def fake_curves():
    draw, curves = np.random.default_rng(2), []
    for metric, (*names, axis, end) in CURVES.items():
        for name in names:
            for method in METHODS:
                t = np.linspace(0, 1, 21)
                mean = 1 / (1 + np.exp(8 * (t - draw.uniform(0.2, 0.6)))) + 0.02 * draw.normal(size=21)
                mean = mean if metric != "insertion" else mean[::-1]
                curves.append(Curve(metric, method, name, axis, end * t, mean, mean - 0.05, mean + 0.05))
    return curves


def fake_pictures(count=8, side=56):
    """Scenes of two digits, and maps that find one of them, each method less well than the last."""
    digits, draw, pictures = load_digits(), np.random.default_rng(3), []
    for at in range(count):
        first, second = draw.choice(1000, 2, replace=False)
        scene = np.zeros((224, 224))
        places = {}
        for index, (top, left) in ((first, (16, 16)), (second, (112, 112))):
            scene[top : top + 96, left : left + 96] = np.kron(digits.images[index] / 16, np.ones((12, 12)))
            places[int(digits.target[index])] = (top + 48) / 224 * side
        image = np.clip(255 * (0.85 * scene + 0.1) + draw.normal(0, 6, scene.shape), 0, 255).astype(np.uint8)
        rows, columns = np.mgrid[:side, :side]
        maps = {}
        for label, centre in places.items():
            other = side - centre
            good = np.exp(-((rows - centre) ** 2 + (columns - centre) ** 2) / 90)
            bad = np.exp(-((rows - other) ** 2 + (columns - other) ** 2) / 90)
            maps[label] = {
                method: (0.7**k) * (good - 0.1 * k * bad + 0.02 * k * draw.normal(size=good.shape))
                for k, method in enumerate(METHODS)
                if not (k == 3 and at == 0)
            }
        classes = {label: f"digit {label}" for label in places}
        target = next(iter(places))
        pictures.append(Picture(f"scenes/{at}.png", np.stack([image] * 3, -1), target, classes, maps, at))
    return pictures


def fake_run():
    return {
        "command": "xai-compare --model digit_vit --data scenes --methods cdam,ig --seed 0 --out RUN",
        "settings": {"boxes": 25, "steps": 20, "batch_size": 16, "softmax": False, "classes": [1, 2, 3]},
        "versions": {
            "python": "3.12.1",
            "torch": "2.8.0",
            "captum": "0.8.0",
            "quantus": "0.6.0",
            "xai-discern": "0.1.0",
        },
        "seed": 0,
        "samples": 50,
        "finished": 48,
        "failed": 48,
        "errors": [
            {
                "method": "attention",
                "metric": "discrimination",
                "count": 48,
                "error": "ValueError: one map for all classes",
            }
        ],
        "skipped": [
            {"sample": f"scenes/{i}.png", "error": "UnidentifiedImageError: cannot identify"} for i in (49, 50)
        ],
        "started": "2026-03-01T12:00:00+00:00",
        "seconds": 754.2,
        "device": "cpu (2 threads)",
        "model": "digit_vit",
        "weights": "sha256:4f1c0e7bb2a94f0a8f3b0c0a3c1d5e6f",
        "data": "scenes of two digits",
        "metrics": {key: {"title": title, "direction": direction} for key, (title, direction) in METRICS.items()},
        "methods": {key: {"title": title, "source": source} for key, (title, source) in METHODS.items()},
    }


def one_picture(maps, classes=None, side=8):
    """A black image with maps by class and method."""
    classes = classes or {index: f"class {index}" for index in maps}
    return Picture("black.png", np.zeros((side, side, 3), np.uint8), next(iter(classes)), classes, maps)


def summary_of(*rows):
    """The first columns of a summary; the others are optional."""
    return pd.DataFrame(rows, columns=SUMMARY[:8])


def small(pictures=(), curves=(), **run):
    """The page of one method and one metric."""
    return render(run, summary_of(("sad", "higher", "cdam", 3, 0, 0.5, 0.4, 0.6)), pd.DataFrame(), curves, pictures)


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


@cache
def full_page():
    """The page with everything."""
    pairs, samples = fake_agreement()
    further = {"rankings": fake_rankings(), "by_pair": pairs, "by_sample": samples}
    return render(fake_run(), *fake_scores(), fake_curves(), fake_pictures(), **further)


@cache
def table_page():
    """The page without curves and pictures."""
    return render(fake_run(), *fake_scores(), [], [])
