"""The exercises of chapter 07: count any OPT, turn a kernel, fit a cache into memory, read a config.json."""

import numpy as np

from optbook import presets
from optbook.checks._core import ask, compare, require, verdict

PLAIN = dict(vocabulary_size=61, num_layers=3, num_heads=3, hidden_dim=12, intermediate_dim=20, max_sequence_length=17)
LIKE_350M = dict(
    vocabulary_size=53,
    num_layers=2,
    num_heads=4,
    hidden_dim=24,
    intermediate_dim=40,
    max_sequence_length=19,
    normalize_first=False,
    embedding_dim=10,
)
READERS = ("both", "optbook", "neither")


def parameters(function):
    """Checks ``function(config) -> int``: the parameters of a backbone of these arguments, unused ones left out."""
    configs = (PLAIN, LIKE_350M, presets.preset_config("opt_6.7b_en"), presets.preset_config("hf://facebook/opt-350m"))
    missing = ", which an OPT without that option leaves out of its config: use .get"
    for config in configs:
        got = ask(function, config, hints={name: missing for name in LIKE_350M})
        right = presets.parameter_count(**config)
        otherwise = f"of {config} Keras counts {right:,} parameters, but your function {got!r}."
        compare(got, right, _miscounts(config, right), otherwise=otherwise)
    return f"right: {len(configs)} configurations, OPT-350m's among them, each to the last parameter"


def _miscounts(config, right):
    """What the usual mistakes give for a configuration, by the sentence that names each."""
    width, depth, middle = (config[name] for name in ("hidden_dim", "num_layers", "intermediate_dim"))
    rows, narrow = config["vocabulary_size"], config.get("embedding_dim") or width
    final_norm = config.get("normalize_first", True)
    projections = 2 * narrow * width if narrow != width else 0
    layers = depth * (4 * (width**2 + width) + 2 * width * middle + middle + width + 4 * width)
    mistakes = {
        "you counted the attention once per head: heads share the width, and their number changes no count": right
        + depth * 4 * (width**2 + width) * (config["num_heads"] - 1),
        "the biases are missing: all four projections of the attention and both dense layers have one": right
        - depth * (5 * width + middle),
        "a layer norm has two vectors, gamma and beta; you counted one": right - (2 * depth + final_norm) * width,
        "the output head is the token table turned round: it must not be counted again": right + rows * narrow,
        "intermediate_dim is a size of its own; you took 4 × hidden_dim": right
        + depth * (2 * width + 1) * (4 * width - middle),
        "you counted one layer: there are num_layers of them": right - layers + layers // depth,
        "the position table is missing": right - config["max_sequence_length"] * width,
    }
    if final_norm:
        mistakes["the final layer norm is missing, 2 × hidden_dim"] = right - 2 * width
        mistakes["the position table has max_sequence_length rows here; two more are Hugging Face's"] = (
            right + 2 * width
        )
    else:
        mistakes["with normalize_first=False there is no final norm: the last layer has normalized its output"] = (
            right + 2 * width
        )
    if narrow != width:
        wide = rows * (width - narrow)
        mistakes |= {
            "the token table is embedding_dim wide, where that is given, and not hidden_dim": right + wide,
            "you overlooked embedding_dim: it makes the token table narrower and adds two projections": right
            + wide
            - projections,
            "you overlooked both of OPT-350m's options: embedding_dim and normalize_first": right
            + wide
            - projections
            + 2 * width,
            "a token table narrower than the layers needs a projection in and one out: they are missing": right
            - projections,
            "the two projections of a narrow token table have no biases": right + narrow + width,
        }
    return mistakes


def kernel(function):
    """Checks ``function(theirs, num_heads)``: a Hugging Face query kernel, (out, in), as KerasHub's.

    The result has shape (in, num_heads, head_dim).
    """
    heads, head_dim = 3, 4
    width = heads * head_dim
    theirs = np.random.default_rng(0).normal(size=(width, width)).astype("float32")
    right = theirs.T.reshape(width, heads, head_dim)
    shapes = {
        (width, width): "the outputs are not split yet: KerasHub's kernel has an axis for heads and one for head_dim",
        (width, head_dim, heads): "the heads stand last: the order of the axes is (in, heads, head_dim)",
        (heads, head_dim, width): "the inputs stand last: transpose first, so that the shape begins with them",
        (heads, width, head_dim): "the heads stand first: the order of the axes is (in, heads, head_dim)",
    }
    shapes[None] = "the axes are (in, heads, head_dim)"
    mistakes = {
        "the transpose is missing: the file has (out, in), and because a query kernel is square nothing else "
        "complains": theirs.reshape(right.shape),
        "the outputs are dealt out to the heads in turn: head 0 has the first head_dim of them, not every "
        f"{heads}rd": theirs.T.reshape(width, head_dim, heads).transpose(0, 2, 1),
        "the transpose is missing, and the outputs are dealt out to the heads in turn": theirs.reshape(
            width, head_dim, heads
        ).transpose(0, 2, 1),
    }
    otherwise = "the shape is right and the numbers are not: follow one output from (out, in) on."
    compare(ask(function, theirs, heads), right, mistakes, name="the kernel", shapes=shapes, otherwise=otherwise)
    return f"right: output {head_dim} of theirs is the first of head 1, for all {width} inputs"


