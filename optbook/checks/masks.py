"""Exercises of chapter 04: combine the masks, read a broken one off its picture, find leaks from outside."""

import numpy as np

from optbook.checks._core import ask, compare, numbers, require, require_diagnoses, require_shape, verdict

DIAGNOSES = ("healthy", "mask forgotten", "polarity flipped", "mask after softmax", "padding applied to queries")
LEAKS = ("future", "padding", "nan")
BROKEN_SUSPECT = "C"

# Rows without padding, padded right, and padded left: what no single one of them shows.
_PADDING = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])


def _causal(length):
    return np.tril(np.ones((length, length), dtype=bool))


def _allowed(padding_mask):
    real = np.asarray(padding_mask, dtype=bool)
    return _causal(real.shape[1]) & real[:, None, :]  # (batch, T, S)


def combined(function):
    """Checks ``function(padding_mask) -> (batch, T, S)``, booleans, True where query t may attend to key s."""
    real = _PADDING.astype(bool)
    mask = numbers(ask(function, _PADDING))
    batch, length = _PADDING.shape
    causal, keys, queries, full = _causal(length), real[:, None], real[:, :, None], np.ones((batch, 1, 1), bool)
    right = causal & keys
    one_each = {None: f"one matrix of queries and keys per sequence is {(batch, length, length)}"}
    require_shape(mask, right.shape, "the mask", one_each)
    zeros_and_ones = np.isin(mask.astype("float64"), (0, 1)).all()
    require(
        mask.dtype == bool,
        f"the mask is of type {mask.dtype}: make it boolean, True for allowed, "
        + (
            "with .astype(bool); &, and not *, joins booleans."
            if zeros_and_ones
            else "and leave the large negative number to the layer that has the scores."
        ),
    )
    mistakes = {
        "the polarity is flipped: True stands where attention is forbidden, and it must stand where it is allowed": (
            ~right
        ),
        "the causal half is the wrong way round: query t sees keys from t on, the future, and must see keys up to t": (
            causal.T & keys
        ),
        "the diagonal is missing: a token may attend to itself, and the first one has nobody else": (
            np.tril(causal, -1) & keys
        ),
        "every query sees one key of the future: the diagonal is the last that is allowed, np.tril(…, k=0)": (
            np.tril(full & np.ones((length, length), bool), 1) & keys
        ),
        "queries and keys changed places: rows are queries, columns are keys, and a pad's column must be empty": (
            causal.T & queries
        ),
        "the padding mask is inverted: the pads are allowed and the real tokens are not": causal & ~keys,
        "the padding mask is applied to queries: whole rows are emptied, while the column of a pad stays open": (
            causal & queries
        ),
        "the padding mask is applied to queries too: the keys are right, but empty rows for pads protect nobody": (
            causal & keys & queries
        ),
        "the two masks are joined by 'or': a key must be in the past and real, both at once": causal | keys,
        "the padding mask is missing: every sequence has the same causal matrix": causal & full,
        "the causal mask is missing: real keys of the future are allowed": keys & np.ones((length, 1), bool),
    }

    def otherwise(_):
        row, query, key = np.argwhere(mask != right)[0].tolist()
        return f"in sequence {row}, query {query} and key {key}, the mask says {mask[row, query, key]}."

    compare(mask, right, mistakes, otherwise=otherwise)
    return f"right: {int(mask.sum())} of {mask.size} pairs of query and key are allowed, and they are the right ones"


def _softmax(scores):
    with np.errstate(invalid="ignore"):  # a row of nothing but -inf becomes NaN, and a test is to find that
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _weights(name, scores, padding_mask, fill=-1e30):
    """Attention weights of shape (batch, T, S) as a healthy model or one of the broken ones makes them."""
    real = np.asarray(padding_mask, dtype=bool)
    causal, allowed = _causal(real.shape[1]), _allowed(real)
    if name == "mask forgotten":
        return _softmax(scores)
    if name == "polarity flipped":
        return _softmax(np.where(allowed, fill, scores))
    if name == "mask after softmax":
        return _softmax(scores) * allowed
    if name == "padding applied to queries":
        return _softmax(np.where(causal & real[:, :, None], scores, fill))
    return np.where(allowed, _softmax(np.where(allowed, scores, fill)), 0.0)


