"""On which grid scores come back."""

from torch import Tensor

from adapters.recording import Grid, TokenPass


def grid_for(run: TokenPass, inputs: Tensor, *, required: bool = True) -> Grid | None:
    """On which grid scores are returned: for images, videos and volumes, and for spectrograms if there is one.

    Raises:
        ValueError: if images, videos or volumes have none, and it is required.
    """
    if not inputs.is_floating_point() or inputs.dim() < 3:
        return None
    grid = run.grid()
    if inputs.dim() == 3:
        return None if grid is None or len(grid.sizes) < 2 else grid
    if grid is None and required:
        raise ValueError(_no_grid(run, inputs))
    return grid


def _no_grid(run: TokenPass, images: Tensor) -> str:
    """Why tokens are not shown on an image, and what to do."""
    return (
        f"Cannot tell how the tokens, of shape {tuple(run.tokens.shape)}, lie on images of shape "
        f"{tuple(images.shape)}: they do not come one by one from the patches of a grid. Are they the queries of a "
        "decoder? Then explain a DetectionTarget, a BoxTarget or a MaskTarget. Were tokens dropped, merged or pooled? "
        "Ask for `return_tokens=True` for a score of each token."
    )
