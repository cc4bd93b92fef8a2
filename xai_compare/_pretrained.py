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


def config_for(name: str, task: str, does: str) -> Any:
    """The configuration of a model, if transformers has models of its type for a task.

    Args:
        name: A name on the hub, or a folder.
        task: As in transformers' names of mappings, such as "IMAGE_CLASSIFICATION".
        does: What such models do, for the message.

    Raises:
        ValueError: if it is another kind of model.
    """
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    config = AutoConfig.from_pretrained(name)
    if type(config) not in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING"):
        raise ValueError(f"{name} is a {config.model_type} model, which does not {does}.")
    return config
