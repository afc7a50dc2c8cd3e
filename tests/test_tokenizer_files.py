"""Tokenizers in folders: added tokens are matched and kept; what is cut, damaged or mismatched is refused by name."""

import json
import shutil

import numpy as np
import pytest
from test_keras_hub_presets import small_task

import optbook
from optbook import presets
from optbook.presets.table import ASSETS
from optbook.tokens import token_bytes, token_label

SOURCE = ASSETS / presets.DEFAULT / "assets" / "tokenizer"
TEXT = "the <two words> house<é|x>, or <é|x>."


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder with vocab.json and merges.txt, to be changed by a test."""
    shutil.copy(SOURCE / "vocabulary.json", tmp_path / "vocab.json")
    shutil.copy(SOURCE / "merges.txt", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    return tmp_path


@pytest.fixture
def keras_hub_folder(tmp_path):
    """The same in KerasHub's layout."""
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(ASSETS / presets.DEFAULT / name, tmp_path)
    shutil.copytree(SOURCE, tmp_path / "assets" / "tokenizer")
    return tmp_path


def write(path, content):
    path.write_text(json.dumps(content))


def size():
    return optbook.tokenizer().vocabulary_size()


def added_tokens(folder, count):
    write(folder / "added_tokens.json", {"<two words>": count, "<é|x>": count + 7})


def tokenizer_json(folder, count):
    added = [{"id": count, "content": "<two words>"}, {"id": count + 7, "content": "<é|x>", "special": False}]
    write(folder / "tokenizer.json", {"added_tokens": added})


def tokenizer_config(folder, count):
    added = {str(count): {"content": "<two words>", "lstrip": False}, str(count + 7): {"content": "<é|x>"}}
    write(folder / "tokenizer_config.json", {"added_tokens_decoder": added})


def ids_of(tokenizer, text):
    return np.asarray(tokenizer(text)).tolist()


@pytest.mark.parametrize("add", [added_tokens, tokenizer_json, tokenizer_config])
def test_added_tokens_are_matched_in_a_text(folder, add):
    add(folder, size())
    tokenizer, plain = optbook.tokenizer(folder), optbook.tokenizer()
    first, second = size(), size() + 7
    between = [ids_of(plain, text) for text in ("the ", " house", ", or ", ".")]
    assert ids_of(tokenizer, TEXT) == [*between[0], first, *between[1], second, *between[2], second, *between[3]]
    assert tokenizer.detokenize([first]) == "<two words>"
    assert tokenizer.vocabulary_size() == size() + 2


def test_the_bytes_and_labels_of_added_tokens(folder):
    added_tokens(folder, size())
    tokenizer = optbook.tokenizer(folder)
    assert b"".join(token_bytes(tokenizer, token_id) for token_id in ids_of(tokenizer, TEXT)) == TEXT.encode()
    assert [token_label(tokenizer, token_id) for token_id in (size(), size() + 7)] == ["<two␣words>", "<é|x>"]


def test_an_entry_that_is_not_spelled_in_bytes_has_a_label(folder):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    write(folder / "vocab.json", {**vocabulary, "<two words>": size()})
    assert token_label(optbook.tokenizer(folder), size()) == "<two␣words>"


def test_an_added_token_takes_the_space_before_it_where_it_says_so(folder):
    write(folder / "tokenizer.json", {"added_tokens": [{"id": size(), "content": "<mask>", "lstrip": True}]})
    assert ids_of(optbook.tokenizer(folder), "the <mask>") == [*ids_of(optbook.tokenizer(), "the"), size()]


