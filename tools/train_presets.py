"""Trains the embedded presets from plain stories: tokenizer, model, head scores, early checkpoints.

    python tools/train_presets.py optbook_1m_en --corpus FOLDER --minutes 30

FOLDER holds stories.txt: one paragraph a line, an empty line between books. The model is OPT in PyTorch, whose bfloat16
products are several times faster on recent processors; ``--device cuda`` trains it on a GPU. Needs ``torch``,
``safetensors`` and ``tokenizers``. Everything is written below build/training/NAME; an interrupted run goes on from its
last save, two minutes back. tools/export_presets.py turns a run into the preset folder that the package ships.
"""

import json
import math
import os
import time
from pathlib import Path

import click
import numpy as np
import tokenizers
import torch
from safetensors.torch import save_file
from stories import HELD_OUT_BOOKS, passages
from torch import nn
from torch.nn import functional

PAD, END = 1, 2
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
VOCABULARY_SIZE = 2048
MAX_SEQUENCE_LENGTH = 256
WARM_UP_STEPS = 200
SAVE_EVERY_SECONDS = 120
LONGEST_SPAN = 64  # of the rows that repeat one
MEASURE_EVERY = 50  # steps
SIZES = {
    "optbook_250k_en": dict(num_layers=2, num_heads=4, hidden_dim=64),
    "optbook_1m_en": dict(num_layers=4, num_heads=4, hidden_dim=128),
    "optbook_5m_en": dict(num_layers=6, num_heads=8, hidden_dim=256),
}

# === Text ===


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
    bpe.train_from_iterator(texts, trainer)
    return bpe


def encode(bpe, texts):
    """Each text's ids after `</s>`, which begins a passage and so ends the one before it."""
    return [np.array([END, *encoding.ids], "int64") for encoding in bpe.encode_batch(texts)]


def epoch_rows(documents, length, rng):
    """All passages in a new order, one after another, cut into rows of length + 1 ids that overlap by one."""
    order = rng.permutation(len(documents))
    stream = np.concatenate([documents[i] for i in order] + [[END]])
    count = (len(stream) - 1) // length
    rows = np.lib.stride_tricks.sliding_window_view(stream, length + 1)[::length][:count]
    return rows[rng.permutation(count)]


def repeat_spans(rows, count, rng):
    """In the last ``count`` rows a span again and again, half of them of random tokens, and what is to be predicted.

    Where the later copies go on only an induction head knows. A first copy of random tokens nobody can: it is left out.
    """
    rows, targets = rows.copy(), rows[:, 1:].copy()
    for i in range(len(rows) - count, len(rows)):
        size = rng.integers(8, LONGEST_SPAN)
        is_random = rng.random() < 0.5
        span = rng.integers(len(SPECIAL_TOKENS), VOCABULARY_SIZE, size) if is_random else rows[i, 1 : size + 1]
        rows[i] = np.resize(span, rows.shape[1])
        rows[i] = np.concatenate([[END], rows[i, :-1]])
        targets[i] = rows[i, 1:]
        if is_random:
            targets[i, :size] = -100
    return torch.from_numpy(rows[:, :-1]), torch.from_numpy(targets)


# === Model ===


class DecoderLayer(nn.Module):
    def __init__(self, hidden_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.self_attn_layer_norm = nn.LayerNorm(hidden_dim)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(hidden_dim, hidden_dim) for _ in range(4))
        self.final_layer_norm = nn.LayerNorm(hidden_dim)
        self.fc1 = nn.Linear(hidden_dim, 4 * hidden_dim)
        self.fc2 = nn.Linear(4 * hidden_dim, hidden_dim)

    def heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (batch, heads, T, head_dim)

    def forward(self, x, later, seen=None):
        """The layer's output; the attention weights are appended to the list ``seen`` where there is one."""
        h = self.self_attn_layer_norm(x)
        query, key, value = (self.heads(project(h)) for project in (self.q_proj, self.k_proj, self.v_proj))
        # Explicit products: a third faster on a CPU than PyTorch's fused attention and its backward pass.
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
        weights = (scores + later.to(scores.dtype)).softmax(-1, dtype=scores.dtype)
        if seen is not None:
            seen.append(weights)
        x = x + self.out_proj((weights @ value).transpose(1, 2).flatten(-2))
        return x + self.fc2(functional.relu(self.fc1(self.final_layer_norm(x))))


