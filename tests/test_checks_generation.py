"""The checks of chapter 09 accept right answers and name the misconception behind the usual wrong ones."""

import ml_dtypes
import numpy as np
import pytest

from optbook import memory, presets
from optbook.checks import NotYet
from optbook.checks import generation as checks


def scaled(kept):
    return kept / kept.sum()


def min_p(probabilities, share):
    return scaled(np.where(probabilities >= share * probabilities.max(), probabilities, 0))


def top_p(probabilities, share):
    order = np.argsort(-probabilities)
    kept = np.zeros_like(probabilities)
    kept[order] = np.where(np.cumsum(probabilities[order]) - probabilities[order] <= share, probabilities[order], 0)
    return scaled(kept)


def in_place(probabilities, share):
    probabilities[probabilities < share * probabilities.max()] = 0
    return scaled(probabilities)


def by_softmax(probabilities, share):
    kept = probabilities >= share * probabilities.max()
    return scaled(np.where(kept, np.exp(probabilities), 0))


def test_min_p_accepts_the_right_function():
    assert checks.min_p(min_p).startswith("right: 5 distributions")
    assert checks.min_p(lambda p, share: min_p(p, share).tolist())
    for dtype in ("float16", ml_dtypes.bfloat16):
        assert checks.min_p(lambda p, share, dtype=dtype: min_p(p, share).astype(dtype))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, share: np.where(p >= share * p.max(), p, 0), "do not sum to 1"),
        (lambda p, share: scaled(np.where(p >= share, p, 0)), "it is a share of the largest one"),
        (top_p, "that is top-p"),
        (lambda p, share: scaled(np.where(p < share * p.max(), p, 0)), "you kept what must go"),
        (lambda p, share: scaled(np.where((p >= share * p.max()) & (p < p.max()), p, 0)), "the best token is missing"),
        (by_softmax, "another softmax"),
        (lambda p, share: np.sort(min_p(p, share))[::-1], "the tokens come sorted"),
        (lambda p, share: min_p(p, share)[min_p(p, share) > 0], "stays in its place with probability 0"),
        (in_place, "changed what it was given"),
        (lambda p, share: p, r"must be \[0.333, 0.289"),
        (lambda p, share: scaled(np.where(p > share * p.max(), p, 0)), "you compared with >"),
        (lambda p, share: scaled(np.where(p >= (1 - share) * p.max(), p, 0)), "not by 1 - share"),
        (lambda p, share: p >= share * p.max(), "these say which tokens stay"),
        (lambda p, share: p > 0, "True and False where numbers"),
        (lambda p, share: 1 / 0, "ZeroDivisionError"),
        (lambda p, share: None, "nothing written yet"),
    ],
)
def test_min_p_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message), np.errstate(invalid="ignore"):
        checks.min_p(wrong)


def write_cache(cache, index, key, value, rows=None):
    cache, rows = cache.copy(), np.arange(len(cache)) if rows is None else rows
    cache[rows, 0, index], cache[rows, 1, index] = key, value
    return cache


def write_in_place(cache, index, key, value):
    cache[:] = write_cache(cache, index, key, value)
    return cache


def all_rows_at_all_slots(cache, index, key, value):
    cache = cache.copy()
    for slot in index:
        cache[:, 0, slot], cache[:, 1, slot] = key, value
    return cache


def spoils_slot_zero(cache, index, key, value):
    cache = write_cache(cache, index, key, value)
    cache[0, 0, 0] = 0
    return cache


def test_write_cache_accepts_the_right_function():
    assert checks.write_cache(write_cache).startswith("right: three rows")
    for dtype in ("float16", ml_dtypes.bfloat16):
        assert checks.write_cache(lambda *given, dtype=dtype: write_cache(*given).astype(dtype))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda cache, index, key, value: write_cache(cache, index, value, key), "keys and values are exchanged"),
        (lambda cache, index, *new: write_cache(cache, index[0], *new), "at the first row's index"),
        (lambda cache, index, *new: write_cache(cache, index + 1, *new), "one slot too late"),
        (lambda cache, index, *new: write_cache(cache, index - 1, *new), "one slot too early"),
        (lambda cache, index, *new: write_cache(cache, -1, *new), "went into the last slot"),
        (lambda cache, index, key, value: write_cache(cache, index, key, key), "the values are missing"),
        (all_rows_at_all_slots, "at the slots of all rows"),
        (spoils_slot_zero, "slots that had to stay changed"),
        (lambda cache, index, key, value: write_cache(cache, index, key[::-1], value), "not with the row's own key"),
        (write_in_place, "changed what it was given"),
        (lambda cache, index, key, value: np.concatenate([cache, cache[:, :, :1]], axis=2), "which does not grow"),
    ],
)
def test_write_cache_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.write_cache(wrong)


