"""The checks of chapter 04 accept right answers and name the misconception behind the usual wrong ones."""

import numpy as np
import pytest

from optbook import masks
from optbook.checks import NotYet
from optbook.checks import masks as checks


def right_mask(padding_mask):
    return masks.combine_masks(masks.causal_mask(padding_mask.shape[1]), masks.padding_mask(padding_mask))


def parts(padding_mask):
    real = padding_mask.astype(bool)
    causal = np.tril(np.ones((real.shape[1],) * 2, bool))
    return causal, real[:, None, :], real[:, :, None], np.ones((*real.shape, real.shape[1]), bool)


def test_combined_accepts_the_right_mask():
    assert checks.combined(right_mask).startswith("right: 49 of 108 pairs")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda causal, keys, queries, full: ~(causal & keys), "polarity is flipped"),
        (lambda causal, keys, queries, full: causal.T & keys, "wrong way round"),
        (lambda causal, keys, queries, full: causal & ~np.eye(6, dtype=bool) & keys, "diagonal is missing"),
        (lambda causal, keys, queries, full: causal & queries, "applied to queries: whole rows"),
        (lambda causal, keys, queries, full: causal & keys & queries, "applied to queries too"),
        (lambda causal, keys, queries, full: causal | keys, "joined by 'or'"),
        (lambda causal, keys, queries, full: causal & full, "padding mask is missing"),
        (lambda causal, keys, queries, full: keys & full, "causal mask is missing"),
        (lambda causal, keys, queries, full: causal & keys & (np.arange(6) != 2), "sequence 0, query 2 and key 2"),
        (lambda causal, keys, queries, full: causal, r"has shape \(6, 6\)"),
        (
            lambda causal, keys, queries, full: (causal & keys).astype("float32"),
            "make it boolean, True for allowed, with",
        ),
        (lambda causal, keys, queries, full: np.where(causal & keys, 0, -1e9), "leave the large negative number"),
        (lambda causal, keys, queries, full: (causal & keys).astype(int), "with .astype.bool.; &, and not"),
        (lambda causal, keys, queries, full: causal & ~keys, "padding mask is inverted"),
        (lambda causal, keys, queries, full: np.tril(full, 1) & keys, "one key of the future"),
        (lambda causal, keys, queries, full: (causal & keys).swapaxes(1, 2), "queries and keys changed places"),
        (lambda causal, keys, queries, full: None, "nothing written yet"),
        (lambda causal, keys, queries, full: causal + "a", "your function stopped"),
    ],
)
def test_combined_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.combined(lambda padding_mask: wrong(*parts(padding_mask)))


def diagnose(weights, padding_mask):
    real_rows = weights[padding_mask]
    future = (real_rows * np.triu(np.ones(weights.shape), 1)[padding_mask]).sum(-1)
    on_pads = real_rows[:, ~padding_mask].sum(-1)
    if future.max() > 1e-6:
        allowed = real_rows.sum(-1) - future - on_pads
        return "polarity flipped" if allowed[:-1].max() < 1e-6 else "mask forgotten"
    if on_pads.max() > 1e-6:
        return "padding applied to queries"
    return "healthy" if np.allclose(real_rows.sum(-1), 1) else "mask after softmax"


def test_diagnosis_accepts_the_right_function():
    assert checks.diagnosis(diagnose).startswith("right: 5 kinds of map")


@pytest.mark.parametrize(
    ("merged", "message"),
    [
        ({"mask after softmax": "healthy"}, "sums of the rows of real queries"),
        ({"mask forgotten": "polarity flipped"}, "what is left for the allowed keys"),
        ({"padding applied to queries": "healthy"}, "columns of the pads"),
        ({"padding applied to queries": "mask forgotten"}, "only one puts weight on the future"),
        ({"healthy": "fine"}, "answer with one of"),
        ({"healthy": "polarity flipped"}, "you called 'healthy' 'polarity flipped'"),
    ],
)
def test_diagnosis_names_the_confusion(merged, message):
    with pytest.raises(NotYet, match=message):
        checks.diagnosis(lambda *map_and_mask: merged.get(diagnose(*map_and_mask), diagnose(*map_and_mask)))


def test_diagnosis_wants_a_narrow_tolerance():
    def diagnose_widely(weights, padding_mask):
        real_rows = weights[padding_mask]
        future = (real_rows * np.triu(np.ones(weights.shape), 1)[padding_mask]).sum(-1)
        on_pads = real_rows[:, ~padding_mask].sum(-1)
        if future.max() > 0.3 or on_pads.max() > 0.3:
            return diagnose(weights, padding_mask)
        return "healthy" if np.allclose(real_rows.sum(-1), 1, atol=0.3) else "mask after softmax"

    with pytest.raises(NotYet, match="your tolerance is too wide"):
        checks.diagnosis(diagnose_widely)


