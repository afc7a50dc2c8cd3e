"""The OPT backbone: KerasHub's contract, our layers."""

import keras
import keras_hub
from keras import layers, ops

from optbook import presets as preset_files
from optbook._validation import check_dropout, check_inputs, check_sizes
from optbook.layers import LAYER_NORM_EPSILON, DecoderLayer, TokenAndPositionEmbedding, weights_follow
from optbook.memory import require_fit


class _Presets:
    """Read on the class, as KerasHub's ``presets`` is."""

    def __get__(self, instance, owner):
        return preset_files.all_presets()


@keras.saving.register_keras_serializable("optbook")
class OPTBackbone(keras_hub.models.Backbone):
    """An OPT decoder, equal to ``keras_hub.models.OPTBackbone`` in signature, weights and output.

    Inputs are ``{"token_ids": …, "padding_mask": …}``, integers of shape (batch, T), the mask 1 for a real token and
    0 for padding. The output has shape (batch, T, hidden_dim).

    Parameters
    ----------
    vocabulary_size, num_layers, num_heads, hidden_dim, intermediate_dim : int
        Sizes, all at least 1; ``hidden_dim`` is divisible by ``num_heads``.
    dropout : float
        In [0, 1); active in training only.
    max_sequence_length : int
        Rows of the position table. KerasHub documents None but cannot build it: the table must have a size.
    dtype : str or keras.DTypePolicy, optional
        Policy of weights and computation; softmax and layer normalization are in float32 under any policy.
    positions_from_mask : bool
        Count positions over real tokens only, as Hugging Face does; matters under left padding. KerasHub counts
        from the left edge whatever the mask says, and so does the default here.
    normalize_first : bool
        False puts each layer's normalizations after the additions and leaves out the final one, as in OPT-350m.
    embedding_dim : int, optional
        Width of the token table where it is not ``hidden_dim``: 512 against 1024 in OPT-350m.

    Raises
    ------
    ValueError, TypeError
        On sizes that cannot be built, and on inputs of a wrong kind, shape or range.
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim,
        dropout=0.1,
        max_sequence_length=2048,
        dtype=None,
        positions_from_mask=False,
        normalize_first=True,
        embedding_dim=None,
        **kwargs,
    ):
        embedding_dim = hidden_dim if embedding_dim is None else embedding_dim
        check_sizes(
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            num_heads=num_heads,
            hidden_dim=hidden_dim,
            intermediate_dim=intermediate_dim,
            max_sequence_length=max_sequence_length,
            embedding_dim=embedding_dim,
        )
        check_dropout(dropout)

        # === Layers ===
        self.embeddings = TokenAndPositionEmbedding(
            vocabulary_size, max_sequence_length, hidden_dim, embedding_dim, dtype=dtype, name="embeddings"
        )
        self.token_embedding = self.embeddings.token_embedding
        self.transformer_layers = [
            DecoderLayer(
                intermediate_dim, num_heads, dropout, normalize_first, dtype=dtype, name=f"transformer_layer_{i}"
            )
            for i in range(num_layers)
        ]
        if normalize_first:
            self.layer_norm = layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, dtype=dtype, name="layer_norm")
        else:  # the last layer has normalized its output
            self.layer_norm = layers.Identity(dtype=dtype, name="layer_norm")

        # === Functional model ===
        token_ids = keras.Input(shape=(None,), dtype="int32", name="token_ids")
        padding_mask = keras.Input(shape=(None,), dtype="int32", name="padding_mask")
        self.positions_from_mask = positions_from_mask
        x = self.embed(token_ids, padding_mask)
        for transformer_layer in self.transformer_layers:
            x = transformer_layer(x, decoder_padding_mask=padding_mask)
        super().__init__(
            inputs={"token_ids": token_ids, "padding_mask": padding_mask},
            outputs=self.layer_norm(x),
            dtype=dtype,
            **kwargs,
        )

        # === Config ===
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.max_sequence_length = max_sequence_length
        self.normalize_first = normalize_first
        self.embedding_dim = embedding_dim

    presets = _Presets()

    def __call__(self, inputs, *args, **kwargs):
        check_inputs(inputs, self.vocabulary_size, self.max_sequence_length)
        return super().__call__(inputs, *args, **kwargs)

    def embed(self, token_ids, padding_mask):
        """What enters the first layer, (batch, T, hidden_dim): token plus position, counted as the backbone counts."""
        if not self.positions_from_mask:
            return self.embeddings(token_ids)
        positions = ops.maximum(ops.cumsum(padding_mask, axis=-1) - 1, 0)
        return self.embeddings(token_ids, positions=positions)

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """Builds the backbone of a preset, downloading what is needed and not there yet.

        Parameters
        ----------
        preset : str or path
            A name out of ``OPTBackbone.presets``; ``kaggle://owner/model/keras/variation`` or ``…/version``;
            ``hf://owner/name``, of a KerasHub preset or of a ``transformers`` model such as
            ``hf://facebook/opt-350m``; or a folder of either kind.
        load_weights : bool
            False leaves the random initialization, and for a published OPT asks no network.
        **kwargs
            Override the preset's configuration, e.g. ``dropout=0.0``. A smaller ``max_sequence_length`` keeps the
            first rows of the position table. Without ``dtype`` the weights are cast to Keras's default type,
            whatever type they were saved in, as KerasHub does.

        Raises
        ------
        ValueError, FileNotFoundError
            When there is no such preset, or its files do not fit the model.
        MemoryError
            When its weights would not fit this machine; nothing has been downloaded then.
        OSError
            When a hub cannot be reached or refuses; what to do is in the message.
        """
        config = preset_files.preset_config(preset, **{"dtype": None, **kwargs})
        if not load_weights:
            return cls(**config)
        require_fit(preset, config)
        folder = preset_files.preset_folder(preset)
        with weights_follow():
            backbone = cls(**config)
        preset_files.load_weights(backbone, folder)
        return backbone

    def save_to_preset(self, preset_dir, max_shard_size=10):
        """Writes a folder that this class and KerasHub's load alike, in one file whatever ``max_shard_size``."""
        preset_files.save_backbone(self, preset_dir)

    def get_config(self):
        config = super().get_config()
        config["vocabulary_size"] = self.vocabulary_size
        config["num_layers"] = self.num_layers
        config["num_heads"] = self.num_heads
        config["hidden_dim"] = self.hidden_dim
        config["intermediate_dim"] = self.intermediate_dim
        config["dropout"] = self.dropout
        config["max_sequence_length"] = self.max_sequence_length
        # What KerasHub's class does not know is left out unless it is used, so that it takes the config too.
        if self.positions_from_mask:
            config["positions_from_mask"] = True
        if not self.normalize_first:
            config["normalize_first"] = False
        if self.embedding_dim != self.hidden_dim:
            config["embedding_dim"] = self.embedding_dim
        return config


def causal_lm(preset=preset_files.DEFAULT, sequence_length=None, **kwargs):
    """``keras_hub.models.OPTCausalLM`` around our backbone: generate, fit, LoRA and samplers as KerasHub has them.

    Parameters
    ----------
    preset : str or path
        As for ``OPTBackbone.from_preset``, to which ``kwargs`` go too.
    sequence_length : int, optional
        Length to which the preprocessor pads and cuts; the backbone's ``max_sequence_length`` when left out.
    """
    backbone = OPTBackbone.from_preset(preset, **kwargs)
    preprocessor = keras_hub.models.OPTCausalLMPreprocessor(
        preset_files.tokenizer(preset), sequence_length=sequence_length or backbone.max_sequence_length
    )
    return keras_hub.models.OPTCausalLM(backbone, preprocessor=preprocessor)
