"""A page for each method, metric and public name: equations and limits from two tables, the rest from the code itself.

Nothing here is typed twice: what a class says is its docstring, what it costs is what `xai-compare --list` prints, and
scores and pictures are computed at each build.
"""

import inspect
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docstrings import SECTIONS

PACKAGES = {
    "captum_ext": "Attribution classes, targets and drawing.",
    "adapters": "Wrappers of models, and what pytorch-grad-cam needs.",
    "quantus_metrics": "Scores, as Quantus classes and as functions of tensors.",
    "xai_compare": "Comparison of methods on models and data.",
}
HOSTS = "Module, object, Metric, Attribution, BaseCAM, Explanation, ExplainerAlgorithm"  # whose members are not ours
SAMPLES = 8
COMPARED = ("cdam", "token-ablation", "attention", "gradcam", "ixg", "random")


def entries(file: Path) -> dict[str, dict[str, Any]]:
    """The entries of `methods.toml` or `metrics.toml`, by name."""
    return tomllib.loads(file.read_text("utf-8"))


def about(thing: Any) -> str:
    """The docstring up to its first section, as Markdown."""
    text = inspect.getdoc(thing) or ""
    lines = text.splitlines()
    end = next((i for i, line in enumerate(lines) if line.strip() in SECTIONS), len(lines))
    return "\n".join(lines[:end]).strip()


def equation(entry: dict[str, Any]) -> str:
    """The equation, with the meaning of its letters, and its source."""
    where = f"\n\nwith {entry['where']}" if "where" in entry else ""
    cite = f"\n\nFrom {{cite:t}}`{entry['cite']}`." if "cite" in entry else ""
    return f"```{{math}}\n{entry['equation']}\n```{where}{cite}\n"


def method_page(name: str, entry: dict[str, Any], method: Any) -> str:
    """The page of a method."""
    full = f"captum_ext.{method.make.__name__}"
    picture = f"![The map of {method.title} for each of two digits in one scene]({name}.png)\n\n"
    picture += "Both digits of a test scene, by the bundled ViT; red speaks for the digit, blue against it.\n"
    if "example" in entry:
        picture = f"See {{doc}}`/auto_gallery/{entry['example']}`.\n"
    return f"""# {method.title}

*{entry["question"]}*

{equation(entry)}
| | |
|---|---|
| class | {{py:class}}`{full}` |
| in `xai-compare` | `{name}` |
| cost in forward passes | {method.cost}, as measured for `xai-compare --list` ([other models](../performance-cpu.md)) |

## What it looks like

{picture}
## What it computes, and what differs from the paper

{about(method.make)}

## Limits

{entry["limits"]}
"""


def metric_page(name: str, entry: dict[str, Any], metric: Any, better: str, function: Any) -> str:
    """The page of a metric."""
    return f"""# {metric.name}

*{entry["says"]}*

{equation(entry)}
| | |
|---|---|
| class | {{py:class}}`quantus_metrics.{metric.__name__}` |
| function of tensors | {{py:func}}`quantus_metrics.{entry["function"]}` |
| in `xai-compare` | `{name}` |
| better | {better} |

## What it computes

{about(function)}

## What it cannot say

{entry["cannot"]}

## Scores of some methods

![Means of {SAMPLES} scenes with their intervals, for {len(COMPARED)} methods]({name}.png)

{SAMPLES} test scenes of digits, the bundled ViT, 95 % bootstrap intervals; computed when this page was built, with
20 steps and boxes of each size in place of 100. On other models and data the order can be another one.
"""