class OPT(nn.Module):
    def __init__(self, num_layers, num_heads, hidden_dim):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY_SIZE, hidden_dim)
        self.embed_positions = nn.Embedding(MAX_SEQUENCE_LENGTH, hidden_dim)
        self.layers = nn.ModuleList(DecoderLayer(hidden_dim, num_heads) for _ in range(num_layers))
        self.final_layer_norm = nn.LayerNorm(hidden_dim)
        self.initialize()

    @torch.no_grad()
    def initialize(self):
        """Positions as sinusoids and keys equal to queries, so that previous-token and induction heads form early."""
        num_layers, hidden_dim = len(self.layers), self.embed_tokens.weight.shape[1]
        for name, parameter in self.named_parameters():
            if name.startswith("embed"):
                nn.init.normal_(parameter, std=0.03)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:  # what is added to the residual stream is smaller the more layers add to it
                adds = "out_proj" in name or "fc2" in name
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * ((2 * num_layers) ** -0.5 if adds else 1))
        angles = torch.arange(MAX_SEQUENCE_LENGTH)[:, None] / torch.logspace(0, math.log10(30), hidden_dim // 2)
        self.embed_positions.weight.copy_(0.03 * torch.cat([angles.sin(), angles.cos()], dim=1))
        for layer in self.layers:
            layer.k_proj.weight.copy_(layer.q_proj.weight)

    def forward(self, ids, seen=None):
        x = self.embed_tokens(ids) + self.embed_positions.weight[: ids.shape[1]]
        later = torch.full((ids.shape[1], ids.shape[1]), -1e4, device=ids.device).triu(1)
        for layer in self.layers:
            x = layer(x, later, seen)
        return functional.linear(self.final_layer_norm(x), self.embed_tokens.weight)


def make_optimizers(model, learning_rate):
    """Muon (https://kellerjordan.github.io/posts/muon) for the layers' matrices, AdamW for all else."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("layers")]
    tables = [p for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("layers")]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    adam = [dict(params=tables, weight_decay=0.01), dict(params=vectors, weight_decay=0.0)]
    return (
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adam, lr=learning_rate, betas=(0.9, 0.98)),
    )


def share_of_rate(done):
    """Of the learning rate, when this share of the time is spent: constant, then down to nothing over the last half."""
    return min(1.0, 2 * (1 - done))


# === Numbers ===


@torch.no_grad()
def held_out_nats(model, documents, batch=32):
    """Negative log likelihood in nats of every document, each read alone from `</s>` to `</s>`."""
    nats = []
    documents = [np.append(ids, END)[: MAX_SEQUENCE_LENGTH + 1] for ids in sorted(documents, key=len)]
    for start in range(0, len(documents), batch):
        part = documents[start : start + batch]
        rows = torch.full((len(part), max(map(len, part))), PAD)
        for row, ids in zip(rows, part):
            row[: len(ids)] = torch.from_numpy(ids)
        rows = rows.to(model.embed_tokens.weight.device)
        logits = model(rows[:, :-1])
        losses = functional.cross_entropy(
            logits.transpose(1, 2).float(), rows[:, 1:], ignore_index=PAD, reduction="none"
        )
        nats += losses.double().sum(1).tolist()
    return documents, np.array(nats)


def bits_per_byte(bpe, documents, nats):
    """Over all documents, with a 95 % interval (they are drawn anew); `</s>` is predicted too, and counts as a byte."""
    sizes = np.array([len(bpe.decode(ids[1:-1].tolist()).encode()) + 1 for ids in documents])
    drawn = np.random.default_rng(0).integers(len(nats), size=(2000, len(nats)))
    of_draws = nats[drawn].sum(1) / sizes[drawn].sum(1)
    bits = np.array([nats.sum() / sizes.sum(), *np.quantile(of_draws, [0.025, 0.975])]) / math.log(2)
    return np.round(bits, 4).tolist()


@torch.no_grad()
def head_scores(model, length=64, rows=8):
    """What `optbook.head_scores` measures: mean weight per layer and head by role, on random tokens that repeat."""
    size = (length - 1) // 2
    span = np.random.default_rng(0).integers(len(SPECIAL_TOKENS), VOCABULARY_SIZE, (rows, size))
    ids = np.concatenate([np.full((rows, 1), END), span, span], axis=1)
    maps = []
    model(torch.from_numpy(ids).to(model.embed_tokens.weight.device), maps)
    maps = torch.stack(maps).mean(1).cpu().numpy()  # (layers, heads, T, T)
    second_copy, later = np.arange(size + 1, 2 * size + 1), np.arange(1, 2 * size + 1)
    return {
        "induction": maps[:, :, second_copy, second_copy - size + 1].mean(-1),
        "duplicate_token": maps[:, :, second_copy, second_copy - size].mean(-1),
        "previous_token": maps[:, :, later, later - 1].mean(-1),
        "first_token": maps[:, :, 2:, 0].mean(-1),
    }


# === Run ===


def save(path, content):
    """Writes beside and renames, so that a stopped run never leaves half a file."""
    partial = path.with_name(path.name + ".partial")
    torch.save(content, partial)
    os.replace(partial, path)


def write_folder(model, folder, bpe):
    """The model in float16 as a folder of Hugging Face's OPT, whose position table begins with two unused rows."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, value in model.state_dict().items():
        if name.startswith("embed_positions"):
            value = torch.cat([torch.zeros_like(value[:2]), value])
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            name = name.replace(f".{projection}", f".self_attn.{projection}")
        tensors[f"model.decoder.{name}"] = value.half().cpu().contiguous()
    save_file(tensors, folder / "model.safetensors")
    num_layers, num_heads, hidden_dim = len(model.layers), model.layers[0].num_heads, model.embed_tokens.weight.shape[1]
    config = dict(
        model_type="opt",
        architectures=["OPTForCausalLM"],
        vocab_size=VOCABULARY_SIZE,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        hidden_size=hidden_dim,
        word_embed_proj_dim=hidden_dim,
        ffn_dim=4 * hidden_dim,
        max_position_embeddings=MAX_SEQUENCE_LENGTH,
        do_layer_norm_before=True,
        activation_function="relu",
        dropout=0.0,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    entries = json.loads(bpe.to_str())["model"]
    vocabulary = dict(sorted(entries["vocab"].items(), key=lambda entry: entry[1]))
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in entries["merges"]) + "\n"
    (folder / "merges.txt").write_text(merges, encoding="utf-8")


@click.command()
@click.argument("name", type=click.Choice(list(SIZES)))
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--minutes", default=30.0, show_default=True, help="Of training, without what measuring takes.")
@click.option("--batch", default=4096, show_default=True, help="Tokens a step.")
@click.option(
    "--repeated-rows",
    default=4,
    show_default=True,
    help="Rows of each step that repeat a span, until an induction head has formed; then one.",
)
@click.option("--learning-rate", default=3e-3, show_default=True)
@click.option("--checkpoint-every", default=0, help="Steps between early checkpoints; none when 0.")
@click.option("--threads", default=2, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/training"), show_default=True)
def main(name, corpus, minutes, batch, repeated_rows, learning_rate, checkpoint_every, threads, device, seed, out):
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = passages(corpus)
    other_books = [text for number in HELD_OUT_BOOKS for text in held_out[number]]
    held_out = [text for number, book in enumerate(held_out) if number not in HELD_OUT_BOOKS for text in book]
    train = [text for book in train for text in book]
    bpe_file = out / "bpe.json"
    if not bpe_file.exists():
        train_tokenizer(train).save(str(bpe_file))
    bpe = tokenizers.Tokenizer.from_file(str(bpe_file))
    bpe.decoder = tokenizers.decoders.ByteLevel()
    train, held_out, other_books = (encode(bpe, texts) for texts in (train, held_out, other_books))

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    model = OPT(**SIZES[name]).to(device)
    optimizers = make_optimizers(model, learning_rate)
    progress = dict(step=0, tokens=0, seconds=0.0, epoch=0, row=0, induced=False, history=[])
    state_file = folder / "state.pt"
    if state_file.exists():
        saved = torch.load(state_file, map_location=device, weights_only=False)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        progress |= saved["progress"]

    def save_state():
        save(
            state_file,
            dict(model=model.state_dict(), optimizers=[o.state_dict() for o in optimizers], progress=progress),
        )

    def measure(loss):
        scores = {role: np.round(score.astype(float), 3).tolist() for role, score in head_scores(model).items()}
        nats = held_out_nats(model, held_out[::8])
        record = dict(step=progress["step"], tokens=progress["tokens"], loss=round(loss, 4))
        progress["history"].append({**record, "held_out": bits_per_byte(bpe, *nats)[0], **scores})
        progress["induced"] = progress["induced"] or bool(np.max(scores["induction"]) > 0.6)
        best = " ".join(f"{role} {np.max(score):.2f}" for role, score in scores.items())
        print(
            json.dumps(record),
            f"held out {progress['history'][-1]['held_out']} seconds {progress['seconds']:.0f} {best}",
            flush=True,
        )

    last_saved, running = time.perf_counter(), None
    rows, rows_of = None, None
    while progress["seconds"] < 60 * minutes:
        started = time.perf_counter()
        done = progress["seconds"] / (60 * minutes)
        length = MAX_SEQUENCE_LENGTH
        if rows_of != progress["epoch"]:
            rows = epoch_rows(train, length, np.random.default_rng([seed, progress["epoch"]]))
            rows_of = progress["epoch"]
        count = batch // length
        part = rows[progress["row"] : progress["row"] + count]
        repeats = min(repeated_rows, 1) if progress["induced"] else repeated_rows
        ids, targets = repeat_spans(part, repeats, np.random.default_rng([seed, progress["step"]]))
        progress["row"] += count
        if progress["row"] + count > len(rows):
            progress["row"], progress["epoch"] = 0, progress["epoch"] + 1
        rate = learning_rate * min(1, (progress["step"] + 1) / WARM_UP_STEPS) * share_of_rate(done)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            logits = model(ids.to(device))
        loss = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten().to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        value = loss.item()
        running = value if running is None else 0.98 * running + 0.02 * value
        progress["step"] += 1
        progress["tokens"] += ids.numel()
        progress["seconds"] += time.perf_counter() - started
        if progress["step"] % MEASURE_EVERY == 0:
            measure(running)
        if checkpoint_every and progress["step"] % checkpoint_every == 0:
            write_folder(model, folder / f"step_{progress['step']:05d}", bpe)
        if time.perf_counter() - last_saved > SAVE_EVERY_SECONDS:
            save_state()
            last_saved = time.perf_counter()
    save_state()
    model.half().float()  # what is shipped
    write_folder(model, folder / "finished", bpe)
    result = {
        "held_out": bits_per_byte(bpe, *held_out_nats(model, held_out)),
        "other_books": bits_per_byte(bpe, *held_out_nats(model, other_books)),
        **{key: progress[key] for key in ("step", "tokens", "seconds", "epoch")},
        **dict(seed=seed, batch=batch, repeated_rows=repeated_rows, learning_rate=learning_rate),
    }
    print(json.dumps(result, indent=2))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "history.json").write_text(json.dumps(progress["history"]))


if __name__ == "__main__":
    main()
