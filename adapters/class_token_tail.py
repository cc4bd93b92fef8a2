"""A model whose output reads its first tokens only, from its last attention on."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._anatomy import read_attention
from ._attention import Attention, UnsuitableError
from ._outputs import bare_output
from ._shadow import Forward, rebound, shadow
from ._site import Site, TokenAnatomy
from .token_tail import Readout, first_token


def _pass_on(stream: Any, *_: Any, **__: Any) -> Any:
    return stream


class ClassTokenTail:
    """A model from its last attention on, evaluated for the few first tokens that its output reads.

    What comes before the last attention runs once, on construction. `read` runs the model's own code again, without
    its earlier blocks and with the attention's result given, on the first rows alone. The model is not touched and no
    hook is needed: a stand-in that shares its parts runs in its place.

    Args:
        forward: The model, or a method of it.
        root: The model.
        inputs: Its positional arguments.
        anatomy: Where its tokens are.
        rows: How many first tokens the output reads.
        latent: Where the latent is read, if it is wanted.

    Attributes:
        tokens: (batch, tokens, channels), what enters the last attention.
        attention: How that attention computes.
        rows: As above.
        prefix: How many first tokens are none of the patches or words: at least the class token.

    Raises:
        UnsuitableError: if the model does not run as it was taken apart.
    """

    def __init__(
        self,
        forward: Forward,
        root: nn.Module,
        inputs: tuple[Any, ...],
        anatomy: TokenAnatomy,
        rows: int,
        latent: Site | None = None,
    ) -> None:
        if anatomy.attention is None:
            raise UnsuitableError
        self.rows = rows
        self.prefix = max(1, anatomy.prefix)
        self._forward = forward
        self._root = root
        self._inputs = inputs
        self._anatomy = anatomy
        self._attends = anatomy.attention
        self._latent = latent
        *self._earlier, self._last = anatomy.blocks
        with torch.no_grad():
            args, self._kwargs = _call_that_stops(self._stand_in({self._last: _stop}), *inputs)
            if not args or not isinstance(args[0], Tensor):
                raise UnsuitableError
            self._args = args[1:]
            self.stream = args[0][:, :rows].clone()
            self.call = self._enter(args[0])
        self.tokens = self.call[0][0]
        self.attention = read_attention(self._attends, rows, *self.call)

    def read(self, mixed: Tensor, tokens: Tensor) -> Readout:
        """The readout for other results of the last attention.

        Args:
            mixed: (copies * batch, rows, heads * width), the values mixed by the attention for the first rows, the
                batch repeated copy after copy.
            tokens: (copies * batch, rows, channels), the rows' own tokens.

        Returns:
            Outputs (copies * batch, ...), differentiable with respect to both.
        """
        stream = self.stream.repeat(mixed.shape[0] // self.stream.shape[0], 1, 1)
        return self.run(stream, lambda: self.attention.output(mixed, tokens))

    def run(
        self,
        stream: Tensor,
        attend: Callable[[], Tensor],
        earlier: Forward = _pass_on,
        inside: Mapping[nn.Module, Forward] | None = None,
    ) -> Readout:
        """The readout for another input of the last block and another output of its attention.

        Args:
            stream: The last block's input.
            attend: Returns its attention's output; called with gradients.
            earlier: What runs in place of the earlier blocks.
            inside: What runs in place of other modules of the last block.
        """
        latents: list[Tensor] = []
        calls = []

        def last(*_: Any, **__: Any) -> Any:
            calls.append(1)
            torch.set_grad_enabled(True)
            attended: Any = attend()
            attended = (attended, None) if self.attention.returns_weights else attended
            block = shadow(self._last, {self._attends: lambda *_, **__: attended, **(inside or {})})
            result = block(stream, *self._args, **self._kwargs)
            if self._latent is not None and self._latent.module is self._last:
                latents.append(result)
            return result

        exchanged: dict[nn.Module, Forward] = {**dict.fromkeys(self._earlier, earlier), self._last: last}
        if self._latent is not None and self._latent.module is not self._last:
            exchanged[self._latent.module] = _keeping(self._latent, latents)
        with torch.no_grad():
            outputs = bare_output(self._stand_in(exchanged)(*self._inputs))
        if len(calls) != 1 or (self._latent is not None and not latents):
            raise UnsuitableError
        return Readout(outputs, first_token(latents[-1]) if latents else None)

    def _enter(self, stream: Tensor) -> "_Call":
        """Run the last block up to its attention, and see how that is called."""
        site = self._anatomy.tokens
        seen: list[Tensor] = []
        keep = {} if site.at_input else {site.module: _keeping(site, seen)}
        block = shadow(self._last, {self._attends: _stop, **keep})
        args, kwargs = _call_that_stops(block, stream, *self._args, **self._kwargs)
        args, kwargs = (args, kwargs) if args else (tuple(kwargs.values())[:1], dict(tuple(kwargs.items())[1:]))
        if not args or not isinstance(args[0], Tensor) or not (site.at_input or (seen and seen[-1] is args[0])):
            raise UnsuitableError
        return args, kwargs

    def _stand_in(self, forwards: dict[nn.Module, Forward]) -> Forward:
        forward = rebound(self._forward, self._root, shadow(self._root, forwards))
        if forward is None:
            raise UnsuitableError
        return forward


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
