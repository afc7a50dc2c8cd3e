"""Chapter 01's checks: a right answer passes, and each usual wrong one is told its misconception."""

import codecs

import numpy as np
import pytest

import optbook
from optbook.checks import NotYet, tokens


def merge_step(counts, weighted=True, overlap=False, first_only=False):
    pairs = {}
    for word, times in counts.items():
        for pair in zip(word, word[1:]):
            pairs[pair] = pairs.get(pair, 0) + (times if weighted else 1)
    best = max(pairs, key=pairs.get)
    merged = {}
    for word, times in counts.items():
        pieces, index, done = [], 0, False
        while index < len(word):
            if tuple(word[index : index + 2]) == best and not (first_only and done):
                pieces.append("".join(best))
                index += 1 if overlap else 2
                done = True
                if overlap and index == len(word) - 1:
                    break
            else:
                pieces.append(word[index])
                index += 1
        merged[tuple(pieces)] = times
    return best, merged


def in_joined_text(counts):
    best, _ = merge_step(counts)
    pair, joined = " ".join(best), "".join(best)
    return best, {tuple(" ".join(word).replace(pair, joined).split()): times for word, times in counts.items()}


def test_merge_step_accepts_the_right_answer():
    assert "weighted" in tokens.merge_step(merge_step)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda counts: merge_step(counts, weighted=False), "each distinct word once"),
        (lambda counts: merge_step(counts, first_only=True), "only the first occurrence"),
        (lambda counts: merge_step(counts, overlap=True), "used twice|no longer spell"),
        (lambda counts: merge_step(counts)[1], "return two things"),
        (in_joined_text, "compare whole pieces"),
        (lambda counts: ("".join(merge_step(counts)[0]), merge_step(counts)[1]), "tuple of its two pieces"),
        (lambda counts: None, "nothing written yet"),
        (lambda counts: (merge_step(counts)[0], {("".join(w),): n for w, n in counts.items()}), "should be"),
        (lambda counts: (merge_step(counts)[0], {"".join(w): n for w, n in counts.items()}), "tuples of pieces"),
    ],
)
def test_merge_step_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        tokens.merge_step(wrong)


@pytest.fixture(scope="module")
def tokenizer():
    return optbook.tokenizer("opt")


def broken_halves(tokenizer):
    """Two lists of ids that decode to two replacement characters each: bytes C3 C3, and C3 C2."""
    first, second = (tokenizer.token_to_id(piece) for piece in "ÃÂ")  # how GPT-2 writes these two bytes
    return [first, first], [first, second]


def test_two_spellings(tokenizer):
    house = [tokenizer.token_to_id("Ġ"), tokenizer.token_to_id("house")]
    assert "one text" in tokens.two_spellings(tokenizer, tokenizer(" house"), house)
    for first, second, message in [
        ([790], [790], "equal"),
        ([790], [3138], "space belongs to the piece"),
        ([790], [2, 790], "special"),
        ([790], [793], "different texts"),
        ([790, 790], [790], "different texts"),
        ([60_000], [790], "there is no token"),
        ([-1], [790], "there is no token"),
        (None, [790], "nothing written yet"),
        (*broken_halves(tokenizer), "use whole characters"),
    ]:
        with pytest.raises(NotYet, match=message):
            tokens.two_spellings(tokenizer, first, second)


def streaming(chunks):
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(chunk) for chunk in chunks]


def holding_back(chunks):
    waiting, texts = b"", []
    for chunk in chunks:
        waiting += chunk
        try:
            texts.append(waiting.decode())
            waiting = b""
        except UnicodeDecodeError:
            texts.append("")
    return texts


def test_streaming_accepts_the_right_answer():
    assert "as soon as" in tokens.streaming(streaming)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda chunks: [chunk.decode(errors="replace") for chunk in chunks], "replacement characters"),
        (lambda chunks: [chunk.decode(errors="ignore") for chunk in chunks], "vanished"),
        (lambda chunks: [chunk.decode("latin-1") for chunk in chunks], "Latin-1"),
        (lambda chunks: [chunk.decode() for chunk in chunks], "before their character is complete"),
        (lambda chunks: [b"".join(chunks).decode()], "one string for each token"),
        (lambda chunks: [""] * (len(chunks) - 1) + [b"".join(chunks).decode()], "need not wait"),
        (holding_back, "need not wait"),
        (lambda chunks: [text.lower() for text in streaming(chunks)], "joined"),
    ],
)
def test_streaming_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        tokens.streaming(wrong)


def test_padded_batch_accepts_the_right_answer():
    assert "padded batch" in tokens.padded_batch(lambda rows, length: tokens._batch(length))
    assert "padded batch" in tokens.padded_batch(
        lambda rows, length: (tokens._batch(length)[0], tokens._batch(length)[1] == 1)
    )
    assert "padded batch" in tokens.padded_batch(lambda rows, length: [x.tolist() for x in tokens._batch(length)])


def _with_mask(change):
    def wrong(rows, length):
        token_ids, mask = tokens._batch()
        return token_ids, change(mask.copy())

    return wrong


def _start_not_counted(mask):
    mask[:, 0] = 0
    return mask


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda rows, length: tokens._batch(start=None), "start token is missing"),
        (lambda rows, length: tokens._batch(start=0), "begin with id 0"),
        (lambda rows, length: tokens._batch(pad=0), "filled with id 0"),
        (lambda rows, length: tokens._batch(pad=2), "filled with id 2"),
        (lambda rows, length: tokens._batch(left=True), "on the left"),
        (lambda rows, length: tokens._batch(end=True), "does not end"),
        (lambda rows, length: tokens._batch(keep_end=True), "lost its beginning"),
        (lambda rows, length: (rows, rows), "different lengths"),
        (lambda rows, length: tokens._batch()[0], "two arrays"),
        (lambda rows, length: (tokens._batch()[0][:, :4], tokens._batch()[1]), "has shape"),
        (_with_mask(lambda mask: 1 - mask), "inverted"),
        (_with_mask(_start_not_counted), "start token is a real token"),
        (_with_mask(np.ones_like), "padding_mask should be"),
        (lambda rows, length: tokens._batch(min(length, 9)), "even if it is longer than every row"),
        (lambda rows, length: tokens._batch(), "even if it is longer than every row"),
        (lambda rows, length: None, "nothing written yet"),
    ],
)
def test_padded_batch_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        tokens.padded_batch(wrong)
