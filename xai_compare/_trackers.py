"""Finished runs in experiment trackers, by Accelerate's tracker classes."""

import importlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from accelerate import tracking
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from captum_ext import overlay_figure
from quantus_metrics._user_line import tell

from ._comparison import Comparison
from ._finish import curve_table, picture_of
from ._names import slug
from ._report import Picture
from ._run_folder import RunFolder

_PROJECT = "xai-compare"  # of trackers that have projects or experiments
_ARTIFACTS = (".html", ".csv", ".json")
_RESULTS = ("identity", "methods", "metrics", "forwards", "classes", "ended", "seconds")  # facts that configure nothing
_LONGEST = 500  # characters of a value, which all versions of mlflow take
_AT_ONCE = 500  # scalars; mlflow takes 1000
_MLFLOW_PLACE = "MLFLOW_TRACKING_URI"
_ONE_IMAGE = ("aim", "clearml")  # take an image where others take a list


def trackers_named(wanted: Iterable[str]) -> list[str]:
    """Accelerate's names of trackers that are installed, each once; "all" is all of them.

    Raises:
        ValueError: if one is unknown or not installed.
    """
    asked = list(map(slug, wanted))
    known = {slug(name): name for name in tracking.LOGGER_TYPE_TO_CLASS}
    installed = list(map(str, tracking.get_available_trackers()))
    unknown = [repr(name) for name in asked if name not in ("all", *known)]
    if unknown:
        raise ValueError(
            f"Unknown tracker{'s' * (len(unknown) > 1)} {', '.join(unknown)}. Known trackers: "
            f"{', '.join(sorted(known.values()))}. Installed: {', '.join(installed) or 'none'} (all)."
        )
    names = installed if "all" in asked else list(dict.fromkeys(known[name] for name in asked))
    if asked and not names:
        raise ValueError("Expected a tracker to be installed, found none. Try: pip install tensorboard")
    missing = [name for name in names if not tracking.filter_trackers([name], ".")]
    if missing:
        raise ValueError(f"Not installed: {', '.join(missing)}. Try: pip install {' '.join(missing)}")
    if "mlflow" in names and not os.environ.get(_MLFLOW_PLACE) and not importlib.util.find_spec("sqlalchemy"):
        raise ValueError(
            f"mlflow-skinny without sqlalchemy writes to a server only: set {_MLFLOW_PLACE}, or pip install mlflow."
        )
    return names


def log_run(comparison: Comparison, names: Iterable[str]) -> None:
    """Log a finished run to trackers. A tracker that fails costs a warning.

    Args:
        comparison: The run.
        names: As for `trackers_named`.
    """
    models, files = comparison.run["models"], RunFolder(comparison.folder)
    for name in trackers_named(names):
        try:
            with _started(name, _place(comparison)) as tracker:
                _log(tracker, comparison, files)
                for kept in files.pictures():
                    before = f"{_legal(kept['model'])}/" * (len(models) > 1)
                    _log_picture(tracker, before, kept["index"], picture_of(kept, models[kept["model"]]))
        except Exception as error:
            tell(
                f"The run is finished, but {name} has not logged all of it: {type(error).__name__}: {error}. The "
                f"results are in {comparison.folder}; run the same command again to log them again."
            )


def _place(comparison: Comparison) -> Path:
    """Where trackers that write files do it: in the run's folder, or here if that is not on a disk."""
    folder = comparison.folder
    return folder.resolve() if isinstance(folder, Path) else Path.cwd() / slug(folder)


@contextmanager
def _started(name: str, folder: Path) -> Iterator[Any]:
    """A tracker that logs below the run's folder, unless its own settings name another place."""
    below: Any = _mlflow_below(folder / "mlruns") if name == "mlflow" else nullcontext({})
    with below as place:
        tracker = _made(name, folder, place)
        tracker.start()
        try:
            yield tracker
        finally:
            tracker.finish()


def _made(name: str, folder: Path, place: Mapping[str, str]) -> Any:
    kind, below = tracking.LOGGER_TYPE_TO_CLASS[name], folder / name
    if name == "tensorboard":
        if below.exists():
            shutil.rmtree(below)  # else everything would be there twice
        return kind(folder.name, str(below))
    if name == "mlflow":
        return kind(_PROJECT, run_name=folder.name, nested_run=True, **place)
    if name == "wandb":
        return kind(_PROJECT, name=folder.name, dir=os.environ.get("WANDB_DIR", str(folder)))
    return kind(_PROJECT, *([str(below)] if kind.requires_logging_directory else []))


@contextmanager
def _mlflow_below(folder: Path) -> Iterator[dict[str, str]]:
    """Inside, mlflow writes to a database in the folder; not if the user has chosen where, or has a run open."""
    library = importlib.import_module("mlflow")
    if library.is_tracking_uri_set() or library.active_run() is not None:
        yield {}
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[_MLFLOW_PLACE] = f"sqlite:///{folder.as_posix()}/mlflow.db"
    try:
        yield {"logging_dir": (folder / "artifacts").as_uri()}
    finally:
        del os.environ[_MLFLOW_PLACE]


