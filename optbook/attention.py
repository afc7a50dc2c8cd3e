"""Attention out of a backbone: recorded from a text, or scored for the roles heads play."""

import dataclasses
import functools
import operator
import random
import weakref
import zipfile

import jax
import keras_hub
import numpy as np
import psutil
from jax import lax
from jax import numpy as jnp

from optbook import _files, _programs, memory
from optbook._validation import check_count, check_inputs
from optbook.backbone import OPTBackbone
from optbook.tokens import token_label, tokenize_batch


@dataclasses.dataclass(frozen=True)
class AttentionRecord:
    """The attention of one forward pass, with what is needed to read it.

    Attributes
    ----------
    weights : float32 array of shape (layers, batch, heads, T, T)
        Row t holds how much query t takes from each key; it sums to 1 over the keys it may see. Read only.
    layers, heads : tuple of int
        Which layers and heads of the model the first and third axis hold.
    tokens : list of list of str
        A readable label for each token, (batch, T).
    padding_mask : boolean array of shape (batch, T)
        True for a real token.
    token_ids : int32 array of shape (batch, T)
    positions : int32 array of shape (batch, T)
        The row of the position table that each token was given: counted from the left edge, or over the real tokens
        only where the backbone has ``positions_from_mask``.
    """

    weights: np.ndarray
    layers: tuple
    heads: tuple
    tokens: list
    padding_mask: np.ndarray
    token_ids: np.ndarray
    positions: np.ndarray

    def map(self, layer, head, row=0):
        """The (T, T) weights of one head on one sequence of the batch, by their numbers in the model."""
        if layer not in self.layers or head not in self.heads:
            raise ValueError(
                f"layer {layer}, head {head} is not in this record of layers {self.layers} and heads {self.heads}."
            )
        if not 0 <= row < len(self.tokens):
            raise ValueError(f"row {row} is not in this record of {len(self.tokens)} sequences.")
        return self.weights[self.layers.index(layer), row, self.heads.index(head)]

    def save(self, path):
        """Writes one ``.npz`` file with an array for each field, as numpy alone can read it."""
        with _files.replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path):
        """The record that `save` wrote, number for number.

        Raises
        ------
        FileNotFoundError
            When there is no such file.
        ValueError
            When it is damaged or holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                record = cls(**{field.name: file[field.name] for field in dataclasses.fields(cls)})
            batch, length = record.token_ids.shape
            whole = record.weights.shape == (len(record.layers), batch, len(record.heads), length, length) and all(
                each.shape == (batch, length) for each in (record.tokens, record.padding_mask, record.positions)
            )
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no file {path}.") from None
        except (ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile):
            whole = False
        if not whole:
            raise ValueError(
                f"{path} is not an attention record of this version, or is damaged: record and save it once more."
            )
        record.weights.setflags(write=False)
        lists = {name: tuple(getattr(record, name).tolist()) for name in ("layers", "heads")}
        return dataclasses.replace(record, **lists, tokens=record.tokens.tolist())


def record_attention(model, inputs, layers=None, heads=None):
    """Runs the model once, up to the last asked layer, and keeps the attention weights of the asked layers and heads.

    The pass is compiled, takes about the time of a plain one, and takes memory for what was asked and no more. Weights
    are those of the explicit softmax, since fused attention has none to give.

    Parameters
    ----------
    model : OPTBackbone, keras_hub.models.OPTBackbone or an OPTCausalLM around either
        The last brings a tokenizer, so that text goes in and labels come out.
    inputs : str, list of str, array or list of int, or dict
        Text, which gets its start token and, where lengths differ, padding on the right; or token ids of shape (T,)
        or (batch, T), none of them padding; or ``token_ids`` and ``padding_mask`` of shape (batch, T).
    layers, heads : list of int, optional
        All when left out.

    Raises
    ------
    ValueError, TypeError
        For text without a tokenizer, a layer or head that the model does not have, a model that is no OPT, and
        token ids and masks that the backbone would refuse.
    MemoryError
        Before anything runs, when the weights would not fit into the memory that is free.
    """
    backbone = getattr(model, "backbone", model)
    preprocessor = getattr(model, "preprocessor", None)
    reader = _reader(backbone)
    inputs = _as_batch(inputs, preprocessor)
    check_inputs(inputs, backbone.vocabulary_size, backbone.max_sequence_length)
    token_ids, padding_mask = (np.array(inputs[name], "int32") for name in ("token_ids", "padding_mask"))
    if not token_ids.size:
        raise ValueError(f"there are no tokens to record: token_ids have shape {token_ids.shape}.")
    layers = _chosen("layer", layers, backbone.num_layers)
    heads = _chosen("head", heads, backbone.num_heads)
    _check_memory(len(layers), len(heads), backbone.num_heads, token_ids.shape)
    label = functools.partial(token_label, preprocessor.tokenizer) if preprocessor else str
    tokens = [[label(token) for token in row] for row in token_ids.tolist()]  # before the pass, which takes longer
    weights = [weight.value for weight in backbone.weights]
    scores = _scores_of(reader, weights, layers)(token_ids, padding_mask, np.asarray(heads))
    return AttentionRecord(
        weights=np.asarray(scores),  # on a CPU the same memory, no copy
        layers=layers,
        heads=heads,
        tokens=tokens,
        padding_mask=padding_mask.astype(bool),
        token_ids=token_ids,
        positions=_positions(reader, padding_mask),
    )


_twins = weakref.WeakKeyDictionary()


def _reader(backbone):
    """The backbone whose layers give weights: ours itself, and for KerasHub's a twin of our layers without weights."""
    if isinstance(backbone, OPTBackbone):
        return backbone
    if not isinstance(backbone, keras_hub.models.OPTBackbone):
        raise TypeError(f"attention is read out of an OPTBackbone, optbook's or KerasHub's, not of a {type(backbone)}.")
    if backbone not in _twins:
        made = []
        config = backbone.get_config()
        random_state = random.getstate()  # initializers draw a seed each; these are never run
        jax.eval_shape(lambda: made.append(OPTBackbone.from_config({**config, "dropout": 0.0})))
        jax.eval_shape(lambda: made.append(keras_hub.models.OPTBackbone.from_config(config)))
        random.setstate(random_state)
        twin, untouched = made
        _twins[backbone] = twin, _programs.Structure([untouched]).entries
    twin, untouched = _twins[backbone]
    entries = _programs.Structure([backbone]).entries
    if entries != untouched:
        names = (new[0] for old, new in zip(untouched, entries) if old != new and new[0] != "attributes")
        raise ValueError(
            f"attention is read out of KerasHub's backbone as it was built, but {next(names, '') or 'a layer'} was "
            "changed: give its weights to an optbook.OPTBackbone, and make the change there."
        )
    return twin


