"""Exercises of chapter 01: one merge step, two spellings of one text, text from a stream, the padded batch."""

import numpy as np

from optbook.checks._core import NotYet, ask, compare, require, require_shape

START, PAD = 2, 1
_PADDED_LENGTH = 6
_ROWS = [[133, 793, 790], [2515], [5, 793, 790, 21, 184, 4, 8, 9]]  # one that fits, a short one, one that is cut
_TEXT = "Café 🏠!"


def merge_step(function):
    """Checks ``function(counts) -> (pair, counts)``: how often each word, a tuple of pieces, occurs."""
    rare = {("a", "b"): 1, ("a", "b", "c"): 1, ("d", "a", "b"): 1, ("x", "y"): 9}
    pair, _ = _step(function, rare)
    require(
        pair != ("a", "b"),
        "your step counts each distinct word once: a pair in a word that occurs nine times has been met nine times.",
    )
    require(pair == ("x", "y"), f"of {rare} the most frequent pair is ('x', 'y'), not {pair}.")

    pair, merged = _step(function, {("b", "c", "b", "c"): 2, ("c", "d"): 1})
    require(pair == ("b", "c"), f"in ('b', 'c', 'b', 'c') the pair ('b', 'c') stands twice, but you chose {pair}.")
    require(
        ("bc", "b", "c") not in merged,
        "only the first occurrence in a word was merged: a merge applies to every occurrence of the pair.",
    )
    _same_counts(merged, {("bc", "bc"): 2, ("c", "d"): 1})

    pair, merged = _step(function, {("xa", "b"): 1, ("a", "b"): 5})
    require(
        ("xab",) not in merged,
        "the piece 'xa' was merged with 'b' where the pair is ('a', 'b'): compare whole pieces, since in joined text "
        "'xa b' holds 'a b'.",
    )
    _same_counts(merged, {("xa", "b"): 1, ("ab",): 5})

    pair, merged = _step(function, {("a", "a", "a"): 3})
    require(pair == ("a", "a"), f"the only pair in ('a', 'a', 'a') is ('a', 'a'), not {pair}.")
    require(
        ("aa", "aa") not in merged,
        "the middle piece of ('a', 'a', 'a') was used twice: a piece that is merged is spent, so ('aa', 'a') is left.",
    )
    require(("a", "aa") not in merged, "merge from the left: ('a', 'a', 'a') becomes ('aa', 'a').")
    _same_counts(merged, {("aa", "a"): 3})
    return "merge step: counts weighted by word, every occurrence merged, no piece used twice"


def _step(function, counts):
    result = ask(function, counts)
    require(
        isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict),
        "return two things: the pair, and the dict of words after the merge.",
    )
    pair, merged = result
    require(
        isinstance(pair, tuple | list) and len(pair) == 2,
        f"the pair is a tuple of its two pieces, not {pair!r}: joined, nobody can tell 'a' + 'bc' from 'ab' + 'c'.",
    )
    for word in merged:
        require(isinstance(word, tuple), f"the keys of the new dict are tuples of pieces, but one is {word!r}.")
    texts = {"".join(word) for word in counts}
    for word in merged:
        require(
            "".join(word) in texts or set(word) == {"aa"},  # a piece used twice is named by the caller
            f"the pieces {word} no longer spell a word of the corpus: a merge may not change the text.",
        )
    return tuple(pair), merged


def _same_counts(merged, expected):
    require(merged == expected, f"after the merge the words should be {expected}, but are {merged}.")


def two_spellings(tokenizer, first, second):
    """Checks that two different lists of ids are the same text, without special tokens."""
    require(first is not None and second is not None, "nothing written yet: two lists of ids are wanted.")
    first, second = ([int(token) for token in np.ravel(ids)] for ids in (first, second))
    size = tokenizer.vocabulary_size()
    for ids in (first, second):
        outside = [token for token in ids if not 0 <= token < size]
        require(not outside, f"there is no token {outside[:1]}: the vocabulary has the ids 0 to {size - 1}.")
        require(
            not set(ids) & {0, 1, 2, 3},
            "ids 0 to 3 are special tokens and stand for no text: use ordinary pieces only.",
        )
    require(first != second, "the two lists are equal: look for other pieces that spell the same text.")
    texts = [tokenizer.detokenize(ids) for ids in (first, second)]
    require(
        texts[0].strip() != texts[1].strip() or texts[0] == texts[1],
        f"{texts[0]!r} and {texts[1]!r} differ by a space: the space belongs to the piece, so these are two texts.",
    )
    require(texts[0] == texts[1], f"the two lists decode to different texts, {texts[0]!r} and {texts[1]!r}.")
    half = "� stands for bytes that are no character, so two of them need not be one text: use whole characters."
    require("\ufffd" not in texts[0], half)
    require(len(texts[0]) > 1, "choose a text of at least two characters.")
    return (
        f"two spellings: {len(first)} and {len(second)} ids, one text, and the tokenizer only ever writes one of them"
    )


