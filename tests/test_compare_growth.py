"""A run that grows, is tried again, meets too little memory, a damaged file or another process."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import quantus
import torch
from torch import nn

from xai_compare import Comparison, compare
from xai_compare.cli import main

pytestmark = pytest.mark.slow


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


IMAGES = torch.randn(7, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def random_metric():
    return quantus.FaithfulnessCorrelation(
        nr_runs=5, subset_size=9, return_aggregate=False, disable_warnings=True, display_progressbar=False
    )


def run(folder, methods, metrics=("compactness",), model=None, images=IMAGES, **settings):
    cheap = {"gallery": 3, "resamples": 100, "batch_size": 3, "metrics": metrics}
    return compare(model or linear(), images, out=folder, methods=methods, **(cheap | settings))


def same(one, other):
    """Are the results those of the other run, in whatever order they were computed?"""
    for table in ("scores", "explanations"):
        frames = [getattr(x, table)().drop(columns="seconds") for x in (one, other)]
        keys = [name for name in ("sample", "method", "metric") if name in frames[0]]
        frames = [frame.sort_values(keys).reset_index(drop=True) for frame in frames]
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    summaries = [x.summary().drop(columns=["seconds", "explain_seconds", "explain_forwards"]) for x in (one, other)]
    keys = ["metric", "method"]
    pd.testing.assert_frame_equal(*(s.sort_values(keys).reset_index(drop=True) for s in summaries), check_exact=True)
    pictures = [{p["name"]: sorted(p["maps"]) for p in x._files.pictures()} for x in (one, other)]
    assert pictures[0] == pictures[1]


def chosen(*names):
    from quantus_metrics import Compactness

    made = {"compactness": lambda: Compactness(disable_warnings=True, display_progressbar=False)}
    return {name: (made.get(name) or random_metric)() for name in names}


def test_methods_metrics_and_samples_are_added_and_only_what_is_missing_is_computed(tmp_path):
    whole = run(tmp_path / "whole", ["ixg", "saliency"], chosen("compactness", "faithfulness"))
    grown = tmp_path / "grown"
    run(grown, ["ixg"], chosen("compactness"), limit=4)
    first = {f.name: f.stat().st_mtime_ns for f in (grown / "scores.parquet").iterdir()}
    run(grown, ["ixg"], chosen("compactness"))  # more samples: the half batch is made again, the full one is not
    second = {f.name: f.stat().st_mtime_ns for f in (grown / "scores.parquet").iterdir()}
    assert second["part-0000000000.parquet"] == first["part-0000000000.parquet"]
    assert second["part-0000000003.parquet"] != first["part-0000000003.parquet"]
    run(grown, ["saliency"], chosen("compactness"))  # another method
    last = run(grown, ["ixg", "saliency"], chosen("compactness", "faithfulness"))  # another metric
    same(last, whole)
    assert list(last.run["methods"]) == ["ixg", "saliency"]
    before = {f.name: f.stat().st_mtime_ns for f in (grown / "scores.parquet").iterdir()}
    again = run(grown, ["ixg"], chosen("compactness"), limit=2)  # part of what is there: nothing is computed
    assert {f.name: f.stat().st_mtime_ns for f in (grown / "scores.parquet").iterdir()} == before
    same(again, whole)


def test_a_method_of_the_same_name_with_other_options_is_refused(tmp_path):
    run(tmp_path / "run", {"mine": "ig"}, options={"mine": {"n_steps": 4}})
    with pytest.raises(ValueError, match=r"holds another run: methods.mine.options.n_steps was 4 and is 5"):
        run(tmp_path / "run", {"mine": "ig"}, options={"mine": {"n_steps": 5}})
    found = run(
        tmp_path / "run", {"mine": "ig", "finer": "ig"}, options={"mine": {"n_steps": 4}, "finer": {"n_steps": 5}}
    )
    assert found.scores().method.unique().tolist() == ["mine", "finer"]


class Flaky:
    """Fails on images whose first value is above a limit, as long as `broken` is set."""

    broken = True

    def __init__(self, model):
        self.model = model

    def attribute(self, inputs, target):
        if Flaky.broken and (inputs[:, 0, 0, 0] > 0).any():
            raise RuntimeError("a cable was loose")
        return inputs * self.model[1].weight[target].view_as(inputs)


def test_failed_cells_stay_and_are_computed_again_on_request(tmp_path):
    Flaky.broken = True
    methods, metrics = {"flaky": Flaky, "ixg": "ixg"}, chosen("compactness", "faithfulness")
    found = run(tmp_path / "run", methods, metrics)
    bad = (IMAGES[:, 0, 0, 0] > 0).nonzero().flatten().tolist()
    assert bad
    assert found.scores().dropna(subset=["error"])["sample"].unique().tolist() == bad
    ixg = found.scores()[found.scores().method == "ixg"]
    Flaky.broken = False
    assert len(run(tmp_path / "run", methods, metrics).scores().dropna(subset=["error"])) == 2 * len(bad)
    again = run(tmp_path / "run", methods, metrics, retry_failed=True)
    assert again.scores().error.isna().all()
    same(again, run(tmp_path / "whole", methods, metrics))
    columns = ["sample", "metric", "score"]
    kept = again.scores()[again.scores().method == "ixg"]
    frames = [part[columns].reset_index(drop=True) for part in (kept, ixg)]
    pd.testing.assert_frame_equal(*frames, check_exact=True)


def test_all_methods_meet_the_same_random_numbers_also_where_one_failed(tmp_path):
    """Two methods with the same maps, one of which fails on a sample: the scores of the others are equal."""
    Flaky.broken = True
    scores = run(tmp_path / "run", {"flaky": Flaky, "ixg": "ixg"}, chosen("faithfulness")).scores()
    scores = scores.pivot(index="sample", columns="method", values="score")
    good = scores.dropna()
    assert 0 < len(good) < len(IMAGES)
    np.testing.assert_allclose(good.flaky, good.ixg, rtol=1e-5)


class Small(nn.Module):
    """Stands for a GPU on which few images fit."""

    def __init__(self, most):
        super().__init__()
        torch.manual_seed(0)
        self.most, self.net, self.seen = most, nn.Linear(36, 3), []

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.net(x.flatten(1))


def test_too_little_memory_halves_the_batch_and_goes_on(tmp_path):
    whole = run(tmp_path / "whole", ["ixg"], ["insertion"], model=Small(1000))
    model = Small(5)
    found = run(tmp_path / "small", ["ixg"], ["insertion"], model=model, forward_batch=64)
    assert found.scores().error.isna().all()
    np.testing.assert_allclose(found.scores().score, whole.scores().score, rtol=1e-5)
    assert max(model.seen) > 5
    assert model.seen.count(4) > 0
    with pytest.raises(ValueError, match="out of memory"):  # not even one
        run(tmp_path / "none", ["ixg"], ["insertion"], model=Small(0))


def test_explanations_that_do_not_fit_are_made_in_halves(tmp_path):
    found = run(tmp_path / "small", ["ixg"], model=Small(3), batch_size=6, images=IMAGES[:6])
    whole = run(tmp_path / "whole", ["ixg"], model=Small(9), batch_size=6, images=IMAGES[:6])
    np.testing.assert_allclose(found.scores().score, whole.scores().score, rtol=1e-5)


@pytest.mark.parametrize("part", ["scores.parquet", "explanations.parquet", "gallery"])
@pytest.mark.parametrize("damage", [b"", b"PAR1 nonsense"])
def test_a_damaged_part_is_noticed_and_computed_again(tmp_path, part, damage):
    whole = run(tmp_path / "whole", ["ixg"])
    run(tmp_path / "run", ["ixg"])
    next((tmp_path / "run" / part).glob("part-0000000000.*")).write_bytes(damage)
    with pytest.warns(UserWarning, match=r"Part 0 of .* is damaged .* computed again"):
        same(run(tmp_path / "run", ["ixg"]), whole)


def test_a_damaged_description_of_the_run_is_said(tmp_path):
    run(tmp_path / "run", ["ixg"])
    (tmp_path / "run" / "run.json").write_text('{"identity": ')
    with pytest.raises(ValueError, match=r"run.json is damaged .*another folder with --out"):
        run(tmp_path / "run", ["ixg"])


HOLDS = """
import sys, time
from pathlib import Path
from xai_compare._run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked("xai-compare --out here"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_that_another_process_works_on_is_left_alone_until_that_is_gone(tmp_path):
    run(tmp_path / "run", ["ixg"])
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDS), str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"is being written by process {other.pid} on .* since .*--out here"):
            run(tmp_path / "run", ["saliency"])
    finally:
        other.kill()  # and the lock is gone with it
        other.wait()
        other.stdout.close()
    assert run(tmp_path / "run", ["saliency"]).scores().method.unique().tolist() == ["ixg", "saliency"]


