"""Whether maps of a run can be trusted, by captum_ext.check, for its report."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from captum_ext import check
from captum_ext.trust import Trust

from ._candidate import Candidate
from ._isolation import said
from ._progress import progress
from ._run_folder import CHECKED, RunFolder
from ._samples import Sample

_FOLDER = "trust"
_WORDS = dict.fromkeys(["verdict", "reasons", "notes", "error"], "")


def keep(folder: RunFolder, one: Candidate, methods: Iterable[str]) -> None:
    """Check the maps of the first samples, write each sample when it is done, and what is known of all to trust.csv."""
    count, again = min(one.settings.check, one.count), one.settings.retry_failed
    names = {index: f"{_FOLDER}/{folder.of(one.name).name_of(index)}.json" for index in range(count)}
    known = {index: _read(folder, name) for index, name in names.items()}
    done = {
        index: {name for name, about in found.get("methods", {}).items() if not (again and about.get("error"))}
        for index, found in known.items()
    }
    todo = {index: [name for name in methods if name not in done[index]] for index in names}
    with progress(total=sum(map(len, todo.values())), desc=f"checking {one.name}", unit="map", delay=0) as bar:
        for index, missing in todo.items():
            sample = one.read(index) if missing else None
            if isinstance(sample, Sample):
                before = known[index].get("methods", {})
                target, found = _checked(one, sample, missing, bar)
                about = {"model": one.name, "sample": index, "name": sample.name, "target": target}
                folder.files.write(names[index], json.dumps(about | {"methods": before | found}))
    folder.files.write(CHECKED, _table(folder).to_csv(index=False))


def _checked(one: Candidate, sample: Sample, methods: Iterable[str], bar: Any) -> tuple[int, Mapping[str, Any]]:
    """The target, and for each method what `check` found, or its error."""
    found: dict[str, Any] = {}
    x, y = one.evaluate.asked(sample)
    for method in methods:
        bar.set_postfix_str(method)
        try:
            explainer, inputs, target, options = one.evaluate.attribution(method, x, y)
            found[method] = _of(check(explainer, inputs, target, **options))
        except Exception as error:  # one map's error costs the others nothing
            found[method] = {"error": said(error)}
        bar.update()
    return one.evaluate.question.shown(y[0]), found


def _of(trust: Trust) -> dict[str, Any]:
    """What is known of the one map."""
    found = trust.to_dict()
    notes = found.pop("notes")
    one = {name.removesuffix("s") if name == "verdicts" else name: x and x[0] for name, x in found.items()}
    return one | {"reasons": " ".join(one["reasons"]), "notes": " ".join(notes)}


def _read(folder: RunFolder, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.files.read(name)) if folder.files.exists(name) else {}
    return found


def _table(folder: RunFolder) -> pd.DataFrame:
    """A row for each map."""
    rows = []
    for name in sorted(folder.files.names(_FOLDER)):
        found = _read(folder, f"{_FOLDER}/{name}")
        of_sample = {key: found[key] for key in ("model", "sample", "name", "target")}
        rows += [of_sample | {"method": method} | _WORDS | about for method, about in found["methods"].items()]
    rows.sort(key=lambda row: (folder.models.index(row["model"]), row["sample"]))
    return pd.DataFrame(rows)
