"""What every comparison settles before it begins: whose options are given, and where the models run."""

from collections.abc import Mapping, Sequence

from torch import nn

from adapters.models import placement_of

from ._lineup import Entry
from ._settings import Settings
from ._workers import Workers


def check_options(settings: Settings, known: Sequence[str], models: Sequence[str]) -> None:
    """Raise a ValueError if options are given for something that is not in the run."""
    unused = [name for name in settings.options if name not in (*known, *models, "model", "data")]
    if unused:
        raise ValueError(
            f"Options are given for {', '.join(unused)}, which is not a {'model, ' * bool(models)}method or metric of "
            f"this run. Options can be given for {', '.join([*known, *models])}, model and data."
        )


def workers_for(settings: Settings, entries: Mapping[str, Entry]) -> Workers:
    """The processes, with the device that is asked for or that a given model is on."""
    objects = [entry.model for entry in entries.values() if isinstance(entry.model, nn.Module)]
    return Workers(settings.device or (str(placement_of(objects[0]).device or "cpu") if objects else ""))
