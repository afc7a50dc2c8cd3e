"""Sphinx's settings for the book: `make book`.

The pages are the committed notebooks, as they are, beside index.md and api.md.
"""

import sys
import tomllib
from pathlib import Path

import latex2mathml.converter

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import optbook  # noqa: E402, F401  (before autodoc imports keras)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "OPT, one layer at a time"
author = "the authors of optbook"
release = PROJECT["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["**/.ipynb_checkpoints"]

nb_execution_mode = "off"  # what is committed was compared by nbval; the book shows it
suppress_warnings = ["mystnb.unknown_mime_type"]  # what optbook.compare.record keeps for programs; its text is shown
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say it
napoleon_google_docstring = False
napoleon_custom_sections = [("Call arguments", "params_style")]

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static"]
html_css_files = ["book.css"]
html_favicon = "static/favicon.svg"
html_show_copyright = False
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is; without it the theme logs an error
html_theme_options = {
    "repository_url": PROJECT["urls"]["Repository"],
    "repository_branch": "main",
    "use_repository_button": True,
    "navbar_persistent": [],  # one search field, in the sidebar
    "launch_buttons": {
        "colab_url": "https://colab.research.google.com",
        "binderhub_url": "https://mybinder.org",
        "notebook_interface": "jupyterlab",
    },
}


def visit_math(translator, node):
    """A formula as MathML, which browsers draw by themselves; MathJax would be fetched at every view."""
    display = "block" if node.tagname == "math_block" else "inline"
    formula = latex2mathml.converter.convert(node.astext(), display=display)
    translator.body.append(f'<div class="math">{formula}</div>' if display == "block" else formula)


def setup(app):
    formula = visit_math, lambda translator, node: None
    app.add_html_math_renderer("mathml", inline_renderers=formula, block_renderers=formula)
