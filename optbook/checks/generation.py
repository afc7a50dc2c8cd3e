"""Exercises of chapter 09: min-p, a cache written row by row, the bytes of a step, and samplers with one bug each."""

import numpy as np

from optbook.checks._core import NotYet, require, require_diagnoses

P = 0.6  # what the suspects claim to keep
VERDICTS = (
    "sound",
    "not renormalized",
    "returns ranks",
    "drops the crossing token",
    "keeps a fixed number",
    "draws evenly",
)

# === Exercise 1 ===


def min_p(function):
    """Checks ``function(probabilities, share) -> probabilities``, both of shape (vocabulary_size,)."""
    cases = [
        (np.array([0.06, 0.43, 0.16, 0.3, 0.05]), 0.25),
        (np.array([0.06, 0.43, 0.16, 0.3, 0.05]), 0.9),
        (np.array([0.02, 0.01, 0.91, 0.06]), 0.05),
        (np.array([0.13, 0.12, 0.13, 0.12, 0.13, 0.12, 0.125, 0.125]), 0.5),
    ]
    for probabilities, share in cases:
        given = probabilities.copy()
        answer = np.asarray(function(given, share))
        where = f"for {probabilities.tolist()} and share {share}"
        require(np.array_equal(given, probabilities), "your function changed the array it was given: work on a copy.")
        require(
            answer.shape == probabilities.shape,
            f"the result has shape {answer.shape}; a token that is not kept stays in its place with probability 0.",
        )
        right = _renormalized(probabilities, probabilities >= share * probabilities.max())
        if np.allclose(answer, right, atol=1e-6):
            continue
        for message, wrong in _min_p_mistakes(probabilities, share).items():
            require(not np.allclose(answer, wrong, atol=1e-6, equal_nan=True), f"{where}: {message}")
        raise NotYet(f"{where} the result must be {right.round(3).tolist()}, but is {answer.round(3).tolist()}.")
    return f"right: {len(cases)} distributions, sure and unsure, cut where min-p cuts them"


def _renormalized(probabilities, kept):
    cut = np.where(kept, probabilities, 0.0)
    with np.errstate(invalid="ignore"):
        return cut / cut.sum()


def _min_p_mistakes(probabilities, share):
    """What the usual mistakes give, by the sentence that names each."""
    best = probabilities.max()
    kept = probabilities >= share * best
    order = np.argsort(-probabilities)
    before = np.empty_like(probabilities)
    before[order] = np.cumsum(probabilities[order]) - probabilities[order]
    powers = np.where(kept, np.exp(probabilities), 0.0)
    return {
        "the kept probabilities are right, but they do not sum to 1: divide them by their sum.": np.where(
            kept, probabilities, 0.0
        ),
        "you compared each probability with the share itself; it is a share of the largest one.": _renormalized(
            probabilities, probabilities >= share
        ),
        "you kept tokens until they held the share: that is top-p.": _renormalized(probabilities, before <= share),
        "you kept what must go: a token stays if its probability is at least the share of the largest.": _renormalized(
            probabilities, ~kept
        ),
        "the best token is missing: it is always at least its own share.": _renormalized(
            probabilities, kept & (probabilities < best)
        ),
        "you renormalized by another softmax, which flattens the distribution: divide by the sum.": powers
        / powers.sum(),
        "the tokens come sorted: each probability must stay at its token.": _renormalized(probabilities, kept)[order],
    }


# === Exercise 2 ===


def write_cache(function):
    """Checks ``function(cache, index, key, value) -> cache``.

    The cache has shape (batch, 2, S, num_heads, head_dim), the index (batch,), key and value (batch, num_heads,
    head_dim).
    """
    random = np.random.default_rng(9)
    cache = random.normal(size=(3, 2, 6, 2, 4)).astype("float32")
    index = np.array([4, 1, 3])
    key, value = random.normal(size=(2, 3, 2, 4)).astype("float32")
    given = cache.copy()
    answer = np.asarray(function(given, index.copy(), key.copy(), value.copy()))
    require(
        answer.shape == cache.shape,
        f"the result has shape {answer.shape} instead of {cache.shape}: the new keys and values replace a slot of the "
        "cache, which does not grow.",
    )
    require(np.array_equal(given, cache), "your function changed the cache it was given: write into a copy.")
    right = _written(cache, index, key, value)
    if not np.array_equal(answer, right):
        mistakes = {
            "keys and values are exchanged: keys stand at 0 of the second axis, values at 1.": (index, value, key),
            "every row was written at the first row's index: row b goes to slot index[b].": (index * 0 + 4, key, value),
            "everything is one slot too late: row b goes to slot index[b] itself.": (index + 1, key, value),
            "everything is one slot too early: row b goes to slot index[b] itself.": (index - 1, key, value),
            "everything went into the last slot: row b goes to slot index[b].": (index * 0 + 5, key, value),
            "the keys went to both places: the values are missing.": (index, key, key),
        }
        for message, (slots, keys, values) in mistakes.items():
            require(not np.array_equal(answer, _written(cache, slots, keys, values)), message)
        everywhere = cache.copy()
        for slot in index:
            everywhere[:, 0, slot], everywhere[:, 1, slot] = key, value
        require(
            not np.array_equal(answer, everywhere),
            "every row was written at the slots of all rows: use np.arange(batch) together with the index.",
        )
        untouched = np.ones((3, 6), bool)
        untouched[np.arange(3), index] = False
        kept = np.array_equal(answer.swapaxes(1, 2)[untouched], cache.swapaxes(1, 2)[untouched])
        require(kept, "slots that had to stay changed: only slot index[b] of row b is new.")
        raise NotYet("the right slots were written, but not with the row's own key and value.")
    return "right: three rows written at three slots, everything else as it was"


