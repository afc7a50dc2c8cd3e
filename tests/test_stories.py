"""How the training text of the next presets is cut: whole paragraphs, nothing lost, held out and trained on apart."""

from stories import HELD_OUT_BOOKS, HELD_OUT_EVERY, PASSAGE_CHARACTERS, passages


def test_passages_are_whole_paragraphs_and_what_is_held_out_is_in_no_other(tmp_path):
    books = [
        [f"Book {book}, paragraph {number}. " + "word " * (number % 40) for number in range(90)] for book in range(60)
    ]
    books = [[paragraph.strip() for paragraph in book] for book in books]
    (tmp_path / "stories.txt").write_text("\n\n".join("\n".join(book) for book in books) + "\n", encoding="utf-8")
    train, held_out = passages(tmp_path)
    for number, book in enumerate(books):
        parts = [passage.split("\n") for passage in train[number] + held_out[number]]
        paragraphs = [paragraph for part in parts for paragraph in part]
        assert len(set(paragraphs)) == len(paragraphs) and set(paragraphs) <= set(book)
        assert len(paragraphs) > len(book) - 30  # what is too short to end a passage at a book's end is left out
        assert bool(train[number]) == (number not in HELD_OUT_BOOKS)
    trained, kept = sum(map(len, train)), sum(len(part) for n, part in enumerate(held_out) if n not in HELD_OUT_BOOKS)
    assert kept == -(-(trained + kept) // HELD_OUT_EVERY)
    assert min(len(passage) for part in train for passage in part) >= PASSAGE_CHARACTERS[0]
    assert passages(tmp_path) == (train, held_out)