def test_diagnosis_says_that_pad_queries_do_not_matter():
    def judge_all_rows(weights, padding_mask):
        answer = diagnose(weights, padding_mask)
        odd = weights[~padding_mask].sum() > 0
        return "polarity flipped" if answer == "healthy" and odd else answer

    with pytest.raises(NotYet, match="only its pad queries look odd"):
        checks.diagnosis(judge_all_rows)


def test_leak_test_accepts_the_reference():
    assert checks.leak_test(checks._leaks).startswith("right: your test judged 15 black boxes")


def changes(model, token_ids, padding_mask, steps):
    """Change of every output, (batch, T), for each changed step."""
    before = np.asarray(model(token_ids, padding_mask))
    for step in steps:
        changed = token_ids.copy()
        changed[:, step] = np.where(changed[:, step] == 5, 6, 5)
        yield step, np.abs(np.asarray(model(changed, padding_mask)) - before).max(-1)


def without(leak):
    return lambda *batch: checks._leaks(*batch) - {leak}


def compares_itself(model, token_ids, padding_mask):
    real, found = padding_mask.astype(bool), checks._leaks(model, token_ids, padding_mask)
    for step, change in changes(model, token_ids, padding_mask, range(7)):
        if ((change > 1e-6) & real)[real[:, step]][:, : step + 1].any():
            found = found | {"future"}
    return found


def compares_pads(model, token_ids, padding_mask):
    found = checks._leaks(model, token_ids, padding_mask)
    for step, change in changes(model, token_ids, padding_mask, range(7)):
        if (change > 1e-6)[~padding_mask.astype(bool)[:, step]].any():
            found = found | {"padding"}
    return found


def changes_last_only(model, token_ids, padding_mask):
    found = checks._leaks(model, token_ids, padding_mask) - {"future"}
    for _, change in changes(model, token_ids, padding_mask, [6]):
        if (change[:, :6] > 1e-6)[padding_mask[:, 6] == 1].any():
            found = found | {"future"}
    return found


def counts_pads_as_future(model, token_ids, padding_mask):
    real, found = padding_mask.astype(bool), checks._leaks(model, token_ids, padding_mask)
    for step, change in changes(model, token_ids, padding_mask, range(7)):
        if ((change > 1e-6) & real)[:, :step].any():
            found = found | {"future"}
    return found


def test_leak_test_accepts_lists_and_ids_one_higher():
    assert checks.leak_test(lambda *batch: sorted(checks._leaks(*batch))).startswith("right")
    model = checks.suspects()["A"]
    token_ids, padding_mask = np.full((1, 4), model.vocabulary_size - 1), np.ones((1, 4), int)
    assert np.isfinite(model(token_ids + 1, padding_mask)).all()


def mutates(model, token_ids, padding_mask):
    token_ids[:, 0] = 7
    return set()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (without("future"), "missed 'future'; change a real token"),
        (without("padding"), "missed 'padding'; change the ids under padding_mask == 0"),
        (without("nan"), "a comparison with NaN is never true"),
        (lambda *batch: checks._leaks(*batch, tolerance=1e-2), "its tolerance is too wide"),
        (compares_itself, "look only at outputs before it"),
        (compares_pads, "so look at real tokens only"),
        (changes_last_only, "needs every token tried"),
        (counts_pads_as_future, "a pad is no future token"),
        (lambda *batch: checks._leaks(*batch, tolerance=0), "instead of asking for > 0"),
        (mutates, "changed what it was given"),
        (lambda *batch: "future", "answer with a set"),
    ],
)
def test_leak_test_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.leak_test(wrong)


def test_the_broken_suspect_shows_only_under_left_padding():
    found = {
        side: {name for name, model in checks.suspects().items() if checks._leaks(model, *checks._batch(side))}
        for side in ("left", "right")
    }
    assert found == {"left": {checks.BROKEN_SUSPECT}, "right": set()}
    assert checks.broken_suspect(checks.BROKEN_SUSPECT).startswith("right")
    with pytest.raises(NotYet, match="suspect A is sound"):
        checks.broken_suspect("A")
    with pytest.raises(NotYet, match="called A, B, C and D"):
        checks.broken_suspect("E")
