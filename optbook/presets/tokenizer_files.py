"""The files of a tokenizer, KerasHub's and Hugging Face's: vocabulary, merges, and tokens that were added later."""

import re
import shutil

import keras_hub
import tokenizers

from optbook._files import read_json, read_text, write_json
from optbook.tokens import byte_alphabet, split_as_gpt2

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # how an added token is matched in a text
SPECIAL = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
NAME = re.compile(r"<.+>|\[.+\]|madeupword\d+")  # entries that no merge makes: <mask>, and what fairseq fills up with


def read_keras_hub(folder, config_file=None):
    """The tokenizer whose ``vocabulary.json`` and ``merges.txt`` are in a folder, as KerasHub writes them.

    ``config_file``, where there is one, names the added tokens.
    """
    for name in ("vocabulary.json", "merges.txt"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no tokenizer: {folder / name} is missing.")
    vocabulary = read_json(folder / "vocabulary.json")
    config = read_json(config_file).get("config") if config_file and config_file.is_file() else None
    names = config.get("unsplittable_tokens") if isinstance(config, dict) else None
    added = [(name, vocabulary.get(str(name)), {}) for name in names or []]
    return _tokenizer(folder, vocabulary, _read_merges(folder), added)


def read_hugging_face(folder):
    """The tokenizer of a Hugging Face folder: ``vocab.json`` with ``merges.txt``, or ``tokenizer.json`` alone.

    Tokens may be added by ``tokenizer.json``, ``tokenizer_config.json`` and ``added_tokens.json``.
    """
    content, config, more = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")
    )
    model = content.get("model", {})
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        model = {"vocab": read_json(folder / "vocab.json"), "merges": _read_merges(folder)}
    elif not content:
        raise FileNotFoundError(f"{folder} has no tokenizer: neither vocab.json with merges.txt nor tokenizer.json.")
    try:
        vocabulary = dict(model["vocab"])
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        added = [(name, number, {}) for name, number in more.items()]
        for number, token in config.get("added_tokens_decoder", {}).items():
            added.append((token["content"], int(number), token))
        added += [(token["content"], token["id"], token) for token in content.get("added_tokens", [])]
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ValueError(
            f"{folder}: its tokenizer is damaged, or not of bytes and merges as OPT's is; fetch its files again."
        ) from None
    return _tokenizer(folder, vocabulary, merges, added)


def _read_merges(folder):
    lines = read_text(folder / "merges.txt").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#version")]


def _tokenizer(folder, vocabulary, merges, added):
    """KerasHub's tokenizer, cutting texts as GPT-2 does and matching the added tokens: name, id and a dict of flags."""
    vocabulary = {**vocabulary}
    for name, number, _ in added:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{folder}: an added token is text, but one is {name!r:.80}.")
        if vocabulary.setdefault(name, number) != number:
            raise ValueError(
                f"{folder}: the added token {name!r:.80} has id {number}, "
                f"but the vocabulary gives it {vocabulary[name]}."
            )
    _check_ids(folder, vocabulary)
    names = list(dict.fromkeys([*SPECIAL.values(), *(name for name, _, _ in added)]))
    _check_merges(folder, vocabulary, merges, names)
    tokenizer = keras_hub.models.OPTTokenizer(vocabulary, merges, unsplittable_tokens=names)
    split_as_gpt2(tokenizer)
    for name, _, flags in added:
        flags = {flag: bool(flags[flag]) for flag in FLAGS if flag in flags}
        tokenizer._tokenizer.add_special_tokens([tokenizers.AddedToken(name, **flags)])
    return tokenizer


def _check_ids(folder, vocabulary):
    token_of = {}
    for token, number in vocabulary.items():
        if type(number) is not int or number < 0:
            raise ValueError(f"{folder}: an id is a number from 0 on, but that of {token!r:.80} is {number!r:.80}.")
        if number in token_of:
            raise ValueError(f"{folder}: {token_of[number]!r:.80} and {token!r:.80} have the same id, {number}.")
        token_of[number] = token


def _check_merges(folder, vocabulary, merges, names):
    """Each merge must make an entry out of two, and what is neither made, nor a byte, nor a name betrays a cut."""
    made = {*byte_alphabet().values(), *names}
    for merge in merges:
        pieces = merge.split(" ")
        if len(pieces) != 2 or not {*pieces, "".join(pieces)} <= vocabulary.keys():
            raise ValueError(
                f"{folder}: the merge {merge!r:.80} does not make an entry of the vocabulary out of two; "
                "the merges are damaged, or another tokenizer's."
            )
        made.add("".join(pieces))
    if lost := [token for token in vocabulary if token not in made and not NAME.fullmatch(token)]:
        raise ValueError(
            f"{folder}: no merge makes {lost[0]!r:.80}, one of {len(lost)} such entries of the vocabulary; "
            "the merges are cut short, or another tokenizer's: fetch them again."
        )


def write_hugging_face(tokenizer, folder):
    """Writes a tokenizer's files as ``transformers`` reads them."""
    tokenizer.save_assets(str(folder))
    shutil.move(folder / "vocabulary.json", folder / "vocab.json")
    options = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
    added = {
        str(number): {"content": token.content, **{name: getattr(token, name) for name in FLAGS}}
        for number, token in tokenizer._tokenizer.get_added_tokens_decoder().items()
    }
    write_json(folder / "tokenizer_config.json", {**options, **SPECIAL, "added_tokens_decoder": added})
    write_json(folder / "special_tokens_map.json", SPECIAL)
