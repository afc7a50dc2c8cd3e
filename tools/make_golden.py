"""Makes tests/golden/hf_opt*.npz: what Hugging Face's OPT computes on random weights, for the tests to compare with.

``hf_opt.npz`` is an OPT as all sizes but one are, ``hf_opt_350m.npz`` one built like OPT-350m: normalization after the
additions, no final one, a narrow token table with projections.

Needs torch and transformers, which nothing else here does; run it in an environment of its own:

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch transformers
    /tmp/golden/bin/python tools/make_golden.py

Weights are drawn, then rounded to float16, in which they are kept: exact in float32, and half the size. Every bias,
gamma and beta is random; kernels are large enough for attention that is far from uniform, and the embeddings of the
first small enough for the epsilon of its first normalization to count, so that a wrong scale, mask, position, epsilon
or order shows.

Two habits of Hugging Face's OPT that the arrays keep:

- The position table has two rows more than there are positions. Token i of the real ones takes row i + 2; a padding
  token takes row 1, row 0 is never read.
- ``hidden_states[-1]`` is taken after the final layer normalization and the projection to the width of the token
  table, not after the last decoder layer. Here the two are kept apart: ``hidden_states`` holds the embeddings and the
  output of each decoder layer, ``last_hidden_state`` what the end of the decoder makes of the last.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent.parent / "tests" / "golden"
PAD = 1
LENGTHS = (10, 6, 3)  # of the padded rows; the same tokens are padded on the right and on the left

VOCABULARY_SIZE = 64
VARIANTS = {
    "hf_opt": dict(do_layer_norm_before=True, word_embed_proj_dim=32),
    "hf_opt_350m": dict(do_layer_norm_before=False, word_embed_proj_dim=16),
}
# Of the embeddings. Without a normalization before it, attention in the first layer needs larger ones.
STDDEV = {"hf_opt": 0.05, "hf_opt_350m": 1.0}


def make_config(variant):
    return transformers.OPTConfig(
        vocab_size=VOCABULARY_SIZE,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_size=32,
        ffn_dim=64,
        max_position_embeddings=24,
        activation_function="relu",
        attn_implementation="eager",
        dropout=0.0,
        pad_token_id=PAD,
        **VARIANTS[variant],
    )


def random_model(config, embedding_stddev, generator):
    model = transformers.OPTForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stddev = embedding_stddev if "embed_" in name else 0.3
            mean = 1.0 if name.endswith("layer_norm.weight") else 0.0
            parameter.copy_((mean + stddev * torch.randn(parameter.shape, generator=generator)).half().float())
    return model


def batches(generator):
    """Token ids and mask of each batch, by name."""

    def draw(*shape):
        return torch.randint(2, VOCABULARY_SIZE, shape, generator=generator)

    unpadded = draw(2, 12)
    right, left = torch.full((3, 10), PAD), torch.full((3, 10), PAD)
    for row, length in enumerate(LENGTHS):
        right[row, :length] = draw(length)
        left[row, -length:] = right[row, :length]
    return {
        name: (ids, (ids != PAD).long()) for name, ids in [("unpadded", unpadded), ("right", right), ("left", left)]
    }


def run(model, token_ids, padding_mask):
    """Hidden states after the embeddings and each layer, the decoder's output, logits, attention maps."""
    last_layer = []
    decoder = model.model.decoder
    hook = decoder.layers[-1].register_forward_hook(lambda module, inputs, output: last_layer.append(output))
    with torch.no_grad():
        output = model(token_ids, attention_mask=padding_mask, output_hidden_states=True, output_attentions=True)
        last_hidden_state = last_layer[0]
        for module in (decoder.final_layer_norm, decoder.project_out):
            last_hidden_state = last_hidden_state if module is None else module(last_hidden_state)
    hook.remove()
    assert torch.equal(output.hidden_states[-1], last_hidden_state)
    assert len(output.hidden_states) == len(decoder.layers) + 1
    return {
        "hidden_states": torch.stack([*output.hidden_states[:-1], last_layer[0]]),
        "last_hidden_state": last_hidden_state,
        "logits": output.logits,
        "attention_maps": torch.stack(output.attentions),
    }


def make(variant):
    config = make_config(variant)
    generator = torch.Generator().manual_seed(0)
    model = random_model(config, STDDEV[variant], generator)
    arrays = {
        f"weights/{name}": tensor.half().numpy()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the token embedding
    }
    for name, (token_ids, padding_mask) in batches(generator).items():
        arrays[f"{name}/token_ids"] = token_ids.to(torch.int32).numpy()
        arrays[f"{name}/padding_mask"] = padding_mask.to(torch.int32).numpy()
        for key, tensor in run(model, token_ids, padding_mask).items():
            arrays[f"{name}/{key}"] = tensor.numpy()
    arrays["config"] = np.array(json.dumps(config.to_dict()))
    arrays["made_with"] = np.array(f"torch {torch.__version__}, transformers {transformers.__version__}")
    output = FOLDER / f"{variant}.npz"
    FOLDER.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(output, **arrays)
    print(f"{output}: {output.stat().st_size / 1e3:.0f} kB, {arrays['made_with']}")


def main():
    for variant in VARIANTS:
        make(variant)


if __name__ == "__main__":
    main()
