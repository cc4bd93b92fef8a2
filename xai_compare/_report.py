"""One self-contained page about a comparison: table of scores, curves, gallery of maps, and how it was made."""

import base64
import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from ._critical_difference import Ranking
from ._report_agreement import matrix
from ._report_plots import Curve, sections
from ._report_ranks import diagrams
from ._report_table import Records, Table, counted, decimals, entry, mean, number, score_columns, test_table, to_float
from ._report_trust import trusted
from ._report_words import findings, in_short, too_few

__all__ = ["Curve", "Picture", "render"]

_LARGEST = 448  # pixels; larger images are shrunk
_MISSING = -128  # the code of a value that is not finite
_OPTIONAL = (
    *("model", "models", "data", "samples", "device", "seconds"),
    *("finished", "failed", "skipped", "unfit", "interruptions"),
)


@dataclass(frozen=True)
class Picture:
    """One image of the gallery.

    Attributes:
        sample: Its name.
        image: (height, width, 3).
        target: The class that the scores are about.
        classes: What each class is called, the target first.
        maps: By class and method, signed (h, w) maps of any size; a method that failed is absent.
        index: The sample's number, by which tables link to it.
    """

    sample: str
    image: npt.NDArray[np.uint8]
    target: int
    classes: dict[int, str]
    maps: dict[int, dict[str, npt.NDArray[np.floating]]]
    index: int | None = None


def render(
    run: Mapping[str, Any],
    summary: pd.DataFrame,
    tests: pd.DataFrame,
    curves: Sequence[Curve],
    pictures: Sequence[Picture],
    *,
    rankings: Sequence[Ranking] = (),
    by_pair: pd.DataFrame | None = None,
    by_sample: pd.DataFrame | None = None,
    checked: pd.DataFrame | None = None,
    models: Any = None,
    drawn: Mapping[str, str] | None = None,
) -> str:
    """The page, which needs no network and no other file.

    Args:
        run: What was run; all of it is optional: `command`, `settings`, `versions`, `seed`, `samples` asked for,
            `finished`, `failed` (how many scores), `errors` and `skipped` (a mapping for each), `started`, `seconds`,
            `interruptions`, `device`, `model`, `weights`, `data`, `metrics` (title and direction of each), `methods`
            (title, source).
        summary: A row for each metric and method: `metric`, `direction`, `method`, `n`, `failed`, `mean`, `ci_low`,
            `ci_high`, `mean_rank`, `seconds`, `explain_seconds`, `explain_forwards`.
        tests: A row for each metric and pair of methods: `metric`, `method_a`, `method_b`, `n`, `median_difference`,
            `effect`, `effect_low`, `effect_high`, `p`, `p_holm`. May be empty.
        curves: What is plotted; a plot for each metric and name.
        pictures: What the gallery shows.
        rankings: Mean ranks and groups of methods, one for each metric that has them.
        by_pair: How far each pair of methods agrees, as `agreement` returns it; without any the section is hidden.
        by_sample: The agreement on each sample, as `agreement` returns it, and its `name`.
        checked: What `check` says of maps, as `Comparison.trust` returns it; without any the section is hidden.
        models: What the page says of several models; then there is no table of scores.
        drawn: What the gallery's maps are called, if not as the methods.

    Returns:
        The page's HTML. The same arguments make the same page.
    """
    scores: Records = summary.to_dict("records")
    pairs: Records = tests.to_dict("records")
    shown = [method for picture in pictures for maps in picture.maps.values() for method in maps] if not drawn else []
    methods = _titles(run, "methods", [row["method"] for row in scores] + [c.method for c in curves] + shown)
    metrics = _titles(run, "metrics", [row["metric"] for row in scores])
    columns = score_columns(run, scores, pairs, methods, metrics) if models is None else []
    found = findings(columns, pairs, methods)
    script = _asset("report.js")
    return _page().render(
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=_asset("report.css"),
        script=script,
        run=dict.fromkeys(_OPTIONAL) | {"command": "not recorded"} | dict(run),
        methods=methods,
        metrics=metrics,
        columns=columns,
        models=models,
        findings=found,
        in_short=in_short(found),
        too_few=too_few(pairs) if models is None else "",
        diagrams=diagrams(rankings, methods, metrics),
        agreement=matrix(by_pair, by_sample, methods, [picture.index for picture in pictures]),
        trusted=trusted(checked, methods, [picture.index for picture in pictures]),
        sections=sections(curves, methods, _titles(run, "metrics", [curve.metric for curve in curves])),
        data={
            "methods": list((drawn or methods).items()),
            "sparse": drawn is not None,
            "pictures": [_embedded(picture) for picture in pictures],
        },
        provenance=_provenance(run, scores, methods, metrics),
        tests=test_table(pairs, methods, metrics),
    )


