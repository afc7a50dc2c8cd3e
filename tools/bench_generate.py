"""Benchmark of generation: tokens per second against KerasHub's, transformers' and the machine's memory bandwidth.

    make bench-generate

One prompt of 8 tokens, 120 new ones, greedy, on a model of the size of OPT-125m with random weights. Every token needs
all weights once, so that no program can be faster than memory is read: the limit is the bandwidth, measured in the same
rounds by summing an array of 1 GB, by the bytes of the weights that a token reads (all but the table of positions).

KerasHub's program computes the prompt's keys and values at all 128 positions, and so does ours. The time of one token
is therefore taken from two prompts, of 8 and of 108 tokens, to the same length.

Compared when installed: transformers on torch (in another environment: set BENCH_PYTHON to its python).
"""

import os
import statistics
import sys

from bench import fresh_process
from rich.console import Console
from rich.progress import track
from rich.table import Table

RUNS = 3
GENERATE = """
import warnings; warnings.simplefilter("ignore")
import optbook, jax, keras_hub, numpy as np
SIZES = dict(vocabulary_size=50272, num_layers=12, num_heads=12, hidden_dim=768, intermediate_dim=3072, dropout=0.0)
ROUNDS, SHORT, LONG, LENGTH = 5, 8, 108, 128
preprocessor = keras_hub.models.OPTCausalLMPreprocessor(optbook.tokenizer("opt"), sequence_length=LENGTH)

def model(made, **kwargs):
    lm = keras_hub.models.OPTCausalLM(made(**SIZES, **kwargs), preprocessor=preprocessor)
    lm.compile(sampler="greedy")
    return lm

ours = model(optbook.OPTBackbone)
quantized = model(optbook.OPTBackbone)
quantized.backbone.quantize("int8")
models = {
    "optbook.generate": (ours, optbook.generate),
    "KerasHub's generate, our backbone": (ours, lambda lm, *args, **kwargs: lm.generate(*args, **kwargs)),
    "KerasHub's generate and backbone": (
        model(keras_hub.models.OPTBackbone), lambda lm, *args, **kwargs: lm.generate(*args, **kwargs)
    ),
    "optbook.generate, bfloat16": (model(optbook.OPTBackbone, dtype="bfloat16"), optbook.generate),
    "optbook.generate, int8": (quantized, optbook.generate),
}
gigabyte = jax.numpy.ones(250_000_000, "float32")
add_up = jax.jit(lambda array: array.sum())

def seconds(function, *args, **kwargs):
    begun = time.perf_counter()
    jax.block_until_ready(function(*args, **kwargs))
    return time.perf_counter() - begun

def bandwidth():
    return gigabyte.nbytes / min(seconds(add_up, gigabyte) for _ in range(5))

rounds = []
for _ in range(ROUNDS + 1):
    one = {"bandwidth": bandwidth()}
    for name, (lm, generate) in models.items():
        whole, rest = (
            seconds(generate, lm, "the" + " the" * (length - 2), max_length=LENGTH, stop_token_ids=None)
            for length in (SHORT, LONG)
        )
        one[name] = {"tokens": (LENGTH - SHORT) / whole, "step": (whole - rest) / (LONG - SHORT)}
    rounds.append(one)
position_table = ours.backbone.embeddings.position_embedding.embeddings.value.nbytes
read = sum(weight.value.nbytes for weight in ours.weights) - position_table
print("GENERATE", json.dumps({"rounds": rounds[1:], "read": read}))  # the first round compiles
"""
TRANSFORMERS = """
import statistics, torch, transformers
config = transformers.OPTConfig()  # its default sizes are those of OPT-125m
model = transformers.OPTForCausalLM(config).eval()
prompt = torch.randint(4, 50000, (1, 8))
tokens = []
for _ in range(4):
    begun = time.perf_counter()
    with torch.no_grad():
        written = model.generate(prompt, min_new_tokens=120, max_new_tokens=120, do_sample=False)
    tokens.append((written.shape[1] - 8) / (time.perf_counter() - begun))
print("GENERATE", json.dumps({"tokens": statistics.median(tokens[1:])}))
"""


def main():
    other = os.environ.get("BENCH_PYTHON", sys.executable)
    rounds, transformers = [], []
    for _ in track(range(RUNS), "processes in turns"):
        measured = fresh_process(GENERATE)["GENERATE"]
        rounds += measured["rounds"]
        transformers.append(fresh_process(TRANSFORMERS, other))

    def median(of):
        return statistics.median(of(one) for one in rounds)

    def row(name):
        tokens, step = median(lambda one: one[name]["tokens"]), median(lambda one: one[name]["step"])
        share = median(lambda one: read / one["bandwidth"] / one[name]["step"])
        return name, f"{tokens:.1f}", f"{step * 1e3:.1f}", f"{share:.2f}"

    def ratio(name):
        return median(lambda one: one["optbook.generate"]["tokens"] / one[name]["tokens"])

    read = measured["read"]
    title = f"Medians of {len(rounds)} rounds in {RUNS} processes"
    table = Table("", "tokens/s, all 120", "ms a token", "share of float32's limit", title=title)
    for name in rounds[0]:
        if name != "bandwidth":
            table.add_row(*row(name))
    if all(transformers):
        tokens = statistics.median(each["GENERATE"]["tokens"] for each in transformers)
        table.add_row("transformers on torch", f"{tokens:.1f}", "", "")
    else:
        table.add_row("transformers on torch", "not installed", "", "")
    console = Console()
    console.print(table)
    bandwidth = median(lambda one: one["bandwidth"])
    console.print(
        f"Memory is read at {bandwidth / 1e9:.1f} GB/s; a token reads {read / 1e6:.0f} MB of float32 weights: "
        f"at most {bandwidth / read:.1f} tokens/s."
    )
    for name in ("KerasHub's generate, our backbone", "KerasHub's generate and backbone"):
        console.print(f"Tokens per second, optbook.generate / {name}: {ratio(name):.2f}")


if __name__ == "__main__":
    main()
