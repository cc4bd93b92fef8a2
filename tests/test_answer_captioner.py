"""The example of a captioner that is asked what is on the left: its scenes, its scores, its maps."""

import answer_captioner
import pandas as pd
import pytest
import torch
from answer_captioner import DRAWN, explained, grad_cam, methods, quick_parts
from box_evidence import MEASURES, measured, share_inside, table
from pair_captioner import QUESTIONS, Training, build, features_of, prompt, seen
from pair_scenes import crops, load_things, make_scenes
from PIL import Image

from captum_ext import CDAM


def test_the_share_inside_a_box_counts_places_by_the_part_of_them_that_is_inside():
    heat = torch.tensor([[4.0, -9.0, 2.0, 2.0], [0.0, 8.0, 0.0, 0.0]])  # positive: 16
    boxes = [[0, 0, 0.25, 0.5], [0, 0, 0.25, 0.25], [0.25, 0, 1, 0.5], [0.125, 0, 0.75, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
    expected = [4 / 16, 2 / 16, 4 / 16, (2 + 8 + 2) / 16, 1, 0]
    found = share_inside(heat.expand(len(boxes), -1, -1), torch.tensor(boxes))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert share_inside(-torch.ones(1, 2, 2), torch.ones(1, 4)).isnan().all()
    areas = share_inside(torch.ones(1, 3, 5), torch.tensor([[0.1, 0.2, 0.6, 0.9]]))
    assert float(areas) == pytest.approx(0.5 * 0.7)


def test_the_table_has_the_means_over_scenes_and_the_tests():
    left, right = torch.tensor([[0.0, 0, 0.5, 1]]), torch.tensor([[0.5, 0, 1, 1]])
    good, bad = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 3.0]])
    maps = {"A": torch.stack([good, good, good]), "B": torch.stack([bad, good, bad]), "none": -torch.ones(3, 1, 2)}
    scores = measured(maps, left.expand(3, 4), right.expand(3, 4), [0, 0, 1])
    values = scores.pivot(index=["method", "sample"], columns="metric", values="score")[list(MEASURES)]
    assert values.loc[("A", 0)].tolist() == [0.75, 0.25, 0.5, 1]  # the mean of two questions
    assert values.loc[("B", 0)].tolist() == [0.5, 0.5, 0, 0.5]
    assert values.loc[("B", 1)].tolist() == [0.25, 0.75, -0.5, 0]
    assert values.loc["none"].isna().to_numpy().all()
    rows = table(scores, "A").splitlines()
    assert rows[2].startswith("| A | 0.750 (0.750 to 0.750) | 0.250")
    assert rows[3].startswith("| B | 0.375 (")
    assert rows[3].endswith("| 2 | +1.00, 0.5 |")  # all of two differences: the smallest p there is
    assert rows[4] == "| none | - | - | - | - | 0 | +nan, nan |"


def test_boxes_hold_their_thing_and_nothing_else_does():
    white, black = torch.ones(3, 30, 20), torch.zeros(3, 10, 20)
    scenes = make_scenes({"owl": [white], "bat": [black]}, 40, seed=3, side=60)
    grey = scenes.images.float().std(1)  # coloured ground; things are grey
    for scene in range(40):
        for half in (0, 1):
            left, top, right, bottom = (scenes.boxes[scene, half] * 60).round().long().tolist()
            shade = 255 * (scenes.kinds[scenes.labels[scene, half]] == "owl")
            assert (scenes.images[scene, :, top:bottom, left:right] == shade).all()
            assert half * 30 <= left < right <= 30 + half * 30
            grey[scene, top:bottom, left:right] = torch.nan
    assert grey.nanmean() > 5
    assert {"an owl left of a bat", "a bat left of an owl"} == set(scenes.sentences())
    again = make_scenes({"owl": [white], "bat": [black]}, 40, seed=3, side=60)
    assert torch.equal(scenes.images, again.images)
    with pytest.raises(ValueError, match="two kinds at least"):
        make_scenes({"owl": [white]}, 1, seed=0)


