"""The arena: verdicts, what is kept, what is refused, and the page."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from xai_compare import arena
from xai_compare.cli import main
from xai_compare.known_answers import _cells, _sheet, tasks_named


class Truthful:
    """Marks the patch that is read, found by the marks in the image."""

    calls = 0

    def __init__(self, model):
        del model

    def attribute(self, inputs, target):
        type(self).calls += 1
        return inputs[:, 1:2].clone()


def inverted(model):
    method = Truthful(model)
    method.attribute = lambda inputs, target: -inputs[:, 1:2]
    return method


def broken(model):
    raise ValueError("it does not fit")


def test_right_maps_pass_wrong_ones_fail_and_the_rest_does_not_fit(tmp_path):
    given = {"truthful": Truthful, "inverted": inverted, "broken": broken}
    table = arena("one-patch", given, out=tmp_path, limit=8).set_index("method")
    assert table.verdict.to_dict() == {
        "truthful": "passes",
        "inverted": "worse than random",
        "broken": "does not fit",
        "random": "control",
    }
    assert table["mean"]["truthful"] == 1.0
    assert table["mean"]["inverted"] == 0.0
    assert table.error["broken"] == "ValueError: it does not fit"
    page = (tmp_path / "arena.html").read_text()
    assert 'truthful</th><td class="number">1 of 1' in page
    assert "One patch (0.00; random 0." in page
    assert pd.read_csv(tmp_path / "arena.csv")["mean"].iloc[0] == 1.0
    assert "| truthful | 1.00 (1.00 to 1.00) ✓ |" in (tmp_path / "arena.md").read_text()


def test_random_maps_find_one_patch_of_sixteen(tmp_path):
    table = arena("one-patch", ["random"], out=tmp_path, limit=256)
    assert table["mean"].item() == pytest.approx(1 / 16, abs=0.02)  # 8 draws for each of 256 samples


def test_the_verdict_follows_the_paired_interval_against_random_maps():
    (task,) = tasks_named("one-patch")
    draws = np.random.default_rng(0)
    noise = draws.random(40)
    own = {"better": noise + 0.2, "worse": noise - 0.2, "same": noise + draws.normal(0, 0.3, 40), "right": noise + 2}
    cells = {("one-patch", name): _cells.Cell({"found": list(values)}) for name, values in own.items()}
    cells["one-patch", "random"] = _cells.Cell({"found": list(noise)})
    table = _sheet.sheet([task], cells, {"one-patch": 0.9}, 200, 0).set_index("method")
    verdicts = ["better than random", "worse than random", "as random", "passes", "control"]
    assert table.verdict.tolist() == verdicts
    assert table.gain["better"] == pytest.approx(0.2)
    assert table.gain_low["better"] == pytest.approx(0.2)  # every paired difference is 0.2


@pytest.mark.slow
def test_finished_cells_are_kept_and_others_computed(tmp_path):
    Truthful.calls = 0
    first = arena("one-patch", {"a": Truthful}, out=tmp_path, limit=4)
    assert Truthful.calls == 1
    again = arena("one-patch", {"a": Truthful, "b": "saliency"}, out=tmp_path, limit=4)
    assert Truthful.calls == 1
    assert again[again.method == "a"]["mean"].item() == first["mean"].iloc[0]
    arena("one-patch", {"a": Truthful}, out=tmp_path, limit=5)  # other samples
    assert Truthful.calls == 2
    file = tmp_path / "cells" / "one-patch" / "a.json"
    file.write_text(file.read_text()[:20])  # damaged
    arena("one-patch", {"a": Truthful}, out=tmp_path, limit=5)
    assert Truthful.calls == 3


@pytest.mark.slow
def test_the_same_seed_gives_the_same_sheet_and_leaves_random_numbers_alone(tmp_path):
    state = torch.get_rng_state()
    tables = [
        arena("difference", ["smooth-cdam"], out=tmp_path / name, limit=4).drop(columns="seconds") for name in "ab"
    ]
    pd.testing.assert_frame_equal(*tables)
    assert torch.equal(state, torch.get_rng_state())


def test_wrong_calls_say_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match=r"Unknown task 'one-pach'. Tasks and groups of tasks: all, analytic, "):
        arena("one-pach", out=tmp_path)
    with pytest.raises(TypeError, match="Expected `tasks` to be names of tasks, or 'all', got 3"):
        arena(3, out=tmp_path)
    with pytest.raises(ValueError, match="Expected at least one task, got none"):
        arena([], out=tmp_path)
    with pytest.raises(ValueError, match="Expected `steps` to be a whole number of at least 1, or None, got 0"):
        arena(out=tmp_path, steps=0)
    with pytest.raises(ValueError, match="Options are given for ig, which is not a task or method of this run"):
        arena("one-patch", ["ixg"], out=tmp_path, options={"ig": {"n_steps": 3}})
    with pytest.raises(ValueError, match="Mosaics of your own classifier need pictures: pass `data`"):
        arena("mosaic", ["ixg"], out=tmp_path, model=torch.nn.Flatten())


def test_mosaics_are_made_of_the_user_s_pictures_for_the_user_s_model(tmp_path):
    class Colours(torch.nn.Module):  # which of four channels is bright
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return 20 * x.mean((2, 3))

    images = torch.stack([torch.eye(4)[index % 4].view(4, 1, 1).expand(4, 16, 16) for index in range(12)])
    model = Colours().train()
    table = arena("mosaic", ["ixg"], out=tmp_path, model=model, data=images, limit=8).set_index("method")
    assert table["mean"]["ixg"] == pytest.approx(1.0)  # the class's channel is bright in its cell only
    assert table["mean"]["random"] == pytest.approx(0.25, abs=0.03)
    assert model.training
    with pytest.raises(ValueError, match="pictures of at least 4 classes that the model predicts, got 1"):
        arena("mosaic", ["ixg"], out=tmp_path, model=model, data=images[:1].repeat(4, 1, 1, 1), limit=8)


class Brightest(torch.nn.Module):
    """Which of four shades an image has: logits are near to 0 where its mean is near to one."""

    def __init__(self):
        super().__init__()
        self.shades = torch.nn.Parameter(torch.tensor([0.1, 0.35, 0.6, 0.85]))

    def forward(self, x):
        return -20 * (x.mean((1, 2, 3))[:, None] - self.shades) ** 2


def test_a_picture_that_cannot_be_read_costs_itself_only(tmp_path):
    folder = tmp_path / "pictures" / "shades"
    folder.mkdir(parents=True)
    for index, shade in enumerate((26, 89, 153, 217)):
        Image.new("RGB", (16, 16), (shade,) * 3).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    given = {"out": tmp_path / "out", "model": Brightest(), "limit": 4}
    given |= {"transform": lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255}
    with pytest.warns(UserWarning, match=r"1 pictures cannot be read and are left out; the first: .*broken.png"):
        table = arena("mosaic", ["ixg"], data=str(tmp_path / "pictures"), **given)
    assert set(table.n) == {4}
    for name in ("0.png", "1.png", "2.png", "3.png"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="None of the 1 pictures can be read"):
        arena("mosaic", ["ixg"], data=str(tmp_path / "pictures"), **given)


def test_the_command_writes_the_sheet_and_says_where(tmp_path, capsys):
    main(["--arena", "one-patch", "--methods", "ixg,mine=saliency", "--limit", "4", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "one-patch" in said
    assert f"The score sheet: {tmp_path}/run/arena.html" in said
    assert {*pd.read_csv(tmp_path / "run" / "arena.csv").method} == {"ixg", "mine", "random"}
    assert "--arena one-patch" in json.loads((tmp_path / "run" / "arena.json").read_text())["command"]
    with pytest.raises(SystemExit, match="1"):
        main(["--arena", "nothing", "--out", str(tmp_path / "run")])
    assert "Unknown task 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.5, _sheet.UNLEARNED), (0.8, "passes"), (float("nan"), "passes")])
def test_maps_of_a_model_that_has_not_learned_the_task_are_not_judged(accuracy, verdict):
    (task,) = tasks_named("one-patch")
    cells = {
        (task.name, "good"): _cells.Cell({key: [1.0] * 8 for key in task.scores}),
        (task.name, "random"): _cells.Cell({key: [0.1] * 8 for key in task.scores}),
        (task.name, "unfit"): _cells.Cell(error="no"),
    }
    table = _sheet.sheet([task], cells, {task.name: accuracy}, 200, 0).set_index("method")
    assert list(table.verdict[["good", "random", "unfit"]]) == [verdict, "control", "does not fit"]
