"""Files of text that people write."""

from pathlib import Path


def text_of(path: Path) -> str:
    """What a file says, in UTF-8 wherever it is read, without the mark that some editors put in front.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is in another encoding.
    """
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 (at byte {error.start}): save it as UTF-8.") from error


def lines_of(text: str) -> list[str]:
    """Its lines without blanks around them; empty ones are left out. What ends no line in an editor ends none here."""
    return [line.strip() for line in text.split("\n") if line.strip()]
