"""`check`: each number against one obtained by hand, and what follows from the numbers."""

import copy
import functools
import itertools
import json

import numpy as np
import pytest
import timm
import torch
from captum.attr import LayerIntegratedGradients, Saliency
from scipy.stats import spearmanr
from transformers import BertConfig, BertForSequenceClassification

from adapters.models import with_output
from captum_ext import (
    CDAM,
    AttentionMap,
    AttentionRollout,
    IntegratedCDAM,
    SmoothCDAM,
    TokenAblation,
    TokenShapley,
    Trust,
    check,
)

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
TARGETS = [3, 0, 2]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 3, "num_classes": 5}
    return timm.models.VisionTransformer(**sizes).eval().double()


def alike(a, b):
    return torch.tensor([spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b, strict=True)])


def test_agreement_is_the_rank_correlation_with_exact_effects(model):
    effects = TokenAblation(model).attribute(IMAGES, TARGETS)
    for method in (CDAM, AttentionMap, TokenAblation):
        expected = alike(method(model).attribute(IMAGES, TARGETS), effects)
        torch.testing.assert_close(check(method(model), IMAGES, TARGETS).agreement, expected)
    pixels = Saliency(model).attribute(IMAGES, TARGETS, abs=False)
    pooled = pixels.sum(1).unflatten(1, (4, 8)).unflatten(3, (4, 8)).mean((2, 4))
    found = check(Saliency(model), IMAGES, TARGETS, abs=False)
    torch.testing.assert_close(found.agreement, alike(pooled, effects))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["attention", "layer", "input"])
def test_the_effects_are_those_at_the_place_that_is_explained(model, where):
    block = model.blocks[1]
    options = {"attention": {"attention": 0}, "layer": {"layer": block.norm1}, "input": {"layer": block.attn}}[where]
    named = {"attribute_to_layer_input": True} if where == "input" else {}
    found = check(TokenAblation(model, **options), IMAGES, TARGETS, **named)
    torch.testing.assert_close(found.agreement, torch.ones(3, dtype=torch.float64))
    expected = alike(
        CDAM(model, **options).attribute(IMAGES, TARGETS, **named),
        TokenAblation(model, **options).attribute(IMAGES, TARGETS, **named),
    )
    torch.testing.assert_close(check(CDAM(model, **options), IMAGES, TARGETS, **named).agreement, expected)


@pytest.mark.slow
def test_stability_compares_seeds_and_steps_twice_as_many(model):
    maps = []
    for seed in range(4):
        torch.manual_seed(seed)
        maps.append(SmoothCDAM(model).attribute(IMAGES, TARGETS, nt_samples=3, stdevs=2.0))
    torch.manual_seed(0)
    found = check(SmoothCDAM(model), IMAGES, TARGETS, repeats=4, nt_samples=3, stdevs=2.0)
    expected = torch.stack([alike(a, b) for a, b in itertools.combinations(maps, 2)]).mean(0)
    torch.testing.assert_close(found.stability, expected)
    assert (expected < 0.95).any()
    assert torch.equal(check(CDAM(model), IMAGES, TARGETS).stability, torch.ones(3, dtype=torch.float64))
    few, twice = (IntegratedCDAM(model).attribute(IMAGES, TARGETS, n_steps=n) for n in (2, 4))
    torch.testing.assert_close(check(IntegratedCDAM(model), IMAGES, TARGETS, n_steps=2).steps, alike(few, twice))
    assert check(CDAM(model), IMAGES, TARGETS).steps is None


