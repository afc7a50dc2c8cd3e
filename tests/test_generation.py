"""Generation: KerasHub's texts, one program for prompts of about one length, only ids that decode, seeds, refusals."""

import gc
import io
import weakref

import keras_hub
import numpy as np
import pytest

import optbook
from optbook import _programs, generation
from optbook.generation import generate

PROMPTS = ["The old house was", "She looked up.", "It is a truth universally acknowledged, that a single"]


@pytest.fixture(scope="module")
def lm():
    return optbook.causal_lm()


@pytest.fixture(scope="module")
def keras_hub_lm():
    """KerasHub's own backbone with the same weights; compiled greedy."""
    folder = optbook.presets.preset_folder(optbook.presets.DEFAULT)
    lm = keras_hub.models.OPTCausalLM(
        keras_hub.models.OPTBackbone.from_preset(str(folder)),
        preprocessor=keras_hub.models.OPTCausalLMPreprocessor(optbook.tokenizer(), sequence_length=128),
    )
    lm.compile(sampler="greedy")
    return lm


@pytest.fixture
def bars(monkeypatch):
    """Every run shows its progress; the bars, when they have ended."""
    made = []

    class Bar(generation._Bar):
        def __init__(self, **kwargs):
            super().__init__(**kwargs, file=io.StringIO())
            made.append(self)

    monkeypatch.setattr(generation, "LONG", 0)
    monkeypatch.setattr(generation, "_Bar", Bar)
    return made


def programs():
    return _programs._compiled._cache_size()


def test_greedy_text_is_keras_hubs_for_either_backbone(lm, keras_hub_lm):
    theirs = [keras_hub_lm.generate(prompt, max_length=40) for prompt in PROMPTS]
    assert [generate(lm, prompt, max_length=40) for prompt in PROMPTS] == theirs
    assert [generate(keras_hub_lm, prompt, max_length=40) for prompt in PROMPTS] == theirs
    assert all(text.startswith(prompt) and len(text) > len(prompt) + 20 for prompt, text in zip(PROMPTS, theirs))


def test_a_batch_gives_what_each_prompt_gives_alone(lm, keras_hub_lm):
    assert generate(lm, PROMPTS, max_length=40) == keras_hub_lm.generate(list(PROMPTS), max_length=40)
    alone = [generate(lm, prompt, max_new_tokens=9) for prompt in PROMPTS]
    assert generate(lm, PROMPTS, max_new_tokens=9) == alone
    tokens = [
        len(lm.preprocessor.tokenizer(text)) - len(lm.preprocessor.tokenizer(p)) for p, text in zip(PROMPTS, alone)
    ]
    assert tokens == [9, 9, 9]


def test_either_architecture_gives_keras_hubs_text(golden_backbone):
    characters = "".join(map(chr, range(ord("!"), ord("!") + 60)))
    entries = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{each: 4 + i for i, each in enumerate(characters)}}
    preprocessor = keras_hub.models.OPTCausalLMPreprocessor(keras_hub.models.OPTTokenizer(entries, []), 24)
    lm = keras_hub.models.OPTCausalLM(golden_backbone, preprocessor=preprocessor)
    lm.compile(sampler="greedy")
    theirs = lm.generate("MAP", max_length=20, stop_token_ids=None)
    assert generate(lm, "MAP", max_length=20, stop_token_ids=None) == theirs != "MAP"


@pytest.mark.parametrize("name, settings", [("TopK", {"k": 7}), ("TopP", {"p": 0.9}), ("Random", {})])
def test_sampled_text_is_keras_hubs_of_the_same_seed(lm, keras_hub_lm, name, settings):
    sampler = getattr(keras_hub.samplers, f"{name}Sampler")
    keras_hub_lm.compile(sampler=sampler(seed=3, **settings))
    theirs = keras_hub_lm.generate(PROMPTS[0], max_length=32)
    assert generate(lm, PROMPTS[0], max_length=32, sampler=sampler(**settings), seed=3) == theirs
    assert generate(lm, PROMPTS[0], max_length=32, sampler=sampler(seed=3, **settings)) == theirs


