"""What the documentation says of errors, methods and metrics, against the code; `make docs` tests the site itself."""

import ast
import re
import sys

import pytest
from paths import FILES, ROOT

DOCS = ROOT / "docs"
sys.path.append(str(DOCS / "_ext"))


def texts(tree):
    """All strings of a file but docstrings; parts that are filled in are one letter that no message has."""
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if id(node) in said:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)


def messages_of(page):
    """The messages that the page explains, each as parts between what depends on the call."""
    for line in re.findall(r"^(?:## |Also: )(`.+)$", page, re.M):
        code = re.fullmatch(r"`` (.+) ``|`([^`]+)`", line)
        yield [part.strip() for part in re.split(r"\.\.\.|\bN\b", code[1] or code[2]) if part.strip()]


@pytest.mark.slow
def test_each_message_of_the_page_of_errors_is_raised_somewhere():
    known = [text for path in FILES for text in texts(ast.parse(path.read_text()))]
    wanted = list(messages_of((DOCS / "troubleshooting.md").read_text()))
    lost = [parts for parts in wanted if not any(in_order(parts, text) for text in known)]
    assert len(wanted) > 25
    assert lost == []


def in_order(parts, text):
    return re.search(".*".join(map(re.escape, parts)), text, re.S) is not None


def test_a_message_that_no_code_has_is_found():
    assert list(messages_of("## `No such ... message`\n\nAlso: `` A `b` c ``")) == [["No such", "message"], ["A `b` c"]]
    assert not in_order(["No such", "message"], "no such message")


def test_each_method_and_metric_of_ours_has_a_page():
    from entries import entries

    from xai_compare._methods import methods
    from xai_compare._metrics import our_metrics

    ours = {name for name, method in methods().items() if method.group.startswith("captum_ext")}
    assert entries(DOCS / "methods.toml").keys() == ours
    assert entries(DOCS / "metrics.toml").keys() == set(our_metrics())


@pytest.mark.parametrize("file", ["methods.toml", "metrics.toml"])
def test_each_citation_is_in_the_bibliography(file):
    from entries import entries

    known = re.findall(r"^@\w+\{(\w+),", (DOCS / "references.bib").read_text(), re.M)
    assert {entry["cite"] for entry in entries(DOCS / file).values() if "cite" in entry} <= set(known)


def test_each_function_of_a_metric_is_that_of_its_class():
    from entries import entries

    import quantus_metrics
    from xai_compare._metrics import metrics

    for name, entry in entries(DOCS / "metrics.toml").items():
        function = getattr(quantus_metrics, entry["function"])
        assert function.__name__ == name.replace("-", "_")
        assert metrics()[name].__name__.lower() == name.replace("-", "")


def test_formulas_of_docstrings_are_literal_blocks():
    from docstrings import as_literal_blocks

    text = ["Words:", "", "    a = b", "", "    c = d", "", "More.", "", "Args:", "    x: one."]
    assert as_literal_blocks(text) == [
        *("Words:", "", "::", "", "    a = b", "", "    c = d", "", "More.", "", "Args:", "    x: one."),
    ]