def counted(positions=True, cache=1, shared=True, itemsize=True, depth=True, full=False):
    """A function that counts a step's bytes, with mistakes on request."""

    def function(parameters, num_layers, hidden_dim, max_sequence_length, itemsize_, batch_size, length):
        weights = parameters - (max_sequence_length * hidden_dim if positions else 0)
        vectors = 2 * cache * (num_layers if depth else 1) * (max_sequence_length if full else length)
        values = int(vectors * hidden_dim) * batch_size
        total = weights + values if shared else weights * batch_size + values
        return total * (itemsize_ if itemsize else 1)

    return function


def test_bytes_per_step_accepts_the_right_function():
    assert checks.bytes_per_step(counted()).startswith("right: 3 configurations")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (counted(positions=False), "position table is counted whole"),
        (counted(shared=False), "counted once per row"),
        (lambda *case: counted()(*case[:5], 1, case[6]), "each row of the batch has its own"),
        (counted(cache=0.5), "key and value: one is missing"),
        (counted(depth=False), "the cache of one layer only"),
        (counted(full=True), "the row stands at token `length`"),
        (counted(itemsize=False), "these are numbers, not bytes"),
        (counted(cache=0), "the cache is missing"),
        (lambda *case: 7, "reads 40,640 bytes, but your function says 7"),
    ],
)
def test_bytes_per_step_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        checks.bytes_per_step(wrong)


def test_the_cache_of_exercise_3_is_the_plans():
    config = presets.preset_config("opt_6.7b_en")
    parameters = presets.parameter_count(**config)
    weights = 2 * (parameters - config["max_sequence_length"] * config["hidden_dim"])
    step = counted()(parameters, config["num_layers"], config["hidden_dim"], config["max_sequence_length"], 2, 3, 2048)
    assert step - weights == memory.plan("opt_6.7b_en", "float16", 2048, 3).kv_cache


def diagnose(sampler):
    uniform = (np.arange(1000) + 0.5) / 1000
    tokens = sampler(np.array([0.05, 0.5, 0.15, 0.3]), uniform)
    drawn = set(tokens.tolist())
    known = {(1,): "drops the crossing token", (0, 1): "returns ranks", (0, 1, 3): "not renormalized"}
    if drawn != {1, 3}:
        return known[tuple(sorted(drawn))]
    if abs((tokens == 1).mean() - 0.625) > 0.05:
        return "draws evenly"
    sure = sampler(np.array([0.02, 0.9, 0.05, 0.03]), uniform)
    return "sound" if set(sure.tolist()) == {1} else "keeps a fixed number"


def test_diagnose_accepts_the_right_function():
    assert checks.diagnose(diagnose).startswith("right: 6 samplers")


def test_the_suspects_are_one_of_each():
    verdicts = [diagnose(sampler) for sampler in checks.suspects().values()]
    assert sorted(verdicts) == sorted(checks.VERDICTS) and tuple(verdicts) != checks.VERDICTS


@pytest.mark.parametrize(
    ("merged", "message"),
    [
        ({"keeps a fixed number": "sound"}, "try a sure one and an unsure one"),
        ({"draws evenly": "sound"}, "count how often each comes"),
        ({"not renormalized": "sound"}, "throw numbers close to 1"),
        ({"returns ranks": "sound"}, "give it one that is not sorted"),
        ({"drops the crossing token": "sound"}, "make the first token hold less than p"),
        ({"sound": "draws evenly"}, "you called 'sound' 'draws evenly'"),
        ({"draws evenly": "returns ranks"}, "which you would keep by hand"),
        ({"sound": "fine"}, "answer with one of"),
    ],
)
def test_diagnose_names_the_confusion(merged, message):
    with pytest.raises(NotYet, match=message):
        checks.diagnose(lambda sampler: merged.get(diagnose(sampler), diagnose(sampler)))
