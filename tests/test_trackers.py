"""Runs in experiment trackers: what TensorBoard and mlflow read back, what is refused, and what fails alone."""

import importlib.metadata
import io
import os
import socket

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from captum.attr import InputXGradient, Saliency
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import nn

from captum_ext import overlay_figure
from xai_compare import _trackers, compare
from xai_compare.cli import main

SAMPLES, SIDE, CLASSES = 3, 6, 4
METHODS = {"ixg": InputXGradient, "plain++": Saliency}
METRICS = ["compactness", "insertion", "fidelity"]
IN_TRACKERS = {"ixg": "ixg", "plain++": "plain_plus_plus"}
COLUMNS = ["n", "failed", "mean", "ci_low", "ci_high", "mean_rank", "seconds"]


class Recorder(tracking.GeneralTracker):
    """Keeps in memory what it is told."""

    name = "recorder"
    requires_logging_directory = False
    made = None

    def __init__(self, project, **given):
        super().__init__()
        self.told, self.ended, Recorder.made = [], 0, self

    @property
    def tracker(self):
        return None

    def log(self, values, step=None, **given):
        self.told.append((step, values))

    def finish(self):
        self.ended += 1


class Broken(Recorder):
    name = "broken"

    def log(self, values, step=None, **given):
        raise OSError("the server is away")


@pytest.fixture(autouse=True)
def own_trackers(monkeypatch):
    for kind in (Recorder, Broken):
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, kind.name, kind)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def offline(monkeypatch):
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    yield
    assert asked == []


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, CLASSES)).eval()


