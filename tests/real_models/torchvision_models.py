"""Tiny models of torchvision."""

from functools import partial

from torchvision.models import vision_transformer as torchvision_vit

from .cases import CLASSES, PATCH, WIDTH, Case, Entry, class_token_of, images, randomised


def conv_stem():
    return [torchvision_vit.ConvStemConfig(8, 3, 2), torchvision_vit.ConvStemConfig(16, 3, 4)]


def torchvision_case(**options):
    settings = {"image_size": 32, "patch_size": PATCH, "num_layers": 2, "num_heads": 4, "hidden_dim": WIDTH}
    model = torchvision_vit.VisionTransformer(**settings, mlp_dim=64, num_classes=CLASSES, **options)
    model = randomised(model)
    inputs = images()
    latents = partial(class_token_of, model.encoder.ln, partial(model, inputs))
    return Case(model, inputs, model.encoder.layers[-1].ln_1, 1, (4, 4), latents)


TORCHVISION_CASES = {
    "torchvision": Entry(torchvision_case, quick=True),
    "torchvision-pre-logits": Entry(lambda: torchvision_case(representation_size=24)),
    "torchvision-conv-stem": Entry(lambda: torchvision_case(conv_stem_configs=conv_stem())),
}