def longest(function):
    """Checks ``function(config, free, batch_size, itemsize) -> int``: how long a text may get.

    ``free`` is what the weights leave of a memory, in bytes, and ``itemsize`` the bytes of a number; the result is the
    largest number of tokens of each sequence whose KV cache fits.
    """
    small, large = presets.preset_config("opt_1.3b_en"), presets.preset_config("opt_6.7b_en")
    # The first tells mistakes apart; the last but one has no room at all, the last for more tokens than positions.
    cases = [(small, 10**8, 5, 4), (large, 2 * 10**9, 7, 2), (PLAIN, 12_000, 3, 4), (small, 10**5, 2, 4)]
    cases.append((small, 80 * 10**9, 1, 2))
    for config, free, batch_size, itemsize in cases:
        got = ask(function, config, free, batch_size, itemsize)
        require(
            isinstance(got, int | np.integer) and not isinstance(got, bool),
            f"a length is an int, but your function returned {got!r}: use //, which rounds down",
        )
        most, heads = config["max_sequence_length"], config["num_heads"]
        token = 2 * batch_size * config["num_layers"] * config["hidden_dim"] * itemsize
        right = min(most, free // token)
        mistakes = {
            "the cache holds two vectors per token and layer, the key and the value; you counted one": token // 2,
            "every sequence of the batch has a cache of its own: batch_size is missing": token // batch_size,
            "every layer has keys and values of its own: num_layers is missing": token // config["num_layers"],
            "you counted one head: all heads together have hidden_dim numbers": token // heads,
            "the heads share hidden_dim: multiplying by their number counts them twice": token * heads,
            "a number takes itemsize bytes, here 2; you took 4": token // itemsize * 4,
            "itemsize is missing: free counts bytes, and a number takes itemsize of them": token // itemsize,
        }
        unlimited = f"there are {most} positions: no text can be longer, whatever the memory"
        mistakes = {
            unlimited: free // token,
            **{message: (free // wrong, min(most, free // wrong)) for message, wrong in mistakes.items()},
            "one token too many: the cache must fit, so round down": right + 1,
        }
        otherwise = (
            f"with {free:,} bytes, {batch_size} sequences and {itemsize} bytes a number, {config['num_layers']} layers "
            f"of width {config['hidden_dim']} have room for {right} tokens; your function says {got}."
        )
        compare(got, right, mistakes, otherwise=otherwise)
    return f"right: {len(cases)} cases, one with memory for more tokens than there are positions"


def config_files():
    """Contents of seven ``config.json``, as dicts, each with who reads that folder as a backbone and the clue to it."""
    theirs = dict(vocab_size=61, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, ffn_dim=20)
    return [
        (
            {"class_name": "OPTBackbone", "config": PLAIN, "registered_name": "keras_hub>OPTBackbone"},
            "both",
            "registered_name says keras_hub>OPTBackbone, which is KerasHub's own layout",
        ),
        (
            {"class_name": "OPTBackbone", "config": LIKE_350M, "registered_name": "optbook>OPTBackbone"},
            "optbook",
            "registered_name names optbook's class, since KerasHub's has no option for what this model needs",
        ),
        (
            {"model_type": "opt", "architectures": ["OPTForCausalLM"], **theirs},
            "optbook",
            "model_type stands in Hugging Face's layout, for which KerasHub has no converter when it is opt",
        ),
        (
            {"model_type": "opt", "do_layer_norm_before": False, "word_embed_proj_dim": 6, **theirs},
            "optbook",
            "an OPT-350m in Hugging Face's layout: optbook has both of its options",
        ),
        (
            {"model_type": "opt", "activation_function": "gelu", "enable_bias": False, **theirs},
            "neither",
            "the type says opt, but GELU and no biases make it another architecture, whose weights would not fit",
        ),
        (
            {"model_type": "gpt2", "n_embd": 12, "n_layer": 2, "n_head": 3},
            "neither",
            "a GPT-2, whatever its sizes, is no OPT",
        ),
        (
            {"class_name": "GPT2Backbone", "config": PLAIN, "registered_name": "keras_hub>GPT2Backbone"},
            "neither",
            "the layout is KerasHub's, but the class is another model's",
        ),
    ]


def reader(function):
    """Checks ``function(content) -> str``, one of `READERS`: who reads a folder with this ``config.json``.

    ``"both"`` KerasHub and optbook do, ``"optbook"`` alone, or ``"neither"``.
    """
    files = config_files()
    for content, truth, clue in files:
        answer = verdict(function, READERS, content)
        shown = content.get("registered_name") or f"model_type {content['model_type']}"
        require(answer == truth, f"a folder with {shown} is read by {truth}, not {answer}: {clue}.")
    return f"right: {len(files)} folders, each with the classes that read it"