def images():
    return torch.rand(SAMPLES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def run(out, log_with, methods=METHODS, metrics=METRICS, **settings):
    few = {"insertion": {"steps": 5}} if "insertion" in metrics else {}
    cheap = {"gallery": 2, "resamples": 100, "options": few} | settings
    return compare(network(), images(), out=out, methods=methods, metrics=metrics, log_with=log_with, **cheap)


@pytest.fixture(scope="module")
def in_tensorboard(tmp_path_factory):
    pytest.importorskip("tensorboard")
    return run(tmp_path_factory.mktemp("runs") / "mine", "tensorboard", command="xai-compare " + 600 * "x")


def events(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def expected_scalars(summary):
    """Names and numbers of a summary, written out."""
    found = {}
    for row in summary.to_dict("records"):
        method = IN_TRACKERS[row["method"]]
        for column in COLUMNS:
            name = f"{row['metric']}/{method}"
            found[name if column == "mean" else f"{column}/{name}"] = row[column]
        found[f"explain_seconds/{method}"] = row["explain_seconds"]
        found[f"explain_forwards/{method}"] = row["explain_forwards"]
    return found


def expected_curves(folder):
    """The mean of all samples, point by point."""
    rows = pd.read_parquet(folder / "curves.parquet")
    found = {}
    for (metric, curve, method), own in rows.groupby(["metric", "curve", "method"]):
        between = f"{curve}/" if metric == "fidelity" else ""
        assert len(own) == SAMPLES
        found[f"curve/{metric}/{between}{IN_TRACKERS[method]}"] = np.mean(own.y.to_list(), 0)
    return found


def expected_picture(sample):
    """The image and its maps by their closed forms: x w and |w| of a linear model, summed over channels."""
    model, image = network(), images()[sample]
    logits = model(image[None])[0].detach()
    weight = model[1].weight.detach().reshape(CLASSES, 3, SIDE, SIDE)
    order = logits.argsort(descending=True)[:2]
    maps = {"ixg": (image * weight).sum(1), "plain++": weight.abs().sum(1)}
    shown = {name: heat[order[0]] / heat[order].abs().max() for name, heat in maps.items()}
    figure = overlay_figure((255 * image).round() / 255, shown, 1.0)
    figure.suptitle(f"{sample}, target: class {order[0]}")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


@pytest.mark.slow
def test_every_scalar_of_tensorboard_is_the_summarys(in_tensorboard):
    found = events(in_tensorboard.folder / "tensorboard" / "mine")
    names = {name for name in found.Tags()["scalars"] if not name.startswith("curve/")}
    expected = expected_scalars(in_tensorboard.summary())
    assert names == expected.keys()
    assert {"compactness/plain_plus_plus", "ci_low/fidelity/ixg", "n/insertion/ixg"} < names
    for name in names:
        (event,) = found.Scalars(name)
        assert event.value == np.float32(expected[name])


@pytest.mark.slow
def test_curves_of_tensorboard_are_means_of_the_samples_by_step(in_tensorboard):
    found = events(in_tensorboard.folder / "tensorboard" / "mine")
    expected = expected_curves(in_tensorboard.folder)
    assert {name for name in found.Tags()["scalars"] if name.startswith("curve/")} == expected.keys()
    assert {"curve/insertion/ixg", "curve/fidelity/MIF/plain_plus_plus", "curve/fidelity/LIF/ixg"} < expected.keys()
    for name, values in expected.items():
        assert [one.step for one in found.Scalars(name)] == list(range(len(values)))
        assert [one.value for one in found.Scalars(name)] == pytest.approx(values, rel=1e-6, abs=1e-7)


@pytest.mark.slow
def test_pictures_of_tensorboard_show_the_image_beside_each_map(in_tensorboard):
    found = events(in_tensorboard.folder / "tensorboard" / "mine")
    assert sorted(found.Tags()["images"])[:2] == ["gallery/0_0", "gallery/1_1"]
    for sample in (0, 1):
        (event,) = found.Images(f"gallery/{sample}_{sample}")
        drawn = np.asarray(Image.open(io.BytesIO(event.encoded_image_string))).astype(int)
        assert np.abs(drawn - expected_picture(sample)).max() <= 2


def test_settings_of_tensorboard_are_flat_and_of_limited_length(in_tensorboard):
    plugin = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    (file,) = (in_tensorboard.folder / "tensorboard" / "mine").glob("*/events*")
    metadata = events(file.parent).SummaryMetadata("_hparams_/session_start_info")
    read = plugin.HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info.hparams
    facts = in_tensorboard.run
    assert read["weights"].string_value == facts["weights"]
    assert read["versions.torch"].string_value == facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert read["settings.methods"].string_value == ", ".join(facts["settings"]["methods"])
    assert (read["seed"].number_value, read["settings.gallery"].number_value) == (0, 2)
    assert read["settings.limit"].string_value == "null"
    assert read["command"].string_value == "xai-compare " + 484 * "x" + " ..."
    assert not {"identity", "methods", "forwards"} & {name.partition(".")[0] for name in read}


@pytest.mark.slow
def test_the_same_run_again_replaces_what_tensorboard_has_and_a_run_grows(tmp_path):
    pytest.importorskip("tensorboard")
    out = tmp_path / "mine"
    first = run(out, "", ["ixg"], ["compactness"]).scores()
    assert not (out / "tensorboard").exists()
    for methods in (["ixg"], ["ixg"], ["ixg", "saliency"]):
        again = run(out, ["tensorboard"], methods, ["compactness"])
        found = events(out / "tensorboard" / "mine")
        assert [len(found.Scalars(f"compactness/{name}")) for name in methods] == [1] * len(methods)
        assert len(list(out.rglob("events*"))) == 2  # numbers, settings
    pd.testing.assert_frame_equal(again.scores().query("method == 'ixg'"), first, check_like=True)


@pytest.fixture
def client():
    return pytest.importorskip("mlflow").tracking.MlflowClient


def runs_in(client, database):
    store = client(f"sqlite:///{database}")
    (experiment,) = store.search_experiments(filter_string="name = 'xai-compare'")
    return store, store.search_runs([experiment.experiment_id])


@pytest.mark.slow
def test_mlflow_reads_back_settings_numbers_curves_and_files(tmp_path, client, offline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(tmp_path / "mine", "mlflow", command="xai-compare " + 600 * "x")
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    store, (one,) = runs_in(client, tmp_path / "mine/mlruns/mlflow.db")
    assert (one.info.run_name, one.info.status) == ("mine", "FINISHED")
    assert one.data.params["weights"] == result.run["weights"]
    assert one.data.params["settings.methods"] == ", ".join(result.run["settings"]["methods"])
    assert one.data.params["command"] == "xai-compare " + 484 * "x" + " ..."
    expected, curves = expected_scalars(result.summary()), expected_curves(result.folder)
    assert one.data.metrics.keys() == expected.keys() | curves.keys()
    assert {name: one.data.metrics[name] for name in expected} == expected
    for name, values in curves.items():
        history = sorted(store.get_metric_history(one.info.run_id, name), key=lambda point: point.step)
        assert [point.step for point in history] == list(range(len(values)))
        assert [point.value for point in history] == pytest.approx(values, abs=1e-7)
    (saved,) = (tmp_path / "mine/mlruns/artifacts").glob("*/artifacts")
    for name in ("report.html", "summary.csv", "tests.csv", "run.json"):
        assert (saved / name).read_bytes() == (result.folder / name).read_bytes()
    assert sorted(path.name for path in (saved / "gallery").iterdir())[:2] == ["0_0.png", "1_1.png"]
    drawn = np.asarray(Image.open(saved / "gallery/1_1.png").convert("RGB")).astype(int)
    assert np.abs(drawn - expected_picture(1)).max() <= 2


@pytest.mark.slow
def test_mlflow_keeps_each_logging_under_the_same_name(tmp_path, client):
    for _ in range(2):
        run(tmp_path / "mine", "mlflow", ["ixg"], ["compactness"])
    _, runs = runs_in(client, tmp_path / "mine/mlruns/mlflow.db")
    assert [one.info.run_name for one in runs] == ["mine", "mine"]


@pytest.mark.slow
def test_mlflow_writes_where_its_own_variable_says_and_below_an_open_run(tmp_path, client, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/theirs.db")
    with mlflow.start_run() as theirs:
        run(tmp_path / "mine", "mlflow", ["ixg"], ["compactness"])
        assert mlflow.active_run().info.run_id == theirs.info.run_id
    _, (one,) = runs_in(client, tmp_path / "theirs.db")
    assert one.data.tags["mlflow.parentRunId"] == theirs.info.run_id
    assert not (tmp_path / "mine/mlruns").exists()


def test_unknown_trackers_are_refused_before_any_work(tmp_path, capsys):
    known = r"Unknown tracker 'papyrus'. Known trackers: .*mlflow, .*tensorboard, .*wandb. Installed: "
    with pytest.raises(ValueError, match=known):
        run(tmp_path / "mine", ["recorder", "papyrus"])
    with pytest.raises(TypeError, match="Expected `log_with` to be names"):
        run(tmp_path / "mine", [3])
    with pytest.raises(SystemExit):
        main(["--log-with", "papyrus,stone", "--out", str(tmp_path / "mine")])
    assert "Unknown trackers 'papyrus', 'stone'" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_trackers_that_are_not_installed_are_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(ValueError, match=r"Not installed: wandb, comet_ml\. Try: pip install wandb comet_ml"):
        run(tmp_path / "mine", "wandb,recorder,comet-ml")
    with pytest.raises(ValueError, match=r"found none\. Try: pip install tensorboard"):
        run(tmp_path / "mine", "all")
    assert not (tmp_path / "mine").exists()


def test_mlflow_that_cannot_write_to_disk_is_refused_unless_it_has_a_server(monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.MLFLOW])
    monkeypatch.setattr(_trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI, or pip install mlflow"):
        _trackers.trackers_named(["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    assert _trackers.trackers_named(["mlflow", "mlflow"]) == _trackers.trackers_named(["all"]) == ["mlflow"]


@pytest.mark.slow
def test_a_tracker_that_fails_costs_a_warning_and_the_next_one_logs(tmp_path):
    said = "broken has not logged all of it: OSError: the server is away. The results are in .*mine; run the same"
    with pytest.warns(UserWarning, match=said) as warned:
        result = run(tmp_path / "mine", ["broken", "recorder"], metrics=["compactness"])
    assert warned[0].filename == __file__
    assert (result.summary().failed == 0).all()
    assert result.report().exists()
    told = [values for step, values in Recorder.made.told if step is None]
    assert {name: value for values in told for name, value in values.items()} == expected_scalars(result.summary())


def test_trackers_are_finished_though_they_fail(tmp_path):
    with pytest.warns(UserWarning, match="broken has not logged"):
        run(tmp_path / "mine", "broken", ["ixg"], ["compactness"])
    assert Recorder.made.ended == 1


@pytest.mark.slow
def test_steps_never_go_back_and_few_scalars_are_logged_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(_trackers, "_AT_ONCE", 3)
    result = run(tmp_path / "mine", "recorder", ["ixg"], ["compactness", "insertion"])
    told = Recorder.made.told
    assert max(len(values) for _, values in told) == 3
    steps = [step for step, _ in told]
    numbered = steps.index(None)
    assert steps[:numbered] == sorted(steps[:numbered])
    assert set(steps[numbered:]) == {None}
    assert sum(len(values) for _, values in told[numbered:]) == len(expected_scalars(result.summary()))
    assert sum(len(values) for _, values in told[:numbered]) == sum(map(len, expected_curves(result.folder).values()))


def test_what_is_no_number_is_left_out():
    told = Recorder("project")
    _trackers._log_scalars(told, {"a": float("nan"), "b": None, "c": 2.0, "d": float("inf")}, 5)
    assert told.told == [(5, {"c": 2.0})]


def test_several_models_are_named_before_metrics_and_one_is_not():
    rows = pd.DataFrame(
        {"model": ["timm:vit", "b"], "metric": "sad", "method": "ig", "n": 8, "mean": [0.5, 0.25], "explain_seconds": 2}
    )
    found = {"timm_vit/sad/ig": 0.5, "b/sad/ig": 0.25, "n/timm_vit/sad/ig": 8, "n/b/sad/ig": 8}
    cost = {"explain_seconds/timm_vit/ig": 2, "explain_seconds/b/ig": 2}
    assert _trackers._scalars(rows) == found | cost
    assert _trackers._scalars(rows[1:]) == {"sad/ig": 0.25, "n/sad/ig": 8, "explain_seconds/ig": 2}
    curves = rows.assign(curve="p")[["model", "metric", "method", "curve", "mean"]]
    assert _trackers._curves(curves) == {"curve/timm_vit/sad/ig": 0.5, "curve/b/sad/ig": 0.25}


@pytest.mark.slow
def test_runs_of_several_models_are_logged_by_model(tmp_path, own_trackers):
    images = torch.rand(2, 1, SIDE, SIDE)
    models = {name: nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)).eval() for name in ("a", "b")}
    few = {"methods": ["ixg"], "metrics": ["deletion"], "gallery": 0, "resamples": 100, "log_with": ["recorder"]}
    result = compare(models, images, out=tmp_path / "mine", **few)
    told = {name: value for _, values in Recorder.made.told for name, value in values.items()}
    means = result.summary().set_index("model")["mean"]
    assert {name: told[f"{name}/deletion/ixg"] for name in models} == means.to_dict()
    assert {"curve/a/deletion/ixg", "curve/b/deletion/ixg"} < told.keys()
    assert told["curve/a/deletion/ixg"] != told["curve/b/deletion/ixg"]