def _page() -> Template:
    made = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    made.filters |= {"counted": counted, "duration": duration, "number": number}
    made.tests["finite"] = math.isfinite
    return made.from_string(_asset("report.html"))


def _titles(run: Mapping[str, Any], kind: str, found: Iterable[str]) -> dict[str, str]:
    """What each metric or method is called, in the order of the run."""
    return {key: str(entry(run, kind, key).get("title") or key) for key in [*(run.get(kind) or {}), *found]}


def _asset(name: str) -> Markup:
    """A file of this package, which is trusted."""
    return Markup(files(__package__).joinpath(name).read_text("utf-8"))


def _provenance(
    run: Mapping[str, Any], scores: Records, methods: dict[str, str], metrics: dict[str, str]
) -> list[Table]:
    """Tables of what was run, with what, and what went wrong."""
    names = {"model": "Model", "weights": "Weights", "data": "Data", "seed": "Seed", "device": "Device"}
    facts = [(title, run[name]) for name, title in names.items() if run.get(name) is not None]
    facts += [("Started", run["started"])] if run.get("started") else []
    facts += [("Duration", duration(run["seconds"]))] if run.get("seconds") is not None else []
    facts += [("Images", f"{run['finished']} of {run.get('samples', '?')}")] if run.get("finished") is not None else []
    costs = {metric: mean(_values(scores, metric, "seconds")) for metric in metrics}
    described = [
        (title, entry(run, "metrics", metric).get("direction") or "", metric, number(cost, decimals([cost])))
        for (metric, title), cost in zip(metrics.items(), costs.values(), strict=True)
    ]
    made = [(title, method, entry(run, "methods", method).get("source", "")) for method, title in methods.items()]
    skipped = [(one.get("sample", ""), one.get("error", "")) for one in run.get("skipped") or ()]
    unfit = [(methods[one["method"]], one["model"], one["error"]) for one in run.get("unfit") or ()]
    errors = [
        (
            methods.get(one.get("method", ""), one.get("method", "")),
            metrics.get(one.get("metric", ""), one.get("metric", "")),
            one.get("count", ""),
            one.get("error", ""),
        )
        for one in run.get("errors") or ()
    ]
    return [
        Table("skipped", "Skipped images", ("Image", "Error"), skipped),
        Table("failed", "Failed scores", ("Method", "Metric", "Count", "Error"), errors, numeric=("Count",)),
        Table("unfit", "Methods that do not fit", ("Method", "Model", "Reason"), unfit),
        Table("run", "Run", ("", ""), facts),
        Table(
            "classes", "Classes", ("Name in the data", "Class"), list((run.get("classes") or {}).items()), ("Class",)
        ),
        *(Table(name, name.title(), ("", ""), _listed(run.get(name) or {})) for name in ("settings", "versions")),
        Table("methods", "Methods", ("Title", "Name", "Source"), made),
        Table("metrics", "Metrics", ("Title", "Better", "Name", "Seconds per map"), described, ("Seconds per map",)),
    ]


def _listed(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Names and values, lists with commas."""
    return [(name, ", ".join(map(str, v)) if isinstance(v, list | tuple) else v) for name, v in values.items()]


def _values(scores: Records, metric: str, name: str) -> list[float]:
    return [to_float(row.get(name)) for row in scores if row["metric"] == metric]


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{count} {unit}" for count, unit in ((hours, "h"), (minutes, "min"), (rest, "s")) if count]
    return " ".join(parts) or f"{seconds:.2g} s"


def _embedded(picture: Picture) -> dict[str, Any]:
    """What the page's script needs of a picture."""
    height, width = picture.image.shape[:2]
    return {
        "sample": picture.sample,
        "size": [width, height],
        "image": _data_uri(picture.image),
        "target": picture.target,
        "classes": [[index, label] for index, label in picture.classes.items()],
        "maps": {
            index: {method: _quantised(np.asarray(one)) for method, one in maps.items()}
            for index, maps in picture.maps.items()
        },
    }


def _quantised(values: npt.NDArray[np.floating]) -> list[Any]:
    """Height, width, scale and the base64 of 8-bit codes: a value is its code times the scale.

    It is off by less than half a percent of the largest absolute value.
    """
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    scale = float(np.abs(values[finite]).max(initial=0.0)) / 127 or 1.0
    codes = np.where(finite, np.round(np.where(finite, values, 0.0) / scale), _MISSING).astype(np.int8)
    return [*values.shape, scale, base64.b64encode(codes.tobytes()).decode()]


def _data_uri(image: npt.NDArray[np.uint8]) -> str:
    """The image as PNG or JPEG, whichever is smaller."""
    picture = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    picture.thumbnail((_LARGEST, _LARGEST))
    kinds: list[tuple[str, dict[str, Any]]] = [("png", {}), ("jpeg", {"quality": 90})]
    found = []
    for kind, options in kinds:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        found.append(f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}")
    return min(found, key=len)
