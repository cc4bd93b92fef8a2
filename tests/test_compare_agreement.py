"""A finished run's files of ranks and agreement."""

import base64
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from reports import embedded
from scipy import stats

from xai_compare import compare
from xai_compare._comparison import Comparison

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)).eval()
    folder = tmp_path_factory.mktemp("run")
    compare(model, torch.rand(5, 3, 4, 4), out=folder, methods=["ixg", "saliency"], metrics=["insertion"], gallery=2)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return Comparison(shutil.copytree(finished, tmp_path / "run"))


def test_maps_become_files_and_a_matrix_with_links_to_the_gallery(run):
    maps = run.small_maps().pivot(index="sample", columns="method", values="map")
    expected = pd.Series([stats.spearmanr(*one).statistic for one in maps.to_numpy()]).sort_values()
    pairs = run.agreement()
    assert pairs[["method_a", "method_b", "n"]].to_numpy().tolist() == [["ixg", "saliency", 5]]
    assert pairs["mean"][0] == pytest.approx(expected.mean(), abs=1e-12)
    samples = run.agreement_by_sample()
    assert samples["sample"].tolist() == expected.index.tolist()
    assert samples.agreement.tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    names = run.explanations().drop_duplicates("sample").set_index("sample")["name"]
    assert samples["name"].tolist() == names[samples["sample"]].tolist()


def test_the_images_on_which_methods_agree_least_are_in_the_gallery(run):
    page = run.report().read_text()
    lowest = run.agreement_by_sample()["sample"].tolist()
    shown = [0, 1, *(sample for sample in lowest[:2] if sample > 1)]
    pictures = embedded(page)["pictures"]
    assert [one["sample"] for one in pictures] == list(map(str, shown))
    for at, sample in enumerate(shown):
        assert f'<a href="#picture-{at}">{sample}</a>' in page
    assert all(sorted(maps) == ["ixg", "saliency"] for one in pictures for maps in one["maps"].values())
    small = run.small_maps().set_index(["sample", "method"])["map"]
    height, width, scale, code = pictures[-1]["maps"][str(pictures[-1]["target"])]["ixg"]
    values = np.frombuffer(base64.b64decode(code), np.int8) * scale
    np.testing.assert_allclose(values, small[shown[-1], "ixg"], atol=scale)
    assert (height, width) == (4, 4)
