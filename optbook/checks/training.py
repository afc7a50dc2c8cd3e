"""Exercises of chapter 10: the loss of a padded batch, perplexity, the numbers of LoRA, and losses with a bug each."""

import numpy as np

from optbook.checks._core import ask, compare, numbers, require, require_diagnoses

VERDICTS = (
    "sound",
    "not shifted",
    "shifted twice",
    "counts padding",
    "divides by all positions",
    "averages rows",
)


def next_token_loss(function):
    """Checks ``function(logits, token_ids, padding_mask) -> float``, the mean loss of a batch in nats.

    Shapes (batch, T, vocabulary_size), (batch, T), (batch, T); padding is on the right.
    """
    for lengths in ([6], [7, 3, 5]):
        logits, token_ids, mask = _batch(lengths)
        where = f"for a batch of {lengths} tokens"
        right = _mean(_losses(logits, token_ids), mask[:, 1:])
        compare(
            ask(function, logits, token_ids, mask),
            right,
            {f"{where}: {message}": wrong for message, wrong in _loss_mistakes(logits, token_ids, mask).items()},
            name=f"{where} the result",
            shapes={None: "a loss is one number, the mean over tokens"},
            tolerance=1e-4,
            otherwise=lambda answer, where=where, right=right: (
                f"{where} the loss is {right:.4f}, but your function says {float(answer):.4f}."
            ),
        )
    large = numbers(ask(function, logits * 100, token_ids, mask)).astype("float64")  # up to some 500
    overflow = "right for small logits, but the exponential of large ones overflows: use a log-softmax, or subtract "
    require(np.isfinite(large).all(), f"{overflow}each row's maximum first.")
    right = _mean(_losses(logits * 100, token_ids), mask[:, 1:])
    compare(large, right, name="for logits in the hundreds the loss", tolerance=0.05)
    return "right: two batches, with padding and without, to a ten-thousandth"


def _batch(lengths):
    """Logits of a model that knows little, real ids, and padding (id 1, mask 0) on the right."""
    random = np.random.default_rng(10)
    length, vocabulary_size = max(lengths), 9
    logits = random.normal(scale=2.0, size=(len(lengths), length, vocabulary_size)).astype("float32")
    mask = (np.arange(length) < np.array(lengths)[:, None]).astype("int32")
    token_ids = np.where(mask, random.integers(2, vocabulary_size, mask.shape), 1).astype("int32")
    return logits, token_ids, mask


def _log_probabilities(logits):
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _losses(logits, token_ids, shift=1):
    """Negative log likelihood of the token ``shift`` places on, (batch, T - shift)."""
    log_probabilities = _log_probabilities(logits)[:, : logits.shape[1] - shift]
    return -np.take_along_axis(log_probabilities, token_ids[:, shift:, None], axis=-1)[..., 0]


def _mean(losses, weights):
    return (losses * weights).sum() / weights.sum()


def _loss_mistakes(logits, token_ids, mask):
    """What the usual mistakes give, by the sentence that names each."""
    losses, weights = _losses(logits, token_ids), mask[:, 1:]
    right = _mean(losses, weights)
    backward = _losses(logits[:, ::-1], token_ids[:, ::-1])[:, ::-1]
    raw = -np.take_along_axis(np.asarray(logits[:, :-1], "float64"), token_ids[:, 1:, None], axis=-1)[..., 0]
    rows = [_mean(row, weight) for row, weight in zip(losses, weights) if weight.sum()]
    shares = np.asarray(logits[:, :-1], "float64") / logits[:, :-1].sum(axis=-1, keepdims=True)
    shares = np.take_along_axis(shares.clip(1e-7, 1 - 1e-7), token_ids[:, 1:, None], axis=-1)[..., 0]
    return {
        "this is the loss without the shift: row t of the logits is about token t + 1, not token t": _mean(
            _losses(logits, token_ids, 0), mask
        ),
        "this is shifted twice: row t of the logits is about token t + 1, not t + 2": _mean(
            _losses(logits, token_ids, 2), mask[:, 2:]
        ),
        "this is shifted the wrong way: row t of the logits is about the token after it, not before": _mean(
            backward, mask[:, :-1]
        ),
        "padding is counted: a target that is a pad has no loss": losses.mean(),
        "the losses of pads are 0, but you divided by all positions: divide by the number of real targets": (
            losses * weights
        ).mean(),
        "you took the mask of the inputs: it is the target that must be real, so the mask is shifted too": _mean(
            losses, mask[:, :-1]
        ),
        "this is a mean of the rows' means: in it a token of a short row counts more than one of a long row": np.mean(
            rows
        ),
        "this is the sum: a loss is the mean over the real targets": (losses * weights).sum(),
        "this is in bits: take the natural logarithm": right / np.log(2),
        "the sign is wrong: a loss is minus the log probability, and so positive": -right,
        "this is the perplexity, exp of the loss": np.exp(right),
        "you averaged the probabilities before the logarithm: the mean is over the losses": -np.log(
            _mean(np.exp(-losses), weights)
        ),
        "the logits have not been normalized: subtract the logarithm of the sum of their exponentials": _mean(
            raw, weights
        ),
        "the logits were taken for probabilities: tell Keras from_logits=True": _mean(-np.log(shares), weights),
        "you divided by mask.sum(), which counts the first tokens: no token is predicted there, so count mask[:, 1:]": (
            (losses * weights).sum() / mask.sum()
        ),
    }


