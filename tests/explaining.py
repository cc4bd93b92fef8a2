"""Calls `xai-discern explain` and reads what it wrote."""

import json

import pytest

from xai_discern.cli import main


def explain(out, *arguments):
    main(["explain", *map(str, arguments), "--out", str(out)])
    return json.loads((out / "explanation.json").read_text("utf-8"))


def stopped(capsys, *arguments):
    """The exit code and what it says."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code, capsys.readouterr().err
