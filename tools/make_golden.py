"""Makes tests/golden/hf_opt.npz: what Hugging Face's OPT computes on random weights, for the tests to compare with.

Needs torch and transformers, which nothing else here does; run it in an environment of its own:

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch transformers
    /tmp/golden/bin/python tools/make_golden.py

Weights are drawn, then rounded to float16, in which they are kept: exact in float32, and half the size. Every bias,
gamma and beta is random; kernels are large enough for attention that is far from uniform, and embeddings small enough
for the epsilon of the first normalization to count, so that a wrong scale, mask, position, epsilon or order shows.

Two habits of Hugging Face's OPT that the arrays keep:

- The position table has two rows more than there are positions. Token i of the real ones takes row i + 2; a padding
  token takes row 1, row 0 is never read.
- ``hidden_states[-1]`` is taken after the final layer normalization, not after the last decoder layer. Here the two
  are kept apart: ``hidden_states`` holds the embeddings and the output of each decoder layer, ``last_hidden_state``
  what the final normalization makes of the last.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

OUTPUT = Path(__file__).parent.parent / "tests" / "golden" / "hf_opt.npz"
PAD = 1
LENGTHS = (10, 6, 3)  # of the padded rows; the same tokens are padded on the right and on the left

CONFIG = transformers.OPTConfig(
    vocab_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    hidden_size=32,
    word_embed_proj_dim=32,
    ffn_dim=64,
    max_position_embeddings=24,
    do_layer_norm_before=True,
    activation_function="relu",
    attn_implementation="eager",
    dropout=0.0,
    pad_token_id=PAD,
)


def random_model(generator):
    model = transformers.OPTForCausalLM(CONFIG).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stddev = 0.05 if "embed_" in name else 0.3
            mean = 1.0 if name.endswith("layer_norm.weight") else 0.0
            parameter.copy_((mean + stddev * torch.randn(parameter.shape, generator=generator)).half().float())
    return model


def batches(generator):
    """Token ids and mask of each batch, by name."""

    def draw(*shape):
        return torch.randint(2, CONFIG.vocab_size, shape, generator=generator)

    unpadded = draw(2, 12)
    right, left = torch.full((3, 10), PAD), torch.full((3, 10), PAD)
    for row, length in enumerate(LENGTHS):
        right[row, :length] = draw(length)
        left[row, -length:] = right[row, :length]
    return {
        name: (ids, (ids != PAD).long()) for name, ids in [("unpadded", unpadded), ("right", right), ("left", left)]
    }


def run(model, token_ids, padding_mask):
    """Hidden states after the embeddings and each layer, the last one normalized, logits, attention maps."""
    last_layer = []
    hook = model.model.decoder.layers[-1].register_forward_hook(
        lambda module, inputs, output: last_layer.append(output)
    )
    with torch.no_grad():
        output = model(token_ids, attention_mask=padding_mask, output_hidden_states=True, output_attentions=True)
        last_hidden_state = model.model.decoder.final_layer_norm(last_layer[0])
    hook.remove()
    assert torch.equal(output.hidden_states[-1], last_hidden_state)
    assert len(output.hidden_states) == CONFIG.num_hidden_layers + 1
    return {
        "hidden_states": torch.stack([*output.hidden_states[:-1], last_layer[0]]),
        "last_hidden_state": last_hidden_state,
        "logits": output.logits,
        "attention_maps": torch.stack(output.attentions),
    }


def main():
    generator = torch.Generator().manual_seed(0)
    model = random_model(generator)
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
    arrays["made_with"] = np.array(f"torch {torch.__version__}, transformers {transformers.__version__}")
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUTPUT, **arrays)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1e3:.0f} kB, {arrays['made_with']}")


if __name__ == "__main__":
    main()
