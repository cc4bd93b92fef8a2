"""A small LLaVA of a frozen vision tower and frozen word embeddings, trained here to say what is on the left.

`LlavaForConditionalGeneration` of transformers: image tokens of a DINOv2, a projector, a Llama of two layers. Only the
projector and the Llama learn. As the tower is frozen, its features are computed once; `seen` puts them in its place.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pair_scenes import PairScenes
from torch import Tensor, nn
from torchvision.transforms.functional import normalize
from tqdm import tqdm
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

QUESTIONS = ("what is on the left", "what is on the right")
REQUEST = "describe the picture :"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of DINOv2's images
IMAGE = "[unused1]"  # a word of BERT's vocabulary that no text has; stands for a patch


@dataclass(frozen=True)
class Training:
    """How long and how fast to train; `width` is that of the decoder."""

    steps: int = 500
    batch_size: int = 32
    learning_rate: float = 2e-3
    width: int = 128
    layers: int = 2


def build(tower: PreTrainedModel, words: Tensor, tokenizer: Any, side: int, training: Training) -> Any:
    """A LLaVA with this vision tower, for images of `side` pixels; its word embeddings are `words`, (words, channels).

    They are projected to the decoder's width by the directions in which they vary most, and read out the answers, too.
    """
    patches = side // tower.config.patch_size
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=training.width,
        intermediate_size=2 * training.width,
        num_hidden_layers=training.layers,
        num_attention_heads=4,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        max_position_embeddings=2 * patches**2,
    )
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=patches**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    centred = words.detach() - words.detach().mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -training.width :]
    projected = centred @ directions
    model.get_input_embeddings().weight.data = 0.2 * projected / projected.pow(2).mean().sqrt()
    tower.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(False)
    return model.eval()


class seen(nn.Module):  # noqa: N801 - read as a `with` statement
    """A `with` block in which a LLaVA's vision tower is not run: what it makes of the given images is known.

    Args:
        model: The LLaVA.
        features: (images, channels, height, width), see `features_of`; of the images that the model is then given.
    """

    def __init__(self, model: Any, features: Tensor) -> None:
        super().__init__()
        self._held, self._tower = [model.model], model.model.vision_tower
        self.hidden = F.pad(features.float().flatten(2).mT, (0, 0, 1, 0))  # LLaVA drops the class token

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """In the tower's place."""
        if len(pixel_values) != len(self.hidden):
            raise ValueError(
                f"Expected the {len(self.hidden)} images whose features are known, got {len(pixel_values)}."
            )
        return BaseModelOutput(last_hidden_state=self.hidden, hidden_states=(self.hidden,))

    def __enter__(self) -> None:
        self._held[0].vision_tower = self

    def __exit__(self, *_: object) -> None:
        self._held[0].vision_tower = self._tower


def pixels_of(images: Tensor) -> Tensor:
    """Pictures of bytes as a DINOv2 reads them."""
    return normalize(images.float() / 255, MEAN, STD)


@torch.no_grad()
def features_of(model: Any, images: Tensor, cache: Path) -> Tensor:
    """What the vision tower makes of images: (images, channels, height, width) as float16, also kept in a file."""
    tower = model.model.vision_tower
    key = hashlib.sha256(images.numpy().tobytes())
    for weight in tower.state_dict().values():
        key.update(weight.numpy().tobytes())
    file = cache / f"features-{key.hexdigest()[:16]}.pt"
    if file.exists():
        known: Tensor = torch.load(file, weights_only=True)
        return known
    parts = []
    for part in tqdm(images.split(16), desc="looking", unit="batch"):
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast
            hidden = tower(pixels_of(part), output_hidden_states=True).hidden_states[-1][:, 1:]
        parts.append(hidden.mT.unflatten(2, (int(hidden.shape[1] ** 0.5), -1)).half())
    cache.mkdir(parents=True, exist_ok=True)
    features = torch.cat(parts)
    torch.save(features, file)
    return features


