"""A finished run's files of ranks and agreement."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from reports import embedded
from scipy import stats

from xai_compare import compare
from xai_compare._agreement import ranks_of
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


def test_a_run_without_kept_ranks_has_rankings_and_no_agreement(run):
    assert not (run.folder / "agreement.csv").exists()
    page = run.report().read_text()
    assert 'class="ranks"' in page
    assert 'id="agreement"' not in page


def test_kept_ranks_become_files_and_a_matrix_with_links_to_the_gallery(run):
    maps = np.random.default_rng(1).normal(size=(5, 2, 6, 6))
    (run.folder / "ranks.parquet").mkdir()
    for start, rows in ((0, (0, 1, 2)), (3, (3, 4))):
        kept = [(i, m, ranks_of(maps[i, k])) for i in rows for k, m in enumerate(("ixg", "saliency"))]
        part = pd.DataFrame(kept, columns=["sample", "method", "ranks"])
        part.to_parquet(run.folder / "ranks.parquet" / f"part-{start:010d}.parquet")
    run.finish(100, {}, {})
    expected = pd.Series([stats.spearmanr(*one.reshape(2, -1)).statistic for one in maps]).sort_values()
    pairs = pd.read_csv(run.folder / "agreement.csv")
    assert pairs[["method_a", "method_b", "n"]].to_numpy().tolist() == [["ixg", "saliency", 5]]
    assert pairs["mean"][0] == pytest.approx(expected.mean(), abs=1e-12)
    samples = pd.read_csv(run.folder / "agreement-by-sample.csv", dtype={"name": str})
    assert samples["sample"].tolist() == expected.index.tolist()
    assert samples.agreement.tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    names = run.explanations().drop_duplicates("sample").set_index("sample")["name"]
    assert samples["name"].tolist() == names[samples["sample"]].tolist()
    page = run.report().read_text()
    assert len(embedded(page)["pictures"]) == 2
    for at in range(5):
        assert (f'<a href="#picture-{at}">{names[at]}</a>' in page) == (at < 2)
