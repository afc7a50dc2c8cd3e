"""The layers of OPT, as the chapters build them (arXiv 2205.01068; names as in KerasHub's signatures)."""

import contextlib
import contextvars

import jax
import keras
from keras import layers, ops

from optbook import masks
from optbook._arrays import fresh_zeros

LAYER_NORM_EPSILON = 1e-5
MASKED_SCORE = -1e30  # finite, so that a row with no allowed key stays finite; far below any real score


_weights_follow = contextvars.ContextVar("weights_follow", default=False)


@contextlib.contextmanager
def weights_follow():
    """Inside the block layers start at zero: a preset's weights follow, and random numbers take seconds to make."""
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


class _ZerosNeverTouched(keras.initializers.Initializer):
    """Zeros that the operating system has not handed out yet: on a CPU they take no time and no memory until read."""

    def __call__(self, shape, dtype=None):
        return jax.device_put(fresh_zeros(shape, dtype), may_alias=True)


def opt_kernel_initializer(stddev=0.02):
    """A fresh initializer for each kernel: one shared instance would give equal values to equal shapes."""
    return _ZerosNeverTouched() if _weights_follow.get() else keras.initializers.TruncatedNormal(stddev=stddev)


@keras.saving.register_keras_serializable("optbook")
class ProjectedEmbedding(layers.ReversibleEmbedding):
    """OPT-350m's token table, narrower than its layers: a projection leads in, another leads out to the tied head.

    Called on token ids of shape (batch, T) it gives (batch, T, hidden_dim); with ``reverse=True`` on hidden states of
    that shape, logits of shape (batch, T, vocabulary_size).
    """

    def __init__(self, vocabulary_size, embedding_dim, hidden_dim, **kwargs):
        super().__init__(vocabulary_size, embedding_dim, **kwargs)
        self.hidden_dim = hidden_dim
        self.project_in = self._projection(hidden_dim, "project_in")
        self.project_out = self._projection(embedding_dim, "project_out")

    def _projection(self, units, name):
        return layers.Dense(
            units, use_bias=False, kernel_initializer=opt_kernel_initializer(), dtype=self.dtype_policy, name=name
        )

    def build(self, inputs_shape=None):
        super().build(inputs_shape)
        self.project_in.build((None, self.output_dim))
        self.project_out.build((None, self.hidden_dim))

    def call(self, inputs, reverse=False):
        if reverse:
            return super().call(self.project_out(inputs), reverse=True)
        return self.project_in(super().call(inputs))

    def get_config(self):
        config = super().get_config()
        for key, name in (("vocabulary_size", "input_dim"), ("embedding_dim", "output_dim")):
            config[key] = config.pop(name)
        return {**config, "hidden_dim": self.hidden_dim}


