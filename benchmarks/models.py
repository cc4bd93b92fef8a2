"""Which models are supported: each of the zoo in tests/zoo/, against the reference in tests/zoo_truth.py.

    .venv/bin/python benchmarks/models.py                            # writes docs/models.md
    .venv/bin/python benchmarks/models.py --group timm --match swin --out /tmp/swin.md

The models are small and have random weights; nothing is downloaded.
"""

import argparse
import csv
import datetime
import gc
import re
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import transformers
from torch import Tensor

from adapters import reshape_transform_for
from captum_ext import (
    CDAM,
    AttentionMap,
    AttentionRollout,
    PartialLRP,
    PartialMapWarning,
    RelevancePropagation,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import zoo
import zoo_truth

BASELINES = (AttentionMap, AttentionRollout, RelevancePropagation, PartialLRP)
EQUAL = 1e-9
LIBRARIES = {"nn.TransformerEncoder": "torch"}
MESSAGE = 70


@dataclass
class Row:
    """What is known of one model."""

    group: str
    name: str
    built: bool = True
    found: str = "-"
    partial: bool = False
    way: str = "-"
    truth: str = "-"
    note: str = ""
    difference: float | None = None
    place: str = "projections"
    baselines: dict[str, str] = field(default_factory=dict)
    reshape: str = "-"
    seconds: float = 0.0

    @property
    def library(self) -> str:
        """The library that the model is of, and its version."""
        name = LIBRARIES.get(self.group, self.group.split()[0])
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return name

    @property
    def equal(self) -> bool:
        """Whether the scores are those of the reference."""
        return self.difference is not None and self.difference <= EQUAL

    @property
    def agreement(self) -> str:
        """The largest difference to the reference, or why there is none."""
        if self.difference is None:
            return self.truth
        note = f" ({self.note})" if self.note and not self.equal else ""
        return f"{self.difference:.0e}{' (module)' if self.place == 'module' else ''}{note}"

    def cells(self) -> list[str]:
        """The row of the table."""
        baselines = [self.baselines.get(method.__name__, "-") for method in BASELINES]
        last = [self.reshape, f"{self.seconds:.1f}"]
        found = f"{self.found}, in part" if self.partial else self.found
        return [self.library, self.name, found, self.way, self.agreement, *baselines, *last]


HEADER = ["library", "model", "found", "way", "difference", *(method.__name__ for method in BASELINES)]
HEADER += ["reshape_transform_for", "seconds"]


def main() -> None:
    """Try the models, print each, and write the tables."""
    parser = argparse.ArgumentParser(description="Which models are supported.")
    parser.add_argument("--group", help="only this group of the zoo")
    parser.add_argument("--match", default="", help="only models with this in their name")
    parser.add_argument("--out", type=Path, default=Path("docs/models.md"), metavar="FILE")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows here too")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    start = time.perf_counter()
    entries = [entry for entry in zoo.entries(args.group) if args.match in entry.name]
    rows = []
    for number, entry in enumerate(entries, 1):
        rows.append(row_of(entry))
        print(f"{number}/{len(entries)}", *rows[-1].cells(), sep=" | ", flush=True)
        gc.collect()
    args.out.write_text(text(rows, time.perf_counter() - start))
    if args.csv is not None:
        write_csv(args.csv, rows)
    print(summary(rows))


def row_of(entry: zoo.Entry) -> Row:
    """Try everything with one model."""
    start = time.perf_counter()
    row = Row(entry.group, entry.name)
    try:
        case = entry.make()
    except Exception as error:
        row.built = False
        row.found = f"not built: {message(error)}"
        return row
    fill(row, case)
    row.seconds = time.perf_counter() - start
    return row


def fill(row: Row, case: zoo.Case) -> None:
    """Try CDAM, the baselines and the reshape_transform with a model."""
    question = {"target": case.target, "additional_forward_args": case.additional}
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", PartialMapWarning)
            scores = CDAM(case.forward).attribute(case.inputs, return_tokens=True, **question)
        row.found = "yes"
        row.partial = any(issubclass(one.category, PartialMapWarning) for one in warned)
    except Exception as error:
        words = str(error)
        row.found = f"no: {message(error)}"
        row.way = said(lambda: with_advice(words, case, question))
    else:
        scores = scores[0] if isinstance(scores, tuple) else scores
        row.way = said(lambda: CDAM(case.forward).path(case.inputs, **question).way)
        row.truth = said(lambda: compared(row, scores, case))
    for method in BASELINES:
        row.baselines[method.__name__] = said(
            lambda method=method: method(case.forward).attribute(case.inputs, **question)
        )
    if image_of(case) is not None:
        row.reshape = said(lambda: reshape_transform_for(case.model, tuple(image_of(case).shape[-2:])))


def with_advice(words: str, case: zoo.Case, question: dict[str, object]) -> str:
    """Do what the refusal advises."""
    named = re.search(r'get_submodule\("(.*)"\)', words)
    if named is None:
        return "no layer named"
    layer = case.model.get_submodule(named[1])
    CDAM(case.forward, layer=layer).attribute(case.inputs, return_tokens=True, **question)
    return f"works with `{named[1]}`"


def image_of(case: zoo.Case) -> Tensor | None:
    """The images among the inputs."""
    given = case.inputs if isinstance(case.inputs, tuple) else (case.inputs,)
    return next((one for one in given if one.dim() == 4), None)


def compared(row: Row, scores: Tensor, case: zoo.Case) -> str:
    """Compare scores with the reference; what to say if they cannot be compared."""
    truth = zoo_truth.explain(case)
    if truth.scores is None:
        return f"no reference: {shortened(truth.reason)}"
    row.note = truth.note
    others = [one for one in (truth, truth.module) if one is not None and one.scores is not None]
    fitting = [one for one in others if one.scores.numel() == scores.numel()]
    if not fitting:
        return f"{tuple(scores.shape)} scores, not {tuple(truth.scores.shape)}"
    differences = [difference(scores, one.scores) for one in fitting]
    row.difference = min(differences)
    row.place = "module" if fitting[differences.index(row.difference)] is truth.module else "projections"
    return "-"


def difference(scores: Tensor, truth: Tensor) -> float:
    """The largest difference, relative to the largest score; windows and grids may come in another order."""
    if scores.shape != truth.shape:
        scores, truth = scores.flatten().sort().values, truth.flatten().sort().values
    return float((scores.double() - truth.double()).abs().max() / truth.double().abs().max())


def said(attempt: Callable[[], object]) -> str:
    """What a call returned if that is text; else "ok", or what the exception says."""
    try:
        answer = attempt()
    except Exception as error:
        return message(error)
    return answer if isinstance(answer, str) else "ok"


def message(error: Exception) -> str:
    """The beginning of an error's message, fit for a table."""
    return shortened(str(error)).replace("|", "/") or type(error).__name__


def shortened(words: str) -> str:
    """The beginning of a text, in one line."""
    return textwrap.shorten(words, MESSAGE, placeholder=" ...")


def text(rows: Sequence[Row], seconds: float) -> str:
    """The page."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "transformers"))
    parts = [
        "# Models",
        "Small models with random weights, one of each class of transformers that classifies images, videos, texts or "
        "words or predicts words, one of each file of timm that has softmax attention, those of torchvision and "
        "PyTorch, and re-implementations of others.",
        summary(rows),
        f"{datetime.date.today()}, {libraries}, {seconds / 60:.0f} minutes on the CPU; `python benchmarks/models.py`.",
        "Found: `CDAM(model)` finds the tokens; in part: a `PartialMapWarning` says that the prediction also depends "
        "on what the map does not show. Difference: the largest to a reference from hooks and autograd, "
        f"relative to its largest score; equal is at most {EQUAL:.0e}. The reference exchanges what the last "
        "attention's projections of queries, keys and values read; where that is not all that the tokens enter "
        "(gates, a class token as query, compressed keys and values), what the module that holds them reads: "
        "'(module)'. Models without softmax attention have none; there, the way is the layer that the refusal names, "
        "tried.",
        table(HEADER, [row.cells() for row in rows]),
    ]
    return "\n\n".join(parts) + "\n"


def summary(rows: Sequence[Row]) -> str:
    """How many of each group are found, and equal to the reference."""
    groups = {row.group: [other for other in rows if other.group == row.group] for row in rows}
    header = ["group", "models", "built", "found", "with reference", "equal"]
    return table(header, [[name, *counts(group)] for name, group in {**groups, "all": list(rows)}.items()])


def counts(rows: Sequence[Row]) -> list[str]:
    """The numbers of a group."""
    numbers = [
        len(rows),
        sum(row.built for row in rows),
        sum(row.found == "yes" for row in rows),
        sum(row.difference is not None for row in rows),
        sum(row.equal for row in rows),
    ]
    return [str(number) for number in numbers]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows, with the group and the full difference."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["group", *HEADER])
        writer.writerows([row.group, *row.cells()] for row in rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
