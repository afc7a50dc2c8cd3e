"""Which presets exist, and how large each is."""

import re
from pathlib import Path

import keras_hub

ASSETS = Path(__file__).parents[1] / "assets"

# Trained by the first edition's trainer (see their cards) and shipped inside the package.
EMBEDDED = {
    "optbook_700k_en": "2 layers, trained on public-domain English for this book; the default of every chapter.",
    "optbook_4m_en": "4 layers, twice as wide, grown from the first and trained on a little; clearer heads.",
}
DEFAULT = "optbook_700k_en"

# The nine sizes of arXiv 2205.01068: layers, heads, hidden_dim. All have 50272 embedding rows, 2048 positions and an
# intermediate_dim of 4 × hidden_dim.
SIZES = {
    "125m": (12, 12, 768),
    "350m": (24, 16, 1024),
    "1.3b": (24, 32, 2048),
    "2.7b": (32, 32, 2560),
    "6.7b": (32, 32, 4096),
    "13b": (40, 40, 5120),
    "30b": (48, 56, 7168),
    "66b": (64, 72, 9216),
    "175b": (96, 96, 12288),
}
# KerasHub's built-in presets; the other sizes are at Hugging Face only, and 175b's weights are not public.
PUBLISHED = {f"opt_{size}_en": size for size in ("125m", "1.3b", "2.7b", "6.7b")}
_KERAS_HUB = re.compile(r"(?:kaggle://keras/opt/keras/|hf://keras/)?(opt_[\d.]+[mb]_en)(?:/\d+)?")
_FACEBOOK = re.compile(r"hf://facebook/opt-([\d.]+[mb])")


def all_presets():
    """Every preset by name, embedded and published, with KerasHub's metadata layout."""
    embedded = {
        name: {"metadata": {"description": description, "path": "opt"}, "folder": str(ASSETS / name)}
        for name, description in EMBEDDED.items()
    }
    return {**embedded, **keras_hub.models.OPTBackbone.presets}


def published_config(preset):
    """The backbone's arguments for a published preset, by whatever handle it is named; None for any other.

    A handle is a string: a path is a folder, whatever it is called.
    """
    name = preset if isinstance(preset, str) else ""
    if match := _KERAS_HUB.fullmatch(name):
        size = PUBLISHED.get(match[1])
    elif match := _FACEBOOK.fullmatch(name):
        size = match[1]
    else:
        size = None
    if size not in SIZES:
        return None
    num_layers, num_heads, hidden_dim = SIZES[size]
    config = dict(
        vocabulary_size=50272,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        intermediate_dim=4 * hidden_dim,
        dropout=0.1,
        max_sequence_length=2048,
    )
    return {**config, "normalize_first": False, "embedding_dim": 512} if size == "350m" else config


def preset_table():
    """The nine published sizes, a dict each: name, sizes, exact number of parameters, handle.

    The name is what ``OPTBackbone.from_preset`` takes. ``handle`` is where KerasHub or Hugging Face keeps the
    weights, None for the largest, whose weights are not public.
    """
    rows = []
    for size in SIZES:
        name = f"opt_{size}_en" if f"opt_{size}_en" in PUBLISHED else f"hf://facebook/opt-{size}"
        config = published_config(name)
        metadata = keras_hub.models.OPTBackbone.presets.get(name, {})
        rows.append(
            {
                "name": name,
                "num_layers": config["num_layers"],
                "num_heads": config["num_heads"],
                "hidden_dim": config["hidden_dim"],
                "intermediate_dim": config["intermediate_dim"],
                "embedding_dim": config.get("embedding_dim", config["hidden_dim"]),
                "parameters": parameter_count(**config),
                "handle": None if size == "175b" else metadata.get("kaggle_handle", name),
            }
        )
    return rows


def parameter_count(
    vocabulary_size,
    num_layers,
    hidden_dim,
    intermediate_dim,
    max_sequence_length=2048,
    normalize_first=True,
    embedding_dim=None,
    **_,
):
    """Exactly how many numbers a backbone of these sizes holds; the number of heads and dropout do not matter."""
    embedding_dim = embedding_dim or hidden_dim
    embeddings = vocabulary_size * embedding_dim + max_sequence_length * hidden_dim
    projections = 0 if embedding_dim == hidden_dim else 2 * embedding_dim * hidden_dim
    attention = 4 * (hidden_dim * hidden_dim + hidden_dim)
    feedforward = 2 * hidden_dim * intermediate_dim + intermediate_dim + hidden_dim
    layer_norm = 2 * hidden_dim
    layers = num_layers * (attention + feedforward + 2 * layer_norm)
    return embeddings + projections + layers + (layer_norm if normalize_first else 0)
