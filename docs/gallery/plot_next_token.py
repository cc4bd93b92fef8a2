"""
What the next token is read from
================================

A small language model is asked to recall: after "cat red rome … ? colour" it should say "red". From which word of the
prompt does it read that? The right place is known here, so the maps of its answer can be checked.
"""

# %%
# A task of recall
# ----------------
#
# A prompt has a word of each of six kinds in random order, a question mark, and the kind that is asked for. A Llama
# of two layers is trained for seconds to say the word of that kind.

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from captum_ext import CDAM, AttentionMap, IntegratedCDAM
from captum_ext.signed_overlay import SIGNED

torch.manual_seed(0)
KINDS = {
    "animal": ["cat", "dog", "owl", "fox"],
    "colour": ["red", "blue", "gold", "grey"],
    "city": ["rome", "oslo", "lima", "bern"],
    "food": ["rice", "bread", "plum", "corn"],
    "number": ["two", "five", "six", "nine"],
    "tool": ["saw", "file", "drill", "rake"],
}
NAMES = ["?", *KINDS, *(word for words in KINDS.values() for word in words)]
MANY = len(KINDS)


def prompts(count):
    """Token ids (count, 8), the answers, and the places where they stand."""
    order = torch.rand(count, MANY).argsort(1)  # which kind stands where
    words = 1 + MANY + 4 * order + torch.randint(4, (count, MANY))
    asked = torch.randint(MANY, (count, 1))
    where = (order == asked).int().argmax(1)
    ids = torch.cat([words, torch.zeros_like(asked), 1 + asked], 1)
    return ids, words[torch.arange(count), where], where


sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(NAMES), bos_token_id=None, eos_token_id=None, **sizes))
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
for _ in range(250):
    ids, answers, _ = prompts(64)
    loss = F.cross_entropy(model(ids, logits_to_keep=1).logits[:, -1], answers)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model.eval()
ids, answers, where = prompts(200)
said = model(ids).logits[:, -1].argmax(1)
print(f"{(said == answers).float().mean():.1%} of 200 new questions are answered rightly")

# %%
# Maps of the answer
# ------------------
#
# ``attribute_answer`` explains given answers, and ``explain_generation`` what the model generates. Both return a
# score for each token of the prompt.

methods = {
    "CDAM, last attention": CDAM(model),
    "CDAM, first attention": CDAM(model, attention=0),
    "Integrated CDAM, first attention": IntegratedCDAM(model, attention=0),
    "attention weights, last layer": AttentionMap(model),
}
maps = {
    name: one.attribute_answer({"input_ids": ids}, answer=answers[:, None].tolist()) for name, one in methods.items()
}
for name, found in maps.items():
    words = found.scores[:, :MANY]  # the question itself is not what the answer is copied from
    highest, strongest = (one.argmax(1) == where for one in (words, words.abs()))
    print(
        f"{name}: of the six words the right one has the highest score in {highest.float().mean():.0%}, "
        f"the largest absolute score in {strongest.float().mean():.0%}"
    )

# %%
# One prompt
# ----------
#
# The framed word is the one to be read. Scores are in parts of the largest of the six words.

words = [NAMES[number] for number in ids[0].tolist()]
figure, axes = plt.subplots(len(maps), 1, figsize=(7.5, 3.9), layout="constrained")
for axis, (name, found) in zip(axes, maps.items(), strict=True):
    scores = found.scores[0] / found.scores[0, :MANY].abs().max()
    axis.imshow(scores[None], cmap=SIGNED, vmin=-1, vmax=1, aspect="auto")
    for place, word in enumerate(words):
        axis.text(place, 0, word, ha="center", va="center", fontsize=12)
    axis.add_patch(plt.Rectangle((int(where[0]) - 0.5, -0.5), 1, 1, fill=False, linewidth=3))
    axis.set_title(f"{name}: why “{NAMES[int(answers[0])]}”", fontsize=12, loc="left")
    axis.set_xticks([])
    axis.set_yticks([])
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# The right word is known for each prompt, so the shares above say which map finds it. In this model the first
# attention copies the word: maps of the last one, which is what most methods look at, are late. And plain CDAM finds
# the place with the wrong sign: it is a linear estimate at the tokens as they are, and this attention is so sure of
# its word that a small change moves it the other way. Integrated CDAM, which adds up the whole path from no tokens to
# these, has the sign right. Both are about this task, in which the answer is copied from one place; in your model,
# look at more than one attention, and let ``check`` compare a map with exact effects.