def test_exit_codes_say_how_a_run_ended(tmp_path, capsys):
    """0 finished, 3 finished with a method or metric that failed everywhere, 1 could not begin, 2 a wrong option."""
    common = ["--methods", "ixg", "--limit", "2", "--resamples", "100", "--gallery", "0", "--device", "cpu"]

    def code(*arguments):
        try:
            main([*common, *arguments])
        except SystemExit as end:
            return end.code
        return 0

    assert code("--metrics", "compactness", "--out", str(tmp_path / "good")) == 0
    assert code("--metrics", "compactness", "--out", str(tmp_path / "good"), "--seed", "3") == 1
    assert code("--metrics", "compactness", "--out", str(tmp_path / "good"), "--device", "foo") == 2
    options = ["--option", "region-segmentation.no_such_argument=1"]
    assert code("--metrics", "region-segmentation", "--out", str(tmp_path / "bad"), *options) == 1
    from xai_compare._parts import TABLES  # a metric that never gives a number

    failed = tmp_path / "failed"
    assert code("--metrics", "compactness", "--out", str(failed)) == 0
    part = failed / "scores.parquet" / "part-0000000000.parquet"
    table = pd.read_parquet(part).assign(score=float("nan"), error="ValueError: no")
    table.to_parquet(part, schema=TABLES["scores"], index=False)
    assert code("--metrics", "compactness", "--out", str(failed)) == 3
    assert Comparison(failed).failed_everywhere() == [("ixg", "compactness")]
    assert code("--metrics", "compactness", "--out", str(failed), "--retry-failed") == 0
    assert "failed 2 x ixg compactness" in capsys.readouterr().out
    assert json.loads((failed / "run.json").read_text())["settings"]["retry_failed"] is True
    assert os.path.exists(failed / "report.html")


def test_where_a_cam_reads_a_network_is_found_once_for_a_run(tmp_path):
    """And not for each batch: finding it takes several passes."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    passes = []
    net[0].register_forward_hook(lambda *_: passes.append(1))
    counts = []
    for limit in (2, 6):
        passes.clear()
        run(tmp_path / str(limit), ["gradcam"], model=net, images=IMAGES[:limit], batch_size=1, gallery=0)
        counts.append(len(passes))
    assert counts[1] - counts[0] <= 4 * 4  # of each further sample: its class, the explanation, and little more
