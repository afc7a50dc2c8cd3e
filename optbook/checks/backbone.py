"""The exercises of chapter 06: rebuild a backbone, look into its layers, find what makes a model not OPT."""

import keras
import keras_hub
import numpy as np
from keras import layers, ops

from optbook import masks
from optbook.backbone import OPTBackbone
from optbook.checks._core import ask, compare, numbers, require, verdict
from optbook.layers import LAYER_NORM_EPSILON, DecoderLayer, TokenAndPositionEmbedding

SIZES = dict(vocabulary_size=61, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=20, max_sequence_length=16)
VERDICTS = ("OPT", "no final norm", "post-norm", "untied head", "sees the future")
SEED = 5  # of the models `diagnose` is tried on; not the chapter's


def _randomize(model, seed):
    """Weights large enough that every mistake shows: 1 ± 0.3 for the gains of the norms, ± 0.3 for all others."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign((weight.name == "gamma") + 0.3 * generator.standard_normal(weight.shape))
    return model


def _inputs(length=7):
    """Two rows, the second padded on the left, so that a mask that was left out shows in real rows."""
    token_ids = np.random.default_rng(3).integers(4, SIZES["vocabulary_size"], (2, length)).astype("int32")
    padding_mask = np.ones_like(token_ids)
    padding_mask[1, :2] = 0
    return {"token_ids": token_ids, "padding_mask": padding_mask}


def _values(model):
    return [np.asarray(weight.value) for weight in model.weights]


def rebuild(function):
    """Checks ``function(backbone) -> backbone``: a copy of the same config, its weights in variables of its own."""
    original = _randomize(OPTBackbone(**SIZES, dropout=0.25, positions_from_mask=True, dtype="bfloat16"), seed=0)
    before = _values(original)
    copy = ask(function, original)
    require(copy is not original, "you returned the very same object: whoever trains the copy trains the original too.")
    require(isinstance(copy, keras.Model), f"your function returned {type(copy).__name__}, not a backbone.")
    require(
        not {id(weight) for weight in copy.weights} & {id(weight) for weight in original.weights},
        "the copy holds the original's own variables: build new layers and copy only the values.",
    )
    wanted, got = original.get_config(), copy.get_config()
    wrong = [name for name in wanted if name not in ("name", "trainable") and got.get(name) != wanted[name]]
    require(
        not wrong,
        f"the config got lost: {', '.join(wrong)} of the copy differ from the original's; "
        "pass on all that get_config() returns, and not the sizes alone.",
    )
    after = _values(original)
    require(
        all(np.array_equal(old, new) for old, new in zip(before, after)),
        "the original's weights have changed: values must go from the original to the copy.",
    )
    same = [np.array_equal(ours, theirs) for ours, theirs in zip(_values(copy), before)]
    require(any(same), "the copy has fresh random weights: a config holds sizes and no weights; copy these too.")
    missed = [weight.path for is_same, weight in zip(same, copy.weights) if not is_same]
    require(not missed, f"{len(missed)} of {len(same)} arrays were not copied, the first of them {missed[:1]}.")
    shared = {id(weight.value) for weight in copy.weights} & {id(weight.value) for weight in original.weights}
    require(
        not shared,
        f"{len(shared)} of {len(same)} variables of the copy hold the original's own arrays: the first training step "
        "of one deletes them under the other; assign NumPy copies, as get_weights() gives.",
    )
    return f"right: the same config, equal values in {len(same)} arrays, and none of them shared"


def logit_lens(function):
    """Checks ``function(backbone, inputs)``: logits of shape (num_layers + 1, batch, T, vocabulary_size).

    The embeddings come first, then the output of each layer, each through the final norm and the tied head.
    """
    backbone, inputs = _randomize(OPTBackbone(**SIZES), seed=1), _inputs()

    def states(padding_mask):
        every = [backbone.embed(inputs["token_ids"], padding_mask)]
        for layer in backbone.transformer_layers:
            every.append(layer(every[-1], decoder_padding_mask=padding_mask))
        return every

    def read(every, *norms):
        for norm in norms:
            every = [norm(state) for state in every]
        return np.stack([ops.convert_to_numpy(backbone.token_embedding(state, reverse=True)) for state in every])

    norm, every = backbone.layer_norm, states(inputs["padding_mask"])
    right = read(every, norm)
    got = numbers(ask(function, backbone, inputs))
    shapes = {None: "(L + 1, batch, T, V)", right.shape[:-1]: "you returned one id for each token: return the logits"}
    if got.shape == right[1:].shape:
        first_missing = np.abs(got - right[1:]).max() < np.abs(got - right[:-1]).max()
        shapes[got.shape] = (
            "the embeddings are missing: the lens also reads what enters the first layer"
            if first_missing
            else "the last layer's output is missing: L layers have L + 1 states between them"
        )
    lens = "you returned hidden states: the lens is the tied head, token_embedding(…, reverse=True), on each of them."
    require(got.shape[-1:] != (SIZES["hidden_dim"],), lens)
    plain = layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON)
    unmasked = read(states(np.ones_like(inputs["padding_mask"])), norm)
    twice = np.concatenate([right[:-1], read([norm(every[-1])], norm)])
    probabilities, last_only = ops.convert_to_numpy(ops.softmax(right)), np.concatenate([read(every[:-1]), right[-1:]])
    mistakes = {
        "the final norm is missing: the head was trained to read normalized states, and these are not": read(every),
        "only the last state went through the final norm: every state must, for the head to read it": last_only,
        "the last state was normalized twice: what backbone(inputs) returns is already after the final norm": twice,
        "these are normalized without the final norm's own gamma and beta: use backbone.layer_norm": read(every, plain),
        "the padding mask did not reach the layers: real tokens attended to padding": unmasked,
        "these are probabilities: return the logits, before the softmax": probabilities,
        "these are log-probabilities: return the logits as the head gives them": np.log(probabilities),
    }

    def otherwise(got):
        gaps = np.abs(got - right).max(axis=(1, 2, 3))
        first = int(np.argmax(gaps > 1e-3 * np.abs(right).max()))
        is_what = f"it is the state after {first} layers, then norm and head."
        return f"reading {first} of 0 … {len(right) - 1} differs: {is_what}"

    compare(got, right, mistakes, name="the result", shapes=shapes, tolerance=1e-3, otherwise=otherwise)
    return f"right: {len(right)} readings of every token, the last of them the model's own logits"


class _SuspectLayer(DecoderLayer):
    """A decoder layer with one property of OPT's changed."""

    def __init__(self, verdict, **kwargs):
        super().__init__(SIZES["intermediate_dim"], SIZES["num_heads"], **kwargs)
        self.verdict = verdict

    def call(self, decoder_sequence, decoder_padding_mask):
        mask = masks.padding_mask(decoder_padding_mask)
        if self.verdict != "sees the future":
            mask = masks.combine_masks(masks.causal_mask(ops.shape(decoder_sequence)[1]), mask)
        post = self.verdict == "post-norm"

        def around(branch, norm, x):
            return norm(x + branch(x)) if post else x + branch(norm(x))

        def feedforward(x):
            return self.feedforward_output_dense(self.feedforward_intermediate_dense(x))

        def attention(x):
            return self.self_attention(x, attention_mask=mask)

        x = around(attention, self.self_attention_layer_norm, decoder_sequence)
        return around(feedforward, self.feedforward_layer_norm, x)


