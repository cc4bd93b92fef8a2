"""Which parts a random model has: what goes together is decided here and nowhere else."""

import random
from types import SimpleNamespace
from typing import Any


class Draw:
    """Draws parts and keeps their names."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.parts: list[str] = []

    def one(self, name: str, *choices: Any) -> Any:
        """One of the choices, each as likely."""
        choice = self.random.choice(choices)
        self.parts.append(f"{name}: {choice}")
        return choice

    def rare(self, name: str, *choices: str, chance: float = 0.2) -> str:
        """Mostly "none"."""
        if self.random.random() > chance:
            return "none"
        return self.one(name, *choices)

    def flag(self, name: str, chance: float = 0.15) -> bool:
        if self.random.random() > chance:
            return False
        self.parts.append(name)
        return True


def draw_options(draw: Draw) -> SimpleNamespace:
    """Which parts a model has: what goes together is decided here and nowhere else."""
    o = SimpleNamespace()
    o.heads = draw.random.choice([2, 4])
    o.dim = draw.random.choice([16, 32])
    o.depth = draw.random.choice([1, 2, 3])
    o.batch = draw.random.choice([2, 3, 4, 5])
    o.grid = draw.random.choice([(4, 4), (2, 8), (4, 5), (3, 6), (5, 4)])
    o.backbone = draw.rare("backbone", "timm", "timm", "torchvision", chance=0.15)
    if o.backbone == "none":
        _draw_tokens(draw, o)
        _draw_attention(draw, o)
        _draw_blocks(draw, o)
        _draw_pool(draw, o)
    else:
        _draw_library(draw, o)
    _draw_head(draw, o)
    _draw_surroundings(draw, o)
    _draw_switch(draw, o)
    return o


def _draw_tokens(draw: Draw, o: SimpleNamespace) -> None:
    o.embed = draw.one("embedding", "conv", "unfold", "reshape", "words", "words", "stem")
    o.prefix = draw.one("prefix", "none", "class first", "class first", "class last", "registers", "prompts")
    o.before = {"class first": 1, "registers": 3, "prompts": 1}.get(o.prefix, 0)
    o.after = {"class last": 1, "prompts": 3}.get(o.prefix, 0)
    o.patches = o.grid[0] * o.grid[1]
    o.tokens = o.before + o.patches + o.after
    o.inputs_changed = draw.flag("inputs changed in place", 0.1)


def _draw_attention(draw: Draw, o: SimpleNamespace) -> None:
    o.attention = draw.one(
        "attention", "sdpa", "sdpa", "matmul", "einsum", "bmm", "loop", "nn.MultiheadAttention", "encoder layer"
    )
    o.mask = draw.rare(
        "mask", "additive", "boolean", "from input", "causal", "causal", "argument", "empty row", chance=0.35
    )
    o.projection, o.qk_norm, o.token_bias, o.temperature, o.talking, o.gate = "fused", "none", *[False] * 4
    if o.attention == "encoder layer":
        o.position, o.tokens_first, o.cut = draw.one("position", "none", "added"), False, "none"
        return
    o.tokens_first = draw.flag("tokens first", 0.08)
    if o.attention == "nn.MultiheadAttention":
        o.position = draw.one("position", "none", "added", "keys and queries")
        o.cut = draw.rare("cut", "no_grad", chance=0.03)
        return
    o.position = draw.one("position", "none", "added", "keys and queries", "rotary")
    cuts = ["query detached", "value detached", "key detached", "no_grad"]
    o.cut = draw.rare("cut", *cuts, *([] if o.attention == "sdpa" else ["weights no_grad"]), chance=0.1)
    o.projection = draw.one("projection", "fused", "three", "grouped")
    o.qk_norm = draw.rare("query and key norm", "layer norm", "RMS", "unit length", chance=0.12)
    o.token_bias = draw.flag("bias from tokens", 0.12)
    o.temperature = draw.flag("temperature per head", 0.12)
    o.talking = o.attention != "sdpa" and draw.flag("talking heads", 0.15)
    o.gate = o.projection == "three" and draw.flag("gate in query's linear", 0.3)


def _draw_blocks(draw: Draw, o: SimpleNamespace) -> None:
    o.checkpoint = draw.flag("checkpoint", 0.1)
    if o.attention == "encoder layer":
        o.block, o.norm, o.layer_scale, o.mlp, o.add = "encoder layer", "LayerNorm", False, "gelu", "new"
        o.norm_first = draw.flag("norm first", 0.5)
    else:
        o.block = draw.one("block", "pre-norm", "pre-norm", "post-norm", "parallel", "norm after", "attention only")
        o.norm = draw.one("norm", "LayerNorm", "LayerNorm", "RMSNorm")
        o.layer_scale = draw.flag("layer scale")
        o.mlp = "none" if o.block == "attention only" else draw.one("mlp", "gelu", "relu_", "gated")
        adds = ["new", "buffer"] if o.checkpoint else ["new", "new", "+=", "add_", "buffer"]  # a block runs again
        o.add = draw.one("residual", *adds)
    o.order = draw.rare("order", "reversed", "rotated", "last twice", "last unused", "early exit", chance=0.3)
    if o.order != "none":
        o.depth = max(o.depth, 2)
    o.pruned = o.mask == "none" and draw.flag("tokens pruned", 0.1)
    o.second = draw.rare("second transformer", *["narrow"] if o.pruned else ["narrow", "patches only"], chance=0.12)
    o.side = "none" if o.pruned else draw.rare("side list", "mean of the last two", "first added", chance=0.12)
    o.long_skip = draw.flag("long skip", 0.1)
    o.teacher = draw.flag("teacher that does not run", 0.06)
    o.two_names = draw.flag("blocks under two names", 0.06)


def _draw_pool(draw: Draw, o: SimpleNamespace) -> None:
    pools = ["mean", "max", "query attention", "class attention", "first"]
    if o.before and not o.pruned:
        pools += ["first", "first", "patches and class"]
    if o.prefix == "class last":
        pools += ["last", "last", "last"]
    if o.mask == "causal":  # the first token sees itself alone
        pools = ["mean", "last", "query attention", "max"]
    if o.second == "patches only":
        pools = ["mean", "max", "query attention"]
    o.pool = draw.one("pool", *pools)
    o.final_norm = draw.flag("final norm", 0.6)


def _draw_library(draw: Draw, o: SimpleNamespace) -> None:
    """A vision transformer of timm or torchvision, and one's own pooling, if any."""
    o.__dict__.update(dict.fromkeys(("position", "mask", "cut", "order", "second", "side", "attention"), "none"))
    o.__dict__.update(dict.fromkeys(("tokens_first", "checkpoint", "long_skip", "pruned", "teacher"), False))
    o.embed, o.mlp, o.after, o.patches = "conv", "gelu", 0, o.grid[0] * o.grid[1]
    o.two_names, o.inputs_changed = False, draw.flag("inputs changed in place", 0.1)
    if o.backbone == "torchvision":
        o.grid, o.patches = (4, 4), 16
        o.pool, o.before = "as it is", 1
        return
    o.before = draw.one("prefix tokens", 0, 1, 1, 3)
    o.pool = draw.one("pool", "as it is", "mean", "max", *["first", "patches and class"] if o.before else ["attention"])
    o.library = {
        "qk_norm": draw.flag("query and key norm", 0.2),
        "init_values": 0.5 if draw.flag("layer scale", 0.2) else None,
        "no_embed_class": draw.flag("class token without position", 0.2),
    }
    if o.pool == "attention":
        o.pool, o.library["global_pool"] = "as it is", "map"
    elif not o.before or draw.flag("average pool of the library", 0.3):
        o.library["global_pool"] = "avg"
    o.block_class = draw.rare("own block", "bias from tokens", "post-norm", "forward replaced", chance=0.3)


