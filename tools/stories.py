"""The text of the next presets: which passages are trained on, which are held out; run, writes the package's texts.

    python tools/stories.py FOLDER

FOLDER holds stories.txt: one paragraph a line, an empty line between books. optbook/assets/held_out_text is what
`optbook.perplexity` reads, the beginning of both books that no preset was trained on; optbook/assets/training_text is
what chapter 10 trains on, passages that the presets were trained on, from books of the same two kinds.
"""

from pathlib import Path

import click
import numpy as np

# Numbers from 0 in the order of the file.
CUFFY_BEAR, SANDY_CHIPMUNK, WIZARD_OF_OZ, OZMA_OF_OZ = 3, 10, 52, 53
HELD_OUT_BOOKS = (SANDY_CHIPMUNK, OZMA_OF_OZ)
HELD_OUT_EVERY = 25  # of the passages of the other books
PASSAGE_CHARACTERS = (60, 700)  # a length between these is drawn for each passage, which ends with its paragraph


def passages(folder):
    """Whole paragraphs in reading order, some at a time, as lists by book: those to train on, and those held out."""
    rng = np.random.default_rng(0)
    books = (Path(folder) / "stories.txt").read_text(encoding="utf-8").split("\n\n")
    train, held_out, count = [[] for _ in books], [[] for _ in books], 0
    for number, book in enumerate(books):
        passage, wanted = [], rng.integers(*PASSAGE_CHARACTERS)
        for paragraph in book.strip().split("\n"):
            passage.append(paragraph)
            if sum(map(len, passage)) >= wanted:
                held = number in HELD_OUT_BOOKS or count % HELD_OUT_EVERY == 0
                count += number not in HELD_OUT_BOOKS
                (held_out if held else train)[number].append("\n".join(passage))
                passage, wanted = [], rng.integers(*PASSAGE_CHARACTERS)
    return train, held_out


def excerpt(passages, characters):
    """The first whole passages, up to so many characters; each ends with a line end."""
    text = "".join(passage + "\n" for passage in passages)
    return text[: text.rindex("\n", 0, characters) + 1]


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
def main(folder):
    from optbook._files import replace_text
    from optbook.presets import ASSETS

    train, held_out = passages(folder)
    for name, parts, characters in (
        ("held_out_text", (held_out[SANDY_CHIPMUNK], held_out[OZMA_OF_OZ]), 29_000),
        ("training_text", (train[CUFFY_BEAR], train[WIZARD_OF_OZ]), 100_000),
    ):
        content = "".join(excerpt(part, characters) for part in parts)
        replace_text(ASSETS / name / "text.txt", content)
        print(name, len(content), "characters")


if __name__ == "__main__":
    main()
