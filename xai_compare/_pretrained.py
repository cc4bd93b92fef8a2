"""Models of transformers with weights that were saved."""

from typing import Any


def from_pretrained(kind: Any, name: str, **options: Any) -> Any:
    """A model of which no weight is random, as transformers makes those that are not there.

    Args:
        kind: A class with `from_pretrained`.
        name: A name on the hub, or a folder.
        **options: Further arguments.

    Raises:
        ValueError: if weights are missing, as those of a head are where a model was not trained for the task.
    """
    model, found = kind.from_pretrained(name, output_loading_info=True, **options)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{name} has no weights for {', '.join(missing[:3])}{' and others' * (len(missing) > 3)}: they would be "
            "random, and so would be what the model says. Expected a model that was trained for this task."
        )
    return model
