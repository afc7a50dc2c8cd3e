"""What a preset report measures: its parameters checked, the cost of work, and how far one model is from another."""

import dataclasses
import threading
import time
from pathlib import Path

import jax
import numpy as np
import psutil
from jax import numpy as jnp

from optbook import _programs, memory, presets
from optbook._validation import check_causal_lm, check_count, check_inputs, check_text
from optbook.backbone import causal_lm
from optbook.evaluation import HELD_OUT_TEXT
from optbook.tokens import tokenize_batch

SHORTEST = 8  # tokens; a head that looks back needs something behind it
SAMPLING = 0.001  # seconds between two looks at the resident memory


@dataclasses.dataclass(frozen=True)
class Settings:
    """The parameters of a report as it uses them; made by `settings`."""

    preset: str
    dtype: str
    sequence_length: int
    batch_size: int
    prompts: tuple
    text_file: str | None
    text_characters: int | None
    reference: str | None
    seed: int

    @property
    def text(self):
        """The text to be predicted."""
        return Path(self.text_file or HELD_OUT_TEXT).read_text(encoding="utf-8")[: self.text_characters]


def settings(preset, dtype, sequence_length, batch_size, prompts, text_file, text_characters, reference, seed):
    """The parameters of a report, checked and brought into their types.

    papermill's command line passes text where it cannot tell a number or a truth value. So a whole number may be text,
    and for what may be left out, None, ``"None"``, ``"null"`` and ``""`` are the same.

    Parameters
    ----------
    preset : str
        As for ``OPTBackbone.from_preset``.
    dtype : str, optional
        As for ``OPTBackbone.from_preset``: Keras's default type when left out.
    sequence_length : int, optional
        Tokens that the model sees at a time; all its positions when left out.
    batch_size : int
        Sequences at a time.
    prompts : str or list of str
    text_file : str, optional
        A text in UTF-8; optbook's held-out text when left out.
    text_characters : int, optional
        How many of them, from the beginning; all when left out.
    reference : str, optional
        A preset to be compared with, in float32; ``preset`` itself when left out.
    seed : int

    Raises
    ------
    ValueError
        With a line for each parameter that cannot be used.
    """
    problems = []

    def checked(check, *arguments):
        try:
            return check(*arguments)
        except (ValueError, OSError) as error:
            problems.append(" ".join(str(error).split()))
            return None

    config = checked(_config, "preset", preset)
    positions = config["max_sequence_length"] if config else None
    chosen = Settings(
        preset=preset,
        dtype=checked(_dtype, None if _left_out(dtype) else dtype),
        sequence_length=checked(_length, positions if _left_out(sequence_length) else sequence_length, positions),
        batch_size=checked(_whole_number, "batch_size", batch_size, 1),
        prompts=checked(_prompts, prompts),
        text_file=None if _left_out(text_file) else checked(_text_file, text_file),
        text_characters=(
            None if _left_out(text_characters) else checked(_whole_number, "text_characters", text_characters, 1)
        ),
        reference=None if _left_out(reference) else reference,
        seed=checked(_whole_number, "seed", seed, 0),
    )
    if chosen.reference is not None:
        checked(_config, "reference", chosen.reference)
    if problems:
        raise ValueError("\n".join(problems))
    return chosen


def _left_out(value):
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "null"))


def _config(name, preset):
    if not isinstance(preset, str) or _left_out(preset):
        raise ValueError(f"{name} must be the name, handle or folder of a preset, but is {preset!r}.")
    try:
        return presets.preset_config(preset)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {error}") from None


def _dtype(dtype):
    return memory.plan(presets.DEFAULT, dtype).dtype


def _length(length, positions):
    if length is None:  # left out, and the preset is no help: that was said
        return None
    length = _whole_number("sequence_length", length, SHORTEST)
    if positions is not None and length > positions:
        raise ValueError(f"sequence_length is {length}, but the preset has {positions} positions.")
    return length


def _whole_number(name, value, least):
    try:
        number = int(value) if isinstance(value, str | int | np.integer) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, but is {value!r}.")
    return number


def _prompts(prompts):
    if isinstance(prompts, str) and prompts.lstrip().startswith(("[", "(")):
        raise ValueError(f"prompts is a list written as text, {prompts!r}: give papermill a list, as its -y does.")
    texts = (prompts,) if isinstance(prompts, str) else prompts
    if (
        not isinstance(texts, list | tuple)
        or not texts
        or not all(isinstance(text, str) and text.strip() for text in texts)
    ):
        raise ValueError(f"prompts must be a text or a list of texts, none of them empty, but is {prompts!r}.")
    return tuple(texts)


def _text_file(path):
    if not isinstance(path, str) or not Path(path).is_file():
        raise ValueError(f"text_file must be the path of a text, but there is no file {path!r} in {Path.cwd()}.")
    try:
        empty = not Path(path).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"text_file must be a text in UTF-8, but {path!r} is not.") from None
    if empty:
        raise ValueError(f"text_file {path!r} is empty.")
    return path


@dataclasses.dataclass(frozen=True)
class Cost:
    """What some work took: seconds, and the bytes that the process held at its peak, what was there before included.

    On a CPU these are resident bytes of main memory. On a GPU they are bytes that JAX has given out there, at the peak
    since the process began, which JAX does not forget.
    """

    seconds: float
    peak_bytes: int