def prompt(model: Any, tokenizer: Any, texts: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """What a processor returns for images of bytes and a text for each, all of one number of tokens."""
    config = model.config
    start = [tokenizer.cls_token_id, *[config.image_token_id] * config.image_seq_length]
    ids = torch.tensor([start + words for words in tokenizer(list(texts), add_special_tokens=False)["input_ids"]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels_of(images)}


def logits_for(
    model: Any, tokenizer: Any, texts: Sequence[str], answers: Sequence[str], images: Tensor, features: Tensor
) -> tuple[Tensor, Tensor]:
    """The answers' tokens and the end, (batch, tokens), and the logits in the rows that predict them."""
    ended = tokenizer([f"{answer} {tokenizer.sep_token}" for answer in answers], add_special_tokens=False)
    answer = torch.tensor(ended["input_ids"])  # all of one length: each kind is one word
    inputs = prompt(model, tokenizer, texts, images)
    ids = torch.cat([inputs["input_ids"], answer[:, :-1]], 1)
    with seen(model, features):
        logits = model(ids, inputs["pixel_values"], logits_to_keep=answer.shape[1], use_cache=False).logits
    return answer, logits


def train(model: Any, tokenizer: Any, scenes: PairScenes, features: Tensor, training: Training) -> None:
    """Learn by AdamW with a cosine decay; at each step scenes are described, and of four times as many one is named."""
    _standardise(model.model.multi_modal_projector.linear_1, features)
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, training.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, training.steps, pct_start=0.1)
    words, sentences = (scenes.words(0), scenes.words(1)), scenes.sentences()
    model.train()
    with tqdm(range(training.steps), desc="training", unit="step") as bar:
        for _ in bar:
            order, size = torch.randperm(len(features)), training.batch_size
            described, named = order[: size // 4], order[size // 4 : size // 4 + size]
            sides = [number % 2 for number in range(len(named))]
            asked = [
                (described, [REQUEST] * len(described), [sentences[i] for i in described]),
                (named, [QUESTIONS[side] for side in sides], [words[s][i] for s, i in zip(sides, named, strict=True)]),
            ]
            loss = torch.zeros(())
            for chosen, texts, answers in asked:
                given = scenes.images[chosen], features[chosen]
                with torch.autocast("cpu", torch.bfloat16):
                    answer, logits = logits_for(model, tokenizer, texts, answers, *given)
                of_tokens = F.cross_entropy(logits.float().flatten(0, 1), answer.flatten(), reduction="sum")
                loss = loss + of_tokens / len(answers)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{float(loss):.3f}")
    model.eval()


@torch.no_grad()
def _standardise(linear: nn.Linear, features: Tensor) -> None:
    """Let a layer read features as if their channels had mean 0 and variance 1; it goes on learning from there."""
    some = features[:256].float().transpose(0, 1).flatten(1)
    mean, std = some.mean(1), some.std(1) + 1e-6
    linear.weight.normal_(std=len(mean) ** -0.5).div_(std)
    linear.bias.copy_(-linear.weight @ mean)


@torch.no_grad()
def right_answers(model: Any, tokenizer: Any, scenes: PairScenes, features: Tensor) -> Tensor:
    """(scenes, 3) booleans: is the left one named, the right one, and is the whole sentence right?"""
    asked = [
        *((question, scenes.words(side)) for side, question in enumerate(QUESTIONS)),
        (REQUEST, scenes.sentences()),
    ]
    found = []
    for text, answers in asked:
        right = []
        for start in range(0, len(answers), 32):
            part = slice(start, start + 32)
            given = answers[part], scenes.images[part], features[part]
            answer, logits = logits_for(model, tokenizer, [text] * len(given[0]), *given)
            same = logits.argmax(-1) == answer
            right.append(same.all(1) if text == REQUEST else same[:, 0])
        found.append(torch.cat(right))
    return torch.stack(found, 1)