def diagnosis(function):
    """Checks ``function(weights, padding_mask) -> str``, one of `DIAGNOSES`.

    The function gets one map, ``weights`` of shape (T, S), and ``padding_mask`` of shape (T,), left-padded.
    """
    random = np.random.default_rng(4)
    for pads in (2, 5, 3):
        padding_mask = np.arange(9) >= pads
        scores = random.normal(size=(1, 9, 9))
        maps = {truth: _weights(truth, scores, padding_mask[None])[0] for truth in DIAGNOSES}
        require_diagnoses(lambda weights, mask=padding_mask: function(weights, mask), maps, _advice)
        uniform = np.where(padding_mask[:, None], maps["healthy"], maps["padding applied to queries"])
        answer = verdict(function, DIAGNOSES, uniform, padding_mask)
        odd = f"you called a healthy map {answer!r}: only its pad queries look odd, and nobody reads their outputs."
        require(answer == "healthy", odd)
        faint = scores - 5.0 * ~_allowed(padding_mask[None])  # what is forbidden gets about a hundredth
        for truth in DIAGNOSES:
            answer = verdict(function, DIAGNOSES, _weights(truth, faint, padding_mask[None])[0], padding_mask)
            wide = f"you called {truth!r} {answer!r} where the forbidden gets a hundredth: your tolerance is too wide."
            require(answer == truth, wide)
    return f"right: {len(DIAGNOSES)} kinds of map told apart, on rows with 2, 5 and 3 pads"


def _advice(truth, answer):
    pair = {truth, answer}
    if pair == {"healthy", "mask after softmax"}:
        return (
            ": in both every forbidden weight is 0, so look at the sums of the rows of real queries (and of real "
            "queries only)"
        )
    if pair == {"mask forgotten", "polarity flipped"}:
        return ": both put weight on the forbidden; ask what is left for the allowed keys"
    if pair == {"healthy", "padding applied to queries"}:
        return ": both respect the order of time; look at the columns of the pads, in rows of real queries"
    if pair == {"mask forgotten", "padding applied to queries"}:
        return ": both put weight on pads; only one puts weight on the future as well"
    return ""


class _Model:
    """A black box of two small random attention layers: ``model(token_ids, padding_mask) -> (batch, T, 8)``."""

    vocabulary_size = 20

    def __init__(self, name="healthy", fill=-1e30, seed=0):
        random = np.random.default_rng(seed)
        self._name, self._fill = name, fill
        self._table = random.normal(size=(self.vocabulary_size, 8))
        self._positions = random.normal(size=(32, 8))
        self._layers = random.normal(size=(2, 3, 8, 8)) / np.sqrt(8)

    def __call__(self, token_ids, padding_mask):
        token_ids, padding_mask = np.asarray(token_ids), np.asarray(padding_mask)
        x = self._table[token_ids % self.vocabulary_size] + self._positions[: token_ids.shape[1]]
        for to_query, to_key, to_value in self._layers:
            scores = (x @ to_query) @ np.swapaxes(x @ to_key, 1, 2) / np.sqrt(8)
            x = x + self._attend(scores, padding_mask) @ (x @ to_value)
        rounded = 1e-9 * np.cos(token_ids.sum(axis=1)) if self._name == "rounding" else 0.0 * token_ids[:, 0]
        return x + rounded[:, None, None]  # as sums that are added up in another order differ

    def _attend(self, scores, padding_mask):
        real = padding_mask.astype(bool)
        allowed = _allowed(real)
        if self._name == "off by one":
            allowed = np.tril(np.ones(scores.shape[-2:], bool), 1) & real[:, None]
        elif self._name == "peeks once":  # the first real query sees the second real token, and nothing else is wrong
            first = real.argmax(axis=1)
            allowed[np.arange(len(real)), first, first + 1] = True
        elif self._name == "open pads":  # seen from everywhere, while a pad sees itself alone
            allowed = np.where(real[:, :, None], allowed | ~real[:, None], np.eye(real.shape[1], dtype=bool))
        elif self._name == "padding forgotten":
            allowed = _allowed(np.ones_like(real))
        elif self._name == "minus infinity":
            return _softmax(np.where(allowed, scores, -np.inf))
        elif self._name == "too small":
            return _softmax(np.where(allowed, scores, -8.0))
        elif self._name in DIAGNOSES:
            return _weights(self._name, scores, padding_mask, self._fill)
        return np.where(allowed, _softmax(np.where(allowed, scores, self._fill)), 0.0)


def _leaks(model, token_ids, padding_mask, tolerance=1e-6):
    """The reference: which of `LEAKS` a black box has on this batch."""
    token_ids, real = np.asarray(token_ids), np.asarray(padding_mask).astype(bool)
    before = np.asarray(model(token_ids, padding_mask))
    found = set() if np.isfinite(before[real]).all() else {"nan"}
    before = np.nan_to_num(before)
    time = np.arange(token_ids.shape[1])
    for step in time:
        changed = token_ids.copy()
        changed[:, step] = np.where(token_ids[:, step] == 5, 6, 5)
        change = np.abs(np.nan_to_num(np.asarray(model(changed, padding_mask))) - before).max(axis=-1)  # (batch, T)
        reached = (change > tolerance) & real
        if reached[~real[:, step]].any():
            found.add("padding")
        if (reached & (time < step))[real[:, step]].any():
            found.add("future")
    return found


