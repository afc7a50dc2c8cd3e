"""Attention out of a backbone: recorded from a text, or scored for the roles heads play."""

import dataclasses
import functools

import jax
import keras
import numpy as np
from jax import numpy as jnp

from optbook._validation import check_inputs
from optbook.tokens import token_label, tokenize_batch


@dataclasses.dataclass(frozen=True)
class AttentionRecord:
    """The attention of one forward pass, with what is needed to read it.

    Attributes
    ----------
    scores : float32 array of shape (layers, batch, heads, T, T)
        Row t holds how much query t takes from each key; it sums to 1 over the keys it may see.
    layers, heads : tuple of int
        Which layers and heads of the model the first and third axis hold.
    tokens : list of list of str
        A readable label for each token, (batch, T).
    padding_mask : boolean array of shape (batch, T)
    """

    scores: np.ndarray
    layers: tuple
    heads: tuple
    tokens: list
    padding_mask: np.ndarray

    def map(self, layer, head, row=0):
        """The (T, T) scores of one head on one sequence of the batch, by their numbers in the model."""
        if layer not in self.layers or head not in self.heads:
            raise ValueError(
                f"layer {layer}, head {head} is not in this record of layers {self.layers} and heads {self.heads}."
            )
        if not 0 <= row < len(self.tokens):
            raise ValueError(f"row {row} is not in this record of {len(self.tokens)} sequences.")
        return self.scores[self.layers.index(layer), row, self.heads.index(head)]


def record_attention(model, inputs, layers=None, heads=None):
    """Runs the model once and keeps the attention scores of the asked layers and heads.

    Parameters
    ----------
    model : OPTBackbone or keras_hub.models.OPTCausalLM
        The latter brings a tokenizer, so that text goes in and labels come out.
    inputs : dict, str or list of str
        ``token_ids`` and ``padding_mask`` of shape (batch, T); or text, which gets its start token and,
        where lengths differ, padding on the right.
    layers, heads : list of int, optional
        All when left out.

    Raises
    ------
    ValueError
        For text without a tokenizer, and for a layer or head that the model does not have.
    ValueError, TypeError
        For token ids and masks that the backbone would refuse.
    """
    backbone = getattr(model, "backbone", model)
    preprocessor = getattr(model, "preprocessor", None)
    if isinstance(inputs, str | list):
        if preprocessor is None:
            raise ValueError("a backbone reads token ids; give record_attention the OPTCausalLM to record a text.")
        inputs = tokenize_batch(preprocessor.tokenizer, inputs)
    check_inputs(inputs, backbone.vocabulary_size, backbone.max_sequence_length)
    layers = _chosen("layer", layers, backbone.num_layers)
    heads = _chosen("head", heads, backbone.num_heads)
    token_ids, padding_mask = np.asarray(inputs["token_ids"]), np.asarray(inputs["padding_mask"])
    weights = [weight.value for weight in backbone.weights]
    scores = _scores(backbone, weights, token_ids, padding_mask, layers)
    scores = np.stack([np.asarray(one)[:, list(heads)] for one in scores])
    label = functools.partial(token_label, preprocessor.tokenizer) if preprocessor else str
    tokens = [[label(token) for token in row] for row in token_ids.tolist()]
    return AttentionRecord(scores, layers, heads, tokens, padding_mask.astype(bool))


def _chosen(kind, asked, count):
    asked = tuple(range(count)) if asked is None else tuple(asked)
    for index in asked:
        if not 0 <= index < count:
            raise ValueError(f"there is no {kind} {index}: the model has {count}, numbered 0 to {count - 1}.")
    return asked


@functools.partial(jax.jit, static_argnames=("backbone", "layers"))
def _scores(backbone, weights, token_ids, padding_mask, layers):
    """Attention scores of the asked layers, each (batch, heads, T, T), in one compiled forward pass."""
    scores = {}
    with keras.StatelessScope(state_mapping=list(zip(backbone.weights, weights))):
        x = backbone.embed(token_ids, padding_mask)
        for index, layer in enumerate(backbone.transformer_layers[: max(layers) + 1]):
            if index in layers:
                x, scores[index] = layer(x, decoder_padding_mask=padding_mask, return_attention_scores=True)
            else:
                x = layer(x, decoder_padding_mask=padding_mask)
    return [scores[index] for index in layers]


def head_scores(backbone, length=64, batch_size=8, seed=0, weights=None):
    """How much each head plays three roles, on rows that repeat a random span: `</s>`, span, the same span.

    Parameters
    ----------
    backbone : OPTBackbone
    length : int
        Tokens of a row; the span has half of them.
    batch_size, seed : int
        How many random rows, and from which seed.
    weights : list of arrays, optional
        In place of the backbone's own, as during training.

    Returns
    -------
    dict of arrays of shape (num_layers, num_heads), each in [0, 1]
        ``induction``: mean attention from a token of the second copy to the token after the same token's first
        occurrence. ``previous_token``: mean attention to the token just before. ``first_token``: mean attention of
        later tokens to the first, the sink.
    """
    span_length = (length - 1) // 2
    span = np.random.default_rng(seed).integers(4, backbone.vocabulary_size, (batch_size, span_length))
    rows = np.concatenate([np.full((batch_size, 1), 2), span, span], axis=1).astype("int32")
    weights = [weight.value for weight in backbone.weights] if weights is None else weights
    maps = _scores(backbone, weights, rows, np.ones_like(rows), tuple(range(backbone.num_layers)))
    maps = np.asarray(jnp.stack(maps)).mean(axis=1)  # (layers, heads, T, T), averaged over rows
    second_copy = np.arange(span_length + 1, 2 * span_length + 1)
    later = np.arange(1, rows.shape[1])
    return {
        "induction": maps[:, :, second_copy, second_copy - span_length + 1].mean(axis=-1),
        "previous_token": maps[:, :, later, later - 1].mean(axis=-1),
        "first_token": maps[:, :, 2:, 0].mean(axis=-1),
    }
