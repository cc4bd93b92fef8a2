"""A model from its last attention on, evaluated for those tokens only that its output reads."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ._anatomy import read_attention
from ._attention import Attention, UnsuitableError
from ._forward import Forward, rebound
from ._outputs import bare_output
from ._shadow import shadow
from ._site import Site, TokenAnatomy
from .token_tail import Readout, first_token


class AttentionTail:
    """A model from its last attention on, evaluated for those first tokens that its output reads.

    What comes before the last attention runs once, in the first `read`. A later one runs the model's own code again,
    but every module that ran before the last block now answers with NaN, as nothing but its answer's shape is needed.
    In both the attention's result is given, and only the first rows go on from there. The model is not touched and no
    hook is needed: a stand-in that shares its parts runs in its place.

    Args:
        forward: The model, a method of it, or a function that refers to it.
        root: The model.
        inputs: Its positional arguments.
        anatomy: Where its tokens are.
        rows: How many first tokens the output reads; None: all.
        algebra: Shall `attention` be read? Else the attention module is run as it is.
        latent: Where the latent is read, if it is wanted.

    Attributes:
        tokens: (batch, tokens, channels), what enters the last attention; known once `attend` is called.
        attention: How that attention computes, None without `algebra`; likewise.
        stream: (batch, rows, channels), the first tokens as they enter the last block; likewise.
        rows: As above, a number once `attend` is called.
        algebra: As above.
        reads_all: Does the output read all tokens?
        prefix: How many first tokens are none of the patches or words: at least the class token.
        site: Where the tokens are.
        call: What the last attention was called with.

    Example:
        >>> import timm, torch
        >>> from adapters import AttentionTail, find_anatomy
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> images = torch.randn(2, 3, 224, 224)
        >>> tail = AttentionTail(model, model, (images,), find_anatomy(model), rows=1, algebra=True)
        >>> outputs = tail.read(lambda: tail.attend(tail.tokens)).outputs
        >>> torch.allclose(outputs, model(images), atol=1e-4)
        True
    """

    tokens: Tensor
    attention: Attention | None
    stream: Tensor

    def __init__(
        self,
        forward: Forward,
        root: nn.Module,
        inputs: tuple[Any, ...],
        anatomy: TokenAnatomy,
        rows: int | None,
        algebra: bool,
        latent: Site | None = None,
    ) -> None:
        if anatomy.attention is None:
            raise UnsuitableError
        self.rows = rows or 0
        self.reads_all = rows is None
        self.algebra = algebra
        self.prefix = max(1, anatomy.prefix)
        self.site = anatomy.tokens
        self.call: _Call | None = None
        self._forward = forward
        self._root = root
        self._inputs = inputs
        self._attends = anatomy.attention
        self._latent = latent
        self._last = anatomy.blocks[-1]
        self._before = _Before(root, self._last)

    def read(self, attend: Callable[[], Tensor]) -> Readout:
        """The readout for another output of the last attention.

        Args:
            attend: Returns it for the first rows, (copies * batch, rows, channels), the batch repeated copy after copy.

        Returns:
            Outputs (copies * batch, ...), differentiable with respect to the attention's output.

        Raises:
            UnsuitableError: if the model does not run as it was taken apart.
        """

        def go_on() -> tuple[Tensor, Tensor]:
            attended = attend()
            torch.set_grad_enabled(True)
            return self.stream.repeat(attended.shape[0] // self.stream.shape[0], 1, 1), attended

        return self.run(go_on)

    def attend(self, tokens: Tensor) -> Tensor:
        """What the attention module itself returns for the first rows of other tokens (batch, tokens, channels)."""
        if self.call is None:
            raise UnsuitableError
        args, kwargs = pytree.tree_map(lambda x: tokens if x is self.tokens else x, self.call)
        output = self._attends(*args, **kwargs)
        self._returns_pair = isinstance(output, tuple)
        first: Tensor = output[0] if self._returns_pair else output
        return first[:, : self.rows]

    def run(
        self,
        go_on: Callable[[], tuple[Tensor, Tensor]],
        inside: Mapping[nn.Module, Forward] | None = None,
    ) -> Readout:
        """The readout for another input of the last block and another output of its attention.

        Args:
            go_on: Returns both.
            inside: What runs in place of other modules of the last block.

        Raises:
            UnsuitableError: if the model does not run as it was taken apart.
        """
        latents: list[Tensor] = []
        calls = 0

        def last(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            self._before.stop()
            if self.call is None:
                self._enter(args, kwargs)
            stream, attended = go_on()
            answer = (attended, None) if self._returns_pair else attended
            block = shadow(self._last, {self._attends: lambda *_, **__: answer, **(inside or {})})
            result = block(stream, *self._args, **self._kwargs)
            if self._latent is not None and self._latent.module is self._last:
                latents.append(result[0] if isinstance(result, tuple) else result)
            return result

        exchanged: dict[nn.Module, Forward] = {**self._before.start(), self._last: last}
        if self._latent is not None and self._latent.module is not self._last:
            exchanged[self._latent.module] = _keeping(self._latent, latents)
        forward = rebound(self._forward, self._root, shadow(self._root, exchanged))
        if forward is None:
            raise UnsuitableError
        outputs = _outputs(forward, self._inputs)
        if calls != 1 or (self._latent is not None and not latents):
            raise UnsuitableError
        return Readout(outputs, first_token(latents[-1]) if latents else None)

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the last block up to its attention, and see how that is called."""
        if not args or not isinstance(args[0], Tensor):
            raise UnsuitableError
        site = self.site
        seen: list[Tensor] = []
        keep = {} if site.at_input else {site.module: _keeping(site, seen)}
        call, named = _call_that_stops(shadow(self._last, {self._attends: _stop, **keep}), *args, **kwargs)
        if not call:
            call, named = tuple(named.values())[:1], dict(tuple(named.items())[1:])
        if not call or not isinstance(call[0], Tensor) or not (site.at_input or (seen and seen[-1] is call[0])):
            raise UnsuitableError
        self.tokens = call[0]
        self.rows = self.rows or call[0].shape[1]
        self.attention = read_attention(self._attends, self.rows, call, named) if self.algebra else None
        self._returns_pair = self.attention is not None and self.attention.returns_weights
        self.stream = args[0][:, : self.rows].clone()
        self._args, self._kwargs = args[1:], kwargs
        self.call = call, named


