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

    What comes before the last attention runs once, in the first `read`. A later one runs the model's own code again,
    without its earlier blocks. In both the attention's result is given, and only the first rows go on from there. The
    model is not touched and no hook is needed: a stand-in that shares its parts runs in its place.

    Args:
        forward: The model, or a method of it.
        root: The model.
        inputs: Its positional arguments.
        anatomy: Where its tokens are.
        rows: How many first tokens the output reads.
        latent: Where the latent is read, if it is wanted.

    Attributes:
        tokens: (batch, tokens, channels), what enters the last attention; known once `mix` is called.
        attention: How that attention computes; likewise.
        stream: (batch, rows, channels), the first tokens as they enter the last block; likewise.
        rows: As above.
        prefix: How many first tokens are none of the patches or words: at least the class token.
    """

    tokens: Tensor
    attention: Attention
    stream: Tensor

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
        self.call: _Call | None = None
        self._forward = forward
        self._root = root
        self._inputs = inputs
        self._anatomy = anatomy
        self._attends = anatomy.attention
        self._latent = latent
        *self._earlier, self._last = anatomy.blocks

    def read(self, mix: Callable[[], tuple[Tensor, Tensor]]) -> Readout:
        """The readout for other results of the last attention.

        Args:
            mix: Returns the values mixed by the attention for the first rows (copies * batch, rows, heads * width), the
                batch repeated copy after copy, and the rows' own tokens (copies * batch, rows, channels). Called
                without gradients; the outputs are differentiable with respect to both.

        Returns:
            Outputs (copies * batch, ...).

        Raises:
            UnsuitableError: if the model does not run as it was taken apart.
        """

        def go_on() -> tuple[Tensor, Tensor]:
            mixed, tokens = mix()
            torch.set_grad_enabled(True)
            stream = self.stream.repeat(mixed.shape[0] // self.stream.shape[0], 1, 1)
            return stream, self.attention.output(mixed, tokens)

        return self.run(go_on)

    def run(
        self,
        go_on: Callable[[], tuple[Tensor, Tensor]],
        earlier: Forward = _pass_on,
        inside: Mapping[nn.Module, Forward] | None = None,
    ) -> Readout:
        """The readout for another input of the last block and another output of its attention.

        Args:
            go_on: Returns both.
            earlier: What runs in place of the earlier blocks, but for the first time.
            inside: What runs in place of other modules of the last block.

        Raises:
            UnsuitableError: if the model does not run as it was taken apart.
        """
        latents: list[Tensor] = []
        calls = 0

        def last(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if self.call is None:
                self._enter(args, kwargs)
            stream, attended = go_on()
            answer = (attended, None) if self.attention.returns_weights else attended
            block = shadow(self._last, {self._attends: lambda *_, **__: answer, **(inside or {})})
            result = block(stream, *self._args, **self._kwargs)
            if self._latent is not None and self._latent.module is self._last:
                latents.append(result[0] if isinstance(result, tuple) else result)
            return result

        exchanged: dict[nn.Module, Forward] = {self._last: last}
        if self.call is not None:
            exchanged |= dict.fromkeys(self._earlier, earlier)
        if self._latent is not None and self._latent.module is not self._last:
            exchanged[self._latent.module] = _keeping(self._latent, latents)
        forward = rebound(self._forward, self._root, shadow(self._root, exchanged))
        if forward is None:
            raise UnsuitableError
        with torch.no_grad():
            outputs = bare_output(forward(*self._inputs))
        if calls != 1 or (self._latent is not None and not latents):
            raise UnsuitableError
        return Readout(outputs, first_token(latents[-1]) if latents else None)

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the last block up to its attention, and see how that is called."""
        if not args or not isinstance(args[0], Tensor):
            raise UnsuitableError
        site = self._anatomy.tokens
        seen: list[Tensor] = []
        keep = {} if site.at_input else {site.module: _keeping(site, seen)}
        call, named = _call_that_stops(shadow(self._last, {self._attends: _stop, **keep}), *args, **kwargs)
        if not call:
            call, named = tuple(named.values())[:1], dict(tuple(named.items())[1:])
        if not call or not isinstance(call[0], Tensor) or not (site.at_input or (seen and seen[-1] is call[0])):
            raise UnsuitableError
        self.tokens = call[0]
        self.attention = read_attention(self._attends, self.rows, call, named)
        self.stream = args[0][:, : self.rows].clone()
        self._args, self._kwargs = args[1:], kwargs
        self.call = call, named


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