def _suspect(verdict, seed):
    embeddings = TokenAndPositionEmbedding(
        SIZES["vocabulary_size"], SIZES["max_sequence_length"], SIZES["hidden_dim"], name="embeddings"
    )
    token_ids = keras.Input(shape=(None,), dtype="int32", name="token_ids")
    padding_mask = keras.Input(shape=(None,), dtype="int32", name="padding_mask")
    x = embeddings(token_ids)
    for index in range(SIZES["num_layers"]):
        x = _SuspectLayer(verdict, name=f"transformer_layer_{index}")(x, padding_mask)
    if verdict != "no final norm":
        x = layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name="layer_norm")(x)
    if verdict == "untied head":
        head = layers.Dense(SIZES["vocabulary_size"], use_bias=False, name="head")
        logits = head(x)
    else:
        logits = embeddings.token_embedding(x, reverse=True)
    model = keras.Model({"token_ids": token_ids, "padding_mask": padding_mask}, logits)
    _randomize(model, seed)
    if verdict == "untied head":  # starts as a copy of the table, and parts from it in the first training step
        head.kernel.assign(ops.transpose(embeddings.token_embedding.embeddings))
    return model


def suspects(seed=0):
    """One OPT and five models for ``diagnose``: one of them is OPT, each of the others differs from it in one thing.

    Parameters
    ----------
    seed : int
        Decides the weights and which letter stands for which model.

    Returns
    -------
    reference : keras_hub.models.OPTCausalLM
        From ``{"token_ids": …, "padding_mask": …}`` to logits, as the suspects.
    models : dict of str to keras.Model
        ``"A"`` … ``"E"``.
    """
    order = np.random.default_rng(seed).permutation(len(VERDICTS))
    models = {letter: _suspect(VERDICTS[index], seed + index) for letter, index in zip("ABCDE", order)}
    return keras_hub.models.OPTCausalLM(backbone=_randomize(OPTBackbone(**SIZES), seed + 10)), models


CLUES = {
    "OPT": "its logits differ from the reference's only because its weights do; copy the reference's into it first",
    "no final norm": "it has two arrays fewer than OPT, a gamma and a beta",
    "post-norm": "it has OPT's arrays in OPT's shapes, so that counting cannot tell; copy the reference's weights into "
    "it and compare the logits",
    "untied head": "it has one array more than OPT, vocabulary × width; until it is trained that equals the token "
    "table, so that the logits cannot tell",
    "sees the future": "change its last token, and the logits at earlier places change too",
}


def diagnose(function):
    """Checks ``function(suspect, reference) -> str``, one of `VERDICTS`, on five models from inputs to logits."""
    order = np.random.default_rng(SEED).permutation(len(VERDICTS))
    reference, models = suspects(SEED)
    for suspect, index in zip(models.values(), order):
        truth, answer = VERDICTS[index], verdict(function, VERDICTS, suspect, reference)
        require(answer == truth, f"one model was taken for '{answer}', which it is not: {CLUES[truth]}.")
    return f"right: {len(VERDICTS)} models, each named for what it is"
