"""What the command was asked about images or texts."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """Images or texts, a model that classifies them or compares them with texts, and what is explained.

    Attributes:
        images: Image files, and folders of them.
        text_file: A file with a text in each line, in place of images; or None.
        model: As for `xai-compare`: timm:NAME, torchvision:NAME, transformers:NAME or a folder.
        pretrained: Load the weights that the library has; None: those of transformers and of folders only.
        checkpoint: A file of weights, or "".
        classes: Names or numbers of classes; none: the predicted class.
        vs: The class, or the text, that each is compared with; or None.
        concepts: Folders of example images, each of a concept.
        texts: Texts that images are compared with.
        methods: Names of methods.
        top: How many of the most probable classes are listed.
        out: The folder to write to.
        device: Where the model runs; empty: on a GPU, if there is one.
        seed: Of the methods that draw random numbers.
    """

    images: tuple[Path, ...]
    text_file: Path | None
    model: str
    pretrained: bool | None
    checkpoint: str
    classes: tuple[str, ...]
    vs: str | None
    concepts: tuple[Path, ...]
    texts: tuple[str, ...]
    methods: tuple[str, ...]
    top: int
    out: Path
    device: str
    seed: int
