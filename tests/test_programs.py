"""What runs is the model as it is: every change made to a model shows in the next call, or is refused in one line."""

import functools
import gc
import threading
import weakref

import jax
import numpy as np
import pytest
from small_models import SIZES, copy_weights, randomize

import optbook

# isort: split
import keras  # after optbook, which chooses the backend
import keras_hub

from optbook import _programs, report

TEXT = "The cat sat."
CHARACTERS = "".join(map(chr, range(ord("!"), ord("z"))))
VOCABULARY = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "Ġ": 4} | {each: 5 + i for i, each in enumerate(CHARACTERS)}
INPUTS = {"token_ids": np.array([[1, 1, 2, 9, 30, 12, 41]]), "padding_mask": np.array([[0, 0, 1, 1, 1, 1, 1]])}


def make_lm(kind=optbook.OPTBackbone, **options):
    """A task model around a small backbone with weights that are the same every time."""
    backbone = kind(**{**SIZES, "vocabulary_size": len(VOCABULARY), "dropout": 0.0, **options})
    randomize(backbone)
    tokenizer = keras_hub.models.OPTTokenizer(VOCABULARY, [])
    return keras_hub.models.OPTCausalLM(backbone, keras_hub.models.OPTCausalLMPreprocessor(tokenizer, 24))


# What is done to a model. Each takes the task model.


def epsilon(lm):
    for layer in lm.backbone.transformer_layers:
        layer.self_attention_layer_norm.epsilon = layer.feedforward_layer_norm.epsilon = 1.0
    lm.backbone.layer_norm.epsilon = 1.0


def activation(lm):
    lm.backbone.transformer_layers[1].feedforward_intermediate_dense.activation = keras.activations.gelu


def activation_of_ones_own(lm):
    lm.backbone.transformer_layers[1].feedforward_intermediate_dense.activation = lambda x: x * x


def dropout_rate(lm):
    lm.backbone.transformer_layers[0].dropout_layer.rate = 0.5


def replaced_sublayer(lm):
    layer = lm.backbone.transformer_layers[0]
    new = keras.layers.LayerNormalization(epsilon=0.5)
    new.build((None, None, SIZES["hidden_dim"]))
    layer._tracker.unlock()
    layer.feedforward_layer_norm = new


def wrapped_sublayer(lm):
    layer = lm.backbone.transformer_layers[1].self_attention
    original = layer.call

    @functools.wraps(original)
    def doubled(*args, **kwargs):
        outputs = original(*args, **kwargs)
        return (2 * outputs[0], *outputs[1:]) if isinstance(outputs, tuple) else 2 * outputs

    layer.call = doubled


def wrapped_layer(lm):
    layer = lm.backbone.transformer_layers[0]
    original = layer.call

    def doubled(x, *args, **kwargs):
        return original(2 * x, *args, **kwargs)

    layer.call = doubled


def lora(lm):
    lm.backbone.enable_lora(2)
    for weight in lm.backbone.weights:
        if "lora" in weight.path:
            weight.assign(np.random.default_rng(0).normal(size=weight.shape))


def int8(lm):
    lm.backbone.quantize("int8")


def dtype_policy(lm):
    for layer in lm.backbone.transformer_layers:
        layer.feedforward_intermediate_dense.dtype_policy = "bfloat16"


def a_weight(lm):
    layer = lm.backbone.transformer_layers[2]
    dense = getattr(layer, "feedforward_output_dense", None) or layer._feedforward_output_dense  # KerasHub's
    dense.kernel.assign(-np.asarray(dense.kernel))


def head_dim(lm):
    lm.backbone.transformer_layers[1].self_attention.head_dim = 1  # by which queries are scaled


EDITS = [
    epsilon,
    activation,
    activation_of_ones_own,
    dropout_rate,
    replaced_sublayer,
    wrapped_sublayer,
    wrapped_layer,
    lora,
    int8,
    dtype_policy,
    a_weight,
    head_dim,
]


def record_attention(lm):
    return optbook.record_attention(lm, INPUTS).weights


def perplexity(lm):
    return optbook.perplexity(lm, TEXT, max_length=8).nats_per_token


def generate(lm):
    return optbook.generate(lm, TEXT, max_new_tokens=3, stop_token_ids=None)


def head_scores(lm):
    return optbook.head_scores(lm.backbone, length=12, batch_size=1)["first_token"]


def next_token_logits(lm):
    return report.next_token_logits(lm, INPUTS["token_ids"])


FUNCTIONS = [record_attention, perplexity, generate, head_scores, next_token_logits]