@pytest.mark.parametrize("name", ["beam", "contrastive"])
def test_samplers_that_look_ahead_give_keras_hubs_text(lm, keras_hub_lm, name):
    keras_hub_lm.compile(sampler=name)
    assert generate(lm, PROMPTS[0], max_length=20, sampler=name) == keras_hub_lm.generate(PROMPTS[0], max_length=20)


def test_no_stop_tokens_are_as_good_as_none(lm):
    assert generate(lm, PROMPTS[1], 20, stop_token_ids=()) == generate(lm, PROMPTS[1], 20, stop_token_ids=None)


def test_a_seed_gives_one_text_whatever_was_sampled_before(lm):
    first = generate(lm, PROMPTS, max_new_tokens=12, sampler="random", seed=1)
    assert generate(lm, PROMPTS, max_new_tokens=12, sampler="random", seed=2) != first
    generate(lm, PROMPTS, max_new_tokens=12, sampler="random")
    assert generate(lm, PROMPTS, max_new_tokens=12, sampler="random", seed=1) == first


def test_without_a_seed_a_sampler_goes_on(lm):
    sampler = keras_hub.samplers.RandomSampler(seed=5)
    texts = [generate(lm, PROMPTS[0], max_new_tokens=12, sampler=sampler) for _ in range(2)]
    assert texts[0] != texts[1]
    assert texts[0] == generate(lm, PROMPTS[0], max_new_tokens=12, sampler="random", seed=5)


def test_prompts_of_about_one_length_share_a_program(lm):
    prompts = ["She looked up.", "She looked up. It", "She looked up. It was"]
    assert [len(lm.preprocessor.tokenizer(prompt)) + 1 for prompt in prompts] == [5, 6, 7]
    generate(lm, prompts[0], max_new_tokens=20)
    before = programs()
    for prompt in prompts:
        for more in (15, 20, 25):
            generate(lm, prompt, max_new_tokens=more)
    generate(lm, prompts[0], max_length=32)
    assert programs() == before
    generate(lm, prompts[0], max_new_tokens=60)
    assert programs() == before + 1


def test_batches_of_about_one_size_share_a_program(lm):
    generate(lm, PROMPTS, max_length=30)
    before = programs()
    generate(lm, [*PROMPTS, ""], max_length=30)
    assert programs() == before


def test_samplers_with_equal_settings_share_a_program_and_others_do_not(lm):
    before = programs()
    for k in (2, 3):
        for seed in (1, 2):
            generate(lm, PROMPTS[0], max_length=20, sampler=keras_hub.samplers.TopKSampler(k=k, seed=seed))
    assert programs() == before + 2


def test_the_callers_sampler_and_program_stay(lm):
    lm.compile(sampler="top_k")
    lm.make_generate_function()
    sampler, function = lm.sampler, lm.generate_function
    state = [np.asarray(variable) for variable in sampler.variables]
    generate(lm, PROMPTS[1], max_new_tokens=30)

    class Broken(keras_hub.samplers.GreedySampler):
        def get_next_token(self, probabilities):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        generate(lm, PROMPTS[1], max_new_tokens=30, sampler=Broken())
    assert lm.sampler is sampler and lm.generate_function is function
    np.testing.assert_array_equal(state, sampler.variables)


def test_new_weights_are_used(lm):
    other = optbook.causal_lm()
    first = generate(other, PROMPTS[0], max_new_tokens=12)
    before = programs()
    for weight in other.backbone.transformer_layers[1].weights:
        weight.assign(0 * weight)
    assert generate(other, PROMPTS[0], max_new_tokens=12) != first
    assert programs() == before


