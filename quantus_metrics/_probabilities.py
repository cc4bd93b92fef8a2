"""What a probability is: the one place where outputs become probabilities."""

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor, cat

Named = Literal["softmax", "sigmoid", "identity"]
Activation = Named | Callable[[Tensor], Tensor]


def checked_activation(value: object) -> Activation:
    """The value, if it is an activation.

    Raises:
        TypeError: if it is neither a name nor a function.
        ValueError: if the name is not known.
    """
    if callable(value) or value in get_args(Named):
        return value  # type: ignore[return-value] # as was just seen
    error = ValueError if isinstance(value, str) else TypeError
    raise error(f"Expected `activation` to be 'softmax', 'sigmoid', 'identity' or a function, got {value!r}.")


def probabilities(outputs: Tensor, activation: Activation) -> Tensor:
    """Probabilities of outputs (batch, classes, ...). The softmax of a single output is taken with a second one of 0.

    Raises:
        TypeError: if the function does not return a tensor.
        ValueError: if it returns another number of samples.
    """
    if activation == "softmax" and outputs.shape[1] > 1:
        return outputs.softmax(1)
    if activation in ("softmax", "sigmoid"):
        return outputs.sigmoid()
    if not callable(activation):
        return outputs
    found = activation(outputs)
    if not isinstance(found, Tensor):
        raise TypeError(f"Expected the function in `activation` to return a tensor, got {type(found)}.")
    if found.shape[:1] != outputs.shape[:1]:
        raise ValueError(
            f"Expected the function in `activation` to return probabilities ({len(outputs)}, classes) for outputs of "
            f"shape {tuple(outputs.shape)}, got shape {tuple(found.shape)}."
        )
    return found


def answers(outputs: Tensor, activation: Activation | None) -> Tensor:
    """For outputs (batch, classes) what each class asks for: its probability or, without an activation, its logit.

    A single output z answers for two classes: class 1 asks for z or its probability p, class 0 for -z or 1 - p.
    """
    found = outputs if activation is None else probabilities(outputs, activation)
    if found.shape[1] != 1:
        return found
    if activation is None:
        return cat([-found, found], 1)
    from_logits = activation in ("softmax", "sigmoid")
    return cat([(-outputs).sigmoid() if from_logits else 1 - found, found], 1)  # 1 - p would round


def are_probabilities(outputs: Tensor) -> bool:
    """Are outputs (batch, classes) probabilities already: from 0 to 1, with a sum of 1 for each sample?"""
    if outputs.dim() != 2 or outputs.shape[1] < 2 or not bool(((outputs >= 0) & (outputs <= 1)).all()):
        return False
    return bool(((outputs.double().sum(1) - 1).abs() < 1e-3).all())  # as bfloat16 rounds
