"""What a preset really takes: resident memory while it is loaded and used, in a process of its own, as JSON.

    python tests/measured_memory.py PRESET DTYPE BATCH LENGTH COPIES

Bytes grown, at the peak and after: a copy's share of loading, and of a second run of each use, when all is compiled.
"""

import gc
import json
import sys

import jax
import numpy as np
import psutil

import optbook
from optbook import report

# isort: split
import keras  # after optbook, which chooses the backend
import keras_hub


def growth(work):
    """What the work returns, and the bytes by which the resident set grew: at its peak, and with the result held."""
    resident = psutil.Process().memory_info
    gc.collect()
    start = resident().rss
    result, cost = report.watched(work)
    gc.collect()
    held = resident().rss
    return result, {"peak": max(cost.peak_bytes, held) - start, "held": held - start}


def main(preset, dtype, batch, length, copies):
    batch, length, copies = int(batch), int(length), int(copies)
    # Held, so that the room which imports and first programs have left inside the process is filled before counting.
    small = [optbook.OPTBackbone.from_preset("optbook_700k_en", dtype=dtype) for _ in range(15)]
    loaded, grown = growth(lambda: [optbook.OPTBackbone.from_preset(preset, dtype=dtype) for _ in range(copies)])
    measured = {"loading": {name: count / copies for name, count in grown.items()}}
    backbone = loaded[0]
    del small, loaded
    lm = keras_hub.models.OPTCausalLM(backbone)
    lm.compile(sampler="greedy")
    token_ids = np.random.default_rng(0).integers(4, backbone.vocabulary_size, (batch, length)).astype("int32")
    whole = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    prompt = {"token_ids": token_ids, "padding_mask": (np.arange(length) < length - 2) * whole["padding_mask"]}

    @jax.jit  # as generate is
    def kv_cache(weights, token_ids):
        with keras.StatelessScope(state_mapping=list(zip(lm.weights, weights))):
            return lm._build_cache(token_ids)[1]

    uses = {
        "kv_cache": lambda: kv_cache([weight.value for weight in lm.weights], token_ids).block_until_ready(),
        "logits": lambda: lm(whole).block_until_ready(),
        "attention_maps": lambda: optbook.record_attention(backbone, whole).weights,
        "generating": lambda: lm.generate(prompt, stop_token_ids=None),
    }
    for name, use in uses.items():
        use()
        _result, measured[name] = growth(use)
        del _result
    print(json.dumps(measured))


if __name__ == "__main__":
    main(*sys.argv[1:])
