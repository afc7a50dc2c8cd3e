"""Makes tests/golden/hf_loss.json: the loss that Hugging Face's OPT gives the embedded preset on chapter 10's texts.

The folder is what ``optbook.export(optbook.causal_lm("optbook_700k_en"), FOLDER)`` writes (see tools/make_golden.py for
how to get torch and transformers):

    /tmp/golden/bin/python tools/make_golden_loss.py FOLDER

Tokenizer, padding, shift and mean are transformers' own. Given ``labels``, the model shifts them itself, and leaves out
where they are -100, which is how padding is kept out.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

OUTPUT = Path(__file__).parent.parent / "tests" / "golden" / "hf_loss.json"
SENTENCE, SHORT = "The old house was cold, but the old house was home.", "She looked up."
IGNORED = -100


def loss(model, tokenizer, texts):
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    with torch.no_grad():
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels)
    return {"token_ids": batch["input_ids"].tolist(), "loss": float(output.loss)}


def main(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="right")
    model = transformers.OPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    result = {"sentence": loss(model, tokenizer, [SENTENCE]), "batch": loss(model, tokenizer, [SENTENCE, SHORT])}
    result["made_with"] = f"torch {torch.__version__}, transformers {transformers.__version__}"
    OUTPUT.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print({name: result[name]["loss"] for name in ("sentence", "batch")}, result["made_with"])


if __name__ == "__main__":
    main(sys.argv[1])