@keras.saving.register_keras_serializable("optbook")
class TokenAndPositionEmbedding(layers.Layer):
    """Adds a learned vector for what a token is to a learned vector for where it stands.

    ``embedding_dim`` is the width of both; with a narrower ``token_embedding_dim`` the token's vector is projected.

    Call arguments
    --------------
    inputs : integer tensor of shape (batch, T)
        Token ids.
    start_index : int or scalar tensor
        Position of the first token; not zero only while decoding with a cache.
    positions : integer tensor of shape (T,) or (batch, T), optional
        A position for each token, in place of ``start_index, start_index + 1, …``.

    Returns
    -------
    float tensor of shape (batch, T, embedding_dim)
    """

    def __init__(self, vocabulary_size, sequence_length, embedding_dim, token_embedding_dim=None, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.sequence_length = sequence_length
        self.embedding_dim = embedding_dim
        self.token_embedding_dim = token_embedding_dim
        table = dict(embeddings_initializer=opt_kernel_initializer(), dtype=self.dtype_policy, name="token_embedding")
        if token_embedding_dim in (None, embedding_dim):
            self.token_embedding = layers.ReversibleEmbedding(vocabulary_size, embedding_dim, **table)
        else:
            self.token_embedding = ProjectedEmbedding(vocabulary_size, token_embedding_dim, embedding_dim, **table)
        self.position_embedding = layers.Embedding(
            sequence_length,
            embedding_dim,
            embeddings_initializer=opt_kernel_initializer(),
            dtype=self.dtype_policy,
            name="position_embedding",
        )

    def build(self, input_shape):
        self.token_embedding.build(input_shape)
        self.position_embedding.build(input_shape)
        self.built = True

    def call(self, inputs, start_index=0, positions=None):
        if positions is None:
            positions = start_index + ops.arange(ops.shape(inputs)[1])  # (T,)
        return self.token_embedding(inputs) + self.position_embedding(positions)

    def get_config(self):
        config = super().get_config()
        config["vocabulary_size"] = self.vocabulary_size
        config["sequence_length"] = self.sequence_length
        config["embedding_dim"] = self.embedding_dim
        config["token_embedding_dim"] = self.token_embedding_dim
        return config


@keras.saving.register_keras_serializable("optbook")
class CausalSelfAttention(layers.Layer):
    """Multi-head self-attention with an explicit softmax, so that its weights can be returned.

    Call arguments
    --------------
    hidden_states : float tensor of shape (batch, T, hidden_dim)
    attention_mask : boolean tensor broadcastable to (batch, T, S), optional
        True where query t may attend to key s; the causal mask when left out.
    cache : float tensor of shape (batch, 2, S, num_heads, head_dim), optional
        Keys and values of earlier positions.
    cache_update_index : int or scalar tensor
        Where in the cache the keys and values of ``hidden_states`` go.
    return_attention_scores : bool
        Also return the attention weights, float32 of shape (batch, num_heads, T, S). Keras calls them scores in this
        argument; everywhere else scores stand before the softmax, weights after it.

    Returns
    -------
    tensor or tuple of tensors
        The output, shaped as ``hidden_states``; then the weights, if asked for; then the new cache, if one was given.
    """

    def __init__(self, num_heads, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.dropout = dropout

    def build(self, input_shape):
        hidden_dim = input_shape[-1]
        if hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim must be divisible by num_heads: {hidden_dim} is not divisible by {self.num_heads}."
            )
        self.head_dim = hidden_dim // self.num_heads
        self.query_dense = self._projection("query", input_shape)
        self.key_dense = self._projection("key", input_shape)
        self.value_dense = self._projection("value", input_shape)
        self.output_dense = layers.EinsumDense(
            "btnv,nvd->btd",  # JAX contracts in alphabetical order: for "nh" it would copy the kernel at every call
            output_shape=(None, hidden_dim),
            bias_axes="d",
            kernel_initializer=opt_kernel_initializer(),
            dtype=self.dtype_policy,
            name="attention_output",
        )
        self.output_dense.build((*input_shape[:-1], self.num_heads, self.head_dim))
        self.dropout_layer = layers.Dropout(self.dropout, dtype=self.dtype_policy)
        self.built = True

    def _projection(self, name, input_shape):
        dense = layers.EinsumDense(
            "btd,dnh->btnh",
            output_shape=(None, self.num_heads, self.head_dim),
            bias_axes="nh",
            kernel_initializer=opt_kernel_initializer(),
            dtype=self.dtype_policy,
            name=name,
        )
        dense.build(input_shape)
        return dense

    def call(
        self,
        hidden_states,
        attention_mask=None,
        cache=None,
        cache_update_index=0,
        return_attention_scores=False,
        training=None,
    ):
        query = self.query_dense(hidden_states)  # (batch, T, num_heads, head_dim)
        key = self.key_dense(hidden_states)
        value = self.value_dense(hidden_states)
        if cache is not None:  # keys and values of all S positions, the new ones put in their place
            start = [0, 0, cache_update_index, 0, 0]
            cache = ops.slice_update(cache, start, ops.stack((key, value), axis=1))  # in place, inside a compiled loop
            key, value = cache[:, 0], cache[:, 1]

        query = query * ops.cast(self.head_dim**-0.5, query.dtype)
        scores = ops.cast(ops.einsum("btnh,bsnh->bnts", query, key), "float32")
        if attention_mask is None:
            attention_mask = masks.causal_mask(ops.shape(query)[1], ops.shape(key)[1], cache_update_index)
        attention_mask = ops.expand_dims(attention_mask, axis=1)  # (batch, 1, T, S): the same for every head
        weights = ops.softmax(ops.where(attention_mask, scores, MASKED_SCORE), axis=-1)
        weights = ops.where(attention_mask, weights, 0.0)  # only rows with no allowed key: nothing, not 1/S each

        kept = self.dropout_layer(ops.cast(weights, value.dtype), training=training)
        outputs = [self.output_dense(ops.einsum("bnts,bsnh->btnh", kept, value))]
        if return_attention_scores:
            outputs.append(weights)
        if cache is not None:
            outputs.append(cache)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads, "dropout": self.dropout}