def _as_batch(inputs, preprocessor):
    """Text, or token ids alone, as the dict that backbones read."""
    if isinstance(inputs, dict):
        return inputs
    is_list_of_texts = isinstance(inputs, list | tuple) and inputs and all(isinstance(text, str) for text in inputs)
    if isinstance(inputs, str) or is_list_of_texts:
        if preprocessor is None:
            raise ValueError("a backbone reads token ids; give record_attention the OPTCausalLM to record a text.")
        return tokenize_batch(preprocessor.tokenizer, inputs)
    try:
        token_ids = np.asarray(inputs)
    except ValueError:
        raise ValueError(
            "rows of token ids must have one length; pad them, and give token_ids and padding_mask in a dict."
        ) from None
    token_ids = np.atleast_2d(token_ids if token_ids.size else token_ids.astype("int32"))  # [] makes a float array
    return {"token_ids": token_ids, "padding_mask": np.ones(token_ids.shape, "int32")}


def _positions(backbone, padding_mask):
    """What position `OPTBackbone.embed` gives each token, (batch, T)."""
    if backbone.positions_from_mask:
        positions = np.maximum(np.cumsum(padding_mask, axis=-1) - 1, 0)
    else:
        positions = np.broadcast_to(np.arange(padding_mask.shape[1]), padding_mask.shape)
    return positions.astype("int32")


def _chosen(kind, asked, count):
    if asked is None:
        return tuple(range(count))
    try:
        asked = tuple(operator.index(number) for number in asked)
    except TypeError:
        raise TypeError(f"{kind}s must be a list of ints, but are {asked!r}.") from None
    if not asked or len(set(asked)) < len(asked):
        raise ValueError(f"{kind}s must name at least one, each once, but are {list(asked)}.")
    for index in asked:
        if not 0 <= index < count:
            raise ValueError(f"there is no {kind} {index}: the model has {count}, numbered 0 to {count - 1}.")
    return asked


