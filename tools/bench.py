"""Benchmarks: ratios measured in one run, each figure the median of several fresh processes or calls.

    make bench

Compared when installed: keras_hub with TensorFlow, and transformers on torch (in another environment: set
BENCH_PYTHON to its python). What is not installed is said and left out.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time

from rich.console import Console
from rich.table import Table

RUNS = 5
MEASURE = """
import resource, sys, time, json
started = time.perf_counter()
{body}
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)
print("RESULT", json.dumps({{"seconds": seconds, "peak_mb": peak}}))
"""
IMPORT_OPTBOOK = "import optbook; optbook.OPTBackbone"  # the name loads Keras and JAX
IMPORT_KERAS_HUB = "import os; os.environ['KERAS_BACKEND'] = 'jax'; import keras_hub, tensorflow"
FIGURE_OPTBOOK = """
import optbook
lm = optbook.causal_lm()
record = optbook.record_attention(lm, "The old house was cold, but the old house was home.")
optbook.plot.model(record).savefig(os.devnull, format="png")
"""
TEXT_OPTBOOK = """
import optbook
lm = optbook.causal_lm()
lm.generate("The old house was", max_length=32)
optbook.record_attention(lm, "The old house was cold, but the old house was home.")
"""
FIGURE_TRANSFORMERS = """
import torch, transformers
import matplotlib; matplotlib.use("agg")
import matplotlib.pyplot as plt
config = transformers.OPTConfig(
    vocab_size=2048, hidden_size=128, num_hidden_layers=2, ffn_dim=512, num_attention_heads=4,
    max_position_embeddings=128, word_embed_proj_dim=128, attn_implementation="eager")
model = transformers.OPTForCausalLM(config).eval()
with torch.no_grad():
    maps = model(torch.randint(4, 2048, (1, 15)), output_attentions=True).attentions
figure, axes = plt.subplots(2, 4)
for row, layer in zip(axes, maps):
    for ax, one in zip(row, layer[0]):
        ax.imshow(one)
figure.savefig(os.devnull, format="png")
"""
FORWARD = """
import optbook, jax, keras_hub, numpy as np, statistics
sizes = dict(vocabulary_size=50272, num_layers=12, num_heads=12, hidden_dim=768, intermediate_dim=3072, dropout=0.0)
ids = np.random.default_rng(0).integers(4, 50000, (1, 128)).astype("int32")
inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
programs = {}
for name, made in (("ours", optbook.OPTBackbone), ("theirs", keras_hub.models.OPTBackbone)):
    backbone = made(**sizes)
    weights = [weight.value for weight in backbone.weights]
    forward = jax.jit(lambda weights, inputs, backbone=backbone: backbone.stateless_call(weights, [], inputs)[0])
    compiled = forward.lower(weights, inputs).compile()
    programs[name] = (compiled, weights, compiled.cost_analysis()["flops"])
times = {name: [] for name in programs}
for _ in range(13):
    for name, (compiled, weights, _flops) in programs.items():
        begun = time.perf_counter()
        jax.block_until_ready(compiled(weights, inputs))
        times[name].append(time.perf_counter() - begun)
ratios = [ours / theirs for ours, theirs in zip(times["ours"][3:], times["theirs"][3:])]
print("FORWARD", json.dumps({"time": statistics.median(ratios), "flops": programs["ours"][2] / programs["theirs"][2]}))
"""
# A recording and a plain forward pass in turns, so that both meet the same machine; then the recording's milliseconds.
RECORD_OPTBOOK = """
import optbook, jax, numpy as np, statistics
sizes = dict(vocabulary_size=50272, num_layers=12, num_heads=12, hidden_dim=768, intermediate_dim=3072, dropout=0.0)
backbone = optbook.OPTBackbone(**sizes)
ids = np.random.default_rng(0).integers(4, 50000, (1, 256)).astype("int32")
inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
weights = [weight.value for weight in backbone.weights]
forward = jax.jit(lambda weights, inputs: backbone.stateless_call(weights, [], inputs)[0])
plain, recorded = [], []
for _ in range(13):
    begun = time.perf_counter()
    jax.block_until_ready(forward(weights, inputs))
    plain.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    optbook.record_attention(backbone, inputs)
    recorded.append(time.perf_counter() - begun)
