"""The question that is asked is the one that is answered: concepts, functions, bags, batches with a bad sample."""

import functools

import pytest
import timm
import torch
import transformers
from captum.attr import NoiseTunnel
from torch import nn

from captum_ext import (
    CDAM,
    AttentionRollout,
    ConceptTarget,
    ContrastTarget,
    IntegratedCDAM,
    PartialLRP,
    RelevancePropagation,
    SmoothCDAM,
    TextTarget,
)

WAYS = [CDAM, IntegratedCDAM, RelevancePropagation]


def vit(classes=5, **options):
    torch.manual_seed(0)
    made = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        depth=2,
        embed_dim=32,
        num_heads=2,
        num_classes=classes,
        **options,
    )
    return made.double().eval()


IMAGES = torch.randn(4, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(1))


class Bag(nn.Module):
    """Tiles of one slide: one prediction."""

    def __init__(self, groups=1):
        super().__init__()
        self.vit, self.groups = vit(8), groups
        self.head = nn.Linear(8, 3).double()

    def forward(self, tiles):
        return self.head(self.vit(tiles).unflatten(0, (self.groups, -1)).amax(1))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("target", [1, [1], torch.tensor([1]), lambda output: output[1]])
def test_a_bag_of_inputs_has_one_prediction(method, target):
    bag = Bag().eval()
    found = method(bag).attribute(IMAGES, target)
    if method is CDAM:  # the largest features come from different tiles, each explained by what it has given
        expected = torch.zeros(4, 17, dtype=torch.double)
        for k, tile in enumerate(bag.vit(IMAGES).argmax(0)):
            of_feature = CDAM(bag.vit).attribute(IMAGES, k, return_tokens=True)
            expected[tile] += bag.head.weight[1, k].detach() * of_feature[tile]
        tokens = CDAM(bag).attribute(IMAGES, target, return_tokens=True)
        torch.testing.assert_close(tokens, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, method(lambda x: bag(x)[:, 1]).attribute(IMAGES))
    with pytest.raises(ValueError, match=r"one `target` per prediction, 1 for this batch, got 4"):
        method(bag).attribute(IMAGES, [1, 1, 1, 1])


def test_scores_of_a_bag_are_complete_together():
    bag = Bag().eval()
    integrated = IntegratedCDAM(bag)
    parts, delta = integrated.attribute(IMAGES, 1, return_tokens=True, return_convergence_delta=True, n_steps=400)
    assert delta.shape == (1,)
    exact, last = integrated.attribute(IMAGES, 1, return_tokens=True, return_convergence_delta=True, n_steps=800)
    # the sum of all tiles' scores misses the difference of the two outputs by the delta, which falls with the steps
    torch.testing.assert_close(parts.sum() - delta[0], exact.sum() - last[0], rtol=1e-9, atol=1e-12)
    assert abs(float(last)) < 0.6 * abs(float(delta))
    with pytest.raises(ValueError, match="4 samples belong to which of the 2 predictions"):
        IntegratedCDAM(Bag(2).eval()).attribute(IMAGES, 1, return_convergence_delta=True)


def test_a_bad_sample_of_a_bag_spoils_the_bag():
    bad = IMAGES.clone()
    bad[1, 0, 3, 4] = torch.nan
    for method in WAYS:
        with pytest.raises(ValueError, match=r"1 prediction\(s\) of 4 samples together.*sample\(s\) \[1\]"):
            method(Bag().eval()).attribute(bad, 1, on_error="nan")


def test_two_bags_have_two_predictions():
    bags = Bag(2).eval()
    found = CDAM(bags).attribute(IMAGES, [1, 2])
    alone = [
        CDAM(lambda x: bags.head(bags.vit(x).amax(0, keepdim=True))).attribute(part, k)
        for part, k in ((IMAGES[:2], 1), (IMAGES[2:], 2))
    ]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-9, atol=1e-12)


def test_more_predictions_than_samples_are_refused_and_the_advice_works():
    model = vit(6)
    frames = lambda x: model(x).view(-1, 3)  # noqa: E731 # two predictions for each sample
    with pytest.raises(
        ValueError, match=r"shape \(8, 3\), which is not one prediction.*output=lambda y: y.unflatten\(0, \(4, -1\)\)"
    ):
        CDAM(frames).attribute(IMAGES, 2)
    found = CDAM(frames, output=lambda y: y.unflatten(0, (4, -1))).attribute(IMAGES, (1, 2))
    torch.testing.assert_close(found, CDAM(model).attribute(IMAGES, 5))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", [*WAYS, PartialLRP, SmoothCDAM])