@keras.saving.register_keras_serializable("optbook")
class DecoderLayer(layers.Layer):
    """One OPT decoder layer: attention, then feed-forward, each added to the residual stream.

    Each reads a normalized copy of the stream; with ``normalize_first=False``, as in OPT-350m, it reads the stream
    itself, and what is normalized is the stream after the addition.

    Call arguments
    --------------
    decoder_sequence : float tensor of shape (batch, T, hidden_dim)
    decoder_padding_mask : integer or boolean tensor of shape (batch, S), optional
        1 for a real token, 0 for padding.
    self_attention_cache, self_attention_cache_update_index
        See `CausalSelfAttention`. The first query stands at the update index.
    return_attention_scores : bool
        Also return the attention weights, float32 of shape (batch, num_heads, T, S).

    Returns
    -------
    tensor or tuple of tensors
        The new sequence, shaped as the old; then the weights, if asked for; then the new cache, if one was given.
    """

    def __init__(self, intermediate_dim, num_heads, dropout=0.0, normalize_first=True, **kwargs):
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.normalize_first = normalize_first

    def build(self, input_shape):
        hidden_dim = input_shape[-1]
        self.self_attention = CausalSelfAttention(
            self.num_heads, self.dropout, dtype=self.dtype_policy, name="self_attention"
        )
        self.self_attention_layer_norm = self._layer_norm("self_attention_layer_norm")
        self.feedforward_intermediate_dense = self._dense(
            self.intermediate_dim, "feedforward_intermediate_dense", "relu"
        )
        self.feedforward_output_dense = self._dense(hidden_dim, "feedforward_output_dense")
        self.feedforward_layer_norm = self._layer_norm("feedforward_layer_norm")
        self.dropout_layer = layers.Dropout(self.dropout, dtype=self.dtype_policy)
        for layer in (
            self.self_attention,
            self.self_attention_layer_norm,
            self.feedforward_intermediate_dense,
            self.feedforward_layer_norm,
        ):
            layer.build(input_shape)
        self.feedforward_output_dense.build((*input_shape[:-1], self.intermediate_dim))
        self.built = True

    def _layer_norm(self, name):
        return layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype_policy, name=name)

    def _dense(self, units, name, activation=None):
        return layers.Dense(
            units, activation, kernel_initializer=opt_kernel_initializer(), dtype=self.dtype_policy, name=name
        )

    def call(
        self,
        decoder_sequence,
        decoder_padding_mask=None,
        self_attention_cache=None,
        self_attention_cache_update_index=0,
        return_attention_scores=False,
        training=None,
    ):
        length = ops.shape(decoder_sequence)[1]
        key_length = length if self_attention_cache is None else ops.shape(self_attention_cache)[2]
        mask = masks.causal_mask(length, key_length, self_attention_cache_update_index)
        if decoder_padding_mask is not None:
            mask = masks.combine_masks(mask, masks.padding_mask(decoder_padding_mask))

        residual = decoder_sequence
        attended = self.self_attention(
            self.self_attention_layer_norm(residual) if self.normalize_first else residual,
            attention_mask=mask,
            cache=self_attention_cache,
            cache_update_index=self_attention_cache_update_index,
            return_attention_scores=return_attention_scores,
            training=training,
        )
        attended, *extras = attended if isinstance(attended, tuple) else (attended,)
        residual = residual + self.dropout_layer(attended, training=training)
        if not self.normalize_first:
            residual = self.self_attention_layer_norm(residual)

        x = self.feedforward_layer_norm(residual) if self.normalize_first else residual
        x = self.feedforward_output_dense(self.feedforward_intermediate_dense(x))
        outputs = residual + self.dropout_layer(x, training=training)
        if not self.normalize_first:
            outputs = self.feedforward_layer_norm(outputs)
        return (outputs, *extras) if extras else outputs

    def compute_output_spec(self, decoder_sequence, decoder_padding_mask=None, *args, **kwargs):
        if args or kwargs:
            return super().compute_output_spec(decoder_sequence, decoder_padding_mask, *args, **kwargs)
        # What Keras would else find out by tracing the layer, which is most of the time that building a model takes.
        return keras.KerasTensor(decoder_sequence.shape, self.compute_dtype)

    def get_config(self):
        config = super().get_config()
        config["intermediate_dim"] = self.intermediate_dim
        config["num_heads"] = self.num_heads
        config["dropout"] = self.dropout
        config["normalize_first"] = self.normalize_first
        return config