def _outputs(forward: Forward, inputs: tuple[Any, ...]) -> Tensor:
    try:
        with torch.no_grad():
            return bare_output(forward(*inputs))
    except UnsuitableError:
        raise
    except Exception as error:  # from the model's own code: as a whole it may run, or must tell the user why not
        raise UnsuitableError from error


@dataclass(frozen=True)
class _Shape:
    """What is kept of a tensor."""

    size: torch.Size
    dtype: torch.dtype
    device: torch.device


def _shape_of(x: Tensor) -> Any:
    """Numbers that cannot be NaN are kept as they are."""
    return _Shape(x.shape, x.dtype, x.device) if x.is_floating_point() else x


class _Before:
    """The outermost modules that run before the last block: themselves at first, later their outputs' shapes."""

    def __init__(self, root: nn.Module, last: nn.Module) -> None:
        self._modules = list(_beside(root, last))
        self._outputs: dict[nn.Module, list[Any]] = {}
        self._running = False
        self._recorded = False

    def start(self) -> dict[nn.Module, Forward]:
        """What must run in their places for one pass."""
        self._running = True
        if not self._recorded:
            return {module: self._recording(module) for module in self._modules}
        spoiled: dict[_Shape, Tensor] = {}
        return {module: self._answering(module, iter(outputs), spoiled) for module, outputs in self._outputs.items()}

    def stop(self) -> None:
        """The last block is reached: from here on they are themselves."""
        self._running = False
        self._recorded = True

    def _recording(self, module: nn.Module) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = module(*args, **kwargs)
            if self._running:
                self._outputs.setdefault(module, []).append(pytree.tree_map_only(Tensor, _shape_of, output))
            return output

        return forward

    def _answering(self, module: nn.Module, outputs: Iterator[Any], spoiled: dict[_Shape, Tensor]) -> Forward:
        def not_a_number(shape: _Shape) -> Tensor:
            if shape not in spoiled:
                spoiled[shape] = torch.full(shape.size, float("nan"), dtype=shape.dtype, device=shape.device)
            return spoiled[shape]

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self._running:
                return module(*args, **kwargs)
            return pytree.tree_map_only(_Shape, not_a_number, next(outputs))

        return forward


def _beside(module: nn.Module, last: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of a model that do not hold one of its modules."""
    for child in module.children():
        if all(part is not last for part in child.modules()):
            yield child
        elif child is not last:
            yield from _beside(child, last)


_Call = tuple[tuple[Any, ...], dict[str, Any]]


class _Stopped(BaseException):  # not an Exception, which the model's own code may catch
    def __init__(self, call: _Call) -> None:
        super().__init__()
        self.call = call


def _stop(*args: Any, **kwargs: Any) -> Any:
    raise _Stopped((args, kwargs))


def _call_that_stops(forward: Forward, *args: Any, **kwargs: Any) -> _Call:
    """The arguments with which a forward reaches the module that stops it."""
    try:
        forward(*args, **kwargs)
    except _Stopped as stopped:
        return stopped.call
    raise UnsuitableError


def _keeping(site: Site, kept: list[Tensor]) -> Forward:
    """The module of a site, keeping what passes there."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if site.at_input:
            kept.append(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))
        output = site.module(*args, **kwargs)
        if not site.at_input:
            kept.append(output[0] if isinstance(output, tuple) else output)
        return output

    return forward
