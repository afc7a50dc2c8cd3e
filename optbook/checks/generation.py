"""Exercises of chapter 09: min-p, a cache written row by row, the bytes of a step, and samplers with one bug each."""

import numpy as np

from optbook.checks._core import ask, compare, require_diagnoses

P = 0.6  # what the suspects claim to keep
VERDICTS = (
    "sound",
    "not renormalized",
    "returns ranks",
    "drops the crossing token",
    "keeps a fixed number",
    "draws evenly",
)


def min_p(function):
    """Checks ``function(probabilities, share) -> probabilities``, both of shape (vocabulary_size,)."""
    cases = [
        (np.array([0.3, 0.26, 0.1, 0.2, 0.14]), 0.35),  # every mistake gives another result
        (np.array([0.06, 0.43, 0.16, 0.3, 0.05]), 0.9),
        (np.array([0.02, 0.01, 0.91, 0.06]), 0.05),
        (np.array([0.125, 0.5, 0.25, 0.125]), 0.5),  # exactly half
        (np.array([0.125, 0.5, 0.375]), 1.0),
    ]
    for probabilities, share in cases:
        where = f"for {probabilities.tolist()} and share {share}"
        right = _renormalized(probabilities, probabilities >= share * probabilities.max())
        compare(
            ask(function, probabilities, share),
            right,
            {f"{where}: {message}": wrong for message, wrong in _min_p_mistakes(probabilities, share).items()},
            shapes={None: "a token that is not kept stays in its place with probability 0"},
            otherwise=lambda answer, where=where, right=right: (
                f"{where} the result must be {right.round(3).tolist()}, but is {answer.round(3).tolist()}."
            ),
        )
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
        "the kept probabilities are right, but they do not sum to 1: divide them by their sum": kept * probabilities,
        "these say which tokens stay; set the others to 0 and divide what is left by its sum": kept,
        "you compared with >: a token stays if it has at least the share": _renormalized(
            probabilities, probabilities > share * best
        ),
        "you compared each probability with the share itself; it is a share of the largest one": _renormalized(
            probabilities, probabilities >= share
        ),
        "the share is the wrong way round: multiply the largest by share, not by 1 - share": _renormalized(
            probabilities, probabilities >= (1 - share) * best
        ),
        "you kept tokens until they held the share: that is top-p": _renormalized(probabilities, before <= share),
        "you kept what must go: a token stays if its probability is at least the share of the largest": _renormalized(
            probabilities, ~kept
        ),
        "the best token is missing: it is always at least its own share": _renormalized(
            probabilities, kept & (probabilities < best)
        ),
        "you renormalized by another softmax, which flattens the distribution: divide by the sum": (
            powers / powers.sum()
        ),
        "the tokens come sorted: each probability must stay at its token": _renormalized(probabilities, kept)[order],
    }


def write_cache(function):
    """Checks ``function(cache, index, key, value) -> cache``.

    The cache has shape (batch, 2, S, num_heads, head_dim), the index (batch,), key and value (batch, num_heads,
    head_dim).
    """
    random = np.random.default_rng(9)
    cache = random.normal(size=(3, 2, 6, 2, 4)).astype("float32")
    index = np.array([4, 1, 3])
    key, value = random.normal(size=(2, 3, 2, 4)).astype("float32")
    outcomes = {
        "keys and values are exchanged: keys stand at 0 of the second axis, values at 1": (index, value, key),
        "every row was written at the first row's index: row b goes to slot index[b]": (index * 0 + 4, key, value),
        "everything is one slot too late: row b goes to slot index[b] itself": (index + 1, key, value),
        "everything is one slot too early: row b goes to slot index[b] itself": (index - 1, key, value),
        "everything went into the last slot: row b goes to slot index[b]": (index * 0 + 5, key, value),
        "the keys went to both places: the values are missing": (index, key, key),
    }
    mistakes = {message: _written(cache, *outcome) for message, outcome in outcomes.items()}
    everywhere = cache.copy()
    for slot in index:
        everywhere[:, 0, slot], everywhere[:, 1, slot] = key, value
    mistakes["every row was written at the slots of all rows: use np.arange(batch) together with the index"] = (
        everywhere
    )

    def otherwise(answer):
        untouched = np.ones((3, 6), bool)
        untouched[np.arange(3), index] = False
        if np.allclose(answer.swapaxes(1, 2)[untouched], cache.swapaxes(1, 2)[untouched], atol=0.05):
            return "the right slots were written, but not with the row's own key and value."
        return "slots that had to stay changed: only slot index[b] of row b is new."

    grown = {None: "the new keys and values replace a slot of the cache, which does not grow"}
    answer = ask(function, cache, index, key, value)
    compare(answer, _written(cache, index, key, value), mistakes, shapes=grown, otherwise=otherwise)
    return "right: three rows written at three slots, everything else as it was"


def _written(cache, index, key, value):
    cache, rows = cache.copy(), np.arange(len(cache))
    cache[rows, 0, index], cache[rows, 1, index] = key, value
    return cache


def bytes_per_step(function):
    """Checks a function that counts the bytes that one step reads.

    ``function(parameters, num_layers, hidden_dim, max_sequence_length, itemsize, batch_size, length)`` -> int.
    """
    cases = [(10_000, 3, 8, 40, 4, 1, 10), (10_000, 3, 8, 40, 2, 5, 7), (125_237_760, 12, 768, 2048, 2, 16, 2048)]
    for case in cases:
        parameters, num_layers, hidden_dim, max_sequence_length, itemsize, batch_size, length = case
        positions, row = max_sequence_length * hidden_dim, num_layers * hidden_dim * length
        weights = parameters - positions
        right = itemsize * (weights + 2 * row * batch_size)
        vectors = {
            "the position table is counted whole, but a step reads one row of it": right // itemsize + positions,
            "the weights are counted once per row: the rows of a batch share one reading of them": (
                (weights + 2 * row) * batch_size
            ),
            "the cache is counted for a single row: each row of the batch has its own": weights + 2 * row,
            "a position has two vectors in each layer, key and value: one is missing": weights + row * batch_size,
            "the cache of one layer only is counted": weights + 2 * hidden_dim * length * batch_size,
            "you counted all positions of the cache, but the row stands at token `length`": (
                weights + 2 * num_layers * positions * batch_size
            ),
            "the cache is missing": weights,
        }
        mistakes = {message: itemsize * wrong for message, wrong in vectors.items()}
        mistakes["these are numbers, not bytes: each has itemsize bytes"] = right // itemsize
        answer = ask(function, *case)
        otherwise = f"for {case} a step reads {right:,} bytes, but your function says {answer!r}."
        compare(answer, right, mistakes, otherwise=otherwise)
    return f"right: {len(cases)} configurations to the byte"


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
