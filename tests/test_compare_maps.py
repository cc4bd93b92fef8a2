"""Whole maps that a run keeps on demand, and small ones that it always keeps."""

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import InputXGradient, Saliency
from torch import nn

from xai_compare import compare

IMAGES = torch.randn(7, 2, 6, 8, generator=torch.Generator().manual_seed(0))
METHODS = {"ixg": InputXGradient, "saliency": Saliency}
pytestmark = pytest.mark.slow


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(96, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def run(folder, methods=("ixg", "saliency"), model=None, images=IMAGES, **settings):
    cheap = {"gallery": 0, "resamples": 100, "batch_size": 3, "metrics": ["compactness"], "save_maps": True}
    return compare(model or linear(), images, out=folder, methods=methods, **(cheap | settings))


def expected(method, model=None, images=IMAGES):
    model = model or linear()
    explained = METHODS[method](model).attribute(images.clone().requires_grad_(), target=model(images).argmax(1))
    return explained.sum(1).detach().numpy()


def saved(folder, method):
    with np.load(folder / "maps" / f"{method}.npz") as file:
        return {name: file[name] for name in file.files}


def test_maps_are_kept_with_names_and_classes(tmp_path):
    run(tmp_path, labels=["cat", "dog", "fox"])
    targets = linear()(IMAGES).argmax(1)
    for method in METHODS:
        found = saved(tmp_path, method)
        np.testing.assert_allclose(found["maps"], expected(method), rtol=1e-5, atol=1e-7)
        assert found["maps"].dtype == np.float32
        assert found["sample"].tolist() == list(range(7))
        assert found["target"].tolist() == targets.tolist()
        assert found["label"].tolist() == [["cat", "dog", "fox"][one] for one in targets]
        assert found["name"][3] == "3"


def test_maps_of_methods_and_samples_that_are_added_are_added(tmp_path):
    run(tmp_path, ["ixg"], limit=4)
    run(tmp_path, ["ixg", "saliency"])
    for method in METHODS:
        np.testing.assert_allclose(saved(tmp_path, method)["maps"], expected(method), rtol=1e-5, atol=1e-7)


def test_maps_that_are_asked_for_later_cost_no_score(tmp_path):
    scores = run(tmp_path, save_maps=False).scores()
    assert not (tmp_path / "maps").exists()
    found = run(tmp_path)
    pd.testing.assert_frame_equal(found.scores(), scores, check_exact=True)  # with its seconds
    np.testing.assert_allclose(saved(tmp_path, "ixg")["maps"], expected("ixg"), rtol=1e-5, atol=1e-7)
    times = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "maps.parquet").iterdir()}
    run(tmp_path)
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / "maps.parquet").iterdir()} == times


class Picky:
    def __init__(self, model):
        self.method = InputXGradient(model)

    def attribute(self, inputs, target):
        if any(torch.equal(one, IMAGES[2]) for one in inputs):
            raise RuntimeError("not this one")
        return self.method.attribute(inputs, target=target)


def test_a_map_that_could_not_be_made_is_left_out(tmp_path):
    run(tmp_path, {"picky": Picky})
    found = saved(tmp_path, "picky")
    assert found["sample"].tolist() == [0, 1, 3, 4, 5, 6]
    np.testing.assert_allclose(found["maps"], expected("ixg")[found["sample"]], rtol=1e-5, atol=1e-7)


def test_each_model_has_its_maps(tmp_path):
    models = {"one": linear(0), "two": linear(1)}
    run(tmp_path, ["ixg"], models)
    for name, model in models.items():
        found = saved(tmp_path, f"{name}/ixg")["maps"]
        np.testing.assert_allclose(found, expected("ixg", model), rtol=1e-5, atol=1e-7)


def test_channels_that_are_kept_are_kept(tmp_path):
    run(tmp_path, ["saliency"], options={"saliency": {"channels": "keep"}}, metrics=["sparseness"])
    assert saved(tmp_path, "saliency")["maps"].shape == (7, 2, 6, 8)


@pytest.mark.parametrize("shape", [(96,), (6, 8), (8, 8, 8), (60, 40), (16, 16, 16), (5000,)])
def test_small_maps_are_averages(tmp_path, shape):
    count = int(np.prod(shape))
    net = nn.Sequential(nn.Flatten(), nn.Linear(count, 2)).eval()
    images = torch.randn(2, 1, *shape)
    found = run(tmp_path, ["ixg"], net, images, save_maps=False, metrics=["sparseness"]).small_maps()
    whole = (images[:, 0] * net[1].weight[net(images).argmax(1)].view(-1, *shape)).detach().double()
    for row, heat in zip(found.itertuples(), whole, strict=True):
        small = np.asarray(row.map).reshape(row.shape)
        assert small.size <= 1024
        assert small.size > 500 or small.shape == shape
        if small.shape == shape:
            np.testing.assert_allclose(small, heat, rtol=1e-4, atol=1e-6)
        for axis, (less, more) in enumerate(zip(small.shape, shape, strict=True)):
            if more % less == 0:
                heat = heat.unflatten(axis, (less, more // less)).mean(axis + 1)
        if heat.shape == small.shape:
            np.testing.assert_allclose(small, heat, rtol=1e-4, atol=1e-6)
        assert small.mean() == pytest.approx(float(heat.mean()), abs=0.02)
