"""Small OPTs with random weights, KerasHub's and ours, batches for them, and how two arrays are compared."""

import numpy as np

import optbook

# isort: split
import keras_hub  # after optbook, which keeps TensorFlow out of it
import safetensors.numpy

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


def write_golden_folder(golden, folder, rename=lambda name: name):
    """The golden model's config.json and model.safetensors in float16, each tensor called ``rename`` of its name."""
    prefix = "weights/"
    tensors = {rename(name.removeprefix(prefix)): array for name, array in golden.items() if name.startswith(prefix)}
    (folder / "config.json").write_text(str(golden["config"]))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder
