"""Small OPTs with random weights, KerasHub's and ours, batches for them, and how two arrays are compared."""

import numpy as np

import optbook

# isort: split
import keras_hub  # after optbook, which keeps TensorFlow out of it

PAD = 1
SIZES = dict(vocabulary_size=61, num_layers=3, num_heads=4, hidden_dim=32, intermediate_dim=64, max_sequence_length=24)


def assert_close(ours, theirs, tolerance=1e-5, where=None):
    """Equal up to ``tolerance`` of the largest absolute value of ``theirs``; ``where`` picks rows (batch, T)."""
    ours, theirs = (np.asarray(array).astype("float32") for array in (ours, theirs))
    assert ours.shape == theirs.shape
    if where is not None:
        ours, theirs = ours[where], theirs[where]
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert difference <= tolerance, f"differ by {difference:.1e} of their scale"  # a NaN fails here too


def randomize(model, seed=0):
    """Random values for every variable: kernels, biases and betas 0.3, gammas around 1.

    Kernels of 0.3 give attention far from uniform; embeddings of 0.05 let the epsilon of the first normalization count.
    """
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        stddev = 0.05 if weight.path.endswith("embeddings") else 0.3
        mean = 1.0 if weight.path.endswith("gamma") else 0.0
        weight.assign(mean + stddev * generator.standard_normal(weight.shape))


def copy_weights(source, target):
    """In order, as they are; the shapes are checked by ``assign``."""
    assert len(source.weights) == len(target.weights)
    for theirs, ours in zip(source.weights, target.weights):
        ours.assign(np.array(theirs.value))  # a copy: training gives the old arrays away


def make_pair(dtype="float32", **overrides):
    """KerasHub's backbone with random weights and ours with the same."""
    sizes = {**SIZES, **overrides}
    theirs = keras_hub.models.OPTBackbone(**sizes, dtype=dtype)
    randomize(theirs)
    ours = optbook.OPTBackbone(**sizes, dtype=dtype)
    copy_weights(theirs, ours)
    return theirs, ours


def make_inputs(lengths, length, side="right", seed=0):
    """Random tokens (never padding) of the given lengths, padded to one length on one side."""
    generator = np.random.default_rng(seed)
    token_ids = np.full((len(lengths), length), PAD, "int32")
    for row, real in enumerate(lengths):
        place = slice(0, real) if side == "right" else slice(length - real, length)
        token_ids[row, place] = generator.integers(2, SIZES["vocabulary_size"], real)
    return {"token_ids": token_ids, "padding_mask": (token_ids != PAD).astype("int32")}


INPUTS = {
    "unpadded": make_inputs((12, 12, 12), 12),
    "right": make_inputs((12, 7, 3), 12, "right"),
    "left": make_inputs((12, 7, 3), 12, "left"),
}


def load_hugging_face(backbone, weights):
    """Hugging Face's weights into our backbone: kernels transposed, heads split, two position rows dropped."""
    heads, hidden_dim = backbone.num_heads, backbone.hidden_dim
    head_dim = hidden_dim // heads

    def load(layer, name, kernel_shape=None, bias_shape=None):
        kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        kernel = kernel.T if kernel_shape is None else kernel.T.reshape(kernel_shape)
        layer.set_weights([kernel, bias if bias_shape is None else bias.reshape(bias_shape)])

    backbone.embeddings.token_embedding.set_weights([weights["embed_tokens.weight"]])
    backbone.embeddings.position_embedding.set_weights([weights["embed_positions.weight"][2:]])
    for index, layer in enumerate(backbone.transformer_layers):
        root = f"layers.{index}"
        split = dict(kernel_shape=(hidden_dim, heads, head_dim), bias_shape=(heads, head_dim))
        load(layer.self_attention.query_dense, f"{root}.self_attn.q_proj", **split)
        load(layer.self_attention.key_dense, f"{root}.self_attn.k_proj", **split)
        load(layer.self_attention.value_dense, f"{root}.self_attn.v_proj", **split)
        load(layer.self_attention.output_dense, f"{root}.self_attn.out_proj", (heads, head_dim, hidden_dim))
        load(layer.self_attention_layer_norm, f"{root}.self_attn_layer_norm")
        load(layer.feedforward_intermediate_dense, f"{root}.fc1")
        load(layer.feedforward_output_dense, f"{root}.fc2")
        load(layer.feedforward_layer_norm, f"{root}.final_layer_norm")
    load(backbone.layer_norm, "final_layer_norm")


def make_golden_backbone(golden, **kwargs):
    prefix = "weights/model.decoder."
    weights = {name.removeprefix(prefix): array for name, array in golden.items() if name.startswith(prefix)}
    sizes = dict(vocabulary_size=64, num_layers=3, num_heads=4, hidden_dim=32, intermediate_dim=64)
    backbone = optbook.OPTBackbone(**sizes, max_sequence_length=24, **kwargs)
    load_hugging_face(backbone, weights)
    return backbone
