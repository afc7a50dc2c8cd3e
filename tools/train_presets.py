"""Trains the embedded presets from plain text: tokenizer, model, head scores, early checkpoints.

    python tools/train_presets.py optbook_700k_en --corpus FOLDER

FOLDER holds austen.txt, state_of_the_union_1945_on.txt and wordnet_glosses.txt, one paragraph a line. Where they come
from is in the model card. Everything is written below build/training/NAME; an interrupted run goes on where it stopped.
tools/export_presets.py turns a finished run into the preset folder that the package ships.
"""

import functools
import json
import math
import time
from pathlib import Path

import click
import jax
import numpy as np
import tokenizers
from jax import numpy as jnp
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import optbook
from optbook._files import replacing
from optbook.attention import head_scores

import keras  # isort: skip  (after optbook, which chooses the backend)

END = 2
DOMAINS = ("austen", "state_of_the_union_1945_on", "wordnet_glosses")
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
VOCABULARY_SIZE = 2048
MAX_SEQUENCE_LENGTH = 128
BATCH = 16
WARM_UP_STEPS = 200
SIZES = {
    "optbook_700k_en": dict(num_layers=2, num_heads=4, hidden_dim=128, learning_rate=3e-3),
    "optbook_4m_en": dict(num_layers=4, num_heads=8, hidden_dim=256, learning_rate=1e-3),
}


def split(text, blocks=100, held_out=(10, 30, 50, 70, 90)):
    """Cuts a text at line ends into 100 blocks of equal length; five of them are held out."""
    lines = text.splitlines(keepends=True)
    starts = np.cumsum([0] + [len(line) for line in lines[:-1]])
    block = starts * blocks // len(text)
    inside = np.isin(block, held_out)
    train = "".join(line for line, held in zip(lines, inside) if not held)
    return train, "".join(line for line, held in zip(lines, inside) if held)


