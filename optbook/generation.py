"""Text that a model writes: KerasHub's samplers, compiled once for many prompts, and only ids that decode."""

import copy
import itertools
import operator

import jax
import keras
import keras_hub
import numpy as np
import tqdm
from keras import ops

from optbook import _programs
from optbook._validation import check_causal_lm, check_count, check_inputs
from optbook.layers import MASKED_SCORE
from optbook.tokens import PAD, next_power_of_two, tokenize_batch

SHORTEST = 16  # tokens; shorter sequences share the program of this length
LONG = 200e9  # bytes of weights read for all tokens together, about ten seconds' work, from which a bar is shown


def generate(
    lm,
    prompts,
    max_new_tokens=None,
    max_length=None,
    sampler="greedy",
    seed=None,
    stop_token_ids="auto",
    strip_prompt=False,
):
    """Continues texts as KerasHub's ``OPTCausalLM.generate`` does, by its samplers.

    The number of prompts and the length are padded to the next power of two (the length at least to 16, at most to the
    model's positions), so that prompts of 5, 6 and 7 tokens share one compiled program; it runs only to the length that
    was asked for. Ids without a token, as the last 7 rows of the published models' tables, get no probability, so they
    never come out. What ``lm`` was compiled with is not changed.

    Parameters
    ----------
    lm : keras_hub.models.OPTCausalLM
        With a preprocessor, as `causal_lm` gives it, around our backbone or KerasHub's.
    prompts : str or list of str
    max_new_tokens : int, optional
        How many tokens each prompt gets at most.
    max_length : int, optional
        How many tokens each text has at most, its start token and prompt among them. Give one of the two; without
        either it is the preprocessor's ``sequence_length``, as in KerasHub.
    sampler : str or keras_hub.samplers.Sampler
        Those of KerasHub share a compiled program where they have one class and equal settings; with one of a class
        of your own a program is made anew at every call.
    seed : int, optional
        The same seed gives the same texts for the same prompts, whatever was sampled before. Without one a sampler
        goes on from its own state.
    stop_token_ids : "auto", None or tuple of int
        The ids at which a text ends; they are not part of it. ``"auto"`` is the end token; with None every text gets
        its full length.
    strip_prompt : bool
        Return only what was added to the prompts.

    Returns
    -------
    str, or list of str for a list of prompts
        A character cut in the middle of its bytes comes out as U+FFFD.

    Raises
    ------
    ValueError, TypeError
        For a prompt that is no text, is not what its tokens decode to, or leaves no room for a new token; for more
        tokens than the model has positions; for a sampler that KerasHub does not have, a temperature of 0, a stop
        token that is the padding, a seed that is not one of 32 bits.
    """
    check_causal_lm(lm)
    sampler = _sampler(sampler)
    stops = _stops(stop_token_ids, lm.preprocessor.tokenizer)
    tokenizer, backbone = lm.preprocessor.tokenizer, lm.backbone
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    inputs = tokenize_batch(tokenizer, texts)
    starts = inputs["padding_mask"].sum(axis=-1)
    ends = _ends(starts, max_new_tokens, max_length, lm)
    check_inputs(inputs, backbone.vocabulary_size, backbone.max_sequence_length)

    length = min(max(next_power_of_two(ends.max()), SHORTEST), backbone.max_sequence_length)
    inputs = _pad(inputs, next_power_of_two(len(texts)), length, stops)
    has_token = np.isin(np.arange(backbone.vocabulary_size), list(tokenizer.vocabulary.values()))
    steps = ends.max() - starts.min()
    is_long = bool(steps * sum(variable.value.nbytes for variable in lm.variables) > LONG)
    run = _programs.program(
        _run, lm, sampler, state_mapping=_seeded(sampler, seed), stops=stops, tells_progress=is_long
    )
    with _Bar(total=steps, desc="generate", unit="token", disable=not is_long) as bar:
        token_ids, state = run(inputs, has_token, length - ends.max(), bar.number)
        token_ids = np.asarray(token_ids)
    for variable, value in zip(sampler.variables, state):
        variable.assign(value)

    added = [_until(row[start:end], stops) for row, start, end in zip(token_ids, starts, ends)]
    added = [tokenizer.detokenize(ids[~np.isin(ids, tokenizer.special_token_ids)].tolist()) for ids in added]
    written = added if strip_prompt else [text + more for text, more in zip(texts, added)]
    return written[0] if isinstance(prompts, str) else written


def _sampler(sampler):
    sampler = keras_hub.samplers.get(sampler)
    if not isinstance(sampler, keras_hub.samplers.Sampler):
        raise ValueError(f"sampler must be the name of a KerasHub sampler, as 'top_p', or one, but is {sampler!r}.")
    if not getattr(sampler, "temperature", 1) > 0:
        raise ValueError(f"temperature must be above 0, but is {sampler.temperature}; 'greedy' is its limit.")
    return sampler


def _seeded(sampler, seed):
    """The sampler's random state as it starts from a seed: pairs of variable and value, none without a seed."""
    if seed is None:
        return []
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an int in 0 … {2**32 - 1}, but is {seed!r}.")
    return [(variable, keras.random.SeedGenerator(int(seed)).state.value) for variable in sampler.variables]


class _Bar(tqdm.tqdm):
    """A progress bar that a compiled program can move on, by its number."""

    shown = {}
    numbers = itertools.count()

    def __enter__(self):
        self.number = next(_Bar.numbers)
        _Bar.shown[self.number] = self
        return super().__enter__()

    def __exit__(self, *error):
        jax.effects_barrier()  # what the program has still to tell
        del _Bar.shown[self.number]
        return super().__exit__(*error)


