"""Writes the text on which the package measures perplexity, out of what training held out.

    python tools/make_held_out_text.py --corpus FOLDER

FOLDER is that of tools/train_presets.py, whose split decides what no embedded preset was trained on. From two of its
texts whole paragraphs are taken from the start of what was held out. Rights are in the card beside the text.
"""

from pathlib import Path

import click
from train_presets import split

from optbook._files import replace_text
from optbook.evaluation import HELD_OUT_TEXT

DOMAINS = ("austen", "state_of_the_union_1945_on")
CHARACTERS = 29_000  # of each


def excerpt(text, characters=CHARACTERS):
    """The first whole lines, up to so many characters."""
    return text[: text.rindex("\n", 0, characters) + 1]


@click.command()
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), required=True)
def main(corpus):
    held_out = (split((corpus / f"{domain}.txt").read_text(encoding="utf-8"))[1] for domain in DOMAINS)
    replace_text(HELD_OUT_TEXT, "".join(excerpt(text) for text in held_out))


if __name__ == "__main__":
    main()
