"""What a comparison says before, while and after it works, and how little a stop costs."""

import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
from paths import PACKAGES, ROOT
from torch import nn

import quantus_metrics
from xai_compare import Settings, _command, _runner, compare
from xai_compare._compared import Checked
from xai_compare._estimate import estimate
from xai_compare._report_words import too_few
from xai_compare.cli import main


class Linear(nn.Sequential):
    """Counts the samples that pass."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(36, 3))
        self.passed = 0

    def forward(self, x):
        self.__dict__["passed"] += len(x)
        return super().forward(x)


class Stopping(quantus_metrics.Compactness):
    """Compactness; the call of a number stops the run."""

    calls, stops_at = 0, 0

    def __call__(self, *given, **further):
        Stopping.calls += 1
        if Stopping.calls == Stopping.stops_at:
            raise KeyboardInterrupt
        return super().__call__(*given, **further)


class Free(quantus_metrics.Compactness):
    """A metric that runs no model."""

    def passes(self, shape):
        return 0


def run(out, **settings):
    images = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    metrics = {"first": quantus_metrics.Compactness(), "second": Stopping()}
    cheap = {"gallery": 3, "resamples": 100, "batch_size": 4}
    return compare(Linear(), images, out=out, methods=["ixg", "saliency"], metrics=metrics, **(cheap | settings))


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["stopped", "killed"])
def test_a_stop_within_a_batch_keeps_its_finished_scores_and_the_rest_is_as_if_nothing_was(tmp_path, monkeypatch, ends):
    Stopping.calls, Stopping.stops_at = 0, 4  # two of the check, then the second metric of each method
    if ends == "killed":  # nothing is written at the end; but every step is, as if each took long
        monkeypatch.setattr(_runner, "_UNWRITTEN", -1.0)
        write = _runner.Parts.write

        def until_then(parts, *given):
            if Stopping.calls < 4:
                write(parts, *given)

        monkeypatch.setattr(_runner.Parts, "write", until_then)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    monkeypatch.undo()
    left = pd.read_parquet(tmp_path / "run" / "scores.parquet")
    cells = {("ixg", "first"), ("ixg", "second"), ("saliency", "first")}
    assert set(zip(left.method, left.metric, strict=True)) == cells
    assert len(left) == 4 * len(cells)
    Stopping.calls, Stopping.stops_at = 0, 0
    resumed = run(tmp_path / "run")
    assert Stopping.calls == 1 + 2  # saliency of the first batch, and both methods of the second
    whole = run(tmp_path / "whole")
    for table in ("scores", "explanations"):
        one, other = (getattr(found, table)().drop(columns="seconds") for found in (resumed, whole))
        keys = [name for name in ("sample", "method", "metric") if name in one]
        pd.testing.assert_frame_equal(
            one.sort_values(keys, ignore_index=True), other.sort_values(keys, ignore_index=True), check_exact=True
        )
    maps = {folder: (tmp_path / folder / "report.html").read_text().count("data:image") for folder in ("run", "whole")}
    assert maps["run"] == maps["whole"] > 0


@pytest.mark.slow
def test_the_bar_counts_scores_and_goes_on_where_it_was(tmp_path, capsys):
    run(tmp_path / "run", limit=4)
    assert re.search(r"16/16 \[.*score/s|16/16 \[.*s/score", capsys.readouterr().err)
    run(tmp_path / "run")
    said = capsys.readouterr().err
    assert re.search(r"16/20 \[", said)
    assert re.search(r"20/20 \[", said)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("metric", "maps"), [("soft-average-drop", 1), ("deletion", 1), ("class-discrimination", 2)])
def test_before_the_work_it_says_how_much_it_is(tmp_path, capsys, monkeypatch, metric, maps):
    model, images, before = Linear(), torch.randn(5, 1, 6, 6), []
    said = _runner.estimate
    monkeypatch.setattr(_runner, "estimate", lambda *given: before.append(model.passed) or said(*given))
    compare(model, images, out=tmp_path, methods=["occlusion"], metrics=[metric], gallery=0, resamples=100)
    told = r"5 scores \(5 samples, 1 methods, 1 metrics\), about ([\d,]+) forward passes"
    count = int(re.search(told, capsys.readouterr().err)[1].replace(",", ""))
    assert count == pytest.approx(model.passed - before[0], rel=0.2)  # what scores share is counted twice
    assert count > 5 * 36 * maps  # occlusion passes the model once for each pixel


@pytest.mark.slow
def test_what_methods_share_is_estimated_once(tmp_path, capsys, monkeypatch):
    model, images, before = Linear(), torch.randn(6, 1, 6, 6), []
    said = _runner.estimate
    monkeypatch.setattr(_runner, "estimate", lambda *given: before.append(model.passed) or said(*given))
    methods = ["ixg", "saliency", "random", "ig"]
    options = {"box-sensitivity": {"num_boxes": 40}}
    settings = {"options": options, "gallery": 0, "resamples": 100}
    compare(model, images, out=tmp_path, methods=methods, metrics=["box-sensitivity"], **settings)
    count = re.search(r"about ([\d,]+) forward passes", capsys.readouterr().err)[1].replace(",", "")
    # Those of the first sample are known from the trial; counted for each method they would be four times as many.
    assert int(count) == pytest.approx((model.passed - before[0]) * 6 / 5, rel=0.25)


def test_the_estimate_is_of_the_methods_that_fit_and_is_left_out_where_nothing_was_tried():
    checked = Checked({"a": 2.0, "b": 3.0}, {"c": "unfit"}, 2, 10.0, 4.0, 0.5)
    said = estimate(checked, 4, ["a", "b", "c"], ["m", "n"])
    assert said.startswith("16 scores (4 samples, 2 methods, 2 metrics), about 96 forward passes: roughly 48 s")
    assert estimate(Checked({"a": 2.0}, {}, 1, 10.0, 4.0, 0.5), 4, ["a", "b"], ["m"]) == ""
    assert estimate(Checked(), 4, ["a"], ["m"]) == ""


@pytest.mark.slow
def test_with_too_few_images_for_any_test_the_page_says_how_many_are_needed(tmp_path):
    rows = [{"metric": "m", "n": 5}] * 3
    first, second = too_few(rows).split(": ")
    assert first == "With 5 images no test can give p < 0.05 here, whatever the scores are"
    assert second == "3 pairs of methods need at least 7 images."
    assert 3 * 2 / 2**7 < 0.05 < 3 * 2 / 2**6
    assert too_few([{"metric": "m", "n": 7}] * 3) == ""
    assert too_few([]) == ""
    assert "With 5 images no test can give" in run(tmp_path / "few").report().read_text()


@pytest.mark.slow
def test_random_weights_are_named_in_the_head_of_the_report(tmp_path):
    (tmp_path / "images").mkdir()
    torch.manual_seed(0)
    from torchvision.utils import save_image

    for number in range(2):
        save_image(torch.rand(3, 32, 32), tmp_path / "images" / f"{number}.png")
    settings = {"methods": ["ixg"], "metrics": ["compactness"], "gallery": 0, "resamples": 100}
    found = compare("torchvision:squeezenet1_1", tmp_path / "images", out=tmp_path / "run", **settings)
    head = found.report().read_text().split("</header>")[0]
    assert "torchvision squeezenet1_1 with RANDOM WEIGHTS" in head


@pytest.mark.parametrize("line", [(), ("--limit", "3"), ("--resamples", "500")])
def test_a_quick_look_takes_few_samples_unless_told_otherwise(monkeypatch, line):
    asked = []

    def record(**settings):
        asked.append(settings)
        raise ValueError("asked")

    monkeypatch.setattr(_command, "compare", record)
    with pytest.raises(SystemExit):
        main(["--quick", *line])
    with pytest.raises(SystemExit):
        main([*line])
    given = dict(zip(line[::2], map(int, line[1::2]), strict=True))
    assert [one["limit"] for one in asked] == [given.get("--limit", 8), given.get("--limit")]
    assert [one["resamples"] for one in asked] == [given.get("--resamples", 200), given.get("--resamples", 2000)]
    assert {one["batch_size"] for one in asked} == {Settings.batch_size}  # so that the run can grow


@pytest.mark.parametrize(
    ("metrics", "options", "expected"),
    [
        (["compactness"], {}, 16),
        (["compactness", "box-sensitivity"], {}, 2),  # 8 sizes of 100 boxes
        (["box-sensitivity"], {"num_boxes": 20}, 10),
        (["box-sensitivity"], {"num_boxes": 500}, 1),
        ({"ready": quantus_metrics.BoxSensitivity(box_sizes=[2, 3], num_boxes=200)}, {}, 4),
        (["box-sensitivity"], {"box_sizes": [300, 600]}, 8),  # of larger images than most
        ({"free": Free()}, {}, 16),
    ],
)
def test_a_batch_is_no_more_work_than_a_stop_may_lose(tmp_path, monkeypatch, metrics, options, expected):
    begun = []
    monkeypatch.setattr(_runner.Run, "__call__", lambda one: begun.append(one.settings.batch_size))
    given = {"methods": ["ixg"], "metrics": metrics, "options": {"box-sensitivity": options} if options else {}}
    for batch_size in (None, 5):
        compare(Linear(), torch.rand(4, 1, 6, 6), out=tmp_path, batch_size=batch_size, **given)
    assert begun == [expected, 5]


@pytest.mark.slow
def test_a_run_that_grows_keeps_its_batches(tmp_path):
    few = {"out": tmp_path / "run", "methods": ["ixg"], "gallery": 0, "resamples": 100}
    images = torch.rand(3, 1, 6, 6)
    boxes = ["compactness", "box-sensitivity"]
    for metrics, limit in ((["compactness"], 2), (boxes, 2), (boxes, 3)):
        found = compare(Linear(), images, metrics=metrics, limit=limit, **few)
        assert found.run["settings"]["batch_size"] == 16
        assert len(found.scores()) == len(metrics) * limit


@pytest.mark.slow
def test_what_is_said_after_a_stop_is_true(tmp_path, monkeypatch, capsys):
    def stop(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_command, "compare", stop)
    for scored, said in ((False, "Nothing was scored yet in"), (True, "Finished scores are kept in")):
        if scored:
            run(tmp_path)
        with pytest.raises(SystemExit) as end:
            main(["--out", str(tmp_path)])
        assert end.value.code == 130
        assert (
            f"xai-compare: Stopped. {said} {tmp_path}; run the same command again to continue."
            in capsys.readouterr().err
        )


@pytest.mark.parametrize("command", ["xai_compare", "xai_discern"])
def test_help_and_wrong_options_need_neither_torch_nor_a_second(command):
    code = f"""