def test_randomised_weights_are_normal_numbers_from_the_head_down(model):
    found = check(CDAM(model), IMAGES, TARGETS)
    own = CDAM(model).attribute(IMAGES, TARGETS)
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    layers = [m for m in other.modules() if list(m.parameters(recurse=False))][::-1]
    assert layers[0] is other.head
    stages = {"head": layers[:1], "half": layers[1 : (len(layers) + 1) // 2], "all": layers[(len(layers) + 1) // 2 :]}
    for stage, part in stages.items():
        for layer in part:
            for weights in layer.parameters(recurse=False):
                drawn = torch.randn(weights.shape, generator=generator).double()
                spread = weights.std() if weights.numel() > 1 else weights.abs()
                weights.data = drawn * spread + weights.mean()
        expected = alike(CDAM(other).attribute(IMAGES, TARGETS), own).abs()
        torch.testing.assert_close(getattr(found, stage), expected)


def test_outliers_are_tokens_of_three_times_the_median_norm(model):
    changed = copy.deepcopy(model)
    changed.pos_embed.data[0, 6] *= 1e4  # the patch in row 1, column 1
    found = check(CDAM(changed), IMAGES, TARGETS)
    scores = CDAM(changed).attribute(IMAGES, TARGETS, return_tokens=True).abs()
    torch.testing.assert_close(found.outlier_tokens, torch.full((3,), 1 / 17, dtype=torch.float64))
    torch.testing.assert_close(found.outlier_relevance, scores[:, 6] / scores.sum(1))
    torch.testing.assert_close(found.prefix_relevance, scores[:, 0] / scores.sum(1))
    assert not check(CDAM(model), IMAGES, TARGETS).outlier_tokens.any()
    assert check(Saliency(model), IMAGES, TARGETS).outlier_tokens is None  # of pixels


def test_completeness_is_what_the_sum_misses(model):
    scores, delta = IntegratedCDAM(model).attribute(
        IMAGES, TARGETS, n_steps=2, return_tokens=True, return_convergence_delta=True
    )
    found = check(IntegratedCDAM(model), IMAGES, TARGETS, n_steps=2)
    torch.testing.assert_close(found.completeness, delta.abs() / scores.abs().sum(1))
    assert check(CDAM(model), IMAGES, TARGETS).completeness is None


def trust(**numbers):
    good = {"agreement": 0.8, "stability": 1.0, "head": 0.1, "half": 0.1, "all": 0.1, "prefix_relevance": 0.1}
    given = {
        name: torch.tensor([value, good.get(name, 0.0)], dtype=torch.float64)
        for name, value in (good | numbers).items()
    }
    return Trust(**(dict.fromkeys(["steps", "outlier_tokens", "outlier_relevance", "completeness"]) | given))


@pytest.mark.parametrize(
    ("numbers", "verdict", "reason"),
    [
        ({}, "passes", None),
        ({"all": 0.49}, "passes", None),
        ({"all": 0.5}, "fails", r"random weights \(correlation 0.50\)"),
        ({"head": 0.9}, "doubtful", r"random last layer \(correlation 0.90\): it does not depend on what is asked"),
        ({"half": 1.0}, "passes", None),
        ({"agreement": 0.29}, "doubtful", r"unlike their exact effects \(correlation 0.29\)"),
        ({"agreement": -0.01}, "fails", "unlike their exact effects"),
        ({"stability": 0.89}, "doubtful", "Other seeds"),
        ({"stability": 0.2}, "fails", "Other seeds"),
        ({"steps": 0.5}, "doubtful", "Twice the steps"),
        ({"outlier_relevance": 0.5}, "doubtful", "0.50 of its relevance is on tokens of outlying norm"),
        ({"prefix_relevance": 0.7}, "doubtful", "0.70 of its relevance is on tokens that are no patches"),
        ({"completeness": 0.1}, "doubtful", "misses what it explains by 0.10"),
    ],
)
def test_verdicts_and_their_reasons(numbers, verdict, reason):
    found = trust(**numbers)
    assert found.verdicts == [verdict, "passes" if "steps" not in numbers else "doubtful"]  # 0.0 of the other map
    if reason is None:
        assert found.reasons[0] == []
    else:
        assert len(found.reasons[0]) == 1
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(found.reasons[0][0])
    again = json.loads(json.dumps(found.to_dict()))
    assert again["verdicts"][0] == verdict
    assert again["agreement"] == found.agreement.tolist()
    assert str(found).startswith(f"map 0: {verdict} (agreement ")


@pytest.mark.slow
def test_attention_does_not_depend_on_the_class_and_random_maps_fail(model):
    for method in (AttentionMap, AttentionRollout):
        found = check(method(model), IMAGES, TARGETS)
        torch.testing.assert_close(found.head, torch.ones(3, dtype=torch.float64))
        assert all("does not depend on what is asked" in " ".join(reasons) for reasons in found.reasons)

    class Noise:
        forward_func = model

        def attribute(self, inputs, target=None, additional_forward_args=None):
            return torch.randn(len(inputs), 1, *inputs.shape[2:])

    assert check(Noise(), IMAGES, TARGETS).verdicts == ["fails"] * 3
    assert check(TokenAblation(model), IMAGES, TARGETS).verdicts.count("fails") == 0


def test_a_random_model_is_asked_the_same_question(model):
    classes = model(IMAGES).argmax(1).tolist()
    found, expected = (check(CDAM(model), IMAGES, target) for target in ("predicted", classes))
    assert torch.equal(found.all, expected.all)
    assert torch.equal(found.half, expected.half)


def test_features_of_patches_are_summed_over_channels(model):
    layer = LayerIntegratedGradients(model, model.patch_embed)
    own = layer.attribute(IMAGES, target=TARGETS, n_steps=3).sum(-1)
    effects = TokenAblation(model).attribute(IMAGES, TARGETS)
    torch.testing.assert_close(check(layer, IMAGES, TARGETS, n_steps=3).agreement, alike(own, effects))


@pytest.mark.slow
def test_words_and_players():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).eval().double()
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    found = check(CDAM(bert), ids, 1)
    expected = alike(CDAM(bert).attribute(ids, 1), TokenAblation(bert).attribute(ids, 1))
    torch.testing.assert_close(found.agreement, expected)
    assert found.prefix_relevance is None
    assert check(TokenShapley(bert), ids, 1, n_samples=4).steps is not None


def test_the_model_and_the_random_state_are_left_as_they_were(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    np.random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()

    def unchanged():
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (np.random.get_state()[1] == states[1]).all()

    check(SmoothCDAM(model), IMAGES, TARGETS, nt_samples=2)
    unchanged()
    with pytest.raises(ValueError, match="out of range"):
        check(CDAM(model), IMAGES, 17)
    unchanged()


@pytest.mark.slow
def test_what_cannot_be_measured_is_said_and_the_advice_works(model):
    inside = check(CDAM(lambda images: model(images)), IMAGES, TARGETS)
    assert inside.all is None
    assert "pass the model, or functools.partial of it" in inside.notes[0]
    assert f"not measured: {inside.notes[0]}" in str(inside)
    bound = check(CDAM(functools.partial(model)), IMAGES, TARGETS)
    torch.testing.assert_close(bound.all, check(CDAM(model), IMAGES, TARGETS).all)
    cnn = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, 8), torch.nn.Flatten(), torch.nn.Linear(64, 5)).double()
    found = check(Saliency(cnn), IMAGES, TARGETS)
    assert found.agreement is None
    assert "No attention was seen" in found.notes[0]
    assert found.all is not None


