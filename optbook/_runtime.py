"""What must be true before Keras is imported: the JAX backend, TensorFlow out of the way, compiled programs kept."""

import contextlib
import importlib.machinery
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


def prepare_imports():
    """From now on keras_hub is loaded without TensorFlow and JAX configured, by optbook or by the user."""
    if "keras_hub" not in sys.modules:
        sys.meta_path.insert(0, _KerasHubAlone)
    configure_jax()


class _KerasHubAlone:
    """Finds keras_hub where Python does, and has it loaded by itself."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name) if name == "keras_hub" else None
        if spec is not None:
            load = spec.loader.exec_module

            def exec_module(module):
                with tensorflow_hidden(), progress_bar_warning_hidden():
                    load(module)
                logging.getLogger("absl").addFilter(_not_about_prefetching)

            spec.loader.exec_module = exec_module  # of the one loader that was made for this module
        return spec


def _not_about_prefetching(record):
    """False for grain's remark, at every `fit` of text, on how KerasHub set its threads: a user can't set them."""
    return not str(record.msg).startswith("prefetch_buffer_size")


@contextlib.contextmanager
def tensorflow_hidden():
    """Make ``import tensorflow`` fail inside the block, and work as before after it.

    keras_hub uses TensorFlow wherever it finds it, at three times the import time and memory, and needs none of it
    on JAX.
    """
    names = "tensorflow", "tensorflow_text"
    loaded = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}
    sys.modules.update(dict.fromkeys(names))  # None is Python's word for a module that must not be imported
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
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
    Variables of the environment say so to a JAX that is imported later.
    """
    minimum = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache_folder())
            os.environ.setdefault(minimum, "0")
        return
    config = sys.modules["jax"].config
    if config.jax_default_matmul_precision is None:
        config.update("jax_default_matmul_precision", "highest")
    if config.jax_compilation_cache_dir is None:
        config.update("jax_compilation_cache_dir", str(cache_folder()))
        untouched = config.jax_persistent_cache_min_compile_time_secs == 1.0  # JAX's default
        if untouched and minimum not in os.environ:
            config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
