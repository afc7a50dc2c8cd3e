"""Writes a finished (or running) training run as the preset folder that the package ships, float16.

    python tools/export_presets.py optbook_700k_en

Reads build/training/NAME, writes optbook/assets/NAME: weights, config, tokenizer, head scores of every 50 steps and the
early checkpoints named with --keep. The model card beside them is written by hand from result.json.
"""

import json
import os
import shutil
from pathlib import Path

import click
import numpy as np
import tokenizers

import optbook
from optbook import presets
from optbook._files import write_json


def write_tokenizer(bpe_file, folder):
    """KerasHub's two files: every entry with its id, and the merges in order."""
    model = json.loads(tokenizers.Tokenizer.from_file(str(bpe_file)).to_str())["model"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda entry: entry[1]))
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]) + "\n", encoding="utf-8")


@click.command()
@click.argument("name")
@click.option("--keep", type=int, multiple=True, help="Steps whose early checkpoints are shipped.")
@click.option("--training", type=click.Path(path_type=Path), default=Path("build/training"), show_default=True)
def main(name, keep, training):
    run, folder = training / name, presets.ASSETS / name
    saved = np.load(run / "state.npz")
    progress = json.loads(str(saved["progress"]))
    sizes = json.loads((run / "sizes.json").read_text())
    backbone = optbook.OPTBackbone(**sizes, dropout=0.0, dtype="float16", name="opt_backbone")
    for index, weight in enumerate(backbone.weights):
        weight.assign(saved[f"weight_{index}"])
    presets.save_backbone(backbone, folder)
    config = json.loads((folder / "config.json").read_text())
    config["config"]["dtype"] = "float32"  # stored in float16, computed in float32 unless asked otherwise
    write_json(folder / "config.json", config)
    write_tokenizer(run / "bpe.json", folder / "assets" / "tokenizer")
    tokenizer_config = {
        "module": "keras_hub.src.models.opt.opt_tokenizer",
        "class_name": "OPTTokenizer",
        "config": {"name": "opt_tokenizer", "trainable": True, "dtype": "int32", "config_file": "tokenizer.json"},
        "registered_name": "keras_hub>OPTTokenizer",
    }
    write_json(folder / "tokenizer.json", tokenizer_config)
    early = folder / "training"
    early.mkdir(exist_ok=True)
    lines = ["  " + json.dumps(line) for line in progress["history"]]
    (early / "head_scores.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    for step in keep:
        shutil.copy(run / f"step_{step:05d}.npz", early / f"step_{step:05d}.npz")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(
        f"{folder}: {backbone.count_params()} parameters, {size / 1e6:.1f} MB in all, step {progress['step']}",
        os.linesep,
    )


if __name__ == "__main__":
    main()