def index_page(title: str, intro: str, header: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table of pages: for each its name and what distinguishes it."""
    table = [["", *header], ["---"] * (1 + len(header))]
    table += [[f"{{doc}}`{shown} <{page}>`", *cells] for page, (shown, *cells) in rows.items()]
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    tree = "\n".join(rows)
    return f"# {title}\n\n{intro}\n\n{lines}\n\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"


def reference_page(full: str, thing: Any) -> str:
    """What a public name does, and the examples that use it."""
    kind = "autoclass" if inspect.isclass(thing) else "autofunction"
    members = f"\n   :members:\n   :inherited-members: {HOSTS}" if inspect.isclass(thing) else ""
    title = full.partition(".")[2]
    body = f"""
    {title}
    {"=" * len(title)}

    .. currentmodule:: {full.partition(".")[0]}

    .. {kind}:: {full}{textwrap.indent(members, "    ")}

    .. minigallery:: {full}
       :add-heading: Examples
    """
    return textwrap.dedent(body).lstrip()


def write_if_changed(file: Path, text: str) -> None:
    """So that an unchanged page is not built again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text("utf-8") != text:
        file.write_text(text, "utf-8")


def write_methods(docs: Path) -> None:
    """The pages of methods."""
    from entry_pictures import draw_methods

    from xai_compare._methods import methods

    known, found = methods(), entries(docs / "methods.toml")
    rows = {name: (known[name].title, entry["question"], known[name].cost) for name, entry in found.items()}
    intro = "Equation, source, cost in forward passes and limits of each method. How to [choose](../choose.md)."
    write_if_changed(docs / "methods/index.md", index_page("Methods", intro, ("question", "cost"), rows))
    for name, entry in found.items():
        write_if_changed(docs / f"methods/{name}.md", method_page(name, entry, known[name]))
    draw_methods(docs / "methods", {name: known[name] for name, entry in found.items() if "example" not in entry})


def write_metrics(docs: Path) -> None:
    """The pages of metrics."""
    from entry_pictures import draw_metrics

    import quantus_metrics
    from xai_compare._metrics import direction_of, metrics

    known, found = metrics(), entries(docs / "metrics.toml")
    rows = {name: (known[name].name, entry["says"], direction_of(known[name])) for name, entry in found.items()}
    intro = "Equation, source, what it can and cannot say of each metric. How to use them: [scores](../scores.md)."
    write_if_changed(docs / "metrics/index.md", index_page("Metrics", intro, ("what it says", "better"), rows))
    for name, entry in found.items():
        function, better = getattr(quantus_metrics, entry["function"]), direction_of(known[name])
        write_if_changed(docs / f"metrics/{name}.md", metric_page(name, entry, known[name], better, function))
    draw_metrics(docs / "metrics", docs.parent / "build" / "documented-scores", list(found), COMPARED, SAMPLES)


def public_names(module: Any) -> list[str]:
    """The classes and functions of its own that a package offers."""
    found = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    own = {name: thing for name, thing in found.items() if callable(thing) and inspect.getdoc(thing)}
    return [name for name, thing in own.items() if str(getattr(thing, "__module__", "")).startswith(module.__name__)]


def write_reference(docs: Path) -> None:
    """A page for each public name."""
    import importlib

    for package, intro in PACKAGES.items():
        module = importlib.import_module(package)
        names = sorted(public_names(module))
        for name in names:
            full = f"{package}.{name}"
            write_if_changed(docs / f"reference/{full}.rst", reference_page(full, getattr(module, name)))
        firsts = {name: about(getattr(module, name)).partition("\n\n")[0].replace("\n", " ") for name in names}
        rows = {f"{package}.{name}": (name, first) for name, first in firsts.items()}
        write_if_changed(docs / f"reference/{package}.md", index_page(package, intro, ("what it is",), rows))


def substitutions(docs: Path) -> dict[str, str]:
    """What pages written by hand take from the code: `{{ cost_NAME }}` of each method, and the table of metrics."""
    from xai_compare._methods import methods
    from xai_compare._metrics import metrics

    costs = {f"cost_{name.replace('-', '_')}": method.cost for name, method in methods().items()}
    known = metrics()
    rows = ["| metric | says | cannot say |", "|---|---|---|"]
    rows += [
        f"| [{known[name].name}](metrics/{name}.md) | {entry['says']} | {entry['cannot']} |"
        for name, entry in entries(docs / "metrics.toml").items()
    ]
    return costs | {"metric_table": "\n".join(rows)}


def _write(app: Any) -> None:
    docs = Path(app.srcdir)
    write_methods(docs)
    write_metrics(docs)
    write_reference(docs)


def setup(app: Any) -> dict[str, bool]:
    """Before the gallery, whose pages link here."""
    app.connect("builder-inited", _write, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