def _run(lm, sampler, inputs, has_token, unused, bar_number, stops, tells_progress):
    """What the sampler makes of one batch: ids of shape (batch, T), and the sampler's state after it.

    The last ``unused`` positions are not generated. JAX cannot keep a program that tells its progress between
    processes: short runs do not.
    """
    prompt, mask = inputs["token_ids"], inputs["padding_mask"]
    backbone = lm.backbone
    weights = [(variable, variable.value) for variable in _programs.Structure([lm]).variables]

    def next_logits(prompt, caches, index):
        if tells_progress:
            jax.debug.callback(lambda number: _Bar.shown[int(number)].update(), bar_number)
        token_ids = ops.slice(prompt, [0, index - 1], [ops.shape(prompt)[0], 1])
        with keras.StatelessScope(state_mapping=weights):  # the loop of a sampler is in a scope without them
            hidden_states, caches = _hidden_states(backbone, token_ids, caches, index - 1)  # (batch, 1, hidden_dim)
            logits = backbone.token_embedding(hidden_states, reverse=True)[:, 0]  # (batch, vocabulary_size)
        return ops.where(has_token, ops.cast(logits, "float32"), MASKED_SCORE), hidden_states[:, 0], caches

    def run_loop(cond, body, maximum_iterations, **kwargs):
        return sampler.run_loop(cond, body, maximum_iterations=maximum_iterations - unused, **kwargs)

    batch, length = prompt.shape
    shape = batch, 2, length, backbone.num_heads, backbone.hidden_dim // backbone.num_heads
    caches = tuple(ops.zeros(shape, dtype=lm.compute_dtype) for _ in backbone.transformer_layers)
    hidden_states, caches = _hidden_states(backbone, prompt, caches, 0)
    limited = copy.copy(sampler)
    limited.run_loop = run_loop
    token_ids = limited(
        next=next_logits,
        prompt=prompt,
        cache=caches,
        index=ops.min(ops.sum(ops.cast(mask, "int32"), axis=-1)),
        mask=mask,
        stop_token_ids=stops,
        hidden_states=hidden_states,
    )
    return token_ids, [variable.value for variable in sampler.variables]


def _hidden_states(backbone, token_ids, caches, position):
    """The last hidden states of tokens that stand from ``position`` on, (batch, T, hidden_dim), and the new caches.

    A cache for each layer, since XLA updates those in place; KerasHub stacks them into one array, which is copied for
    every token.
    """
    x, updated = backbone.embeddings(token_ids, start_index=position), []
    for layer, cache in zip(backbone.transformer_layers, caches):
        x, cache = layer(x, self_attention_cache=cache, self_attention_cache_update_index=position)
        updated.append(cache)
    return backbone.layer_norm(x), tuple(updated)


def _stops(stop_token_ids, tokenizer):
    """The ids at which a text ends, or None."""
    if stop_token_ids is None:
        return None
    if isinstance(stop_token_ids, str) and stop_token_ids == "auto":
        return (tokenizer.end_token_id,)
    stops = tuple(operator.index(token_id) for token_id in stop_token_ids)
    if PAD in stops:
        raise ValueError(f"stop_token_ids cannot hold {PAD}, the padding, which stands where nothing is written yet.")
    return stops or None


def _ends(starts, max_new_tokens, max_length, lm):
    """At how many tokens each text ends at the latest; ``starts`` are the lengths of the prompts."""
    if max_new_tokens is not None and max_length is not None:
        raise ValueError("give max_new_tokens or max_length, not both.")
    positions = lm.backbone.max_sequence_length
    if max_new_tokens is not None:
        check_count("max_new_tokens", max_new_tokens)
        ends = starts + max_new_tokens
    else:
        max_length = min(lm.preprocessor.sequence_length, positions) if max_length is None else max_length
        check_count("max_length", max_length)
        ends = np.full_like(starts, max_length)
    number = int(starts.argmax())
    prompt = f"prompt {number} has {starts[number]} tokens, start token included"
    if starts[number] >= positions:
        raise ValueError(f"{prompt}, and the model {positions} positions, which leaves no room for new tokens.")
    if max_new_tokens is not None and ends[number] > positions:
        raise ValueError(
            f"{prompt}, and the model {positions} positions: max_new_tokens can be at most "
            f"{positions - starts[number]}, but is {max_new_tokens}."
        )
    if ends[number] > positions:
        raise ValueError(f"max_length can be at most {positions}, the positions of the model, but is {max_length}.")
    if starts[number] >= ends[number]:
        raise ValueError(f"{prompt}, which leaves no room for new tokens in max_length {max_length}.")
    return ends


def _pad(inputs, batch_size, length, stops):
    """Prompts padded on the right to ``length``, and rows added that are finished from the start."""
    rows, columns = inputs["token_ids"].shape
    token_ids = np.full((batch_size, length), PAD, "int32")
    padding_mask = np.zeros((batch_size, length), bool)
    token_ids[:rows, :columns], padding_mask[:rows, :columns] = inputs["token_ids"], inputs["padding_mask"]
    padding_mask[rows:, :-1] = True  # given but for the last token, in whose place stands what ends a text
    token_ids[rows:, -1] = stops[0] if stops else PAD
    return {"token_ids": token_ids, "padding_mask": padding_mask}


def _until(token_ids, stops):
    """What stands before the first of ``stops``."""
    found = np.flatnonzero(np.isin(token_ids, stops or ()))
    return token_ids[: found[0]] if len(found) else token_ids