def _check_memory(num_layers, num_asked_heads, num_heads, shape):
    """Refuses weights that would not fit, where they are computed or on the host, with what would make them fewer."""
    batch, length = shape
    one_map = batch * length**2 * np.dtype("float32").itemsize
    asked, working = num_layers * num_asked_heads * one_map, memory.WORKING_MAPS * num_heads * one_map
    available = memory.this_machine().limit
    if asked + working > available or asked > psutil.virtual_memory().available:
        available = min(available, psutil.virtual_memory().available)
        raise MemoryError(
            f"the attention of {num_layers} layers, {num_asked_heads} heads, {batch} rows and {length} tokens takes "
            f"{memory.gigabytes(asked)}, and {memory.gigabytes(working)} more while it is computed, but only "
            f"{memory.gigabytes(available)} are free: ask for fewer layers, heads, rows or tokens."
        )


def _scores_of(reader, weights, layers):
    """The compiled pass of `_scores` with these weights, in the order of ``reader.weights``."""
    return _programs.program(_scores, reader, state_mapping=list(zip(reader.weights, weights)), layers=layers)


def _scores(backbone, token_ids, padding_mask, heads, layers):
    """Attention scores of the asked layers and heads in one forward pass: (layers, batch, heads, T, T), float32.

    Each layer's scores are written into one array, in place; to stack them would hold them twice.
    """
    batch, length = token_ids.shape
    recorded = jnp.zeros((len(layers), batch, len(heads), length, length), "float32")
    x = backbone.embed(token_ids, padding_mask)
    for index, layer in enumerate(backbone.transformer_layers[: max(layers) + 1]):
        if index in layers:
            x, scores = layer(x, decoder_padding_mask=padding_mask, return_attention_scores=True)
            scores = jnp.take(scores, heads, axis=1, mode="clip")  # asked heads exist: no need to check again
            recorded = lax.dynamic_update_index_in_dim(recorded, scores, layers.index(index), axis=0)
        else:
            x = layer(x, decoder_padding_mask=padding_mask)
    return recorded


def head_scores(backbone, length=None, batch_size=8, seed=0, weights=None):
    """How much each head plays four roles, on rows that repeat a random span: `</s>`, span, the same span.

    Parameters
    ----------
    backbone : OPTBackbone or keras_hub.models.OPTBackbone
    length : int, optional
        Tokens of a row; the span has half of them. 64 when left out, or all positions of a model that has fewer.
    batch_size, seed : int
        How many random rows, and from which seed.
    weights : list of arrays, optional
        In place of the backbone's own, as during training.

    Returns
    -------
    dict of arrays of shape (num_layers, num_heads), each in [0, 1]
        ``induction``: mean attention from a token of the second copy to the token after the same token's first
        occurrence. ``duplicate_token``: to that first occurrence itself. ``previous_token``: mean attention to the
        token just before. ``first_token``: mean attention of later tokens to the first, the sink.

    Raises
    ------
    ValueError, TypeError
        For a model that is no OPT, and for a length that leaves no span of two tokens or exceeds the model's positions.
    """
    reader, positions = _reader(backbone), backbone.max_sequence_length
    length = min(64, positions) if length is None else length
    check_count("length", length)
    check_count("batch_size", batch_size)
    if not 5 <= length <= positions:
        raise ValueError(f"length must lie in 5 … {positions}, the positions of the model, but is {length}.")
    if backbone.vocabulary_size < 5:
        raise ValueError(f"the model has {backbone.vocabulary_size} ids, all special: there are none to repeat.")
    span_length = (length - 1) // 2
    span = np.random.default_rng(seed).integers(4, backbone.vocabulary_size, (batch_size, span_length))
    rows = np.concatenate([np.full((batch_size, 1), 2), span, span], axis=1).astype("int32")
    weights = [weight.value for weight in backbone.weights] if weights is None else weights
    every_layer, every_head = tuple(range(backbone.num_layers)), np.arange(backbone.num_heads)
    scores = _scores_of(reader, weights, every_layer)(rows, np.ones_like(rows), every_head)
    maps = np.asarray(scores).mean(axis=1)  # (layers, heads, T, T), averaged over rows
    second_copy = np.arange(span_length + 1, 2 * span_length + 1)
    later = np.arange(1, rows.shape[1])
    return {
        "induction": maps[:, :, second_copy, second_copy - span_length + 1].mean(axis=-1),
        "duplicate_token": maps[:, :, second_copy, second_copy - span_length].mean(axis=-1),
        "previous_token": maps[:, :, later, later - 1].mean(axis=-1),
        "first_token": maps[:, :, 2:, 0].mean(axis=-1),
    }
