"""Every family of video and sound models of transformers and torchvision: scores equal plain autograd."""

import pytest
import torch
import zoo_truth
from video_and_sound import NAMED, SOUNDS, VIDEO, VIDEOS, WAVE, gradients, hf, made, target_of, tokens_read
from zoo.cases import built, case, noise

from captum_ext import CDAM, AttentionMap, AttentionRollout, IntegratedCDAM, SmoothCDAM

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
FAMILIES = [name if name in NAMED else pytest.param(name, marks=pytest.mark.slow) for name in (*VIDEOS, *SOUNDS)]
IN_PARTS = ("TimeSformer", "Swin3D")  # whose last attention is within frames or windows


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_equal_autograd_at_what_the_last_attention_reads(name):
    model, inputs, readers = made(name)
    target = target_of(name)
    scores = CDAM(model).attribute(inputs, target, return_tokens=True)
    if not readers:  # functional: the reference that goes by the weights' names
        expected = zoo_truth.explain(case(model, inputs, target)).scores
        torch.testing.assert_close(scores.flatten(), expected.flatten(), **CLOSE)
        return
    tokens = tokens_read(model, inputs, readers)
    expected = (tokens * gradients(model, inputs, readers, tokens, target)).sum(-1)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(scores.flatten(), expected.flatten(), **CLOSE)

    mean = sum(gradients(model, inputs, readers, k / 4 * tokens, target) for k in (1, 2, 3, 4)) / 4
    found = IntegratedCDAM(model).attribute(inputs, target, n_steps=4, baselines=0.0, return_tokens=True)
    torch.testing.assert_close(found.flatten(), (tokens * mean).sum(-1).flatten(), **CLOSE)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", FAMILIES)
def test_maps_have_the_grid_of_the_patches_and_targets_agree(name):
    model, inputs, _ = made(name)
    grid, target = (VIDEOS | SOUNDS)[name][2], target_of(name)
    single = (2, 1, *grid) if len(grid) == 2 else (2, *grid)
    heat = CDAM(model).attribute(inputs, target)
    assert heat.shape == single
    other = (0, 2) if isinstance(target, tuple) else 2
    both = CDAM(model).attribute_targets(inputs, [other, target])
    assert both.shape == (2, 2, *grid)
    torch.testing.assert_close(both[:, 1].reshape(single), heat, **CLOSE)
    alone = CDAM(model).attribute(inputs[1:], target)
    torch.testing.assert_close(alone, heat[1:], **CLOSE)
    smooth = SmoothCDAM(model).attribute(inputs, target, nt_samples=2, generator=torch.Generator().manual_seed(0))
    assert smooth.shape == single
    assert not torch.allclose(smooth, heat)
    if name in IN_PARTS:
        with pytest.raises(ValueError, match=r"looks at parts of the tokens alone\. Take CDAM"):
            AttentionMap(model).attribute(inputs)
    else:
        attention = AttentionMap(model).attribute(inputs, return_tokens=True)
        torch.testing.assert_close(attention.sum(1), torch.ones_like(attention[:, 0]))
        assert AttentionMap(model).attribute(inputs).shape == single


@pytest.mark.parametrize("name", ["TimeSformer", pytest.param("Swin3D", marks=pytest.mark.slow)])
def test_rollout_of_attention_within_parts_is_refused(name):
    model, inputs, _ = made(name)
    with pytest.raises(ValueError, match=r"looks at parts of the tokens alone\. Take CDAM"):
        AttentionRollout(model).attribute(inputs)


def test_timesformer_maps_every_frame_although_its_last_attention_sees_one():
    model, inputs, readers = made("TimeSformer")
    tokens = tokens_read(model, inputs, readers)
    assert tokens.shape == (8, 5, 16)  # a copy of the class token in front of each frame's patches
    torch.testing.assert_close(tokens[0, 0], tokens[1, 0])
    scores = (tokens * gradients(model, inputs, readers, tokens, 1)).sum(-1).view(2, 4, 5)
    heat = CDAM(model).attribute(inputs, 1)
    torch.testing.assert_close(heat, scores[:, :, 1:].view(2, 4, 2, 2), **CLOSE)
    assert (heat.abs().amax((2, 3)) > 0).all()  # of no frame is it blank
    moved = CDAM(model).attribute(inputs.flip(1), 1)
    assert not torch.allclose(moved.flip(1), heat)  # positions in time count


