"""OPT, one layer at a time: the helper package of the notebooks."""

from optbook import _runtime

_runtime.require_jax_backend()
with _runtime.tensorflow_hidden(), _runtime.progress_bar_warning_hidden():
    import keras_hub  # noqa: F401  (here, so that it is loaded without TensorFlow)
_runtime.configure_jax()

from optbook import checks, layers, masks, plot  # noqa: E402
from optbook.attention import AttentionRecord, head_scores, record_attention  # noqa: E402
from optbook.backbone import OPTBackbone  # noqa: E402
from optbook.html_view import view  # noqa: E402
from optbook.machine import doctor  # noqa: E402
from optbook.memory import plan  # noqa: E402
from optbook.presets import causal_lm, export, preset_table, tokenizer  # noqa: E402

__all__ = [
    "AttentionRecord",
    "OPTBackbone",
    "causal_lm",
    "checks",
    "doctor",
    "export",
    "head_scores",
    "layers",
    "masks",
    "plan",
    "plot",
    "preset_table",
    "record_attention",
    "tokenizer",
    "view",
]
