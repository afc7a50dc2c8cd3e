"""What a token is, byte by byte, and how to write it under a picture; and how texts become the batch a model reads."""

import functools
import os
import re

import numpy as np
import tokenizers

PAD = 1  # the id of <pad> in every OPT


def byte_alphabet():
    """The 256 printable characters in which byte-level BPE spells bytes: a dict from byte to character.

    Printable bytes stand for themselves; the rest, space among them, are moved to code points from 256 on, so that
    the space is spelled ``Ġ`` (as GPT-2 introduced it, and OPT kept it).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(moved)}


_BYTE_OF = {character: byte for byte, character in byte_alphabet().items()}
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def token_bytes(tokenizer, token_id):
    """The bytes of text that one id stands for; none for a special token."""
    token = tokenizer.id_to_token(int(token_id))
    if token in _SPECIAL:
        return b""
    if token in tokenizer.unsplittable_tokens or not _BYTE_OF.keys() >= set(token):
        return token.encode()  # added to the vocabulary as it stands in texts, not in the alphabet of bytes
    return bytes(_BYTE_OF[character] for character in token)


def token_label(tokenizer, token_id):
    """A token as a person reads it: ``␣`` is a space, ``⏎`` a new line, ``⟨E2⟩`` a byte of a split character.

    A model's table can have rows beyond the vocabulary, as the published ones have seven: ``⟨id 50265⟩``.
    """
    try:
        token = tokenizer.id_to_token(int(token_id))
    except (ValueError, KeyError):
        return f"⟨id {int(token_id)}⟩"
    if token in _SPECIAL:
        return token
    text = token_bytes(tokenizer, token_id).decode("utf-8", errors="surrogateescape")
    text = "".join(f"⟨{ord(c) - 0xDC00:02X}⟩" if "\udc80" <= c <= "\udcff" else c for c in text)
    return visible(text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥"))


# Joiners, fillers, variation selectors and the empty braille cell: Python calls them printable.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def visible(text):
    """The text with what nobody would see, but for a plain space, written by its number: ``⟨U+200B⟩``.

    That is control and format characters, spaces of other kinds, and what Unicode has not assigned.
    """
    return "".join(c if c.isprintable() and not _BLANK.match(c) else f"⟨U+{ord(c):04X}⟩" for c in text)


def split_as_gpt2(tokenizer):
    """Lets KerasHub's tokenizer cut texts into words as GPT-2 and ``transformers`` do; one that does so stays as it is.

    KerasHub 0.32 without TensorFlow hands its pattern to ``tokenizers`` as a plain text that is found nowhere, so that
    merges would cross from word to word.
    """
    inner = getattr(tokenizer, "_tokenizer", None)
    if inner and not isinstance(inner.pre_tokenizer, tokenizers.pre_tokenizers.ByteLevel):
        inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)


def _spells_texts(function):
    """Decorates `tokenize_batch`: what its vocabulary cannot spell would be left out of the batch without a word."""

    @functools.wraps(function)
    def checked(tokenizer, texts):
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("there is no text: give one, or a list of at least one.")
        for number, text in enumerate(texts):
            _check_unicode(number, text)
        split_as_gpt2(tokenizer)
        batch = function(tokenizer, texts)
        for number, (text, row, mask) in enumerate(zip(texts, batch["token_ids"], batch["padding_mask"])):
            _check_spelled(number, text, tokenizer.detokenize(row[1 : mask.sum()].tolist()))
        return batch

    return checked


def _check_unicode(number, text):
    if not isinstance(text, str):
        raise TypeError(f"text {number} must be a str, but is {text!r}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = text[error.start]
        raise ValueError(f"text {number} is no Unicode text: {wrong!r} at {error.start} is a lone surrogate.") from None


def _check_spelled(number, text, decoded):
    if decoded != text:
        start = len(os.path.commonprefix([text, decoded]))
        wrong, back = (f"{string[start : start + 20]!r}" for string in (text, decoded))
        raise ValueError(f"text {number} does not decode: of {wrong} at {start} its tokens give back {back}.")


@_spells_texts
def tokenize_batch(tokenizer, texts):
    """Text to model inputs: the start token in front, padding on the right up to the longest row, and the mask.

    A tokenizer that KerasHub or Keras read from files, or copied, cuts texts as GPT-2 does from here on.

    Raises
    ------
    ValueError, TypeError
        Where there is no text, or what is no text; for one that the vocabulary cannot spell.
    """
    texts = [texts] if isinstance(texts, str) else texts
    rows = [[tokenizer.start_token_id, *np.asarray(tokenizer(text)).tolist()] for text in texts]
    length = max(len(row) for row in rows)
    token_ids = np.full((len(rows), length), tokenizer.pad_token_id, "int32")
    padding_mask = np.zeros((len(rows), length), "int32")
    for i, row in enumerate(rows):
        token_ids[i, : len(row)] = row
        padding_mask[i, : len(row)] = 1
    return {"token_ids": token_ids, "padding_mask": padding_mask}


def next_power_of_two(count):
    """``count``, or the next larger power of two: what is padded to it shares compiled programs."""
    return 1 << (int(count) - 1).bit_length()
