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


def double_the_call(owner):
    original = owner.call
    owner.call = lambda *args, **kwargs: 2 * original(*args, **kwargs)


REFUSED_CALLS = {
    "the backbone's": lambda lm: double_the_call(lm.backbone),
    "the model's": double_the_call,
    "with a cache": lambda lm: setattr(lm, "call_with_cache", None),
    "embedding": lambda lm: setattr(lm.backbone, "embed", None),
}


@pytest.mark.parametrize("edit", REFUSED_CALLS)
def test_a_call_of_ones_own_for_the_whole_model_is_refused(edit):
    """Generation and records run the layers; perplexity alone would show it."""
    lm = make_lm(num_layers=2)
    REFUSED_CALLS[edit](lm)
    for function in FUNCTIONS if "model" not in edit and "cache" not in edit else [perplexity, generate]:
        with pytest.raises(ValueError, match="call was replaced.*wrap a layer's call") as caught:
            function(lm)
        assert "\n" not in str(caught.value)


def allow_all_keys(*sizes):
    return keras.ops.ones((1, sizes[0], sizes[1]), "bool")


def replace_code(monkeypatch):
    def call(self, inputs, start_index=0, positions=None):
        return self.token_embedding(inputs)

    monkeypatch.setattr(optbook.layers.TokenAndPositionEmbedding.call, "__code__", call.__code__)


REPLACED = {
    "constant": lambda monkeypatch: monkeypatch.setattr(optbook.layers, "MASKED_SCORE", 0.0),
    "function": lambda monkeypatch: monkeypatch.setattr(optbook.masks, "causal_mask", allow_all_keys),
    "operation": lambda monkeypatch: monkeypatch.setattr(keras.ops, "softmax", lambda x, axis: keras.ops.sigmoid(x)),
    "method": lambda monkeypatch: monkeypatch.setattr(optbook.layers.DecoderLayer, "call", lambda self, x, **_: x),
    "defaults": lambda monkeypatch: monkeypatch.setattr(
        optbook.layers.TokenAndPositionEmbedding.call, "__defaults__", (3, None)
    ),
    "code": replace_code,  # as a reload after an edit does
}


@pytest.mark.parametrize("kind", REPLACED)
def test_code_that_was_replaced_runs_and_what_was_put_back_too(kind, monkeypatch):
    lm, token_ids = make_lm(num_layers=2), INPUTS["token_ids"]
    before = next_token_logits(lm)
    with monkeypatch.context() as context:
        REPLACED[kind](context)
        plain = lm({"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)})
        assert np.abs(np.asarray(plain) - np.asarray(before)).max() > 1e-4
        assert_same(next_token_logits(lm), plain)
    assert_same(next_token_logits(lm), before)
    assert compiled_during(lambda: next_token_logits(lm)) == 0


def test_one_map_of_policies_is_read_for_each_models_own_layers():
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="float32")
    one, other = make_lm(num_layers=2), make_lm(num_layers=2)
    path = one.backbone.transformer_layers[0].feedforward_intermediate_dense.path
    policies[path] = keras.DTypePolicy("bfloat16")
    layers = [lm.backbone.transformer_layers[0].feedforward_intermediate_dense for lm in (one, other)]
    layers[1]._path = "another/path"
    for layer in layers:
        layer._dtype_policy = policies
    assert _programs.Structure([layers[0]]).entries != _programs.Structure([layers[1]]).entries


def test_a_random_key_in_a_layer_is_no_hindrance():
    lm = make_lm(num_layers=2)
    before = next_token_logits(lm)
    lm.backbone.transformer_layers[0].key = jax.random.key(0)
    assert_same(next_token_logits(lm), before)


def test_a_variable_of_a_class_of_its_own_is_refused():
    class Tripled(keras.Variable):
        @property
        def value(self):
            return 3 * super().value

    lm = make_lm(num_layers=2)
    lm.backbone.layer_norm.gamma.__class__ = Tripled
    with pytest.raises(ValueError, match="gamma is of a class of its own, Tripled: use a keras.Variable") as caught:
        next_token_logits(lm)
    assert "\n" not in str(caught.value)


def test_what_a_new_version_of_keras_may_read_is_read():
    """Attributes that Keras gives to all layers and that change numbers are no exceptions."""
    layer = keras.layers.Dense(3)
    entries = _programs.Structure([layer]).entries
    for name in ("_convert_input_args", "autocast", "_supports_masking", "attribute_of_a_new_version"):
        setattr(layer, name, not getattr(layer, name, False))
        assert _programs.Structure([layer]).entries != entries
        entries = _programs.Structure([layer]).entries


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
    lm.backbone.layer_norm.epsilon = 0.123  # as in no other test: models of one structure share a program
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
