"""The warning about maps that show a part of what a prediction depends on."""


class PartialMapWarning(UserWarning):
    """The prediction also depends on parts of the model that the map does not show.

    So of an ensemble, several views of an image, or branches side by side, with attention or, as a CNN, without: what
    reaches the prediction through the others is not in the map. Or behind the attention that is explained the model has
    one that is not known as such.

    Example:
        >>> import warnings
        >>> from captum_ext import PartialMapWarning
        >>> warnings.simplefilter("error", PartialMapWarning)  # to refuse such maps
    """