def _draw_head(draw: Draw, o: SimpleNamespace) -> None:
    o.together = draw.rare(
        "batch", "batch norm", "norm of all", "similarity", "softmax", "contrast", "index 0", "mean", chance=0.25
    )
    heads = ["linear", "linear", "mlp", "several linears", "cosine", "one logit", "scripted mlp"]
    if o.together in ("batch norm", "softmax"):  # their sums over the batch are constant for one class
        o.batch = 5 if o.together == "batch norm" else max(o.batch, 3)
        heads.remove("one logit")
    o.head = "contrast" if o.together == "contrast" else draw.one("head", *heads)
    o.output = draw.one("output", "tensor", "tensor", "dictionary", "named tuple", "ModelOutput")
    o.function = draw.rare("function in the head", "straight through", "scaled gradient", "root", chance=0.12)
    o.hook = draw.rare("hook", *["tensor"] if o.head == "scripted mlp" else ["tensor", "module backward"], chance=0.1)


def _draw_surroundings(draw: Draw, o: SimpleNamespace) -> None:
    own = o.backbone == "none"
    early = ["no_grad early", "no_grad early"] if own and o.depth > 1 else []
    o.grad = draw.rare("grad mode", *2 * early, *4 * ["enabled"], "no_grad all", chance=0.2)
    if o.attention == "encoder layer" and o.grad == "no_grad all":
        o.grad = "none"  # its fast way has no seam
        draw.parts.remove("grad mode: no_grad all")
    detached = ["embedding", "early", "features"] if own else ["features"]
    o.detached = draw.rare("detached", *detached, *["class token"] if own and o.pool == "mean" else [], chance=0.1)
    frozen = [] if o.attention == "encoder layer" else ["everything", "backbone"]  # nor has it without a gradient
    o.frozen = draw.rare("frozen", *frozen, chance=0.1) if frozen else "none"
    autocasts = ["head", *["attention", "mlp"] * (own and o.attention != "encoder layer")]
    o.autocast = draw.rare("autocast", *autocasts, chance=0.08)
    o.training = draw.flag("left in training mode", 0.03)


def _draw_switch(draw: Draw, o: SimpleNamespace) -> None:
    """What can change, and what it changes."""
    own = o.backbone == "none"
    places = ["attribute", "nested setting", "class attribute", "module-level name", "parameter", "buffer"]
    places += ["environment", *["values"] * (o.autocast == "none")]  # rounding could turn a branch on values
    o.where = draw.rare("switch", *places, chance=0.5)
    steers = [
        "head",
        *["detach"] * (draw.random.random() < 0.3),
        *["batch"] * (o.together not in ("none", "contrast", "similarity", "softmax")),
    ]
    if own:
        steers += (
            ["exit"] * (o.depth > 1)
            + ["order"] * (o.depth > 1)
            + ["mask"] * (o.mask not in ("none", "causal", "argument"))
        )
    if o.second != "patches only" and o.pool not in ("patches and class", "as it is", "mean"):
        steers += ["pool", "pool", "pool"]
    o.steers = "nothing" if o.where == "none" else draw.one("steers", *steers)
    changes = ["weights", "head replaced", "block replaced", *["attention"] * (o.backbone != "torchvision")]
    changes += ["order list"] * (own and o.depth > 1) + ["function"] * (o.attention == "sdpa")
    o.change = draw.rare("change", *changes, chance=0.6) if o.where in ("none", "values") else "none"