def test_a_batch_of_one_may_be_squeezed(method):
    def maps(forward, *target):
        further = {"generator": torch.Generator().manual_seed(0)} if method is SmoothCDAM else {}
        return method(forward).attribute(IMAGES[:1], *target, **further)

    age, classes = vit(1), vit(5)
    torch.testing.assert_close(maps(lambda x: age(x).squeeze()), maps(age, 0))
    torch.testing.assert_close(maps(lambda x: classes(x).squeeze(), 3), maps(classes, 3))
    with pytest.raises(ValueError, match="leave `target` None"):
        maps(lambda x: age(x).squeeze(), 0)


@pytest.mark.parametrize("method", WAYS)
def test_a_function_of_a_samples_output_is_a_target(method):
    model = vit()
    explainer = method(model)
    torch.testing.assert_close(explainer.attribute(IMAGES, lambda output: output[3]), explainer.attribute(IMAGES, 3))
    each = [lambda output, k=k: output[k] for k in (0, 2, 4, 1)]
    torch.testing.assert_close(explainer.attribute(IMAGES, each), explainer.attribute(IMAGES, [0, 2, 4, 1]))
    if method is CDAM:
        both = explainer.attribute_targets(IMAGES, [lambda output: output[2] - 2 * output[1], 2, 1])
        torch.testing.assert_close(both[:, 0], both[:, 1] - 2 * both[:, 2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", WAYS)
def test_a_function_may_change_what_it_is_given(method):
    explainer = method(vit())
    found = explainer.attribute(IMAGES, lambda output: output.mul_(2)[3])
    torch.testing.assert_close(found, explainer.attribute(IMAGES, lambda output: 2 * output[3]))


@pytest.mark.parametrize("function", [lambda output: output[:2], lambda output: 3.0, lambda output: output.argmax()])
def test_a_function_must_return_a_number_with_a_gradient(function):
    with pytest.raises(ValueError, match=r"return one number, a tensor, for the output of one sample, of shape \(5,\)"):
        CDAM(vit()).attribute(IMAGES, function)


class Encoder(nn.Module):
    """A sentence encoder: mean of BERT's last states, perhaps projected."""

    def __init__(self, width=None):
        super().__init__()
        torch.manual_seed(0)
        config = transformers.BertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            vocab_size=99,
            initializer_range=0.2,
        )
        self.bert = transformers.BertModel(config)
        self.projection = nn.Linear(32, width) if width else nn.Identity()

    def forward(self, ids):
        return self.projection(self.bert(ids).last_hidden_state.mean(1))


IDS = torch.randint(0, 99, (2, 7), generator=torch.Generator().manual_seed(2))


def similarity(encoder, vector):
    return CDAM(lambda ids: torch.cosine_similarity(encoder(ids), vector[None])).attribute(IDS)


@pytest.mark.parametrize("width", [None, 8])
def test_a_vector_is_compared_with_the_representation_of_its_width(width):
    encoder = Encoder(width).double().eval()
    other = encoder(IDS[:1, :5])[0].detach()
    found = CDAM(encoder).attribute(IDS, ConceptTarget(other, "cosine"))
    torch.testing.assert_close(found, similarity(encoder, other), rtol=1e-9, atol=1e-12)


def test_a_vector_that_fits_twice_asks_and_latent_answers():
    encoder = Encoder(32).double().eval()
    vector = encoder(IDS[:1, :5])[0].detach()
    with pytest.raises(ValueError, match=r"head reads, of shape \(2, 32\), and its output.*`latent=.head.` or"):
        CDAM(encoder).attribute(IDS, ConceptTarget(vector))
    of_output = CDAM(encoder).attribute(IDS, ConceptTarget(vector, "cosine", latent="output"))
    torch.testing.assert_close(of_output, similarity(encoder, vector), rtol=1e-9, atol=1e-12)
    mean = Encoder().double().eval()
    mean.bert = encoder.bert
    for latent in ("head", encoder.bert.pooler):
        concept = ConceptTarget(vector, "cosine", latent=latent)
        reads = mean if latent == "head" else lambda ids: encoder.bert(ids).pooler_output
        expected = similarity(reads, vector)
        torch.testing.assert_close(CDAM(encoder).attribute(IDS, concept), expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="Linear that is not run"):
        CDAM(encoder).attribute(IDS, ConceptTarget(vector, latent=nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"BertOutput, given as `latent`, returns shape \(2, 7, 32\)"):
        CDAM(encoder).attribute(IDS, ConceptTarget(vector, latent=encoder.bert.encoder.layer[-1].output))
    with pytest.raises(TypeError, match=r"`latent` to be 'head', 'output', a torch.nn.Module or None, got 'pooler'"):
        ConceptTarget(vector, latent="pooler")


def test_examples_and_explanations_use_the_same_place():
    encoder = Encoder(32).double().eval()
    for latent, reads in (("output", encoder), ("head", lambda ids: encoder.bert(ids).last_hidden_state.mean(1))):
        concept = ConceptTarget.from_examples(encoder, IDS, latent=latent)
        torch.testing.assert_close(concept.vector, reads(IDS).mean(0).detach())
        expected = CDAM(lambda ids, reads=reads, concept=concept: reads(ids) @ concept.vector).attribute(IDS)
        torch.testing.assert_close(CDAM(encoder).attribute(IDS, concept), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [*WAYS, AttentionRollout])
def test_one_bad_sample_costs_its_own_map(method):
    model, bad = vit(), IMAGES.clone()
    bad[1, 0, 3, 4] = torch.nan
    target = [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"NaN or infinity in sample\(s\) \[1\]"):
        method(model).attribute(bad, target)
    with pytest.warns(UserWarning, match=r"maps of sample\(s\) \[1\] are NaN.*Check the preprocessing") as told:
        found = method(model).attribute(bad, target, on_error="nan")
    assert len(told) == 1
    assert told[0].filename == __file__
    if method is IntegratedCDAM:
        with pytest.warns(UserWarning, match="are NaN"):
            _, delta = method(model).attribute(bad, target, on_error="nan", return_convergence_delta=True)
        assert delta.isnan().tolist() == [False, True, False, False]
    good = [0, 2, 3]
    torch.testing.assert_close(found[good], method(model).attribute(IMAGES, target)[good])
    assert bool(found[1].isnan().all())
    assert bool(bad[1].isnan().any())
    with pytest.raises(ValueError, match=r"`on_error` to be one of \('raise', 'nan'\), got 'skip'"):
        method(model).attribute(bad, target, on_error="skip")


def test_a_sample_without_gradient_costs_its_own_map():
    model = vit()
    gated = lambda x: model(x) * torch.tensor([1.0, 1.0, 0.0, 1.0])[:, None]  # noqa: E731
    with pytest.raises(ValueError, match=r"No patch token has a gradient for sample\(s\) \[2\]"):
        CDAM(gated).attribute(IMAGES, 1)
    with pytest.warns(UserWarning, match=r"\[2\] are NaN"):
        found = CDAM(gated).attribute(IMAGES, 1, on_error="nan")
    assert found.isnan().flatten(1).all(1).tolist() == [False, False, True, False]
    torch.testing.assert_close(found[:2], CDAM(model).attribute(IMAGES[:2], 1))


def test_baselines_in_a_tuple_are_those_of_the_inputs():
    model = vit()
    expected = IntegratedCDAM(model).attribute(IMAGES, 1, baselines=0.1)
    (found,) = IntegratedCDAM(model).attribute((IMAGES,), 1, baselines=(0.1,))
    assert torch.equal(found, expected)
    options = {"nt_type": "smoothgrad", "nt_samples": 1, "stdevs": 0.0, "target": 1, "baselines": 0.1}
    torch.testing.assert_close(NoiseTunnel(IntegratedCDAM(model)).attribute(IMAGES, **options), expected)


def test_contrasts_are_differences_of_maps():
    explainer = CDAM(vit())
    maps = explainer.attribute_targets(IMAGES, [3, 0, 4])
    contrasts = explainer.attribute_contrasts(IMAGES, [3, 0, 4])
    for a in range(3):
        for b in range(3):
            torch.testing.assert_close(contrasts[:, a, b], maps[:, a] - maps[:, b])
    single = explainer.attribute(IMAGES, ContrastTarget(3, 4))
    torch.testing.assert_close(single[:, 0], contrasts[:, 0, 2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(explainer.attribute(IMAGES, ContrastTarget([3] * 4, lambda output: output[4])), single)


def test_contrasts_of_paths_are_complete():
    model = vit()
    integrated = IntegratedCDAM(model)
    found, deltas = integrated.attribute_contrasts(IMAGES, [3, 4], return_convergence_delta=True)
    one, delta = integrated.attribute(IMAGES, ContrastTarget(3, 4), return_convergence_delta=True)
    torch.testing.assert_close(found[:, 0, 1], one[:, 0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(deltas[:, 0, 1], delta, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", WAYS)
def test_contrasts_of_probabilities_have_their_own_gradient(method):
    explainer = method(vit())
    by_hand = explainer.attribute(IMAGES, lambda output: output.softmax(0)[3] - output.softmax(0)[1])
    torch.testing.assert_close(explainer.attribute(IMAGES, ContrastTarget(3, 1, probabilities=True)), by_hand)
    with pytest.raises(TypeError, match="Expected classes where probabilities are compared"):
        ContrastTarget(3, lambda output: output[1], probabilities=True)
    with pytest.raises(TypeError, match="no contrasts themselves"):
        ContrastTarget(ContrastTarget(1, 2), 3)


def tokenizer(text, *, return_tensors, padding, truncation):
    """Ids of words by their lengths, as a processor returns them."""
    assert (return_tensors, truncation) == ("pt", True)
    PADDINGS.append(padding)
    return {"input_ids": torch.tensor([[*(len(word) for word in one.split()), 99] for one in text])}


PADDINGS = []


def embedding_models():
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text, image = small | {"vocab_size": 100}, small | {"image_size": 32, "patch_size": 8}
    ends = {"eos_token_id": 99, "bos_token_id": 1}
    clip = transformers.CLIPConfig(text_config=text | ends, vision_config=image, projection_dim=16)
    siglip = transformers.SiglipConfig(text_config=text | ends | {"pad_token_id": 0}, vision_config=image)
    return {"clip": transformers.CLIPModel(clip), "siglip": transformers.SiglipModel(siglip)}


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_text_is_a_target_for_images(name):
    torch.manual_seed(0)
    model = embedding_models()[name].double()
    images, words = IMAGES[:2], ["a photo of a dog", "a drawing of some cats"]
    words_as_ids = tokenizer(words, return_tensors="pt", padding=True, truncation=True)
    model.train()

    def similarity(pixels):
        image, text = model.get_image_features(pixels), model.get_text_features(**words_as_ids)
        return torch.cosine_similarity(image.pooler_output[:, None], text.pooler_output[None], dim=2)

    explainer = CDAM(model.get_image_features)
    targets = [TextTarget(model, tokenizer, word) for word in words]
    assert model.training
    assert PADDINGS[-1] == ("max_length" if name == "siglip" else True)  # as SigLIP was trained
    model.eval()
    expected = CDAM(similarity).attribute_targets(images, [0, 1])
    torch.testing.assert_close(explainer.attribute_targets(images, targets), expected, rtol=1e-6, atol=1e-9)
    against = TextTarget(model, tokenizer, words[0], against=words[1])
    contrast = explainer.attribute(images, against)[:, 0]
    torch.testing.assert_close(contrast, expected[:, 0] - expected[:, 1], rtol=1e-6, atol=1e-9)


def test_a_text_target_says_what_is_wrong():
    embed = lambda texts: torch.ones(len(texts), 4)  # noqa: E731
    with pytest.raises(TypeError, match="`tokenizer` to be callable"):
        TextTarget(embed, None, "dog")
    with pytest.raises(TypeError, match="`text` to be a string, got 3"):
        TextTarget(embed, list, 3)
    with pytest.raises(ValueError, match=r"embeddings \(1, channels\), got shape \(4,\)"):
        TextTarget(lambda texts: torch.ones(4), list, "dog")


def test_one_side_of_a_siamese_model_is_explained_with_the_other_embedded_first():
    backbone = vit(6)
    held = []

    def siamese(a, b):  # as the model itself would: both sides through one backbone
        return torch.cosine_similarity(backbone(a), backbone(b))

    other = backbone(IMAGES.flip(0)).detach()
    found = CDAM(lambda a: torch.cosine_similarity(backbone(a), other)).attribute(IMAGES)

    def exchange(_, __, output):
        held.append(output.detach().requires_grad_() if not held else output)
        return held[-1]

    with backbone.blocks[-1].norm1.register_forward_hook(exchange):
        (gradient,) = torch.autograd.grad(siamese(IMAGES, IMAGES.flip(0)).sum(), held[:1])
    expected = (held[0] * gradient).sum(-1)[:, 1:].view(4, 1, 4, 4)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [CDAM, RelevancePropagation])
def test_named_further_arguments_are_refused_and_the_advice_works(method):
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model, ids = transformers.BertForSequenceClassification(config).eval(), torch.randint(1, 30, (2, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    advice = r"got a dictionary of \[.attention_mask.\].*partial\(model, attention_mask=...\)"
    with pytest.raises(TypeError, match=advice):
        method(model).attribute(ids, 1, {"attention_mask": mask})
    advised = method(functools.partial(model, attention_mask=mask)).attribute(ids, 1)
    torch.testing.assert_close(advised, method(model).attribute(ids, 1, mask))
