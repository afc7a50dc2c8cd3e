"""Bad input is answered in one clear line, before it can turn into a broadcasting error or a silent wrong number."""

import functools
import inspect
import numbers

import jax
import keras
import keras_hub
import numpy as np


def check_sizes(**sizes):
    """Each size must be an int of at least 1; raises TypeError or ValueError naming the first that is not."""
    if sizes["max_sequence_length"] is None:
        raise ValueError("max_sequence_length must be an int: the position table has one trained row per position.")
    for name, size in sizes.items():
        check_count(name, size)
    hidden_dim, num_heads = sizes["hidden_dim"], sizes["num_heads"]
    if hidden_dim % num_heads:
        raise ValueError(f"hidden_dim must be divisible by num_heads: {hidden_dim} is not divisible by {num_heads}.")


def check_count(name, count):
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise TypeError(f"{name} must be an int, but is {count!r}.")
    if count < 1:
        raise ValueError(f"{name} must be at least 1, but is {count}.")


def check_causal_lm(lm):
    if not isinstance(lm, keras_hub.models.OPTCausalLM) or lm.preprocessor is None:
        raise TypeError(f"lm must be an OPTCausalLM with a preprocessor, as optbook.causal_lm gives, not {lm!r}.")


def check_text(name, text):
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, the content of a file, but is {text!r}.")


def check_not_quantized(backbone):
    """The files of a preset hold floats."""
    if any(getattr(layer, "quantization_mode", None) for layer in backbone._flatten_layers()):
        raise ValueError("a quantized model cannot be written: write it before quantize, which is quick to repeat.")


def check_dropout(dropout):
    if isinstance(dropout, bool) or not isinstance(dropout, numbers.Real):
        raise TypeError(f"dropout must be a number, but is {dropout!r}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), but is {dropout}.")


def check_inputs(inputs, vocabulary_size, max_sequence_length):
    """What a backbone is called on: a dict of two arrays of one shape (batch, T), ids of the vocabulary and 0 or 1.

    Values are looked at only where there are any: under ``jit``, so in ``fit`` and ``generate``, there are none.
    """
    missing = [key for key in ("token_ids", "padding_mask") if not isinstance(inputs, dict) or key not in inputs]
    if missing:
        raise ValueError(f"inputs must be a dict with token_ids and padding_mask; missing: {', '.join(missing)}.")
    token_ids, padding_mask = (
        value if hasattr(value, "dtype") else np.asarray(value)
        for value in (inputs["token_ids"], inputs["padding_mask"])
    )
    if np.dtype(token_ids.dtype).kind not in "iu":
        raise TypeError(f"token_ids must be integers, but are {token_ids.dtype}.")
    shape = tuple(token_ids.shape)
    if len(shape) != 2:
        raise ValueError(f"token_ids must have shape (batch, T), but have {shape}.")
    if shape != tuple(padding_mask.shape):
        raise ValueError(
            f"padding_mask must have the shape of token_ids, {shape}, but has {tuple(padding_mask.shape)}."
        )
    if shape[1] is not None and shape[1] > max_sequence_length:
        raise ValueError(
            f"the sequence has {shape[1]} tokens, but the position table only {max_sequence_length} rows "
            "(max_sequence_length); shorten the sequence."
        )
    check_mask("padding_mask", padding_mask)
    if isinstance(token_ids, keras.KerasTensor | jax.core.Tracer) or 0 in shape:
        return
    low, high = int(token_ids.min()), int(token_ids.max())
    if low < 0 or high >= vocabulary_size:
        raise ValueError(
            f"token_ids must lie in 0 … {vocabulary_size - 1} (vocabulary_size {vocabulary_size}), "
            f"but reach from {low} to {high}."
        )


def check_mask(name, mask):
    """The mask as booleans of NumPy; raises ValueError unless each of its values is 0, 1, True or False.

    An additive mask of 0 and −1e9 would come out inverted, and 0.5 is false as an integer and true as a boolean. Under
    ``jit`` a mask has no values to look at, so it comes back as it is, and floats are refused.
    """
    has_values = not isinstance(mask, keras.KerasTensor | jax.core.Tracer)
    mask = np.asarray(mask) if has_values else mask
    if mask.dtype == "bool":
        return mask
    if has_values:
        one = mask == 1
        wrong = mask[~(one | (mask == 0))]
        if wrong.size:
            raise ValueError(f"{name} must hold 0 and 1, or False and True, but holds {wrong.flat[0]}.")
        return one
    if not keras.backend.is_int_dtype(mask.dtype):
        raise ValueError(f"{name} must be integers or booleans where it is compiled, but is {mask.dtype}.")
    return mask


def checks_masks(function):
    """Decorates a function whose arguments are masks, each of which may be left out."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args, **kwargs):
        for name, mask in signature.bind(*args, **kwargs).arguments.items():
            if mask is not None:
                check_mask(name, mask)
        return function(*args, **kwargs)

    return checked