@pytest.mark.parametrize("write_folder", [optbook.export, lambda task, folder: task.save_to_preset(str(folder))])
def test_added_tokens_are_written_and_read_again(folder, tmp_path, write_folder):
    added_tokens(folder, size())
    task = small_task(optbook.OPTBackbone)
    task.preprocessor.tokenizer = tokenizer = optbook.tokenizer(folder)
    write_folder(task, tmp_path / "again")
    again = optbook.tokenizer(tmp_path / "again")
    assert ids_of(again, TEXT) == ids_of(tokenizer, TEXT)
    assert again.vocabulary == tokenizer.vocabulary


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("added_tokens.json", {"<a>": 5}, r"'.+' and '<a>' have the same id, 5"),
        ("added_tokens.json", {"<a>": "x"}, "an id is a number from 0 on, but that of '<a>' is 'x'"),
        ("added_tokens.json", {"<pad>": 9}, "the added token '<pad>' has id 9, but the vocabulary gives it 1"),
        ("tokenizer.json", {"added_tokens": [{"id": 9}]}, "its tokenizer is damaged"),
        ("tokenizer.json", {"added_tokens": [{"id": 9999, "content": 3}]}, "an added token is text, but one is 3"),
        ("added_tokens.json", {"": 9999}, "an added token is text, but one is ''"),
        ("tokenizer.json", {"added_tokens": 9}, "its tokenizer is damaged"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "its tokenizer is damaged"),
        ("vocab.json", {"</s>": 2, "<pad>": -1}, "an id is a number from 0 on"),
    ],
)
def test_ids_and_lists_that_cannot_be(folder, name, content, said):
    write(folder / name, content)
    assert_refused(folder, said)


def assert_refused(folder, said):
    with pytest.raises(ValueError, match=said) as refusal:
        optbook.tokenizer(folder)
    assert "\n" not in str(refusal.value)


CUTS = {
    "empty": lambda text: "",
    "only its first line": lambda text: text.split("\n")[0],
    "without its last line": lambda text: text.rstrip("\n").rpartition("\n")[0],
    "in the middle of its last line": lambda text: text.rstrip("\n")[:-1],
    "half": lambda text: text[: len(text) // 2],
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_merges_that_are_cut(folder, cut):
    merges = folder / "merges.txt"
    merges.write_text(cut(merges.read_text()))
    assert_refused(folder, "no merge makes '.+'|does not make an entry of the vocabulary out of two")


def test_merges_that_are_cut_in_keras_hubs_layout(keras_hub_folder):
    (keras_hub_folder / "assets" / "tokenizer" / "merges.txt").write_text("")
    assert_refused(keras_hub_folder, "no merge makes")


def test_the_merges_of_another_tokenizer(folder):
    shutil.copy(ASSETS / "opt_tokenizer" / "merges.txt", folder)
    assert_refused(folder, "does not make an entry of the vocabulary out of two")


def test_merges_with_a_header_and_line_ends_of_windows(folder):
    merges = folder / "merges.txt"
    merges.write_bytes(b"#version: 0.2\r\n" + merges.read_bytes().replace(b"\n", b"\r\n"))
    assert ids_of(optbook.tokenizer(folder), TEXT) == ids_of(optbook.tokenizer(), TEXT)


SPOILED = {
    "only points to": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 25\n",
    "a byte-order mark; save it as UTF-8": lambda content: b"\xef\xbb\xbf" + content,
    "byte-order mark": lambda content: content.decode().encode("utf-16"),
    "damaged or cut short": lambda content: content[:-3] + b"\xff",
}


@pytest.mark.parametrize("said", SPOILED)
@pytest.mark.parametrize("name", ["config.json", "vocab.json", "merges.txt", "added_tokens.json"])
def test_files_that_are_not_what_they_seem(folder, name, said):
    added_tokens(folder, size())
    (folder / name).write_bytes(SPOILED[said]((folder / name).read_bytes()))
    assert_refused(folder, f"{name} .*{said}")


@pytest.mark.parametrize("said", SPOILED)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "assets/tokenizer/vocabulary.json"])
def test_files_of_keras_hub_that_are_not_what_they_seem(keras_hub_folder, name, said):
    file = keras_hub_folder / name
    file.write_bytes(SPOILED[said](file.read_bytes()))
    assert_refused(keras_hub_folder, f"{name} .*{said}")
