"""Token faithfulness: Spearman's correlation with the effects that the whole model has without each key."""

import numpy as np
import pytest
import quantus
import torch
from captum.attr import LayerAttribution
from contracts import left_as_found
from games import IMAGES, shaken
from left_out_keys import effects
from scipy.stats import spearmanr
from score_derivations import A, X, Y, counted, net
from torch import nn
from toy_models import tiny_vit

import quantus_metrics
from adapters.maps_on_grid import on_grid, spearman
from captum_ext import CDAM, AttentionMap, TokenAblation
from quantus_metrics import TokenFaithfulness, explain_func, token_faithfulness
from xai_compare._metrics import metrics_named

TARGETS = torch.tensor([1, 2])
MAPS = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(8)).double()


def by_hand(model, maps, score):
    """Of the model run again without each key, and of means of 8 x 8 pixels."""
    found = effects(model, (IMAGES,), score, 17)[:, 1:]
    means = maps.view(2, 4, 8, 4, 8).mean((2, 4)).flatten(1)
    return [spearmanr(a, b).statistic for a, b in zip(means, found, strict=True)]


def of_class(outputs):
    return outputs[[0, 1], TARGETS]


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_is_spearmans_correlation_with_the_effects_of_single_tokens(pool):
    model = shaken(tiny_vit(global_pool=pool))
    expected = by_hand(model, MAPS, of_class)
    assert token_faithfulness(model, IMAGES, TARGETS, MAPS).tolist() == pytest.approx(expected, abs=1e-12)
    metric = TokenFaithfulness()
    assert metric(model, IMAGES.numpy(), TARGETS.numpy(), MAPS.numpy()) == pytest.approx(expected, abs=1e-12)
    with_channels = MAPS[:, None].expand(-1, 3, -1, -1).numpy() / 3
    last = IMAGES.numpy().transpose(0, 2, 3, 1)
    found = metric(model, last, TARGETS.numpy(), with_channels, channel_first=False)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exact_effects_score_1_and_their_opposite_minus_1(mode, dtype):
    """Interpolation would blur what is averaged again."""
    model = shaken(tiny_vit())
    maps = LayerAttribution.interpolate(TokenAblation(model).attribute(IMAGES, TARGETS), (32, 32), mode).to(dtype)
    assert token_faithfulness(model, IMAGES, TARGETS, maps).tolist() == pytest.approx([1, 1], abs=1e-12)
    assert token_faithfulness(model, IMAGES, TARGETS, -maps).tolist() == pytest.approx([-1, -1], abs=1e-12)


@pytest.mark.parametrize("end", [[], [nn.Softmax(1)]])
def test_logits_are_read_in_front_of_a_softmax_and_probabilities_on_request(end):
    vit = shaken(tiny_vit())
    model = nn.Sequential(vit, *end)
    assert token_faithfulness(model, IMAGES, TARGETS, MAPS).tolist() == pytest.approx(by_hand(vit, MAPS, of_class))
    expected = by_hand(vit, MAPS, lambda y: of_class(y.softmax(-1)))
    assert token_faithfulness(model, IMAGES, TARGETS, MAPS, softmax=True).tolist() == pytest.approx(expected)
    assert expected != pytest.approx(by_hand(vit, MAPS, of_class))


def test_functions_and_single_logits_are_asked():
    model = shaken(tiny_vit())
    functions = [lambda y: y[1] - y[3], lambda y: y[2].exp()]
    expected = by_hand(model, MAPS, lambda y: torch.stack([y[0, 1] - y[0, 3], y[1, 2].exp()]))
    assert token_faithfulness(model, IMAGES, functions, MAPS).tolist() == pytest.approx(expected)
    single = shaken(tiny_vit(num_classes=1))
    expected = by_hand(single, MAPS, lambda y: y[:, 0] * torch.tensor([-1.0, 1.0]))
    assert token_faithfulness(single, IMAGES, torch.tensor([0, 1]), MAPS).tolist() == pytest.approx(expected)


def test_no_image_is_perturbed_and_all_explanations_share_one_pass():
    model, metric = shaken(tiny_vit()), TokenFaithfulness()
    seen, inputs = counted(model), (IMAGES.numpy(), TARGETS.numpy())
    first = metric(model, *inputs, MAPS.numpy())
    assert seen == [2]
    assert metric(model, *inputs, -MAPS.numpy()) == pytest.approx([-one for one in first])
    assert seen == [2]
    model.head.weight.data *= -1  # the model changed
    assert metric(model, *inputs, MAPS.numpy()) != pytest.approx(first)
    assert seen == [2, 2]


def test_a_sample_is_scored_by_itself_and_all_is_left_as_found():
    model, metric = shaken(tiny_vit(drop_rate=0.5)), TokenFaithfulness()
    expected = token_faithfulness(model, IMAGES, TARGETS, MAPS).tolist()
    model(IMAGES).sum().backward()
    model.train()
    given = [value.numpy() for value in (IMAGES.clone(), TARGETS, MAPS.clone())]
    for value in given:
        value.setflags(write=False)
    with left_as_found(model):
        for size in (1, 2, 64):
            assert TokenFaithfulness()(model, *given, batch_size=size) == pytest.approx(expected)
        alone = [metric(model, *(value[i : i + 1] for value in given))[0] for i in (1, 0)]
    assert alone == pytest.approx(expected[::-1])


