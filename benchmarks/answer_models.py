"""Of which language models answers are explained, and how far from plain autograd: writes docs/answer-models.md.

    .venv/bin/python benchmarks/answer_models.py
    .venv/bin/python benchmarks/answer_models.py --match Llama --out /tmp/answers.md

Every causal language model of the installed transformers, tiny and with random weights, and the models of images and
texts in tests/tiny_vlms.py. The references are hooks and autograd: tests/zoo_truth.py for decoders,
tests/word_by_word.py for the others, for each token of an answer of two.
"""

import argparse
import gc
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm

from captum_ext import CDAM

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny_vlms
import word_by_word
import zoo
import zoo_truth
from zoo.cases import Case

ANSWER = (9, 11)
MESSAGE = 90
GENERATION = {"eos_token_id": None, "pad_token_id": 0, "suppress_tokens": list(range(12, 40))}


class Rows(nn.Module):
    """A model's logits at the two places that predict the answer, for a prompt with its first token behind it."""

    def __init__(self, model: nn.Module, named: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.named = model, named

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, 2, words)."""
        logits: Tensor = self.model(input_ids=ids, **self.named).logits[:, -2:]
        return logits


Difference = Callable[[nn.Module, dict[str, Any], Tensor], str]


def row_of(name: str, model: nn.Module, inputs: dict[str, Any], difference_of: Difference) -> tuple[str, ...]:
    """A line of the table: difference to autograd, how generation was explained, and what was said."""
    given = {key: value for key, value in inputs.items() if not key.startswith("_") and key != "labels"}
    try:
        maps = CDAM(model).attribute_answer(given, list(ANSWER))
    except Exception as error:  # of any kind: that is what the table is about
        return name, "-", "-", _shown(error)
    difference = difference_of(model, given, maps.per_token)
    try:
        generated = CDAM(model).explain_generation(given, 3, generation=GENERATION)
        same = CDAM(model).attribute_answer(given, generated.answer_ids).scores
        apart = float((generated.scores - same).abs().max() / same.abs().max())
        return name, difference, f"{generated.way}, {apart:.0e}", ""
    except Exception as error:
        return name, difference, "-", _shown(error)


def _difference(model: nn.Module, given: dict[str, Any], found: Tensor) -> str:
    """The largest to autograd, in parts of the largest score of each token; or that there is no reference."""
    more = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0}
    named = {
        key: torch.cat([x, torch.full_like(x[:, :1], more[key])], 1) if key in more else x
        for key, x in given.items()
        if key != "input_ids"
    }
    ids = torch.cat([given["input_ids"], torch.full_like(given["input_ids"][:, :1], ANSWER[0])], 1)
    rows, worst = Rows(model, named), 0.0
    for number, token in enumerate(ANSWER):
        truth = zoo_truth.explain(Case(rows, ids, None, (number, token), rows))
        known = [one.scores[:, :-1] for one in (truth, truth.module) if one is not None and one.scores is not None]
        known = [one for one in known if one.shape == found[:, number].shape]
        if not known:
            return "no reference"
        worst = max(worst, min(float((found[:, number] - one).abs().max() / one.abs().max()) for one in known))
    return f"{worst:.0e}"


def _difference_of_reader(model: nn.Module, given: dict[str, Any], found: Tensor) -> str:
    """The same for a model that reads images, word by word."""
    expected = word_by_word.by_hand(model, given, list(ANSWER))
    errors = (found[0] - expected).abs().amax(-1) / expected.abs().amax(-1)
    return f"{float(errors.max()):.0e}"


def _shown(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:MESSAGE]}".replace("|", "\\|")


def rows_of_decoders(match: str) -> list[tuple[str, ...]]:
    """Of all causal language models that can be built."""
    found = []
    chosen = [entry for entry in zoo.entries() if "CAUSAL" in entry.group.upper() and match in entry.name]
    for entry in tqdm(chosen, desc="decoders"):
        try:
            case = entry.make()
        except Exception as error:
            found.append((entry.name, "-", "-", f"not built: {_shown(error)}"))
            continue
        if isinstance(case.inputs, Tensor):
            found.append(row_of(entry.name, case.model, {"input_ids": case.inputs[:, :-1]}, _difference))
        del case
        gc.collect()
    return found


def rows_of_readers(match: str) -> list[tuple[str, ...]]:
    """Of the models of images and texts, each with a prompt of three images of different sizes."""
    found = []
    for name in tqdm([one for one in tiny_vlms.FAMILIES if match in one], desc="images and texts"):
        images = tiny_vlms.pictures(tiny_vlms.FAMILIES[name].sizes)
        prompt = tiny_vlms.texts_of(name, len(images) + 1)[0]
        inputs = tiny_vlms.process(name, images, texts=[prompt])
        found.append(row_of(name, tiny_vlms.model_of(name), inputs, _difference_of_reader))
    return found


def table(rows: list[tuple[str, ...]]) -> str:
    """Markdown."""
    head = ("model", "difference to autograd", "generation, and its difference to the same answer given", "said")
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="a part of the names of models")
    parser.add_argument("--out", type=Path, default=Path("docs/answer-models.md"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    readers, decoders = rows_of_readers(args.match), rows_of_decoders(args.match)
    equal = sum(row[1] not in ("-", "no reference") and float(row[1]) < 1e-5 for row in decoders)
    args.out.write_text(
        "# Language models whose answers are explained\n\n"
        f"Tiny models of transformers {version('transformers')} with random weights, in float64 (some of them compute "
        "norms, gates or rotary embeddings in float32: differences of 1e-7). Written by `python "
        "benchmarks/answer_models.py`: `CDAM.attribute_answer` of two tokens against hooks and autograd "
        "(tests/zoo_truth.py, tests/word_by_word.py), the largest difference in parts of the largest score; "
        "`explain_generation` of three tokens against these tokens given as an answer, and whether it needed more than "
        "the passes of generation.\n\n"
        f"## Models of images and texts\n\nThree images in a prompt, made by its processor.\n\n{table(readers)}\n"
        f"## Decoders\n\n{equal} of {len(decoders)} agree with autograd.\n\n{table(decoders)}"
    )
    print(f"wrote {args.out}: {equal} of {len(decoders)} decoders agree with autograd")


if __name__ == "__main__":
    main()