def streaming(function):
    """Checks ``function(chunks) -> list of str``: the bytes of each token in, the text certain after each token out."""
    encoded = _TEXT.encode()
    streams = [
        [b"He", b"", b"llo"],
        [bytes([byte]) for byte in encoded],
        [b"a\xc3", b"\xa9b"],  # a whole character and half of the next in one token
        [encoded[:6], encoded[6:7], encoded[7:]],
    ]
    for chunks in streams:
        early = ": your function decodes bytes before their character is complete; keep them until it is"
        texts = ask(function, chunks, hints={"codec can't decode": early})
        _check_stream(chunks, list(texts))
    return "streaming: every character appears as soon as its last byte is there, and none is broken"


def _check_stream(chunks, texts):
    whole = b"".join(chunks)
    require(
        len(texts) == len(chunks), f"return one string for each token: {len(chunks)} went in, {len(texts)} came out."
    )
    joined = "".join(texts)
    require(
        "\ufffd" not in joined,
        "there are replacement characters � in your text: half a character was decoded on its own, token by token.",
    )
    require(
        joined == whole.decode() or joined != whole.decode("latin-1"),
        "your function takes each byte for a character (Latin-1): an é then comes out as Ã©.",
    )
    require(
        joined == whole.decode() or joined != "".join(chunk.decode(errors="ignore") for chunk in chunks),
        'characters that two tokens share have vanished: errors="ignore" threw away both halves.',
    )
    require(joined == whole.decode(), f"the strings joined are {joined!r}, but the text is {whole.decode()!r}.")
    for count in range(1, len(chunks) + 1):
        complete = b"".join(chunks[:count]).decode(errors="ignore")
        require(
            "".join(texts[:count]) == complete,
            f"after {count} of {len(chunks)} tokens the text {complete!r} is certain, but your function has given only "
            f"{''.join(texts[:count])!r}: a complete character need not wait for its neighbor.",
        )


def padded_batch(function):
    """Checks ``function(rows, length) -> (token_ids, padding_mask)``, for rows of ids that lack their start token."""
    result = ask(function, _ROWS, _PADDED_LENGTH)
    require(isinstance(result, tuple | list) and len(result) == 2, "return two arrays: token_ids and padding_mask.")
    try:
        token_ids, mask = (np.asarray(array).astype("int64") for array in result)
    except (TypeError, ValueError):
        uneven = "the rows have different lengths: fill each with id 1 up to the length, and cut what is longer."
        raise NotYet(uneven) from None
    wanted = {"token_ids": token_ids, "padding_mask": mask}
    for name, array in wanted.items():
        require_shape(array, (len(_ROWS), _PADDED_LENGTH), name)

    wanted_ids, wanted_mask = _batch()
    mistakes = {
        "the start token is missing: an OPT row begins with id 2, </s>": _batch(start=None),
        "your rows begin with id 0, <s>: OPT's start token is </s>, id 2": _batch(start=0),
        "your rows are filled with id 0, <s>: only id 1, <pad>, is padding": _batch(pad=0),
        "your rows are filled with id 2, </s>: only id 1, <pad>, is padding": _batch(pad=2),
        "your rows are padded on the left: KerasHub pads OPT on the right, so that position 0 is the start token": (
            _batch(left=True)
        ),
        "a prompt does not end with </s>: that token says that the document is over": _batch(end=True),
        "a row that is too long lost its beginning, start token included: cut its end": _batch(keep_end=True),
    }
    mistakes = {message: ids for message, (ids, _) in mistakes.items()}
    unlike = f"token_ids should be {wanted_ids.tolist()}, not {token_ids.tolist()}."
    compare(token_ids, wanted_ids, mistakes, otherwise=unlike)
    without_start = wanted_mask.copy()
    without_start[:, 0] = 0
    mistakes = {
        "the mask is inverted: 1 stands for a real token, 0 for padding": 1 - wanted_mask,
        "the start token is a real token: its mask is 1": without_start,
    }
    unlike = f"padding_mask should be {wanted_mask.tolist()}, not {mask.tolist()}."
    compare(mask, wanted_mask, mistakes, otherwise=unlike)
    longer = 1 + _PADDED_LENGTH + max(map(len, _ROWS))  # than every row with its start token
    token_ids, mask = ask(function, _ROWS, longer)
    as_asked = {None: "rows are filled up to the length that is asked for, even if it is longer than every row"}
    for name, array, right in zip(wanted, (token_ids, mask), _batch(longer), strict=True):
        compare(np.asarray(array).astype("int64"), right, name=f"for length {longer}, {name}", shapes=as_asked)
    return "padded batch: </s> in front, <pad> behind, long rows cut at the end, the mask 1 exactly on real tokens"


def _batch(length=_PADDED_LENGTH, start=START, pad=PAD, left=False, end=False, keep_end=False):
    token_ids, mask = [], []
    for row in _ROWS:
        row = ([] if start is None else [start]) + row + ([START] if end else [])
        row = row[-length:] if keep_end else row[:length]
        fill = length - len(row)
        token_ids.append([pad] * fill + row if left else row + [pad] * fill)
        mask.append([0] * fill + [1] * len(row) if left else [1] * len(row) + [0] * fill)
    return np.array(token_ids), np.array(mask)
