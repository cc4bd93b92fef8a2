"""`python -m xai_compare`, for `accelerate launch -m xai_compare`."""

from .cli import main

if __name__ == "__main__":
    main()
