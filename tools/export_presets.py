"""Writes a finished training run as the preset folder that the package ships, float16.

    python tools/export_presets.py optbook_250k_en --keep 500 --keep 1000

Reads build/training/NAME, writes optbook/assets/NAME: weights, config, tokenizer, and with --keep the early checkpoints
of these steps with the head scores of every measured step. The model card beside them is written by hand from
result.json.
"""

import json
import os
from pathlib import Path

import click
import numpy as np

import optbook
from optbook import presets
from optbook._files import replace_text, replacing, write_json

TOKENIZER = {
    "module": "keras_hub.src.models.opt.opt_tokenizer",
    "class_name": "OPTTokenizer",
    "config": {"name": "opt_tokenizer", "trainable": True, "dtype": "int32", "config_file": "tokenizer.json"},
    "registered_name": "keras_hub>OPTTokenizer",
}


@click.command()
@click.argument("name")
@click.option("--keep", type=int, multiple=True, help="Steps whose early checkpoints are shipped.")
@click.option("--training", type=click.Path(path_type=Path), default=Path("build/training"), show_default=True)
def main(name, keep, training):
    run, folder = training / name, presets.ASSETS / name
    backbone = optbook.OPTBackbone.from_preset(run / "finished", dtype="float16", name="opt_backbone")
    presets.save_backbone(backbone, folder)
    config = json.loads((folder / "config.json").read_text())
    config["config"]["dtype"] = "float32"  # stored in float16, computed in float32 unless asked otherwise
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer.json", TOKENIZER)
    tokenizer = folder / "assets" / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    for ours, theirs in (("vocabulary.json", "vocab.json"), ("merges.txt", "merges.txt")):
        replace_text(tokenizer / ours, (run / "finished" / theirs).read_text(encoding="utf-8"))
    if keep:
        (folder / "training").mkdir(exist_ok=True)
        lines = ["  " + json.dumps(line) for line in json.loads((run / "history.json").read_text())]
        replace_text(folder / "training" / "head_scores.json", "[\n" + ",\n".join(lines) + "\n]\n")
    for step in keep:
        early = optbook.OPTBackbone.from_preset(run / f"step_{step:05d}", dtype="float16")
        arrays = {str(index): np.asarray(weight) for index, weight in enumerate(early.weights)}
        with replacing(folder / "training" / f"step_{step:05d}.npz") as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {backbone.count_params()} parameters, {size / 1e6:.1f} MB in all", os.linesep)


if __name__ == "__main__":
    main()