def test_crops_are_what_the_boxes_hold_without_those_that_show_two_kinds(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found none.*--data digits"):
        load_things(str(tmp_path), "train")
    (tmp_path / "train").mkdir()
    Image.new("RGB", (100, 80), "red").save(tmp_path / "train" / "1.jpg", quality=100)
    boxes = [("fig", 0, 0, 30, 20), ("fig", 20, 0, 50, 30), ("kiwi", 40, 10, 80, 60), ("kiwi", 82, 0, 100, 70)]
    things = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for name, a, b, c, d in boxes
    )
    (tmp_path / "train" / "1.xml").write_text(f"<annotation>{things}</annotation>")
    found = crops(tmp_path / "train" / "1.xml")
    assert [(name, tuple(crop.shape)) for name, crop in found] == [("fig", (3, 20, 30)), ("kiwi", (3, 70, 18))]
    assert load_things(str(tmp_path), "train").keys() == {"fig", "kiwi"}


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    torch.manual_seed(0)
    parts = quick_parts()
    model = build(parts.tower, parts.words, parts.tokenizer, 56, Training())
    scenes = make_scenes(parts.things["test"], 3, seed=1, side=56)
    return model, parts.tokenizer, scenes, features_of(model, scenes.images, tmp_path_factory.mktemp("features"))


def test_known_features_stand_in_for_the_tower(captioner):
    model, tokenizer, scenes, features = captioner
    inputs = prompt(model, tokenizer, [QUESTIONS[0]] * 3, scenes.images)
    whole = CDAM(model).attribute_answer(inputs, scenes.words(0), tokenizer=tokenizer).images[0]
    tower = model.model.vision_tower
    with seen(model, features):
        short = CDAM(model).attribute_answer(inputs, scenes.words(0), tokenizer=tokenizer).images[0]
        with pytest.raises(ValueError, match="the 3 images whose features are known, got 1"):
            model(**{name: x[:1] for name, x in inputs.items()})
    assert model.model.vision_tower is tower
    with pytest.raises(ValueError, match=r"nothing to explain. Train more --steps"):
        explained(model, tokenizer, scenes, features, torch.zeros(3, 2, dtype=torch.bool))
    assert (whole - short).abs().max() < 0.03 * whole.abs().max()  # features are rounded


def test_grad_cam_is_its_formula_at_the_image_tokens(captioner):
    model, tokenizer, scenes, features = captioner
    inputs = prompt(model, tokenizer, [QUESTIONS[1]] * 3, scenes.images)
    words = scenes.words(1)
    with seen(model, features):
        found = grad_cam(model, tokenizer)(inputs, words, words)
        kept = []
        layer = model.model.language_model.layers[-1].input_layernorm
        with layer.register_forward_hook(lambda _, __, output: kept.append(output)):
            logits = model(**inputs).logits[:, -1]
    chosen = logits.gather(1, torch.tensor(tokenizer.convert_tokens_to_ids(words))[:, None]).sum()
    tokens = kept[0][:, 1:65]
    weights = torch.autograd.grad(chosen, kept[0])[0][:, 1:65].mean(1, keepdim=True)
    expected = (weights * tokens).sum(-1).clamp(min=0).detach()
    expected = expected - expected.amin(1, keepdim=True)
    expected = expected / expected.amax(1, keepdim=True).clamp(min=1e-7)
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-4, rtol=1e-4)


def test_the_last_attention_but_one_is_that_of_the_decoders_first_layer(captioner):
    model, tokenizer, scenes, features = captioner
    inputs = prompt(model, tokenizer, [QUESTIONS[0]] * 3, scenes.images)
    kept = []
    layer = model.model.language_model.layers[0].input_layernorm

    def exchange(_, __, output):
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    with seen(model, features):
        found = methods(model, tokenizer)["CDAM, last attention but one"](inputs, scenes.words(0), scenes.words(1))
        with layer.register_forward_hook(exchange):
            logits = model(**inputs).logits[:, -1]
    chosen = logits.gather(1, torch.tensor(tokenizer.convert_tokens_to_ids(scenes.words(0)))[:, None]).sum()
    expected = (torch.autograd.grad(chosen, kept[0])[0] * kept[0]).sum(-1)[:, 1:65].unflatten(1, (8, 8)).detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_quick_run_writes_its_table_and_picture(tmp_path, capsys):
    answer_captioner.main(["--quick", "--out", str(tmp_path)])
    scores = pd.read_csv(tmp_path / "captioner.csv")
    named = set(methods(*_of_quick()))
    assert set(scores.method) == named
    assert set(DRAWN) < named
    shares = scores[scores.metric == "asked box"].dropna()
    assert shares.score.between(0, 1).all()
    floor = shares[shares.method == "uniform"].score
    assert floor.between(0.01, 0.25).all()  # the area of a thing
    assert (tmp_path / "captioner.png").stat().st_size > 20_000
    text = (tmp_path / "captioner.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert text.count("\n| ") == len(named) + 1


def _of_quick():
    parts = quick_parts()
    return build(parts.tower, parts.words, parts.tokenizer, 56, Training()), parts.tokenizer
