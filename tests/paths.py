"""Where the project's files are."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("adapters", "captum_ext", "quantus_metrics", "xai_compare", "xai_discern")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