def test_ids_without_a_token_never_come_out(lm):
    """Rows beyond the tokenizer that would win every time, one or the other of a pair."""
    sizes = lm.backbone.get_config()
    rows = sizes["vocabulary_size"]
    backbone = optbook.OPTBackbone.from_config({**sizes, "vocabulary_size": rows + 2})
    copy_weights_but_the_table(lm.backbone, backbone, extra=50.0)
    more = keras_hub.models.OPTCausalLM(backbone, preprocessor=lm.preprocessor)
    more.compile(sampler="greedy")
    assert more.generate(PROMPTS[0], max_length=20) == PROMPTS[0]  # they would have won: nothing that decodes
    assert generate(more, PROMPTS, max_length=30) == generate(lm, PROMPTS, max_length=30)
    sampled = generate(more, PROMPTS, max_length=40, sampler="random", seed=0)
    assert all(len(text) > len(prompt) + 10 for prompt, text in zip(PROMPTS, sampled))


def test_ids_without_a_token_never_come_out_where_all_scores_are_far_below_zero():
    """What has a token scores −300, −299 for "k"; the two rows beyond 0."""
    entries = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{each: 4 + i for i, each in enumerate("jklm")}}
    rows = len(entries)
    backbone = optbook.OPTBackbone(rows + 2, 1, 1, 4, 4, max_sequence_length=16)
    backbone.layer_norm.gamma.assign(np.zeros(4))
    backbone.layer_norm.beta.assign([1, 0, 0, 0])
    table = np.zeros((rows + 2, 4))
    table[:rows, 0] = -300
    table[entries["k"], 0] = -299
    backbone.token_embedding.embeddings.assign(table)
    preprocessor = keras_hub.models.OPTCausalLMPreprocessor(keras_hub.models.OPTTokenizer(entries, []), 16)
    lm = keras_hub.models.OPTCausalLM(backbone, preprocessor=preprocessor)
    assert generate(lm, "jm", max_new_tokens=3) == "jmkkk"


def copy_weights_but_the_table(source, target, extra):
    table = np.asarray(source.token_embedding.embeddings)
    line = np.random.default_rng(0).standard_normal(table.shape[1]) * extra
    target.token_embedding.embeddings.assign(np.concatenate([table, [line, -line]]))
    for theirs, ours in zip(source.weights[1:], target.weights[1:], strict=True):
        ours.assign(np.array(theirs.value))


def test_a_text_ends_before_a_stop_token(lm):
    tokenizer = lm.preprocessor.tokenizer
    comma = tokenizer.token_to_id(",")
    whole = generate(lm, PROMPTS, max_new_tokens=30, stop_token_ids=None)
    stopped = generate(lm, PROMPTS, max_new_tokens=30, stop_token_ids=(comma,))
    added = [text.removeprefix(prompt) for prompt, text in zip(PROMPTS, whole)]
    assert sum("," in text for text in added) >= 2
    assert stopped == [prompt + text.partition(",")[0] for prompt, text in zip(PROMPTS, added)]


def test_it_stops_at_the_end_token_unless_told_otherwise(lm, monkeypatch, bars):
    tokenizer = lm.preprocessor.tokenizer
    whole = generate(lm, PROMPTS[1], max_new_tokens=40, strip_prompt=True)
    monkeypatch.setattr(tokenizer, "end_token_id", tokenizer.token_to_id(","))
    stopped = generate(lm, PROMPTS[1], max_new_tokens=40, strip_prompt=True)
    assert stopped == whole.partition(",")[0] != whole
    assert bars[1].n == len(tokenizer(stopped)) + 1 < bars[0].n == 40
    before = bars[-1].n
    generate(lm, [PROMPTS[1]] * 3, max_new_tokens=40)  # with a fourth row to fill up
    assert bars[-1].n == before