def _log(tracker: Any, comparison: Comparison, files: RunFolder) -> None:
    tracker.store_init_configuration(_configuration(comparison.run))
    tables = [curve_table(files, model).assign(model=model) for model in comparison.run["models"]]
    curves = _curves(pd.concat(tables, ignore_index=True))
    for step, values in enumerate(zip_longest(*curves.values())):  # first, as wandb's steps only grow
        _log_scalars(tracker, dict(zip(curves, values, strict=True)), step)
    _log_scalars(tracker, _scalars(comparison.summary()), None)
    with TemporaryDirectory() as folder:
        for name in files.files.names(""):
            if Path(name).suffix in _ARTIFACTS:
                path = Path(folder, name)
                path.write_bytes(files.files.read(name))
                _log_artifact(tracker, path, _place(comparison).name)


def _log_artifact(tracker: Any, path: Path, run: str) -> None:
    if hasattr(tracker, "log_artifact"):
        tracker.log_artifact(str(path))
    elif tracker.name == "wandb":
        tracker.tracker.log_artifact(str(path), name=_legal(f"{run}-{path.name}"), type=_PROJECT)


def _legal(name: str) -> str:
    """A name of characters that every tracker takes; names that `slug` makes stay different."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name.replace("+", "_plus"))


def _configuration(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, versions, seed, model, weights and data in one level: `settings.limit`, `versions.torch`."""
    kept = {name: value for name, value in facts.items() if name not in _RESULTS}
    models = kept.pop("models")
    if len(models) > 1:
        kept["weights"] = {name: about["weights"] for name, about in models.items()}
    flat: dict[Any, Any] = pd.json_normalize(kept).to_dict("records")[0]
    return {_legal(str(name)): _plain(value) for name, value in flat.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if isinstance(value, list | tuple):
        text = ", ".join(map(str, value))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + " ..."


def _scalars(summary: pd.DataFrame) -> dict[str, float]:
    """METRIC/METHOD is the mean; the other columns go before: ci_low/METRIC/METHOD, explain_forwards/METHOD."""
    found: dict[str, float] = {}
    for column in summary.select_dtypes("number"):
        title = str(column)
        names = _names(summary, ["method"] if title.startswith("explain_") else ["metric", "method"])
        before = "" if title == "mean" else f"{title}/"
        found |= {before + name: float(value) for name, value in zip(names, summary[column], strict=True)}
    return found


def _curves(means: pd.DataFrame) -> dict[str, Any]:
    """The values of each curve/METRIC/METHOD; where a metric has several curves, curve/METRIC/CURVE/METHOD."""
    found: dict[str, Any] = {}
    for _, own in means.groupby("metric", sort=False):
        names = _names(own, ["metric", *(["curve"] if own.curve.nunique() > 1 else []), "method"])
        found |= {f"curve/{name}": values for name, values in zip(names, own["mean"], strict=True)}
    return found


def _names(table: pd.DataFrame, columns: list[str]) -> list[str]:
    """What each row is called: its columns, the model first if there are several."""
    several = "model" in table and table["model"].nunique() > 1
    rows = table[["model"] * several + columns].itertuples(index=False)
    return ["/".join(_legal(str(part)) for part in row) for row in rows]


def _log_scalars(tracker: Any, values: Mapping[str, float | None], step: int | None) -> None:
    """Log what is a number; of curves that have ended there is None."""
    known = [(name, float(value)) for name, value in values.items() if value is not None and np.isfinite(value)]
    for start in range(0, len(known), _AT_ONCE):
        tracker.log(dict(known[start : start + _AT_ONCE]), step=step)


def _figure(picture: Picture) -> Figure:
    """The image beside its maps for the target, each in units of its method's largest absolute value, as reported."""
    image = torch.from_numpy(picture.image.copy()).permute(2, 0, 1) / 255
    shown = {}
    for method, heat in picture.maps[picture.target].items():
        of_classes = (np.nan_to_num(np.abs(maps[method])).max() for maps in picture.maps.values() if method in maps)
        shown[method] = torch.from_numpy(np.nan_to_num(heat).astype(np.float32) / (max(of_classes) or 1))
    figure = overlay_figure(image, shown, scale=1.0)
    figure.suptitle(f"{picture.sample}, target: {picture.classes[picture.target]}", parse_math=False)
    return figure


def _log_picture(tracker: Any, before: str, sample: int, picture: Picture) -> None:
    """Log gallery/NUMBER_NAME of a sample of which there are maps."""
    if not picture.maps[picture.target]:
        return
    name, figure = f"gallery/{before}{sample}_{_legal(picture.sample)[-100:]}", _figure(picture)
    if hasattr(tracker, "log_figure"):
        tracker.log_figure(figure, f"{name}.png")
    elif tracker.name == "tensorboard":
        tracker.log_images({name: _pixels(figure)[None]}, dataformats="NHWC")
    elif hasattr(tracker, "log_images"):
        pixels = _pixels(figure)
        tracker.log_images({name: pixels if tracker.name in _ONE_IMAGE else [pixels]})


def _pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