def train_tokenizer(texts):
    """Byte-level BPE with OPT's special ids and all 256 byte symbols."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((line for text in texts for line in text.splitlines(keepends=True)), trainer)
    return bpe


def encode(bpe, text):
    lines = text.splitlines(keepends=True)
    return np.concatenate([encoding.ids for encoding in bpe.encode_batch(lines)]).astype("int32")


def repeat_span(rng, span, length):
    """`</s>` and a span, again and again: only an induction head can know the later copies."""
    row = np.concatenate([[END], np.tile(span, math.ceil(length / len(span)))])[: length + 1]
    weights = np.ones(length, "float32")
    weights[: len(span)] = 0  # the first copy is left out of the loss
    return row, weights


def make_batch(seed, step, stream, length, repeats):
    """Rows of length + 1 ids; a share of them repeats a span, half of those random ids, half real text."""
    rng = np.random.default_rng([seed, step])
    rows = np.empty((BATCH, length + 1), "int32")
    weights = np.ones((BATCH, length), "float32")
    for i in range(BATCH):
        start = rng.integers(len(stream) - length)
        if rng.random() < repeats:
            size = rng.integers(8, length // 2)
            random_span = rng.integers(len(SPECIAL_TOKENS), VOCABULARY_SIZE, size)
            span = random_span if rng.random() < 0.5 else stream[start : start + size]
            rows[i], weights[i] = repeat_span(rng, span, length)
        else:
            rows[i] = np.concatenate([[END], stream[start : start + length]])
    return rows, weights


def initialize(backbone, seed):
    """Scaled by fan-in, positions as sinusoids, keys equal to queries: what made an induction head form early."""
    rng = np.random.default_rng(seed)
    normal = lambda shape, scale: rng.normal(0, scale, shape)  # noqa: E731
    tokens, positions = backbone.embeddings.weights
    tokens.assign(normal(tokens.shape, 0.03))
    wavelengths = 2 * np.pi * np.geomspace(1, 30, backbone.hidden_dim // 2)
    angles = np.arange(backbone.max_sequence_length)[:, None] * 2 * np.pi / wavelengths
    positions.assign(0.03 * np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
    out_scale = (2 * backbone.num_layers) ** -0.5
    for layer in backbone.transformer_layers:
        attention = layer.self_attention
        fan_in = backbone.hidden_dim**-0.5
        for dense in (attention.query_dense, attention.value_dense):
            dense.kernel.assign(normal(dense.kernel.shape, fan_in))
        attention.key_dense.kernel.assign(np.asarray(attention.query_dense.kernel))
        attention.output_dense.kernel.assign(normal(attention.output_dense.kernel.shape, fan_in * out_scale))
        first, second = layer.feedforward_intermediate_dense, layer.feedforward_output_dense
        first.kernel.assign(normal(first.kernel.shape, fan_in))
        second.kernel.assign(normal(second.kernel.shape, backbone.intermediate_dim**-0.5 * out_scale))


def make_optimizer(variables, learning_rate, steps):
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - WARM_UP_STEPS, alpha=0.02, warmup_target=learning_rate, warmup_steps=WARM_UP_STEPS
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.1, beta_1=0.9, beta_2=0.98, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(variables)
    return optimizer


def grow(backbone, weights, seed):
    """Starts a backbone from the weights of one half as wide and half as deep, so that it computes the same at first.

    Every feature, head and unit stands twice, and what reads them is halved; the layers in between add nothing yet. A
    little noise lets the copies part.
    """
    rng = np.random.default_rng(seed)
    for layer in backbone.transformer_layers[1::2]:
        for dense in (layer.self_attention.output_dense, layer.feedforward_output_dense):
            dense.kernel.assign(np.zeros(dense.kernel.shape))
    variables = [*backbone.embeddings.weights]
    for layer in backbone.transformer_layers[::2]:
        variables += layer.weights
    variables += backbone.layer_norm.weights
    for variable, source in zip(variables, weights, strict=True):
        repeated = np.tile(source, [large // small for large, small in zip(variable.shape, source.shape)])
        if variable.name == "kernel" or variable.path.startswith("layer_norm/"):
            repeated = repeated / 2
        variable.assign(repeated * (1 + 0.02 * rng.standard_normal(repeated.shape)))


def token_losses(backbone, weights, rows):
    """Negative log likelihood in nats of each id after the first, (batch, T)."""
    inputs = {"token_ids": rows[:, :-1], "padding_mask": jnp.ones_like(rows[:, :-1])}
    hidden, _ = backbone.stateless_call(weights, [], inputs)
    # Barriers, so that XLA's CPU compiler does not compute the large logits twice: a third faster.
    logits = jax.lax.optimization_barrier(jax.lax.optimization_barrier(hidden) @ weights[0].T)
    picked = jnp.take_along_axis(logits, rows[:, 1:, None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def held_out_bits_per_byte(backbone, weights, bpe, texts, loss_function):
    """Bits per byte of each held-out text in windows of the full length, each started by `</s>`, and of all."""
    nats, sizes = {}, {}
    for domain, text in texts.items():
        ids = encode(bpe, text)
        ids = ids[: len(ids) // MAX_SEQUENCE_LENGTH * MAX_SEQUENCE_LENGTH].reshape(-1, MAX_SEQUENCE_LENGTH)
        rows = np.concatenate([np.full((len(ids), 1), END, "int32"), ids], axis=1)
        rows = rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH, MAX_SEQUENCE_LENGTH + 1)
        nats[domain] = sum(float(loss_function(weights, batch).sum()) for batch in rows)
        sizes[domain] = sum(
            len(bpe.decode(row.tolist()).encode()) for row in rows[..., 1:].reshape(-1, MAX_SEQUENCE_LENGTH)
        )
        sizes[domain + "_tokens"] = rows[..., 1:].size
    result = {domain: nats[domain] / sizes[domain] / math.log(2) for domain in texts}
    result["all"] = sum(nats.values()) / sum(sizes[domain] for domain in texts) / math.log(2)
    result["nats_per_token"] = sum(nats.values()) / sum(sizes[domain + "_tokens"] for domain in texts)
    return result


@click.command()
@click.argument("name", type=click.Choice(list(SIZES)))
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--steps", default=14000, show_default=True)
@click.option("--first-part", default=0.2, show_default=True, help="Share of the steps with rows of 64 tokens.")
@click.option("--grow-from", help="A finished run half as wide and deep, whose weights and tokenizer are the start.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/training"), show_default=True)
def main(name, corpus, steps, first_part, grow_from, seed, out):
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    parts = {domain: split((corpus / f"{domain}.txt").read_text(encoding="utf-8")) for domain in DOMAINS}
    held_out = {domain: part[1] for domain, part in parts.items()}
    bpe_file = folder / "bpe.json"
    if grow_from and not bpe_file.exists():
        bpe_file.write_text((out / grow_from / "bpe.json").read_text(encoding="utf-8"), encoding="utf-8")
    if not bpe_file.exists():
        train_tokenizer([part[0] for part in parts.values()]).save(str(bpe_file))
    bpe = tokenizers.Tokenizer.from_file(str(bpe_file))
    bpe.decoder = tokenizers.decoders.ByteLevel()
    stream = np.concatenate([encode(bpe, part[0]) for part in parts.values()])

    sizes = dict(vocabulary_size=VOCABULARY_SIZE, max_sequence_length=MAX_SEQUENCE_LENGTH, **SIZES[name])
    learning_rate = sizes.pop("learning_rate")
    sizes["intermediate_dim"] = 4 * sizes["hidden_dim"]
    backbone = optbook.OPTBackbone(**sizes, dropout=0.0)
    (folder / "sizes.json").write_text(json.dumps(sizes))
    initialize(backbone, seed)
    if grow_from:
        small = np.load(out / grow_from / "state.npz")
        grow(backbone, [small[f"weight_{i}"] for i in range(sum(key.startswith("weight_") for key in small))], seed)
    weights = [jnp.array(variable.value, copy=True) for variable in backbone.weights]
    optimizer = make_optimizer(backbone.trainable_variables, learning_rate, steps)
    state = [variable.value for variable in optimizer.variables]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(weights, state, rows, loss_weights):
        def loss(weights):
            return (token_losses(backbone, weights, rows) * loss_weights).sum() / loss_weights.sum()

        value, gradients = jax.value_and_grad(loss)(weights)
        weights, state = optimizer.stateless_apply(state, gradients, weights)
        return value, weights, state

    losses = jax.jit(functools.partial(token_losses, backbone))
    step, tokens, seconds, induced, history = 0, 0, 0.0, False, []
    state_file = folder / "state.npz"
    if state_file.exists():
        saved = np.load(state_file)
        weights = [jnp.asarray(saved[f"weight_{i}"]) for i in range(len(weights))]
        state = [jnp.asarray(saved[f"state_{i}"]) for i in range(len(state))]
        progress_record = json.loads(str(saved["progress"]))
        step, tokens, seconds, induced = (progress_record[key] for key in ("step", "tokens", "seconds", "induced"))
        history = progress_record["history"]

    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=steps, completed=step, note="")
        running = None
        while step < steps:
            started = time.perf_counter()
            length = 64 if step < first_part * steps else MAX_SEQUENCE_LENGTH
            rows, loss_weights = make_batch(seed, step, stream, length, 0.1 if induced else 0.4)
            value, weights, state = train_step(weights, state, rows, loss_weights)
            value = float(value)
            running = value if running is None else 0.98 * running + 0.02 * value
            step, tokens = step + 1, tokens + rows[:, 1:].size
            seconds += time.perf_counter() - started
            if step % 50 == 0:
                scores = head_scores(backbone, length=length, weights=weights)
                history.append(
                    {"step": step, "loss": round(running, 4), **{k: np.round(v, 3).tolist() for k, v in scores.items()}}
                )
                best = {role: float(np.max(values)) for role, values in scores.items()}
                induced = induced or best["induction"] > 0.6
                note = " ".join(f"{role} {value:.2f}" for role, value in best.items())
                progress.update(task, completed=step, note=f"loss {running:.3f} {note}")
                if step % 500 == 0:
                    print(f"step {step} tokens {tokens} seconds {seconds:.0f} loss {running:.3f} {note}", flush=True)
            if step % 250 == 0:
                with replacing(folder / f"step_{step:05d}.npz") as partial:
                    np.savez(partial, **{str(i): np.asarray(w, "float16") for i, w in enumerate(weights)})
            if step % 500 == 0 or step == steps:
                record = dict(step=step, tokens=tokens, seconds=seconds, induced=induced, history=history)
                with replacing(state_file) as partial:
                    np.savez(
                        partial,
                        progress=json.dumps(record),
                        **{f"weight_{i}": w for i, w in enumerate(weights)},
                        **{f"state_{i}": s for i, s in enumerate(state)},
                    )
    result = held_out_bits_per_byte(backbone, weights, bpe, held_out, losses)
    print(json.dumps({"held_out": result, "tokens": tokens, "seconds": round(seconds), "steps": steps}, indent=2))
    (folder / "result.json").write_text(
        json.dumps({"held_out": result, "tokens": tokens, "seconds": seconds, "steps": steps, "seed": seed})
    )


if __name__ == "__main__":
    main()
