"""Presets: what exists, where it lies, and how it is read and written."""

from optbook.presets.hugging_face_files import export
from optbook.presets.keras_hub_files import save_backbone
from optbook.presets.loading import (
    load_weights,
    preset_config,
    preset_folder,
    preset_sizes,
    read_config,
    tokenizer,
)
from optbook.presets.table import (
    ASSETS,
    DEFAULT,
    EMBEDDED,
    PUBLISHED,
    all_presets,
    parameter_count,
    preset_table,
)

__all__ = [
    "ASSETS",
    "DEFAULT",
    "EMBEDDED",
    "PUBLISHED",
    "all_presets",
    "export",
    "load_weights",
    "parameter_count",
    "preset_config",
    "preset_folder",
    "preset_sizes",
    "preset_table",
    "read_config",
    "save_backbone",
    "tokenizer",
]
