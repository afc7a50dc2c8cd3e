"""From what a preset is called to its folder, configuration, weights and tokenizer."""

from pathlib import Path

from optbook._files import read_json
from optbook.presets import _pieces, hubs, hugging_face_files, keras_hub_files, tokenizer_files
from optbook.presets.table import ASSETS, DEFAULT, EMBEDDED, all_presets, published_config


def preset_folder(preset, weights=True, tokenizer=False):
    """The folder of an embedded, local or published preset; one clear line for anything else.

    What a published one lacks in the cache is downloaded: its config, its weights if asked for, and its tokenizer,
    which is missed only if asked for.
    """
    if preset in EMBEDDED:
        return ASSETS / preset
    if hubs.is_handle(preset):  # as in KerasHub a name goes before a folder called like it
        return hubs.download(preset, weights=weights, tokenizer=tokenizer)
    folder = Path(preset)
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise ValueError(f"the folder {preset} is not a preset: it has no config.json.")
    raise ValueError(
        f"no preset or folder is called {preset!r}; the names are {', '.join(all_presets())}, and handles of others "
        "begin with kaggle:// or hf://."
    )


def read_config(folder):
    """The arguments of the backbone saved in a preset folder, KerasHub's, ours or Hugging Face's."""
    config = read_json(Path(folder) / "config.json")
    return _files_of(config).backbone_config(config, folder)


def _files_of(config):
    return hugging_face_files if hugging_face_files.is_hugging_face(config) else keras_hub_files


def preset_config(preset, **overrides):
    """The arguments of a preset's backbone: from the table for a published one, else from its folder.

    ``overrides`` replace some; a position table longer than the trained one is refused.
    """
    config = published_config(preset) or read_config(preset_folder(preset, weights=False))
    trained = config["max_sequence_length"]
    asked = overrides.get("max_sequence_length", trained)
    if isinstance(asked, int) and asked > trained:
        raise ValueError(f"{preset} has {trained} trained positions; max_sequence_length cannot be {asked}.")
    return {**config, **overrides}


def preset_sizes(preset):
    """The arguments that give a preset its size."""
    config = preset_config(preset)
    options = {name: config[name] for name in ("normalize_first", "embedding_dim") if name in config}
    return {**{name: config[name] for name in keras_hub_files.SIZE_ARGUMENTS}, **options}


def load_weights(backbone, folder):
    """Gives the backbone the weights of a preset folder, one array at a time."""
    config = read_json(Path(folder) / "config.json")
    with _files_of(config).pieces(backbone, folder) as pieces:
        _pieces.assign(pieces)


def tokenizer(preset=DEFAULT):
    """KerasHub's OPTTokenizer with a preset's vocabulary: start and end token 2, padding 1.

    ``"opt"`` gives OPT's own tokenizer of 50265 entries, which is shipped without a model. A folder may be KerasHub's,
    ours or Hugging Face's. Texts are cut into words as GPT-2 and ``transformers`` cut them, which KerasHub 0.32 does
    not do without TensorFlow; one that KerasHub or Keras reads from files, or copies, learns it at the first text that
    a function of ours reads with it.

    Raises
    ------
    FileNotFoundError
        Where the vocabulary or the merges are missing.
    ValueError
        Where they are damaged, cut short or do not belong together, or an added token has another one's id.
    """
    if preset == "opt":
        return tokenizer_files.read_keras_hub(ASSETS / "opt_tokenizer")
    folder = preset_folder(preset, weights=False, tokenizer=True)
    if hugging_face_files.is_hugging_face(read_json(folder / "config.json")):
        return tokenizer_files.read_hugging_face(folder)
    return tokenizer_files.read_keras_hub(folder / "assets" / "tokenizer", folder / "tokenizer.json")
