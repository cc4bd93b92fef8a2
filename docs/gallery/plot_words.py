"""
Words of a text
===============

A review praises the food and complains about the service. A text model with an output for each of them can be asked
twice, and the same words get other colours: this page colours the words of a sentence by ``IntegratedCDAM`` for both
questions.
"""

# %%
# Sentences whose answer is known
# -------------------------------
#
# Each sentence says something about two of four things, in either order: good or bad. The model has an output for
# each thing: 1 for good, -1 for bad, 0 if nothing is said of it. The words that decide are known: each thing has
# adjectives of its own, so that "tasty" always speaks for the food, "bland" against it, and neither says anything of
# the service.

import random

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from captum_ext import CDAM, AttentionMap, IntegratedCDAM
from captum_ext.signed_overlay import SIGNED

torch.manual_seed(0)
random.seed(0)
THINGS = ["food", "service", "music", "room"]
GOOD = [["tasty", "fresh"], ["friendly", "prompt"], ["tuneful", "moving"], ["cosy", "bright"]]
BAD = [["bland", "stale"], ["rude", "slow"], ["loud", "shrill"], ["cramped", "dark"]]
OWN = [good + bad for good, bad in zip(GOOD, BAD, strict=True)]  # the adjectives of each thing
ADJECTIVES = [word for words in OWN for word in words]
PARTS = ["[CLS]", "the", "was", "but", "and", "really", "[SEP]"]
WORDS = [*PARTS, *THINGS, *ADJECTIVES]


def review():
    """Words, and for each thing 1, -1 or 0."""
    things = random.sample(range(4), 2)
    adjectives = [random.choice(OWN[thing]) for thing in things]
    said = [
        ["the", THINGS[thing], "was", *random.choice([["really"], []]), word]
        for thing, word in zip(things, adjectives, strict=True)
    ]
    said_of = dict(zip(things, adjectives, strict=True))
    wanted = [float(1 if said_of[thing] in GOOD[thing] else -1) if thing in said_of else 0.0 for thing in range(4)]
    return ["[CLS]", *said[0], random.choice(["but", "and"]), *said[1], "[SEP]"], wanted


def batch(reviews):
    """Token ids, padded, and the attention mask."""
    longest = max(len(words) for words in reviews)
    ids = torch.tensor([[WORDS.index(word) for word in words] + [0] * (longest - len(words)) for words in reviews])
    mask = torch.tensor([[1] * len(words) + [0] * (longest - len(words)) for words in reviews])
    return ids, mask


# %%
# A small BERT
# ------------
#
# It has a single layer: what its one attention reads is the words themselves, and not what another layer made of
# them.

sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, num_labels=4, **sizes)
model = BertForSequenceClassification(config)
optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
for _ in range(150):
    words, wanted = zip(*[review() for _ in range(64)], strict=True)
    ids, mask = batch(words)
    loss = F.mse_loss(model(ids, attention_mask=mask).logits, torch.tensor(wanted))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model.eval()
words, wanted = zip(*[review() for _ in range(200)], strict=True)
ids, mask = batch(words)
right = model(ids, attention_mask=mask).logits.round() == torch.tensor(wanted)
print(f"{right.float().mean():.1%} of the outputs are right, rounded")

# %%
# Two questions about one sentence
# --------------------------------

sentence = "[CLS] the food was really tasty but the service was slow [SEP]"
words = sentence.split(" ")
ids, mask = batch([words])
maps = IntegratedCDAM(model).attribute_targets(ids, [0, 1], additional_forward_args=mask)[0]  # (2, words)
attention = AttentionMap(model).attribute(ids, additional_forward_args=mask)[0]
outputs = model(ids, attention_mask=mask).logits[0].tolist()
print(f"the food: {outputs[0]:+.2f}, the service: {outputs[1]:+.2f}")

rows = {"how good is the food?": maps[0], "how good is the service?": maps[1], "attention (both)": attention}
figure, axes = plt.subplots(3, 1, figsize=(7.5, 2.7), layout="constrained")
for axis, (title, scores) in zip(axes, rows.items(), strict=True):
    inner = scores[1:-1] / scores[1:-1].abs().max()
    axis.imshow(inner[None], cmap=SIGNED, vmin=-1, vmax=1, aspect="auto")
    for place, word in enumerate(words[1:-1]):
        axis.text(place, 0, word, ha="center", va="center", fontsize=12)
    axis.set_title(title, fontsize=12, loc="left")
    axis.set_xticks([])
    axis.set_yticks([])
plt.show()

# %%
# One sentence proves nothing, but the answer is known for all: the word with the largest absolute score for a thing
# should be the thing's own adjective.

methods = {
    "CDAM": CDAM(model),
    "Integrated CDAM": IntegratedCDAM(model),
}
hits = {name: [] for name in methods}
for _ in range(60):
    words, _ = review()
    ids, mask = batch([words])
    things = [WORDS.index(word) - len(PARTS) for word in words if word in THINGS]
    places = [place for place, word in enumerate(words) if word in ADJECTIVES]
    for name, method in methods.items():
        scores = method.attribute_targets(ids, things, additional_forward_args=mask)[0, :, 1:-1]
        found = (1 + scores.abs().argmax(1)).tolist()
        hits[name] += [one == place for one, place in zip(found, places, strict=True)]
for name, found in hits.items():
    print(f"{name}: the thing's own adjective has the largest score in {sum(found) / len(found):.0%}")

# %%
# What this shows, and what it does not
# -------------------------------------
#
# The sentence has one attention map, which cannot answer two questions; Integrated CDAM gives each its own word and
# sign. Plain CDAM is a linear estimate of it, and cheaper by little: the list above says what that costs here. The
# shares above say how often the largest score is on the word that decides. They hold for a model of one layer. In a
# BERT of twelve the last attention reads tokens that have already read each other, and what an adjective says may
# have moved to another word: a map is then about tokens, and only in part about words.