def _written(cache, index, key, value):
    cache, rows = cache.copy(), np.arange(len(cache))
    cache[rows, 0, index], cache[rows, 1, index] = key, value
    return cache


# === Exercise 3 ===


def bytes_per_step(function):
    """Checks a function that counts the bytes that one step reads.

    Parameters
    ----------
    function : callable
        ``function(parameters, num_layers, hidden_dim, max_sequence_length, itemsize, batch_size, length)`` -> int.
    """
    cases = [(10_000, 3, 8, 40, 4, 1, 10), (10_000, 3, 8, 40, 2, 5, 7), (125_237_760, 12, 768, 2048, 2, 16, 2048)]
    for case in cases:
        parameters, num_layers, hidden_dim, max_sequence_length, itemsize, batch_size, length = case
        answer = function(*case)
        positions, row = max_sequence_length * hidden_dim, num_layers * hidden_dim * length
        right = itemsize * (parameters - positions + 2 * row * batch_size)
        if answer == right:
            continue
        weights = parameters - positions
        mistakes = {
            "the position table is counted whole, but a step reads one row of it.": itemsize
            * (parameters + 2 * row * batch_size),
            "the weights are counted once per row: the rows of a batch share one reading of them.": itemsize
            * (weights + 2 * row)
            * batch_size,
            "the cache is counted for a single row: each row of the batch has its own.": itemsize * (weights + 2 * row),
            "a position has two vectors in each layer, key and value: one of them is missing.": itemsize
            * (weights + row * batch_size),
            "the cache of one layer only is counted.": itemsize * (weights + 2 * hidden_dim * length * batch_size),
            "you counted all positions of the cache, but the row stands at token `length`.": itemsize
            * (weights + 2 * num_layers * positions * batch_size),
            "these are numbers, not bytes: each has itemsize bytes.": right // itemsize,
            "the cache is missing.": itemsize * weights,
        }
        for message, wrong in mistakes.items():
            require(answer != wrong, message)
        raise NotYet(f"for {case} a step reads {right:,} bytes, but your function says {answer!r}.")
    return f"right: {len(cases)} configurations to the byte"


# === Exercise 4 ===


def suspects():
    """Six samplers that claim to be top-p with p = 0.6: a dict of letter to ``sampler(probabilities, uniform)``."""
    letters = dict(zip("ABCDEF", (4, 1, 3, 0, 5, 2)))
    return {letter: _sampler(VERDICTS[number]) for letter, number in letters.items()}


def _sampler(verdict):
    def sampler(probabilities, uniform):
        order = np.argsort(-probabilities)  # from rank to token
        ranked = probabilities[order]
        held = np.cumsum(ranked)
        kept = held - ranked <= P
        if verdict == "drops the crossing token":
            kept = held <= P
            kept[0] = True
        if verdict == "keeps a fixed number":
            kept = np.arange(len(ranked)) < 2
        weights = np.where(kept, ranked, 0.0)
        if verdict == "draws evenly":
            weights = kept.astype(float)
        if verdict != "not renormalized":
            weights = weights / weights.sum()
        rank = np.searchsorted(np.cumsum(weights), uniform, side="right")
        rank = np.minimum(rank, len(ranked) - 1)  # as JAX does with an index beyond the end
        return rank if verdict == "returns ranks" else order[rank]

    return sampler


def diagnose(function):
    """Checks ``function(sampler) -> str``, one of `VERDICTS`, on all suspects."""
    require_diagnoses(function, {verdict: _sampler(verdict) for verdict in VERDICTS}, _advice)
    return f"right: {len(VERDICTS)} samplers, each named for what it is"


def _advice(truth, answer):
    pair = {truth, answer}
    if pair == {"sound", "keeps a fixed number"}:
        return ": one distribution cannot tell them apart; try a sure one and an unsure one"
    if pair == {"sound", "draws evenly"}:
        return ": both draw the same tokens, so count how often each comes"
    if pair == {"sound", "not renormalized"}:
        return ": throw numbers close to 1, which fall behind what was kept"
    if pair == {"sound", "returns ranks"}:
        return ": in a sorted distribution ranks are tokens, so give it one that is not sorted"
    if pair == {"sound", "drops the crossing token"}:
        return ": make the first token hold less than p and the first two more"
    return ": compare which tokens come out with which you would keep by hand"