def test_frames_that_are_explained_each_for_itself_are_refused_and_the_advice_works():
    model = built(hf("TimesformerForVideoClassification", patch_size=8, attention_type="space_only", **VIDEO))
    inputs = noise(2, 4, 3, 16, 16)
    with pytest.raises(ValueError, match=r"shape \(8, 3\).*y.unflatten\(0, \(2, -1\)\).*`y.logits` where"):
        CDAM(model).attribute(inputs, 1)
    explainer = CDAM(model, output=lambda y: y.logits.unflatten(0, (2, -1)))
    heat = explainer.attribute(inputs, (2, 1))
    assert (heat[:, [0, 1, 3]] == 0).all()
    assert (heat[:, 2] != 0).any()
    whole = CDAM(model, output=lambda y: y.logits.unflatten(0, (2, -1)).sum(1)).attribute(inputs, 1)
    torch.testing.assert_close(whole[:, 2], heat[:, 2], **CLOSE)


@pytest.mark.parametrize("name", ["Wav2Vec2", pytest.param("WavLM", marks=pytest.mark.slow)])
def test_sounds_of_different_lengths_have_a_mask(name):
    part = name.lower()
    model = built(hf(f"{name}ForSequenceClassification", **WAVE, feat_extract_norm="layer", do_stable_layer_norm=True))
    waves, mask = noise(2, 400), torch.ones(2, 400, dtype=torch.long)
    mask[1, 250:] = 0
    readers = [model.get_submodule(f"{part}.encoder.layers.1.attention")]
    tokens = tokens_read(model, waves, readers, mask)
    expected = (tokens * gradients(model, waves, readers, tokens, 1, mask)).sum(-1)
    found = CDAM(model).attribute(waves, 1, mask)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (found[1, 25:] == 0).all()  # what is padded has no part
    assert (found[1, :20] != 0).all()


def test_a_softmax_of_its_own_is_refused_and_the_advice_works():
    model = built(hf("SEWDForSequenceClassification", **WAVE, squeeze_factor=2))
    waves = noise(2, 400)
    with pytest.raises(ValueError, match=r"No attention was seen.*pass `layer=`"):
        CDAM(model).attribute(waves, 1)
    layer = model.sew_d.encoder.encoder.layer[-1].attention
    tokens = tokens_read(model, waves, [layer])
    expected = (tokens * gradients(model, waves, [layer], tokens, 1)).sum(-1)
    found = CDAM(model, layer=layer).attribute(waves, 1, attribute_to_layer_input=True)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_the_families_are_those_of_transformers():
    from transformers.models.auto import modeling_auto

    names = {
        *modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES.values(),
        *modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES.values(),
    }
    tested = {type(build()).__name__ for build, *_ in (*VIDEOS.values(), *SOUNDS.values())}
    assert names <= tested | {"SEWDForSequenceClassification"}


def cell(name, place, inputs):
    """The part of an input on which a place of the grid lies."""
    grid = (VIDEOS | SOUNDS)[name][2]
    shape = inputs.shape[1:]
    if name == "AST":  # (time, frequency)
        sizes, order = (shape[1], shape[0]), (1, 0)
    else:
        channels = 0 if shape[0] == 3 else 1
        sizes, order = shape[:channels] + shape[channels + 1 :], None
    parts = [slice(k * size // n, (k + 1) * size // n) for k, size, n in zip(place, sizes, grid, strict=True)]
    parts = [parts[k] for k in order] if order else [*parts[:channels], slice(None), *parts[channels:]]
    return (slice(None), *parts)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["V-JEPA 2", "VideoPrism", "Swin3D", "AST"])
def test_places_are_those_of_the_patches(name):
    """In a copy of the model whose blocks hardly mix, a token depends on its own patch almost alone."""
    model, inputs, _ = made(name)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if any(part in key for part in ("attn.proj.", "mlp.3.", ".proj.weight", "fc2", "output.dense", "o_proj")):
                weight *= 1e-4
    explainer = CDAM(model)
    tokens = explainer.tokens(inputs)
    flat = tokens.values.flatten(1, -2)
    grid = tuple(tokens.order.shape)
    assert grid == (VIDEOS | SOUNDS)[name][2]
    for number in range(0, tokens.order.numel(), 5):
        place = tuple(int(k) for k in torch.unravel_index(torch.tensor(number), grid))
        changed = inputs.clone()
        changed[cell(name, place, inputs)] += 1.0
        difference = (explainer.tokens(changed).values.flatten(1, -2) - flat).abs().sum((0, 2))
        assert int(difference.argmax()) == int(tokens.order[place])