import sys, time
from {command}.cli import main
for line in (["--help"], ["--modle", "digits"]):
    try:
        main(line)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
print(sorted({{"torch", "pandas", "numpy", "matplotlib"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    lines = done.stderr.splitlines()
    assert lines[0] == "0"
    assert lines[-2:] == ["2", "[]"]
    assert "usage:" in done.stdout


def test_an_option_that_is_not_known_is_answered_with_a_close_one(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--metods", "cdam"])
    assert end.value.code == 2
    assert "unrecognized arguments: --metods cdam (close: --methods" in capsys.readouterr().err


def test_without_an_extra_one_line_says_what_to_install():
    code = """
import sys
sys.modules["pandas"] = None
from xai_compare.cli import main
main([])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "xai-compare: it needs pandas, which is not installed: pip install 'xai-discern[compare]'."
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_its_version(package):
    from importlib import import_module
    from importlib.metadata import version

    assert import_module(package).__version__ == version("xai-discern")
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = import_module(package).no_such_name


@pytest.mark.parametrize("command", ["xai-compare", "xai-discern"])
def test_the_version_is_that_of_the_distribution(command, capsys):
    from importlib.metadata import version

    from xai_discern.cli import main as explain

    with pytest.raises(SystemExit) as end:
        (main if command == "xai-compare" else explain)(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"xai-discern {version('xai-discern')}\n"
