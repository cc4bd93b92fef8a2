"""Saving and loading wrappers of a user's model with huggingface_hub, with or without that model."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import PyTorchModelHubMixin, constants, hf_hub_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..models.outputs import OutputChoice

_BACKBONE = "backbone."
_FUNCTION = "function "
_with_backbone: ContextVar[bool | None] = ContextVar("with_backbone", default=None)


class HubWrapper(nn.Module, PyTorchModelHubMixin):
    """A model around `backbone`, with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    Attributes:
        backbone: The user's model.
    """

    saves_backbone: ClassVar[bool] = False
    backbone: nn.Module

    def save_pretrained(
        self, save_directory: str | Path, *, with_backbone: bool | None = None, **kwargs: Any
    ) -> str | None:
        """Write weights (model.safetensors) and settings (config.json) to a folder.

        Args:
            save_directory: The folder; it is made where it is not there.
            with_backbone: Also the backbone's weights? None: the default of the class.
            kwargs: Those of huggingface_hub's mixin, as `push_to_hub=True`.
        """
        with _saving(with_backbone):
            return super().save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, *, with_backbone: bool | None = None, **kwargs: Any) -> str:
        """Upload what `save_pretrained` writes; further arguments are those of huggingface_hub's mixin."""
        with _saving(with_backbone):
            return super().push_to_hub(repo_id, **kwargs)

    def own_state(self, with_backbone: bool = False) -> dict[str, Tensor]:
        """The state dictionary, by default without the backbone's entries."""
        return {k: v for k, v in self.state_dict().items() if with_backbone or not k.startswith(_BACKBONE)}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Load what `own_state` returned, with or without the backbone's entries.

        Raises:
            ValueError: if keys or shapes differ; all of them are named.
        """
        mine = self.own_state(any(key.startswith(_BACKBONE) for key in state))
        wrong = [f"{key} is missing" for key in mine.keys() - state.keys()]
        wrong += [f"{key} is not known" for key in state.keys() - mine.keys()]
        wrong += [
            f"{key} has shape {tuple(state[key].shape)}, expected {tuple(mine[key].shape)}"
            for key in mine.keys() & state.keys()
            if mine[key].shape != state[key].shape
        ]
        if wrong:
            raise ValueError(
                f"The weights are of another layout than this {type(self).__name__}'s: {'; '.join(sorted(wrong))}."
            )
        self.load_state_dict(state, strict=False)

    def _save_pretrained(self, save_directory: Path) -> None:
        chosen = _with_backbone.get()
        state = self.own_state(self.saves_backbone if chosen is None else chosen)
        save_file({k: v.contiguous() for k, v in state.items()}, save_directory / constants.SAFETENSORS_SINGLE_FILE)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        map_location: str = "cpu",
        model: nn.Module | None = None,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **settings: Any,
    ) -> Self:
        if model is None:
            raise TypeError(
                f"Expected the backbone, as {cls.__name__}.from_pretrained({model_id!r}, model=resnet50()): its "
                "architecture is not saved, and its weights only with `with_backbone=True`."
            )
        name = constants.SAFETENSORS_SINGLE_FILE
        if (Path(model_id) / name).exists():
            path = str(Path(model_id) / name)
        else:
            path = hf_hub_download(
                model_id,
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        choice = settings.get("output")
        if isinstance(choice, str) and choice.startswith(_FUNCTION):
            raise ValueError(
                f"The {cls.__name__} was saved with a {choice} as its `output`, which is not in the file: pass it "
                f"again, as {cls.__name__}.from_pretrained({model_id!r}, model=..., output=your_function)."
            )
        settings["output"] = tuple(choice) if isinstance(choice, list) else choice
        wrapper = cls(model, **settings)
        wrapper.load_own_state(load_file(path, device=map_location))
        return wrapper.eval()


def output_setting(output: OutputChoice) -> Any:
    """A choice of output as config.json can hold it; a function cannot be saved, and is named instead."""
    return f"{_FUNCTION}{getattr(output, '__name__', '')}" if callable(output) else output


@contextmanager
def _saving(with_backbone: bool | None) -> Iterator[None]:
    """What one call was told holds for the calls that the mixin makes inside it."""
    token = _with_backbone.set(_with_backbone.get() if with_backbone is None else with_backbone)
    try:
        yield
    finally:
        _with_backbone.reset(token)
