"""Settings of the documentation site: `make docs` builds it offline, runs every example, and stops at any warning."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from entries import substitutions  # noqa: E402 - from the folder above

project = "xai-discern"
author = "The xai-discern authors"
copyright = author
version = release = version_of("xai-discern")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    "sphinx_llms_txt",
    "docstrings",
    "entries",
]
exclude_patterns = ["gallery", "migrate"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 4
myst_substitutions = substitutions(HERE)  # costs and metrics in pages that are written by hand
default_role = "code"  # docstrings write `code` with single backticks
napoleon_use_ivar = True
autodoc_typehints = "none"  # the signatures have them
autodoc_member_order = "bysource"
bibtex_bibfiles = ["references.bib"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"xai-discern {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("filter.js", {"defer": "defer"})]
html_favicon = "_static/favicon.svg"
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "a11y-light", "a11y-dark"

llms_txt_summary = (
    "Shows which parts of an image or text speak for, and against, each class that a model can predict: CDAM, "
    "CA-Stream and MHEX for Captum and pytorch-grad-cam, metrics for Quantus, and comparisons with statistics."
)

sphinx_gallery_conf = {
    "examples_dirs": [str(HERE / "gallery"), str(HERE / "migrate")],
    "gallery_dirs": ["auto_gallery", "auto_migrate"],
    "backreferences_dir": "backreferences",
    "doc_module": ("captum_ext", "adapters", "quantus_metrics", "xai_compare"),
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 30,
    "default_thumb_file": str(HERE / "two-classes.jpg"),
    "matplotlib_animations": False,
    "image_scrapers": ("matplotlib",),
    "within_subsection_order": "FileNameSortKey",
}