ratio = statistics.median(b / a for a, b in zip(plain[3:], recorded[3:]))
print("RECORD", json.dumps({"to_forward": ratio, "seconds": statistics.median(recorded[3:])}))
"""
RECORD_TRANSFORMERS = """
import torch, transformers, statistics
config = transformers.OPTConfig(attn_implementation="eager")  # its default sizes are those of OPT-125m
model = transformers.OPTModel(config).eval()
ids = torch.randint(4, 50000, (1, 256))
recorded = []
with torch.no_grad():
    for _ in range(13):
        begun = time.perf_counter()
        maps = model(ids, output_attentions=True).attentions
        recorded.append(time.perf_counter() - begun)
assert len(maps) == 12 and maps[0].shape == (1, 12, 256, 256)
print("RECORD", json.dumps({"seconds": statistics.median(recorded[3:])}))
"""


def fresh_process(body, python=sys.executable, **environment):
    """Runs a piece of code in a process of its own; returns what it measured, or None if it failed."""
    code = "import os\n" + MEASURE.format(body=textwrap.dedent(body))
    result = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    marked = dict(re.findall(r"^([A-Z]+) (\{.*\})$", result.stdout, flags=re.MULTILINE))
    if result.returncode or not marked:
        return None
    return {name: json.loads(value) for name, value in marked.items()}


def paired(body_a, body_b, python_b=sys.executable):
    """Median ratios A/B of seconds and peak memory over alternating fresh processes; None if either cannot run."""
    ratios = []
    for run in range(RUNS + 1):
        a, b = fresh_process(body_a), fresh_process(body_b, python_b)
        if a is None or b is None:
            return None
        if run:  # the first pair warms the disk
            ratios.append([a["RESULT"][key] / b["RESULT"][key] for key in ("seconds", "peak_mb")])
    return [statistics.median(column) for column in zip(*ratios)]


def recording(other):
    """Two medians: recording all attention / a plain forward pass; and the same / transformers' (None without it)."""
    runs = [(fresh_process(RECORD_OPTBOOK), fresh_process(RECORD_TRANSFORMERS, other)) for _ in range(RUNS)]
    to_forward = statistics.median(ours["RECORD"]["to_forward"] for ours, _ in runs)
    if any(theirs is None for _, theirs in runs):
        return to_forward, None
    return to_forward, statistics.median(
        ours["RECORD"]["seconds"] / theirs["RECORD"]["seconds"] for ours, theirs in runs
    )


def main():
    other = os.environ.get("BENCH_PYTHON", sys.executable)
    table = Table("A", "B", "time A/B", "peak memory A/B", title=f"Medians of {RUNS} pairs of fresh processes")

    def add(name_a, name_b, ratios):
        cells = [f"{ratio:.2f}" for ratio in ratios] if ratios else ["B cannot run here: not installed", ""]
        table.add_row(name_a, name_b, *cells)

    add("import optbook", "import keras_hub, TensorFlow present", paired(IMPORT_OPTBOOK, IMPORT_KERAS_HUB, other))
    add(
        "process to first attention figure",
        "the same, transformers on torch",
        paired(FIGURE_OPTBOOK, FIGURE_TRANSFORMERS, other),
    )
    warm_and_cold = []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            cache = dict(JAX_COMPILATION_CACHE_DIR=folder, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
            cold = fresh_process(TEXT_OPTBOOK, **cache)
            warm = fresh_process(TEXT_OPTBOOK, **cache)
            warm_and_cold.append([warm["RESULT"][key] / cold["RESULT"][key] for key in ("seconds", "peak_mb")])
            print(f"compilation cache, cold and warm: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    add(
        "build, generate, record: compilation cache warm",
        "the same, cache cold",
        [statistics.median(column) for column in zip(*warm_and_cold)],
    )
    forward = fresh_process(FORWARD)["FORWARD"]
    console = Console()
    console.print(table)
    console.print(
        f"Compiled forward of a 125m-sized model, 128 tokens, ours / KerasHub's: time {forward['time']:.2f}, "
        f"floating-point operations by XLA's count {forward['flops']:.4f}"
    )
    to_forward, to_transformers = recording(other)
    console.print(
        f"All attention of a 125m-sized model, 256 tokens: record_attention / plain forward {to_forward:.2f}, "
        "record_attention / transformers' output_attentions on torch "
        + (f"{to_transformers:.2f}" if to_transformers else "not measured: not installed")
    )


if __name__ == "__main__":
    main()