def test_it_runs_no_longer_than_asked(lm, bars):
    generate(lm, PROMPTS[1], max_new_tokens=3)
    generate(lm, PROMPTS[1], max_length=9)
    assert [bar.n for bar in bars] == [3, 4]  # of 16 positions


def test_a_short_run_shows_no_bar(lm, capsys):
    generate(lm, PROMPTS[1], max_new_tokens=3)
    assert capsys.readouterr().err == ""


def test_a_text_gives_a_text_and_a_list_a_list(lm):
    text = generate(lm, PROMPTS[1], max_new_tokens=4)
    assert isinstance(text, str) and generate(lm, [PROMPTS[1]], max_new_tokens=4) == [text]
    assert generate(lm, PROMPTS[1], max_new_tokens=4, strip_prompt=True) == text.removeprefix(PROMPTS[1])
    assert generate(lm, "", max_new_tokens=4)
    assert generate(lm, "Zoë — 家", max_new_tokens=4).startswith("Zoë — 家")


def test_without_a_length_it_is_the_preprocessors():
    lm = optbook.causal_lm(sequence_length=21)
    assert generate(lm, PROMPTS[1]) == generate(lm, PROMPTS[1], max_length=21)


def test_no_compiled_program_keeps_a_model_alive():
    lm = optbook.causal_lm()
    generate(lm, PROMPTS[1], max_new_tokens=4)
    alive = weakref.ref(lm)
    del lm
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"prompts": []}, ValueError, "there is no text"),
        ({"prompts": ["a", 3]}, TypeError, "text 1 must be a str, but is 3"),
        ({"prompts": "\udc80"}, ValueError, "no Unicode text"),
        ({"max_new_tokens": 124}, ValueError, "can be at most 123, but is 124"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 4, "max_length": 9}, ValueError, "not both"),
        ({"max_length": 5}, ValueError, "5 tokens, start token included, which leaves no room"),
        ({"max_length": 129}, ValueError, "at most 128"),
        ({"prompts": ["a", "a" * 130]}, ValueError, "prompt 1 has .* 128 positions, which leaves no room"),
        ({"sampler": "best"}, ValueError, "'best'"),
        ({"sampler": keras_hub.samplers.TopKSampler(k=5, temperature=0.0)}, ValueError, "above 0, but is 0.0"),
        ({"stop_token_ids": (2, 1)}, ValueError, "cannot hold 1, the padding"),
        ({"sampler": "random", "seed": -1}, ValueError, "seed must be an int in 0 … 4294967295, but is -1"),
    ],
)
def test_bad_input_is_answered_in_one_line(lm, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        generate(lm, **{"prompts": PROMPTS[1], **arguments})
    assert "\n" not in str(caught.value)


def test_a_prompt_that_its_tokens_do_not_give_back_is_refused(lm):
    few = keras_hub.models.OPTTokenizer({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5}, [])
    small = keras_hub.models.OPTCausalLM(lm.backbone, preprocessor=keras_hub.models.OPTCausalLMPreprocessor(few, 128))
    assert generate(small, "ab", max_new_tokens=3, stop_token_ids=None).startswith("ab")
    with pytest.raises(ValueError, match="text 0 does not decode: of 'xb' at 1 its tokens give back 'b'"):
        generate(small, "axb", max_new_tokens=3)


def test_ids_that_the_model_does_not_have_are_refused(lm):
    large = keras_hub.models.OPTCausalLMPreprocessor(optbook.tokenizer("opt"), sequence_length=128)
    with pytest.raises(ValueError, match="token_ids must lie in 0 … 2047"):
        generate(keras_hub.models.OPTCausalLM(lm.backbone, preprocessor=large), "Hello world", max_new_tokens=3)


def test_a_model_without_text_is_refused(lm):
    for model in (lm.backbone, keras_hub.models.OPTCausalLM(lm.backbone, preprocessor=None)):
        with pytest.raises(TypeError, match="with a preprocessor"):
            generate(model, "a", max_new_tokens=3)
