"""OPT, one layer at a time: the helper package of the notebooks.

Importing it chooses Keras's JAX backend. Keras and JAX themselves, which take seconds, are loaded with the first name
that needs them: the command line answers at once, and a sweep's own process stays small.
"""

import importlib

from optbook import _runtime

_runtime.require_jax_backend()
_runtime.prepare_imports()

# Each public name and the module that it comes from; modules that are public themselves come from here.
_HOMES = {
    "AttentionRecord": "attention",
    "OPTBackbone": "backbone",
    "Perplexity": "evaluation",
    "causal_lm": "backbone",
    "checks": None,
    "compare": None,
    "doctor": "machine",
    "export": "presets",
    "generate": "generation",
    "head_scores": "attention",
    "layers": None,
    "masks": None,
    "perplexity": "evaluation",
    "plan": "memory",
    "plot": None,
    "preset_table": "presets",
    "record_attention": "attention",
    "tokenizer": "presets",
    "view": "html_view",
}
__all__ = list(_HOMES)


def __getattr__(name):
    """Called by Python for a name that is not loaded yet."""
    home = _HOMES.get(name)
    if home:
        globals()[name] = getattr(importlib.import_module(f"optbook.{home}"), name)
        return globals()[name]
    try:
        return importlib.import_module(f"optbook.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"optbook.{name}":
            raise
        raise AttributeError(f"module 'optbook' has no attribute {name!r}") from None


def __dir__():
    return sorted({*globals(), *__all__})
