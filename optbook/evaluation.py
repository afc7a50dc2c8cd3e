"""How well a model predicts a text."""

import dataclasses
import math

import jax
import numpy as np
import tqdm
from jax import lax
from jax import numpy as jnp

from optbook import _programs
from optbook._validation import check_causal_lm, check_count, check_inputs, check_text
from optbook.presets import ASSETS
from optbook.tokens import PAD, next_power_of_two, token_bytes, tokenize_batch

LONG = 2e12  # floating-point operations, about ten seconds' work, from which a progress bar is shown
HELD_OUT_TEXT = ASSETS / "held_out_text" / "text.txt"


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """How well a model predicted the tokens of a text.

    Attributes
    ----------
    perplexity : float
        ``exp`` of ``nats_per_token``, infinite where that is beyond 709. It depends on the tokenizer: compare only
        models that share one.
    nats_per_token : float
        Mean negative log likelihood of a token that has others before it.
    bits_per_byte : float
        The same likelihood by the UTF-8 bytes those tokens stand for, which compares models of any tokenizer.
    tokens : int
        How many tokens were predicted.
    """

    perplexity: float
    nats_per_token: float
    bits_per_byte: float
    tokens: int


def perplexity(lm, text=None, stride=None, max_length=None):
    """How well a model predicts a text, read in windows that overlap: Hugging Face's procedure for long texts.

    A window of ``max_length`` tokens moves on by ``stride``, and predicts only the tokens that no window before it did.
    So every token but the start token counts once; a smaller stride gives it more context, and takes longer. With
    ``stride=max_length`` windows do not overlap, and the first token of each, which has no context, is not counted. All
    windows share one compiled program.

    Parameters
    ----------
    lm : keras_hub.models.OPTCausalLM
        With a preprocessor, as `causal_lm` gives it, around our backbone or KerasHub's.
    text : str, optional
        58 kB that no embedded preset was trained on (Jane Austen, State of the Union addresses), when left out.
    stride : int, optional
        Tokens; half of ``max_length`` when left out.
    max_length : int, optional
        Tokens of a window; all positions of the model when left out.

    Raises
    ------
    ValueError, TypeError
        For a text of no tokens or that the vocabulary cannot spell, a stride longer than the window, a window longer
        than the model has positions.
    """
    check_causal_lm(lm)
    text = HELD_OUT_TEXT.read_text(encoding="utf-8") if text is None else text
    check_text("text", text)
    positions = lm.backbone.max_sequence_length
    max_length = positions if max_length is None else max_length
    check_count("max_length", max_length)
    if not 2 <= max_length <= positions:
        raise ValueError(f"max_length must lie in 2 … {positions}, the positions of the model, but is {max_length}.")
    stride = max_length // 2 if stride is None else stride
    check_count("stride", stride)
    if stride > max_length:
        raise ValueError(f"stride must be at most max_length, {max_length}, or tokens are skipped; it is {stride}.")
    tokenizer = lm.preprocessor.tokenizer
    token_ids = tokenize_batch(tokenizer, text)["token_ids"][0]
    check_inputs(
        {"token_ids": token_ids[None], "padding_mask": np.ones_like(token_ids[None])},
        lm.backbone.vocabulary_size,
        len(token_ids),
    )
    sizes = np.array([len(token_bytes(tokenizer, token_id)) for token_id in token_ids])
    without_context = slice(None, None, stride) if stride == max_length else 0
    if not np.delete(sizes, without_context).any():
        raise ValueError("text has no tokens to predict: those that its windows count stand for no byte.")
    losses, counted = token_losses(lm, token_ids, stride, max_length)
    nats, tokens = float(losses[counted].sum(dtype="float64")), int(counted.sum())
    with np.errstate(over="ignore"):  # a model that diverged: infinite
        perplexity = float(np.exp(nats / tokens))
    return Perplexity(
        perplexity=perplexity,
        nats_per_token=nats / tokens,
        bits_per_byte=nats / math.log(2) / int(sizes[counted].sum()),
        tokens=tokens,
    )


def token_losses(lm, token_ids, stride, max_length):
    """Negative log likelihood in nats of each token of a text, and whether it had context and counts; both (tokens,).

    The windows are those of `perplexity`; the last, and a text shorter than one, are padded on the right.
    """
    total = len(token_ids)
    length = min(next_power_of_two(total), max_length)
    begins = range(0, max(total - max_length, 0) + stride, stride)
    operations = 2 * lm.count_params() * length * len(begins)
    losses_of = _programs.program(_losses, lm)
    losses, counted = np.zeros(total, "float32"), np.ones(total, bool)
    done = 0  # tokens that windows before have predicted
    for begin in tqdm.tqdm(begins, desc="perplexity", unit="window", disable=operations < LONG):
        window = token_ids[begin : begin + max_length]
        inputs = {"token_ids": np.full((1, length), PAD, "int32"), "padding_mask": np.zeros((1, length), "int32")}
        inputs["token_ids"][0, : len(window)] = window
        inputs["padding_mask"][0, : len(window)] = 1
        of_window = np.asarray(losses_of(inputs))
        end = begin + len(window)
        losses[done:end] = of_window[done - begin : len(window)]
        counted[begin] = begin < done
        done = end
    return losses, counted


def _losses(lm, inputs):
    """Negative log likelihood of each token of a window given those before it, (T,) float32; 0 for the first."""
    logits = lm(inputs, training=False)[0, :-1]  # (T - 1, vocabulary_size)
    logits = lax.optimization_barrier(logits).astype("float32")  # else XLA computes them anew for each of their uses
    targets = inputs["token_ids"][0, 1:, None]
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets, axis=-1)[:, 0]
    return jnp.concatenate([jnp.zeros(1), losses])
