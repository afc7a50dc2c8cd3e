"""Writes the text on which chapter 10 trains and counts, out of what the embedded presets were trained on.

    python tools/make_training_text.py --corpus FOLDER

FOLDER is that of tools/train_presets.py, whose split keeps this text apart from the held-out one. From the same two
sources as the held-out text whole paragraphs are taken from the start of the part for training. Rights are in the card
beside the text.
"""

from pathlib import Path

import click
from make_held_out_text import DOMAINS, excerpt
from train_presets import split

from optbook._files import replace_text
from optbook.presets import ASSETS

CHARACTERS = 100_000  # of each


@click.command()
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), required=True)
def main(corpus):
    training = (split((corpus / f"{domain}.txt").read_text(encoding="utf-8"))[0] for domain in DOMAINS)
    content = "".join(excerpt(text, CHARACTERS) for text in training)
    replace_text(ASSETS / "training_text" / "text.txt", content)


if __name__ == "__main__":
    main()