def watched(work):
    """What ``work()`` returns, when all of it is computed, and its `Cost`."""
    resident = psutil.Process().memory_info
    seen, done = [resident().rss], threading.Event()

    def look():
        while not done.wait(SAMPLING):
            seen.append(resident().rss)

    sampler = threading.Thread(target=look)
    sampler.start()
    started = time.perf_counter()
    try:
        result = jax.block_until_ready(work())
        seconds = time.perf_counter() - started
    finally:
        done.set()
        sampler.join()
    on_gpu = memory.this_machine().gpu
    peak = jax.devices()[0].memory_stats()["peak_bytes_in_use"] if on_gpu else max(*seen, resident().rss)
    return result, Cost(seconds, peak)


def planned_peaks(plan):
    """The bytes that a process is expected to hold at the peak of each activity of a plan, on this machine: a dict.

    In main memory Python, JAX and KerasHub themselves are added to the plan.
    """
    if memory.this_machine().gpu:
        return plan.on_gpu._asdict()
    return {activity: memory.INTERPRETER + needed for activity, needed in plan.on_cpu._asdict().items()}


def text_rows(lm, text, rows, length, seed=0):
    """Rows of running text, drawn from a random place each and begun with the start token.

    Returns
    -------
    int32 array of shape (rows, length)
        Nothing of it is padding.

    Raises
    ------
    ValueError, TypeError
        For a text of fewer than ``length`` tokens or that the vocabulary cannot spell, and for no rows.
    """
    check_causal_lm(lm)
    check_text("text", text)
    check_count("rows", rows)
    check_count("length", length)
    token_ids = tokenize_batch(lm.preprocessor.tokenizer, text)["token_ids"][0]
    if len(token_ids) < length:
        raise ValueError(f"the text has {len(token_ids)} tokens, the start token included, but a row takes {length}.")
    begins = np.random.default_rng(seed).integers(1, len(token_ids) - length + 2, rows)
    return np.stack([np.r_[token_ids[:1], token_ids[begin : begin + length - 1]] for begin in begins])


def next_token_logits(lm, token_ids):
    """The logits of a compiled forward pass over rows without padding: (batch, T, vocabulary_size) in the model's type.

    Parameters
    ----------
    lm : keras_hub.models.OPTCausalLM
    token_ids : int array of shape (batch, T)

    Raises
    ------
    ValueError, TypeError
        For a model without text, and for ids that its backbone would refuse.
    """
    check_causal_lm(lm)
    inputs = {"token_ids": token_ids, "padding_mask": np.ones(np.shape(token_ids), "int32")}
    check_inputs(inputs, lm.backbone.vocabulary_size, lm.backbone.max_sequence_length)
    return _programs.program(_logits, lm)(token_ids)


def _logits(lm, token_ids):
    return lm({"token_ids": token_ids, "padding_mask": jnp.ones_like(token_ids)}, training=False)


def distance(lm, reference, token_ids):
    """How far a model's next-token distributions are from those of a reference with the same tokenizer.

    Parameters
    ----------
    lm, reference : keras_hub.models.OPTCausalLM
    token_ids : int array of shape (batch, T)
        Nothing of it is padding.

    Returns
    -------
    divergence : float32 array of shape (batch, T)
        KL(reference ‖ lm) in nats at each position, computed in float32 over the ids that have a token.
    same_first : boolean array of shape (batch, T)
        Whether both have the same most probable token, which a greedy sampler would write.
    """
    size = lm.preprocessor.tokenizer.vocabulary_size()  # the published tables have rows beyond
    divergence, same_first = [], []
    for row in token_ids:  # one at a time: logits of a large vocabulary are large
        logits = [next_token_logits(model, row[None])[0, :, :size].astype("float32") for model in (reference, lm)]
        log_p, log_q = (jax.nn.log_softmax(each, axis=-1) for each in logits)  # (T, size)
        divergence.append((jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1))
        same_first.append(log_p.argmax(axis=-1) == log_q.argmax(axis=-1))
    return np.asarray(divergence), np.asarray(same_first)


def reference_model(chosen, lm):
    """The model to be compared with, in float32.

    Parameters
    ----------
    chosen : Settings
    lm : keras_hub.models.OPTCausalLM
        The model of the report; it is its own reference when it is in float32 and no other one was asked for.

    Returns
    -------
    reference : keras_hub.models.OPTCausalLM or None
    reason : str or None
        A line on why there is none: another tokenizer, or too little memory for both.
    """
    name = chosen.reference or chosen.preset
    if name == chosen.preset and chosen.dtype == "float32":
        return lm, None
    ours, theirs = lm.preprocessor.tokenizer, presets.tokenizer(name)
    if ours.vocabulary != theirs.vocabulary:
        return None, f"no distance: {chosen.preset} and {name} have different tokenizers."
    try:
        return causal_lm(name, dtype="float32"), None
    except MemoryError as error:
        return None, f"no distance: {error}"


def strongest_heads(scores):
    """For each role of `optbook.head_scores` the head that plays it most: a dict of role to layer, head and score."""
    found = {}
    for role, of_heads in scores.items():
        layer, head = (int(index) for index in np.unravel_index(of_heads.argmax(), of_heads.shape))
        found[role] = {"layer": layer, "head": head, "score": float(of_heads[layer, head])}
    return found
