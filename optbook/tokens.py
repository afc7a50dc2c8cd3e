"""What a token is, byte by byte, and how to write it under a picture."""


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
    return b"" if token in _SPECIAL else bytes(_BYTE_OF[character] for character in token)


def token_label(tokenizer, token_id):
    """A token as a person reads it: ``␣`` is a space, ``⏎`` a new line, ``\\\\xe2`` a byte of a split character."""
    token = tokenizer.id_to_token(int(token_id))
    if token in _SPECIAL:
        return token
    text = token_bytes(tokenizer, token_id).decode("utf-8", errors="backslashreplace")
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
