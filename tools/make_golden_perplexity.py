"""Makes tests/golden/hf_perplexity.npz: what Hugging Face's OPT loses on a text, window by window, for the tests.

The models are those of tests/golden/hf_opt*.npz (see tools/make_golden.py, and there how to get torch and
transformers), the text is random ids. The windows, and which tokens each predicts, are those of transformers' page on
the perplexity of models with a fixed length; every loss is the model's own, given labels.

Where windows overlap, the page multiplies a window's mean loss by one token less than it predicts: the model shifts the
labels, and the page makes up for that in every window, but only the first has a token without context.
``weighted_as_page`` is its number, ``perplexity`` counts each predicted token once. They are one where windows do not
overlap.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from make_golden import FOLDER, VARIANTS, VOCABULARY_SIZE

TOKENS = 75
WINDOWS = ((24, 24), (24, 12), (24, 7), (16, 5))  # (max_length, stride)
IGNORED = -100


def load(variant):
    with np.load(FOLDER / f"{variant}.npz") as file:
        config = transformers.OPTConfig(**json.loads(str(file["config"])))
        prefix = "weights/"
        weights = {name.removeprefix(prefix): file[name] for name in file if name.startswith(prefix)}
    model = transformers.OPTForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(
        {name: torch.tensor(array).float() for name, array in weights.items()}, strict=False
    )
    assert set(missing) <= {"lm_head.weight"} and not unexpected  # the head is tied
    return model


def window_losses(model, token_ids, max_length, stride):
    """Of each window: mean loss, predicted tokens, tokens that no window before had."""
    rows, done, total = [], 0, token_ids.shape[1]
    for begin in range(0, total, stride):
        end = min(begin + max_length, total)
        window = token_ids[:, begin:end]
        labels = window.clone()
        labels[:, : -(end - done)] = IGNORED
        with torch.no_grad():
            loss = model(window, labels=labels).loss
        rows.append((float(loss), int((labels[:, 1:] != IGNORED).sum()), end - done))
        done = end
        if end == total:
            return [np.array(column) for column in zip(*rows)]


def main():
    generator = torch.Generator().manual_seed(1)
    token_ids = torch.randint(2, VOCABULARY_SIZE, (1, TOKENS), generator=generator)
    arrays = {"token_ids": token_ids[0].to(torch.int32).numpy()}
    for variant in VARIANTS:
        model = load(variant)
        for max_length, stride in WINDOWS:
            losses, predicted, new = window_losses(model, token_ids, max_length, stride)
            name = f"{variant}/{max_length}/{stride}/"
            arrays[name + "losses"], arrays[name + "predicted"] = losses, predicted
            arrays[name + "perplexity"] = np.exp((losses * predicted).sum() / predicted.sum())
            arrays[name + "weighted_as_page"] = np.exp((losses * (new - 1)).sum() / (new - 1).sum())
    arrays["made_with"] = np.array(f"torch {torch.__version__}, transformers {transformers.__version__}")
    output = Path(FOLDER) / "hf_perplexity.npz"
    np.savez_compressed(output, **arrays)
    print(f"{output}: {output.stat().st_size / 1e3:.0f} kB, {arrays['made_with']}")
    print({name: float(value) for name, value in arrays.items() if value.ndim == 0 and name != "made_with"})


if __name__ == "__main__":
    main()
