"""Checks of arguments that the packages share."""

from numbers import Integral


def positive_int(name: str, value: object) -> int:
    """The value as an int of at least 1.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is less than 1.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"Expected `{name}` to be an int, got {type(value)}.")
    if value < 1:
        raise ValueError(f"Expected `{name}` to be at least 1, got {value}.")
    return int(value)
