"""Asked what is on the left, does the map of the answer lie on the left thing? On a small LLaVA that is trained here.

    python examples/answer_captioner.py                        # digits; downloads DINOv2 and MiniLM from the Hub
    python examples/answer_captioner.py --data fruit           # photographs of fruit, see pair_scenes.py
    python examples/answer_captioner.py --quick                # no download: random weights, 10 s

A frozen DINOv2, the word embeddings of MiniLM, also frozen, and a Llama of two layers between them, which learns to
answer "what is on the left" and to say "an apple left of a banana". On scenes of things it has not seen, each method
explains the answers that are right. Writes captioner.md, .csv and .png to `out/`, and captioner.html, a page on which
each word of a sentence shows its evidence.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from box_evidence import measured, table
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pair_captioner import (
    IMAGE,
    QUESTIONS,
    REQUEST,
    Training,
    build,
    features_of,
    prompt,
    right_answers,
    seen,
    train,
)
from pair_scenes import PairScenes, Things, load_things, make_scenes
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, Dinov2Config, Dinov2Model, PreTrainedModel, PreTrainedTokenizerFast

from captum_ext import (
    CDAM,
    AttentionMap,
    AttentionRollout,
    IntegratedCDAM,
    RelevancePropagation,
    SmoothCDAM,
    signed_overlay,
)

Explain = Callable[[dict[str, Tensor], list[str], list[str]], Tensor]
DRAWN = ("CDAM", "CDAM, last attention but one", "relevance propagation", "Grad-CAM")


@dataclass(frozen=True)
class Parts:
    """What the captioner is made of, and things to see."""

    tower: PreTrainedModel
    words: Tensor
    tokenizer: Any
    things: dict[str, Things]


def main(given: list[str] | None = None) -> None:
    """Train, answer, explain, score, draw."""
    args = _arguments(given)
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    parts = quick_parts() if args.quick else real_parts(args)
    seen_scenes, unseen = (
        make_scenes(parts.things[split], count, args.seed + number, args.side)
        for number, (split, count) in enumerate([("train", args.train_scenes), ("test", args.scenes)])
    )
    training = Training(steps=args.steps)
    model = build(parts.tower, parts.words, parts.tokenizer, args.side, training)
    train(model, parts.tokenizer, seen_scenes, features_of(model, seen_scenes.images, args.out), training)
    features = features_of(model, unseen.images, args.out)
    right = right_answers(model, parts.tokenizer, unseen, features)
    maps, questions = explained(model, parts.tokenizer, unseen, features, right[:, :2])
    scenes, sides = questions.unbind(1)
    scores = measured(maps, unseen.boxes[scenes, sides], unseen.boxes[scenes, 1 - sides], scenes.tolist())
    scores.to_csv(args.out / "captioner.csv", index=False)
    text = report(right, questions, scores)
    (args.out / "captioner.md").write_text(text + "\n")
    picture(unseen, maps, questions).savefig(args.out / "captioner.png", dpi=110)
    write_page(model, parts.tokenizer, unseen, features, right[:, 2], args.out / "captioner.html")
    print(f"{text}\n\nwrote {args.out}/captioner.md, .csv, .png and .html in {time.perf_counter() - start:.0f} s")


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help='a folder of photographs with boxes, or "digits"')
    parser.add_argument("--vision", default="facebook/dinov2-small", help="name or folder of a DINOv2")
    parser.add_argument("--text", default="sentence-transformers/all-MiniLM-L6-v2", help="name or folder of a BERT")
    parser.add_argument("--side", type=int, default=154, help="pixels of a scene; DINOv2 makes a token of 14 x 14")
    parser.add_argument("--train-scenes", type=int, default=900)
    parser.add_argument("--scenes", type=int, default=300, help="number of scenes to answer and explain")
    parser.add_argument("--steps", type=int, default=500, help="training steps, of 32 scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--quick", action="store_true", help="random weights and three digits, to try the script")
    args = parser.parse_args(given)
    if args.quick:
        args.side, args.train_scenes, args.scenes, args.steps = 56, 100, 24, 60
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def real_parts(args: argparse.Namespace) -> Parts:
    """Pretrained ones."""
    words = AutoModel.from_pretrained(args.text).get_input_embeddings().weight
    things = {split: load_things(args.data, split) for split in ("train", "test")}
    tower = AutoModel.from_pretrained(args.vision).eval()
    return Parts(tower, words, AutoTokenizer.from_pretrained(args.text), things)


def quick_parts() -> Parts:
    """Random ones, and three digits."""
    things = {split: dict(list(load_things("digits", split).items())[:3]) for split in ("train", "test")}
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56, "patch_size": 7}
    named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", IMAGE]
    text = [*" ".join(QUESTIONS).split(), *["describe", "the", "picture", ":", "a", "of"], *things["train"]]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*named, *text]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    return Parts(Dinov2Model(Dinov2Config(**sizes)).eval(), torch.randn(len(vocabulary), 128), wrapped, things)


def methods(model: Any, tokenizer: Any) -> dict[str, Explain]:
    """Functions of prompts, answers, and the words for the other thing, that return maps (batch, h, w)."""
    explainers: dict[str, Any] = {
        "CDAM": CDAM(model),
        "Integrated CDAM": IntegratedCDAM(model),
        "Smooth CDAM": SmoothCDAM(model),
        "CDAM, last attention but one": CDAM(model, attention=-2),
        "last attention": AttentionMap(model),
        "attention rollout": AttentionRollout(model),
        "relevance propagation": RelevancePropagation(model),
    }

    def of(explainer: Any) -> Explain:
        return lambda inputs, answers, _: explainer.attribute_answer(inputs, answers, tokenizer=tokenizer).images[0]

    def against(inputs: dict[str, Tensor], answers: list[str], others: list[str]) -> Tensor:
        found: Tensor = explainers["CDAM"].attribute_answer(inputs, answers, others, tokenizer).images[0]
        return found

    def uniform(inputs: dict[str, Tensor], *_: list[str]) -> Tensor:
        side = int(model.config.image_seq_length**0.5)
        return torch.ones(len(inputs["input_ids"]), side, side)

    all_methods = {name: of(explainer) for name, explainer in explainers.items()}
    ours = {"CDAM": all_methods.pop("CDAM"), "CDAM, against the other": against}
    return ours | all_methods | {"Grad-CAM": grad_cam(model, tokenizer), "uniform": uniform}


class _LastRow(nn.Module):
    """Of given prompts the logits in the last row, (batch, words), whatever is passed."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, _: Tensor) -> Tensor:
        logits: Tensor = self.model(**self.inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
        return logits


def grad_cam(model: Any, tokenizer: Any) -> Explain:
    """pytorch-grad-cam's GradCAM at the norm in front of the last attention, of the image tokens as channels of a grid.

    That is where CDAM looks, too. As always in pytorch-grad-cam, negative sums are cut off.
    """
    side = int(model.config.image_seq_length**0.5)

    def on_grid(tokens: Tensor) -> Tensor:
        return tokens[:, 1 : 1 + side**2].mT.unflatten(2, (side, side))  # behind the token that begins

    def explain(inputs: dict[str, Tensor], answers: list[str], _: list[str]) -> Tensor:
        targets = [ClassifierOutputTarget(word) for word in tokenizer.convert_tokens_to_ids(answers)]
        layer = model.model.language_model.layers[-1].input_layernorm
        with GradCAM(_LastRow(model, inputs), [layer], reshape_transform=on_grid) as cam:
            found = cam(torch.zeros(len(answers), 1, side, side), targets)  # its size is the size of the maps
        model.zero_grad()
        return torch.from_numpy(found)

    return explain


def explained(
    model: Any, tokenizer: Any, scenes: PairScenes, features: Tensor, right: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Maps of the right answers to both questions.

    Args:
        model: The captioner.
        tokenizer: Its tokenizer.
        scenes: What it sees.
        features: What its vision tower makes of them.
        right: (scenes, 2), which questions are answered right.

    Returns:
        Of each method (questions, h, w), and (questions, 2): the scene, and 0 for left or 1 for right.

    Raises:
        ValueError: if none is answered right.
    """
    if not bool(right.any()):
        raise ValueError("None of the questions is answered right: there is nothing to explain. Train more --steps.")
    chosen = [right[:, side].nonzero().flatten() for side in (0, 1)]
    batches = [(side, part) for side in (0, 1) for part in chosen[side].split(16) if len(part)]
    named = methods(model, tokenizer)
    maps: dict[str, list[Tensor]] = {name: [] for name in named}
    with tqdm(total=len(batches) * len(named), desc="explaining", unit="batch") as bar:
        for side, part in batches:
            inputs = prompt(model, tokenizer, [QUESTIONS[side]] * len(part), scenes.images[part])
            answers, others = ([scenes.words(one)[i] for i in part] for one in (side, 1 - side))
            with seen(model, features[part]):
                for name, explain in named.items():
                    maps[name].append(explain(inputs, answers, others).detach())
                    bar.update()
    questions = [torch.stack([part, torch.full_like(part, side)], 1) for side, part in batches]
    return {name: torch.cat(found) for name, found in maps.items()}, torch.cat(questions)


def report(right: Tensor, questions: Tensor, scores: pd.DataFrame) -> str:
    """What was answered, and the table."""
    shares = [f"{float(share):.1%}" for share in right.float().mean(0)]
    return (
        f"Of {len(right)} unseen scenes the left thing is named right in {shares[0]}, the right one in {shares[1]}, "
        f"and the sentence in {shares[2]}.\nThe maps of {len(questions)} right answers, of "
        f"{len(questions[:, 0].unique())} scenes: shares of the positive relevance on the image inside the box of the "
        f"thing asked for and of the other one.\n\n{table(scores, 'CDAM')}\n\nMeans over scenes with 95 % bootstrap "
        "intervals. `asked > other`: the part of questions in which more lies in the asked box. Last column: paired "
        "Wilcoxon tests of `asked - other` over scenes, corrected by Holm, and their rank-biserial correlation."
    )


def picture(scenes: PairScenes, maps: dict[str, Tensor], questions: Tensor, count: int = 3) -> Figure:
    """The first scenes of which both questions are answered right, or some questions, each map on its own scale."""
    place = {(int(scene), int(side)): number for number, (scene, side) in enumerate(questions)}
    both = [scene for scene in range(len(scenes.images)) if {(scene, 0), (scene, 1)} <= set(place)][:count]
    rows = [(scene, side) for scene in both for side in (0, 1)] or list(place)[: 2 * count]
    figure = Figure(figsize=(2.1 * (len(DRAWN) + 1), 2.15 * len(rows) + 0.6), layout="constrained")
    figure.suptitle("Red speaks for the answer, blue against it; the box is that of the thing asked for", fontsize=12)
    axes = figure.subplots(len(rows), len(DRAWN) + 1, squeeze=False)
    side_length = scenes.images.shape[-1]
    for row, (scene, side) in enumerate(rows):
        image = scenes.images[scene].float() / 255
        axes[row, 0].imshow(image.permute(1, 2, 0).numpy())
        axes[row, 0].set_ylabel(f"{QUESTIONS[side]}\n{scenes.words(side)[scene]}", fontsize=9)
        for column, name in enumerate(DRAWN, start=1):
            heat = maps[name][place[scene, side]]
            axes[row, column].imshow(signed_overlay(0.6 + 0.4 * image, heat, float(heat.abs().max()) or 1.0))
            axes[0, column].set_title(name, fontsize=10)
        left, top, right, bottom = (scenes.boxes[scene, side] * side_length).tolist()
        for axis in axes[row]:
            axis.set_xticks([])
            axis.set_yticks([])
            corner = (left - 0.5, top - 0.5)
            axis.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor="limegreen"))
    return figure


def write_page(
    model: Any, tokenizer: Any, scenes: PairScenes, features: Tensor, right: Tensor, path: Path, scene: int = 0
) -> None:
    """The page about the sentence for one of the scenes whose sentence is right, or, if there is none, of all."""
    known = right.nonzero().flatten().tolist() or list(range(len(right)))
    chosen = slice(known[scene], known[scene] + 1)
    inputs = prompt(model, tokenizer, [REQUEST], scenes.images[chosen])
    with seen(model, features[chosen]):
        maps = RelevancePropagation(model).attribute_answer(inputs, scenes.sentences()[chosen], tokenizer=tokenizer)
    maps.html([scenes.images[chosen][0].float() / 255], path)


if __name__ == "__main__":
    main()
