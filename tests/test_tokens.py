"""Tokens as bytes and as labels, OPT's published ids, and the way back from ids to text."""

import copy

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import optbook
from optbook import presets, tokens
from optbook.tokens import byte_alphabet, token_bytes, token_label, tokenize_batch, visible

TOKENIZERS = {"opt": optbook.tokenizer("opt"), **{name: optbook.tokenizer(name) for name in presets.EMBEDDED}}
SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}


@pytest.fixture(scope="module")
def opt():
    return TOKENIZERS["opt"]


@pytest.fixture(params=list(TOKENIZERS))
def tokenizer(request):
    return TOKENIZERS[request.param]


def test_byte_alphabet_spells_every_byte_with_one_printable_character():
    alphabet = byte_alphabet()
    assert sorted(alphabet) == list(range(256))
    assert len(set(alphabet.values())) == 256
    assert all(character.isprintable() and not character.isspace() for character in alphabet.values())
    assert alphabet[ord("A")] == "A"
    assert alphabet[ord(" ")] == "Ġ" and alphabet[ord("\n")] == "Ċ"  # as GPT-2 has them
    assert alphabet[0] == "Ā" and alphabet[255] == "ÿ"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("I like you.", [100, 101, 47, 4]),
        ("Hello my name is", [31414, 127, 766, 16]),
        ("Hello world", [31414, 232]),
        ("", []),
    ],
)
def test_published_ids_of_opt(opt, text, ids):
    assert np.asarray(opt(text)).tolist() == ids


# Stretches at whose ends GPT-2's splitting has a rule, and what another splitting would join or part.
stretches = st.one_of(
    st.sampled_from(
        ["a", "the", " the", "It", "'s", "'S", "'t", "'ll", "'", "1984", "²", "½", "!!", ".", ",", "—", "\n"]
    ),
    st.sampled_from(
        [" ", "  ", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2009", "é", "e\u0301", "家", "🏠", "_", "६", "Ġ"]
    ),
    st.text(st.characters(codec="utf-8"), max_size=4),
)


def reference(tokenizer):
    """The same vocabulary and merges, split as GPT-2 splits, without KerasHub."""
    merges = [tuple(merge.split(" ")) for merge in tokenizer.merges]
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=dict(tokenizer.vocabulary), merges=merges))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return model


REFERENCES = {name: reference(tokenizer) for name, tokenizer in TOKENIZERS.items()}


@settings(max_examples=4000, deadline=None, derandomize=True)
@given(text=st.lists(stretches, max_size=12).map("".join).filter(lambda text: not any(s in text for s in SPECIAL)))
def test_texts_are_split_as_gpt2_splits_them(text):
    for name, tokenizer in TOKENIZERS.items():
        assert np.asarray(tokenizer(text)).tolist() == REFERENCES[name].encode(text).ids, name


@pytest.mark.parametrize(
    ("text", "ids"),
    [("a\n\nb", [102, 50118, 50118, 428]), ("Hello world, 'there", [31414, 232, 6, 128, 8585])],
)
def test_no_merge_crosses_from_word_to_word(opt, text, ids):
    assert np.asarray(opt(text)).tolist() == ids


def test_a_task_and_a_batch_are_split_alike():
    task = optbook.causal_lm()
    text = "It's cold,  \n\n 'there"
    ids = REFERENCES[presets.DEFAULT].encode(text).ids
    inputs = task.preprocessor.generate_preprocess([text], sequence_length=32)
    assert np.asarray(inputs["token_ids"])[0, 1 : 1 + len(ids)].tolist() == ids
    assert task.preprocessor.tokenizer([text])[0] == ids


def test_a_tokenizer_that_was_copied_is_split_alike_too():
    text = ", it's 🙂's"
    copied = copy.deepcopy(optbook.tokenizer())
    assert np.asarray(copied(text)).tolist() != REFERENCES[presets.DEFAULT].encode(text).ids  # else leave it out
    ids = tokens.tokenize_batch(copied, text)["token_ids"][0, 1:].tolist()
    assert ids == REFERENCES[presets.DEFAULT].encode(text).ids


def test_opt_has_its_published_size(opt):
    assert opt.vocabulary_size() == 50265
    assert opt.id_to_token(50264) == "<mask>"