def perplexity(function):
    """Checks ``function(losses, is_real) -> float``: losses in nats and which count, both of shape (batch, T)."""
    random = np.random.default_rng(2)
    losses = random.exponential(2.0, (3, 6))
    is_real = np.arange(6) < np.array([6, 2, 4])[:, None]
    mean = losses[is_real].mean()
    right = np.exp(mean)
    mistakes = {
        "the losses are in nats, and their base is e: 2 to the power of nats is no perplexity": 2**mean,
        "you took exp before the mean: perplexity is exp of the mean loss": np.exp(losses[is_real]).mean(),
        "padding is counted: take the mean over real tokens only": np.exp(losses.mean()),
        "pads are 0, but you divided by all positions: divide by the number of real tokens": (
            np.exp((losses * is_real).mean())
        ),
        "this is exp of the sum: the mean comes first": np.exp(losses[is_real].sum()),
        "this is the mean probability of a token, one over the perplexity: the sign is wrong": np.exp(-mean),
        "this is the mean loss: its exp is the perplexity": mean,
        "this is a mean of the rows' perplexities: all real tokens go into one mean": np.mean(
            [np.exp(row[real].mean()) for row, real in zip(losses, is_real)]
        ),
    }
    compare(
        ask(function, losses, is_real),
        right,
        mistakes,
        name="the result",
        shapes={None: "a perplexity is one number"},
        tolerance=1e-4,
        otherwise=lambda answer: f"the perplexity is {right:.4f}, but your function says {float(answer):.4f}.",
    )
    return "right: the perplexity of three rows of unequal length"


def lora_numbers(function):
    """Checks ``function(num_layers, hidden_dim, num_heads, rank) -> int``: the numbers in all A and B."""
    for num_layers, hidden_dim, num_heads, rank in [(3, 128, 4, 2), (12, 768, 12, 8), (32, 4096, 32, 1)]:
        answer = ask(function, num_layers, hidden_dim, num_heads, rank)
        head_dim = hidden_dim // num_heads
        a, b = hidden_dim * num_heads * rank, rank * head_dim
        right = 2 * num_layers * (a + b)
        mistakes = {
            "B is counted as if it were (rank, hidden_dim): it is (rank, head_dim), one for all heads": (
                2 * num_layers * (a + rank * hidden_dim)
            ),
            "this is the count for one matrix of hidden_dim × hidden_dim; these kernels are (hidden_dim, num_heads, "
            "head_dim), and A has the first two of these axes": 4 * num_layers * hidden_dim * rank,
            "only A is counted": 2 * num_layers * a,
            "only B is counted": 2 * num_layers * b,
            "a layer has two kernels with LoRA, query and value: one of them is missing": num_layers * (a + b),
            "you counted four kernels in a layer: KerasHub adds LoRA to query and value only": 2 * right,
            "the numbers of one layer only are counted": 2 * (a + b),
            "the frozen kernels are counted too: they are not trained": right + 2 * num_layers * hidden_dim**2,
        }
        sizes = f"{num_layers} layers of {num_heads} heads, hidden_dim {hidden_dim}, rank {rank}"
        compare(answer, right, mistakes, otherwise=f"{sizes}: {right:,} numbers, but your function says {answer!r}.")
    return "right: 3 sizes to the number"


def suspects():
    """Six loss functions, a dict of letter to ``loss(logits, token_ids, padding_mask) -> float``."""
    letters = dict(zip("ABCDEF", (3, 5, 1, 4, 0, 2)))
    return {letter: _loss_function(VERDICTS[number]) for letter, number in letters.items()}


def _loss_function(verdict):
    def loss(logits, token_ids, padding_mask):
        shift = {"not shifted": 0, "shifted twice": 2}.get(verdict, 1)
        losses = _losses(np.asarray(logits), np.asarray(token_ids), shift)
        weights = np.asarray(padding_mask, "float64")[:, shift:]
        if verdict == "counts padding":
            return float(losses.mean())
        if verdict == "divides by all positions":
            return float((losses * weights).mean())
        if verdict == "averages rows":
            return float(np.mean([_mean(row, weight) for row, weight in zip(losses, weights)]))
        return float(_mean(losses, weights))

    return loss


def diagnose(function):
    """Checks ``function(loss) -> str``, one of `VERDICTS`, on all suspects."""
    require_diagnoses(function, {verdict: _loss_function(verdict) for verdict in VERDICTS}, _advice)
    return f"right: {len(VERDICTS)} losses, each named for what it is"


def _advice(truth, answer):
    pair = {truth, answer}
    if pair & {"not shifted", "shifted twice"}:
        return ": give it logits that are sure of one token in each row, and see for which token the loss is small"
    if "counts padding" in pair:
        return ": change what the logits say about pads, which a sound loss does not notice"
    if "divides by all positions" in pair:
        return ": with logits that are all 0 every token costs ln V, and so must the mean"
    if pair == {"sound", "averages rows"}:
        return ": let a long row be predicted well and a short one badly"
    return ": compare what comes out with what you would compute by hand"
