"""What must be true before Keras is imported: the JAX backend, TensorFlow out of the way, compiled programs kept."""

import contextlib
import importlib.abc
import importlib.util
import logging
import os
import sys
import warnings
from pathlib import Path

import platformdirs


def require_jax_backend():
    """Choose Keras's JAX backend, or say at once why it is too late."""
    if "keras" not in sys.modules:
        backend = os.environ.setdefault("KERAS_BACKEND", "jax")
        remedy = "Set KERAS_BACKEND to 'jax', or leave it unset."
    else:
        backend = sys.modules["keras"].config.backend()
        remedy = "Restart Python and set KERAS_BACKEND='jax' before the first import of keras."
    if backend != "jax":
        raise ImportError(f"optbook runs on Keras's JAX backend, but the backend is {backend!r}. {remedy}")


class _WhenImported(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Has one module loaded inside a context, whoever imports it, and whenever."""

    def __init__(self, name, context):
        self.name, self.context, self.loader, self.searching = name, context, None, False

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(fullname)  # as the finders behind this one see it
        finally:
            self.searching = False
        if spec is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        with self.context():
            self.loader.exec_module(module)


def watch_imports():
    """From now on keras_hub is loaded without TensorFlow and JAX configured, by optbook or by the user."""
    for name, context in {"keras_hub": keras_hub_alone, "jax": then_configured}.items():
        if name not in sys.modules:
            sys.meta_path.insert(0, _WhenImported(name, context))
    if "jax" in sys.modules:
        configure_jax()


@contextlib.contextmanager
def keras_hub_alone():
    """While keras_hub is loaded: no TensorFlow, and no word of a progress bar. After it: `fit` without a remark."""
    with tensorflow_hidden(), progress_bar_warning_hidden():
        yield
    logging.getLogger("absl").addFilter(_not_about_prefetching)


def _not_about_prefetching(record):
    """False for grain's remark, at every `fit` of text, on how KerasHub set its threads: a user can't set them."""
    return not str(record.msg).startswith("prefetch_buffer_size")


@contextlib.contextmanager
def then_configured():
    yield
    configure_jax()


class _TensorFlowIsAbsent(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in ("tensorflow", "tensorflow_text"):
            raise ModuleNotFoundError(f"{fullname} is hidden while keras_hub is imported", name=fullname)


@contextlib.contextmanager
def tensorflow_hidden():
    """Make ``import tensorflow`` fail inside the block, and work as before after it.

    keras_hub uses TensorFlow wherever it finds it, at three times the import time and memory, and needs none of it
    on JAX.
    """
    names = [name for name in sys.modules if name.partition(".")[0] in ("tensorflow", "tensorflow_text")]
    loaded = {name: sys.modules.pop(name) for name in names}
    finder = _TensorFlowIsAbsent()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.modules.update(loaded)


@contextlib.contextmanager
def progress_bar_warning_hidden():
    """Keep tqdm, which keras_hub imports, from warning in every notebook that ipywidgets is not installed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        yield


def cache_folder():
    """Where compiled programs are kept between processes."""
    return Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or platformdirs.user_cache_path("optbook") / "jax")


def configure_jax():
    """Keep compiled programs between processes and float32 products in float32, unless the user has set otherwise.

    On GPUs from Ampere on, JAX's default rounds the factors of a float32 product to TF32: errors of 4e-4, not 1e-6.
    """
    import jax

    if jax.config.jax_default_matmul_precision is None:
        jax.config.update("jax_default_matmul_precision", "highest")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        untouched = jax.config.jax_persistent_cache_min_compile_time_secs == 1.0  # JAX's default
        if untouched and "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