def assert_same(ours, theirs, tolerance=1e-5):
    if isinstance(ours, str):
        assert ours == theirs
    else:
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def before():
    lm = make_lm()
    return {function: function(lm) for function in FUNCTIONS}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_shows_in_every_function(edit, before):
    lm, fresh = make_lm(), make_lm()
    for function in FUNCTIONS:
        assert_same(function(lm), before[function])
    edit(lm)
    edit(fresh)
    after = {function: function(lm) for function in FUNCTIONS}
    for function in FUNCTIONS:
        assert_same(after[function], function(fresh))
    token_ids = INPUTS["token_ids"]
    plain = fresh({"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)})
    rounds = edit in (int8, dtype_policy)  # at other places, where operations are fused
    assert_same(after[next_token_logits], plain, tolerance=0.02 if rounds else 1e-5)
    if edit is not dropout_rate:  # not used outside training
        assert np.abs(np.asarray(after[next_token_logits]) - np.asarray(before[next_token_logits])).max() > 1e-4


REFUSED = {
    "replaced": lambda backbone: backbone.transformer_layers.__setitem__(1, backbone.transformer_layers[0]),
    "removed": lambda backbone: backbone.transformer_layers.pop(),
    "appended": lambda backbone: backbone.transformer_layers.append(backbone.transformer_layers[0]),
    "last normalization": lambda backbone: setattr(backbone, "layer_norm", keras.layers.LayerNormalization()),
    "positions_from_mask": lambda backbone: setattr(backbone, "positions_from_mask", True),
}


@pytest.mark.parametrize("edit", REFUSED)
def test_a_model_that_names_other_layers_than_it_runs_is_refused(edit):
    lm = make_lm(num_layers=2)
    REFUSED[edit](lm.backbone)
    for function in FUNCTIONS:
        with pytest.raises(ValueError, match="build a new") as caught:
            function(lm)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("edit", [epsilon, lora, int8, a_weight])
def test_an_edit_of_kerashubs_backbone_shows_or_is_refused(edit):
    lm, ours = make_lm(keras_hub.models.OPTBackbone), make_lm()
    copy_weights(lm.backbone, ours.backbone)
    assert_same(record_attention(lm), record_attention(ours))
    edit_of_kerashubs = edit_epsilon_of_kerashubs if edit is epsilon else edit
    edit_of_kerashubs(lm)
    if edit is a_weight:
        copy_weights(lm.backbone, ours.backbone)
        assert_same(record_attention(lm), record_attention(ours))
    else:
        with pytest.raises(ValueError, match="as it was built, but .* was changed") as caught:
            record_attention(lm)
        assert "\n" not in str(caught.value)
    plain = lm({"token_ids": INPUTS["token_ids"], "padding_mask": np.ones_like(INPUTS["token_ids"])})
    assert_same(next_token_logits(lm), plain, tolerance=0.02 if edit is int8 else 1e-5)


def edit_epsilon_of_kerashubs(lm):
    for layer in lm.backbone.transformer_layers:
        layer._self_attention_layer_norm.epsilon = 1.0


def compiled_during(work):
    """How many programs XLA was asked for."""
    events = []

    def listen(event, *_args, **_kwargs):
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        work()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return sum(event == "/jax/core/compile/backend_compile_duration" for event in events)


def test_nothing_is_compiled_again_where_nothing_changed():
    lm = make_lm()
    functions = [record_attention, generate, next_token_logits, perplexity, head_scores]
    for function in functions:
        function(lm)
    assert compiled_during(lambda: [function(lm) for function in functions]) == 0
    same = make_lm()
    assert compiled_during(lambda: [function(same) for function in functions]) == 0
    lm.backbone.layer_norm.epsilon = 0.5  # as in no other test, whose program would be taken
    assert compiled_during(lambda: next_token_logits(lm)) == 1
    assert compiled_during(lambda: next_token_logits(lm)) == 0
    assert compiled_during(lambda: next_token_logits(same)) == 0


@pytest.mark.parametrize("edit", [epsilon, wrapped_sublayer])
def test_no_program_keeps_a_model_alive(edit):
    lm = make_lm()
    edit(lm)
    for function in FUNCTIONS:
        function(lm)
    alive = weakref.ref(lm), weakref.ref(lm.backbone)
    del lm
    gc.collect()
    assert [each() for each in alive] == [None, None]


# Samplers


class Biased(keras_hub.samplers.GreedySampler):
    """A bias on each id, in an attribute."""

    def __init__(self, bias):
        super().__init__()
        self.bias = bias

    def get_next_token(self, probabilities):
        return keras.ops.argmax(probabilities + self.bias, axis=-1)


def favour(character):
    bias = np.zeros(len(VOCABULARY), "float32")
    bias[VOCABULARY[character]] = 9.0
    return bias


def test_samplers_are_told_apart_by_all_of_their_attributes():
    lm = make_lm()
    sampler = Biased(favour("k"))
    assert optbook.generate(lm, TEXT, 3, sampler=sampler) == TEXT + "kkk"
    assert optbook.generate(lm, TEXT, 3, sampler=Biased(favour("q"))) == TEXT + "qqq"
    sampler.bias[:] = favour("x")
    assert optbook.generate(lm, TEXT, 3, sampler=sampler) == TEXT + "xxx"


def test_structures_are_told_apart_by_long_arrays():
    samplers = [keras_hub.samplers.GreedySampler() for _ in range(3)]
    for sampler, place in zip(samplers, (1000, 1000, 1001)):
        sampler.bias = np.zeros(2048, "float32")
        sampler.bias[place] = 1.0
    one, same, other = (_programs.Structure([sampler]) for sampler in samplers)
    assert one.is_fixed and one.entries == same.entries != other.entries


def test_two_threads_generate_on_one_model():
    lm, fresh = make_lm(), make_lm()
    samplers = [Biased(favour("k")), Biased(favour("q"))]
    lm.compile(sampler="greedy")
    texts, together = {}, threading.Barrier(len(samplers))

    def work(number):
        together.wait()
        texts[number] = [optbook.generate(lm, TEXT, 3, sampler=samplers[number]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(samplers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {0: [TEXT + "kkk"] * 3, 1: [TEXT + "qqq"] * 3}
    fresh.compile(sampler="greedy")
    assert lm.generate(TEXT, max_length=24) == fresh.generate(TEXT, max_length=24)