def test_special_tokens(tokenizer):
    assert {token: tokenizer.token_to_id(token) for token in SPECIAL} == SPECIAL
    assert (tokenizer.start_token_id, tokenizer.pad_token_id, tokenizer.end_token_id) == (2, 1, 2)


def test_every_byte_has_a_token(tokenizer):
    alphabet = byte_alphabet()
    ids = {byte: tokenizer.token_to_id(character) for byte, character in alphabet.items()}
    assert len(set(ids.values())) == 256
    assert all(token_bytes(tokenizer, ids[byte]) == bytes([byte]) for byte in range(256))


# Text that spells a special token is one token by design, and surrogates are no text.
texts = st.text(st.characters(codec="utf-8"), max_size=30).filter(
    lambda text: not any(token in text for token in SPECIAL)
)


@pytest.mark.parametrize("name", list(TOKENIZERS))
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=texts)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(name, text):
    tokenizer = TOKENIZERS[name]
    ids = np.asarray(tokenizer(text)).tolist()
    assert b"".join(token_bytes(tokenizer, token) for token in ids) == text.encode()


@pytest.mark.parametrize("name", list(TOKENIZERS))
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=texts)
def test_detokenize_gives_the_text_back(name, text):
    tokenizer = TOKENIZERS[name]
    assert tokenizer.detokenize(np.asarray(tokenizer(text)).tolist()) == text


@pytest.mark.parametrize("text", ["naïve café", "日本語", "🙂👩‍🚀", "def f(x):\n\treturn x  # two", "\x00\x7f\u00a0"])
def test_awkward_text_comes_back(tokenizer, text):
    assert tokenizer.detokenize(np.asarray(tokenizer(text)).tolist()) == text


def test_token_bytes_of_special_tokens_are_empty(tokenizer):
    assert [token_bytes(tokenizer, token) for token in SPECIAL.values()] == [b""] * 4


@pytest.mark.parametrize("text", [" my", "\n", "\t", " a\n"])
def test_labels_show_white_space(opt, text):
    labels = "".join(token_label(opt, token) for token in np.asarray(opt(text)).tolist())
    assert labels == text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def test_labels_of_special_tokens_and_of_split_characters(opt):
    assert [token_label(opt, token) for token in (0, 1, 2, 3, 50264)] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert token_label(opt, opt.token_to_id(byte_alphabet()[0xE2])) == "⟨E2⟩"
    assert token_label(opt, np.int64(31414)) == "Hello"


@pytest.mark.parametrize(
    "character", "\r\0\x7f\x85\xa0\xad\u034f\u200b\u200d\u2028\u2800\u3000\u3164\ufe0f\ufeff\U000e0101"
)
def test_what_nobody_would_see_is_written_by_its_number(character):
    number = f"⟨U+{ord(character):04X}⟩"
    assert visible(f"a{character} b") == f"a{number} b"
    assert visible(number) == number


def test_labels_of_invisible_characters(opt):
    labels = ["".join(token_label(opt, id) for id in np.asarray(opt(text)).tolist()) for text in ("\r", "\xa0", "\0")]
    assert labels == ["⟨U+000D⟩", "⟨U+00A0⟩", "⟨U+0000⟩"]


def test_what_can_be_seen_stays():
    text = "".join(chr(code) for code in range(33, 127)) + "é漢😀→␣⏎ ✓"
    assert visible(text) == text


def test_tokenize_batch_starts_and_pads(opt):
    batch = tokenize_batch(opt, ["I like you.", "Hello my name is", "Hello world"])
    assert batch["token_ids"].tolist() == [[2, 100, 101, 47, 4], [2, 31414, 127, 766, 16], [2, 31414, 232, 1, 1]]
    assert batch["padding_mask"].tolist() == [[1] * 5, [1] * 5, [1, 1, 1, 0, 0]]
    assert batch["token_ids"].dtype == batch["padding_mask"].dtype == np.int32


def test_tokenize_batch_takes_one_text_and_an_empty_one(opt):
    assert tokenize_batch(opt, "Hello world")["token_ids"].tolist() == [[2, 31414, 232]]
    assert tokenize_batch(opt, "")["token_ids"].tolist() == [[2]]


def test_tokenize_batch_does_not_take_real_text_for_padding(opt):
    """The mask counts tokens; it is not read off the ids."""
    batch = tokenize_batch(opt, ["<pad>", "Hello world"])
    assert batch["padding_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