class Hides(torch.nn.Module):
    """A head of its own behind a backbone that is no module of it."""

    def __init__(self, backbone, how):
        super().__init__()
        self.head = torch.nn.Linear(32, 5).double()
        self.hidden = [backbone] if how == "list" else lambda images: backbone(images)

    def forward(self, images):
        backbone = self.hidden[0] if isinstance(self.hidden, list) else self.hidden
        return self.head(backbone(images))


@pytest.mark.parametrize("how", ["stand-in", "list", "function"])
def test_a_copy_that_keeps_weights_of_the_original_is_told(model, how):
    backbone = copy.deepcopy(model)
    backbone.head = torch.nn.Identity()
    inside = with_output(model, None) if how == "stand-in" else Hides(backbone, how)
    found = check(CDAM(inside), IMAGES, TARGETS)
    assert (found.head, found.half, found.all) == (None, None, None)
    assert "weights that are not among its parameters" in found.notes[0]
    assert check(CDAM(model), IMAGES, TARGETS).notes == ()  # as it advises


def test_few_places_are_alike_by_chance(model):
    numbers = {name: torch.tensor([0.6, 0.6]) for name in ("agreement", "stability", "head", "half", "all")}
    others = ("steps", "outlier_tokens", "outlier_relevance", "prefix_relevance", "completeness")
    numbers["stability"] = torch.ones(2)
    verdicts = {n: Trust(**numbers, **dict.fromkeys(others), places=n).verdicts[0] for n in (4, 11, 12, 16, 200)}
    assert verdicts == {4: "passes", 11: "passes", 12: "fails", 16: "fails", 200: "fails"}  # 1.96 / sqrt(11) = 0.591
    assert check(CDAM(model), IMAGES, TARGETS).places == 16


@pytest.mark.parametrize(
    ("explainer", "options", "error", "words"),
    [
        (lambda model: model, {}, TypeError, "attribution with a method `attribute`"),
        (lambda _: CDAM, {}, TypeError, r"as CDAM\(model\)"),
        (CDAM, {"repeats": 1}, ValueError, "at least 2"),
        (CDAM, {"repeats": "two"}, TypeError, "repeats"),
        (CDAM, {"n_steps": 3}, TypeError, "n_steps"),
    ],
)
def test_wrong_calls(model, explainer, options, error, words):
    with pytest.raises(error, match=words):
        check(explainer(model), IMAGES, TARGETS, **options)


@pytest.mark.slow
def test_the_example_counts_verdicts_and_shares(tmp_path, capsys):
    import trust as example

    example.main(["--scenes", "2", "--out", str(tmp_path)])
    table = (tmp_path / "trust.md").read_text()
    assert table in capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line.split("|")[-4:-1] for line in table.split("\n\n")[0].splitlines()[2:]}
    assert [int(x) for x in rows["random numbers"]] == [0, 0, 4]
    assert all(sum(map(int, counts)) == 4 for counts in rows.values())
    assert len(rows) == 12