def test_maps_and_effects_that_are_the_same_everywhere_are_undefined():
    model, metric = shaken(tiny_vit()), TokenFaithfulness(disable_warnings=True)
    maps = MAPS.clone()
    maps[1] = 3
    scores = metric(model, IMAGES.numpy(), TARGETS.numpy(), maps.numpy())
    assert scores[1] == 0 != scores[0]
    assert metric.undefined == [1]
    model.head.weight.data[2] = 0
    assert metric(model, IMAGES.numpy(), TARGETS.numpy(), MAPS.numpy())[1] == 0
    assert metric.undefined == [1]


def test_maps_are_averaged_unless_they_were_interpolated_from_the_grid():
    coarse = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)).double()
    for size in ((24, 40), (26, 41), (3, 5)):
        fine = torch.nn.functional.interpolate(coarse[:, None], size, mode="bilinear")[:, 0]
        torch.testing.assert_close(on_grid(fine, (3, 5)), coarse, rtol=1e-9, atol=1e-9)
    fine[0, 1, 2] += 0.01  # of the last one, a map of single places, which are themselves
    torch.testing.assert_close(on_grid(fine, (3, 5)), fine, rtol=0, atol=1e-13)
    pixels = torch.randn(2, 24, 40).double()
    expected = pixels.view(2, 3, 8, 5, 8).mean((2, 4))
    torch.testing.assert_close(on_grid(pixels, (3, 5)), expected)
    both = torch.stack([pixels[0], torch.nn.functional.interpolate(coarse[:1, None], (24, 40), mode="bilinear")[0, 0]])
    torch.testing.assert_close(on_grid(both, (3, 5)), torch.stack([expected[0], coarse[0]]))
    signal = torch.randn(2, 12).double()
    torch.testing.assert_close(on_grid(signal, (4,)), signal.view(2, 4, 3).mean(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(24, 40), (26, 41), (50, 90), (3, 5)])
def test_places_of_equal_values_stay_equal(dtype, size):
    levels = torch.randint(4, (9, 3, 5), generator=torch.Generator().manual_seed(1)).to(dtype) / 3
    levels[0] = 0.7
    fine = torch.nn.functional.interpolate(levels[:, None], size, mode="bilinear")[:, 0]
    for maps in (fine, levels.repeat_interleave(8, 1).repeat_interleave(8, 2)):
        found = on_grid(maps, (3, 5))
        assert [len(one.unique()) for one in found] == [len(one.unique()) for one in levels]
        torch.testing.assert_close(found, levels.double(), rtol=0, atol=64 * torch.finfo(dtype).eps)


def test_equal_values_share_their_rank():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randint(4, (5, 3, 7), generator=draw) for _ in range(2))
    expected = [spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b, strict=True)]
    assert spearman(a, b).tolist() == pytest.approx(expected)
    assert spearman(torch.ones(1, 4), torch.arange(4.0)[None]).tolist() == [0]


class Dropped(nn.Module):
    """Half of the patches are dropped, so that the tokens lie on no grid."""

    def __init__(self):
        super().__init__()
        self.vit = tiny_vit()

    def forward(self, x):
        tokens = self.vit.patch_embed(x)
        return self.vit.head(self.vit.blocks(tokens[:, [0, 3, 5, 6, 9, 12, 15]])[:, 0])


def test_models_without_tokens_on_a_grid_are_told_so():
    with pytest.raises(ValueError, match=r"no attention was seen.*Leave this metric out"):
        TokenFaithfulness()(net(), X, Y, A)
    with pytest.raises(ValueError, match=r"shape \(2, 7, 32\).*cannot be told.*Leave this metric out"):
        token_faithfulness(shaken(Dropped()), IMAGES, TARGETS, MAPS)
    with pytest.raises(ValueError, match=r"classes from 0 to 4.*got 1 to 7"):
        token_faithfulness(shaken(tiny_vit()), IMAGES, torch.tensor([1, 7]), MAPS)
    left = metrics_named(["all"], {})
    assert len(left) == 12
    assert "token-faithfulness" not in left
    assert list(metrics_named(["token-faithfulness"], {})) == ["token-faithfulness"]


@pytest.mark.filterwarnings("ignore")  # Quantus' own
def test_runs_in_quantus_and_ranks_methods(capsys):
    model, methods = shaken(tiny_vit()).float(), {"CDAM": CDAM, "ablation": TokenAblation, "attention": AttentionMap}
    explain = {name: explain_func(method) for name, method in methods.items()}
    x = IMAGES.float().numpy()
    metric = quantus.TokenFaithfulness()
    scores = quantus.evaluate({"it": metric}, explain, model, x, TARGETS.numpy(), explain_func_kwargs={})
    assert "Failed" not in capsys.readouterr().out
    assert scores["ablation"]["it"] == pytest.approx([1, 1])
    assert np.mean(scores["CDAM"]["it"]) > np.mean(scores["attention"]["it"])
    maps = LayerAttribution.interpolate(CDAM(model).attribute(IMAGES.float(), TARGETS), (32, 32))
    assert quantus_metrics.token_faithfulness(model, IMAGES.float(), TARGETS, maps).tolist() == pytest.approx(
        scores["CDAM"]["it"]
    )