def _batch(side, seed=1):
    token_ids = np.random.default_rng(seed).integers(4, _Model.vocabulary_size, (2, 7))
    padding_mask = np.ones((2, 7), "int32")
    pads = np.s_[:3] if side == "left" else np.s_[4:]
    padding_mask[1, pads] = 0
    token_ids[1, pads] = 1
    return token_ids, padding_mask


def leak_test(function):
    """Checks ``function(model, token_ids, padding_mask) -> set``, a subset of `LEAKS`.

    ``model(token_ids, padding_mask)`` gives an array (batch, T, width); nothing else of it may be used.
    """
    cases = [
        (_Model(), "left"),
        (_Model(), "right"),
        (_Model("padding forgotten"), "left"),
        (_Model("padding forgotten"), "right"),
        (_Model("mask forgotten"), "left"),
        (_Model("off by one"), "left"),
        (_Model("padding applied to queries"), "left"),
        (_Model("mask after softmax"), "left"),
        (_Model("polarity flipped"), "right"),
        (_Model("minus infinity"), "left"),
        (_Model("peeks once"), "left"),
        (_Model("peeks once"), "right"),
        (_Model("too small"), "left"),
        (_Model("open pads"), "right"),
        (_Model("rounding"), "left"),
    ]
    for model, side in cases:
        token_ids, padding_mask = _batch(side)
        expected = _leaks(model, token_ids, padding_mask)
        answer = ask(function, model, token_ids, padding_mask)
        known = isinstance(answer, set | frozenset | list | tuple) and all(one in LEAKS for one in answer)
        names = ", ".join(map(repr, LEAKS))
        require(known, f"the answer was {answer!r}; answer with a set of none, one or more of {names}.")
        answer = set(answer)
        missed, invented = expected - answer, answer - expected
        where = f"the model {model._name!r} on a batch padded on the {side}"
        require(not missed, f"{where}: your test missed {_names(missed)}{_why_missed(model._name, missed)}.")
        require(
            not invented,
            f"{where}: your test reported {_names(invented)} that is not there{_why_invented(model._name, invented)}.",
        )
    return f"right: your test judged {len(cases)} black boxes, sound and broken, as the reference does"


def _names(leaks):
    return " and ".join(repr(leak) for leak in LEAKS if leak in leaks)


def _why_missed(name, missed):
    if "nan" in missed:
        return ", because a comparison with NaN is never true: ask for finite outputs first"
    if name == "peeks once":
        return (
            ", because it changed only some of the tokens: a leak from one token to one output needs every token tried"
        )
    if name == "too small":
        return ", because its tolerance is too wide: a masked score of −8 lets a few parts in ten thousand through"
    if "padding" in missed:
        return "; change the ids under padding_mask == 0 and look at the outputs of real tokens"
    return "; change a real token and look at the outputs of real tokens before it"


def _why_invented(name, invented):
    if name == "rounding":
        return ": a change of 0.000000001 is rounding, so allow for a little instead of asking for > 0"
    if "nan" in invented:
        return "; outputs at pads may be anything, look at real tokens only"
    if "padding" in invented and name == "healthy":
        return ": the output at a pad may change with the pad, so look at real tokens only"
    if "padding" in invented:
        return ": change nothing but pads when you test padding"
    if name == "healthy":
        return ": the changed token's own output and later ones must change, so look only at outputs before it"
    return ": a pad is no future token; change real tokens only when you test the future"


def suspects():
    """Four black boxes, one of them broken: a dict of name to ``model(token_ids, padding_mask)``, ids below 20."""
    return {
        name: _Model("padding applied to queries" if name == BROKEN_SUSPECT else "healthy", seed=seed)
        for seed, name in enumerate("ABCD", start=10)
    }


def broken_suspect(name):
    """Checks which of the `suspects` is broken."""
    require(name in suspects(), f"the answer was {name!r}; the suspects are called A, B, C and D.")
    require(
        name == BROKEN_SUSPECT,
        f"suspect {name} is sound. If your test found nothing in any of them, look at the side of your padding: behind "
        "the real tokens the causal mask hides what the padding mask gets wrong.",
    )
    return f"right: suspect {name} applies the padding mask to queries, and only padding on the left shows it"
