"""What ``import optbook`` does to its process: no TensorFlow, the JAX backend, nothing of the user's changed.

Each case is a fresh Python. A stand-in for TensorFlow, first on the path, writes down that it was imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAKE = """
import os, pathlib
with open(os.environ["IMPORTS"], "a") as log:
    print(__name__, file=log)
__version__ = "2.20.0"
executing_eagerly = lambda: True  # what keras_hub asks for to tell a real one
"""
BAD_BACKEND = "optbook runs on Keras's JAX backend, but the backend is"


@pytest.fixture
def fake_tensorflow(tmp_path):
    for name in ("tensorflow", "tensorflow/python", "tensorflow_text"):
        (tmp_path / "fake" / name).mkdir(parents=True)
        (tmp_path / "fake" / name / "__init__.py").write_text(FAKE)
    return tmp_path


@pytest.fixture
def python(tmp_path):
    """Runs code in a fresh Python with these variables; answers what it prints last, as JSON, or its error."""

    def run(code, **variables):
        inherited = ("PATH", "HOME", "XDG_CACHE_HOME", "LD_LIBRARY_PATH")
        environment = {name: os.environ[name] for name in inherited if name in os.environ}
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "fake"), str(ROOT)]),
            "IMPORTS": str(tmp_path / "imports"),
            "KERAS_HOME": str(tmp_path / "keras"),
            "MPLBACKEND": "agg",
        }
        process = subprocess.run(
            [sys.executable, "-c", f"import json\n{code}"],
            env={**environment, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        if process.returncode:
            return process.stderr.strip().splitlines()
        return json.loads(process.stdout.splitlines()[-1])

    return run


def imported(folder):
    log = folder / "imports"
    return log.read_text().split() if log.exists() else []


def test_the_stand_in_would_be_noticed(python, fake_tensorflow):
    python("import tensorflow.python, tensorflow_text\nprint(0)")
    assert imported(fake_tensorflow) == ["tensorflow", "tensorflow.python", "tensorflow_text"]


def test_import_and_use_never_load_tensorflow_and_leave_it_importable(python, fake_tensorflow):
    found = python(
        """
import optbook, pathlib, os, sys
lm = optbook.causal_lm()
lm.preprocessor.generate_preprocess(["It is"])
optbook.record_attention(lm, "It is", layers=[0])
loaded = [name for name in sys.modules if name.startswith("tensorflow")]
logged = os.path.exists(os.environ["IMPORTS"])
import tensorflow, tensorflow_text
print(json.dumps([loaded, logged, tensorflow.__version__, type(sys.meta_path[0]).__name__]))
"""
    )
    loaded, logged, version, first_finder = found
    assert loaded == [] and logged is False
    assert version == "2.20.0"
    assert first_finder != "_TensorFlowIsAbsent"
    assert imported(fake_tensorflow) == ["tensorflow", "tensorflow_text"]


def test_tensorflow_that_was_imported_before_stays_as_it_was(python, fake_tensorflow):
    found = python(
        """
import tensorflow, tensorflow.python, sys
before = {name: module for name, module in sys.modules.items() if name.startswith("tensorflow")}
import optbook, keras_hub.src.utils.tensor_utils as tensor_utils
after = {name: module for name, module in sys.modules.items() if name.startswith("tensorflow")}
import tensorflow as again
print(json.dumps([sorted(before), before == after, again is tensorflow, tensor_utils.tf is None]))
"""
    )
    assert found == [["tensorflow", "tensorflow.python"], True, True, True]
    assert imported(fake_tensorflow) == ["tensorflow", "tensorflow.python"]


def test_importing_optbook_loads_nothing_that_takes_seconds(python):
    loaded = python("import optbook, sys\nprint(json.dumps(sorted({'keras', 'jax', 'numpy'} & set(sys.modules))))")
    assert loaded == []


def test_what_the_user_imports_himself_is_prepared_as_well(python, fake_tensorflow):
    found = python(
        """
import optbook, sys
import jax
precision = jax.config.jax_default_matmul_precision
import keras_hub
print(json.dumps([precision, type(jax.__spec__.loader).__name__, type(keras_hub.__loader__).__name__]))
"""
    )
    assert found == ["highest", "SourceFileLoader", "SourceFileLoader"]
    assert imported(fake_tensorflow) == []


def test_jax_that_was_imported_before_is_configured(python):
    assert python("import jax\nimport optbook\nprint(json.dumps(jax.config.jax_default_matmul_precision))") == "highest"


def test_public_names_are_there_when_asked_for():
    import optbook

    assert all(hasattr(optbook, name) and name in dir(optbook) for name in optbook.__all__)
    with pytest.raises(AttributeError, match="module 'optbook' has no attribute 'nothing'"):
        _ = optbook.nothing


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_a_wrong_backend_is_said_at_once(python, backend):
    error = python("import optbook", KERAS_BACKEND=backend)
    assert error[-1] == f"ImportError: {BAD_BACKEND} {backend!r}. Set KERAS_BACKEND to 'jax', or leave it unset."
    assert not any("site-packages" in line for line in error)  # before Keras is loaded


def test_keras_imported_too_late_with_another_backend(python):
    error = python(
        """
import sys, types
sys.modules["keras"] = types.SimpleNamespace(config=types.SimpleNamespace(backend=lambda: "torch"))
import optbook
"""
    )
    remedy = "Restart Python and set KERAS_BACKEND='jax' before the first import of keras."
    assert error[-1] == f"ImportError: {BAD_BACKEND} 'torch'. {remedy}"


def test_keras_with_numpy_backend_from_its_own_configuration(python, tmp_path):
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "keras.json").write_text('{"backend": "numpy"}')
    error = python("import keras\nimport optbook")
    assert error[-1].startswith(f"ImportError: {BAD_BACKEND} 'numpy'. Restart Python")


REPORT = """
import optbook, jax, os
print(json.dumps({
    "cache": jax.config.jax_compilation_cache_dir,
    "precision": jax.config.jax_default_matmul_precision,
    "minimum": jax.config.jax_persistent_cache_min_compile_time_secs,
    "backend": optbook.layers.keras.config.backend(),
    "environment": dict(os.environ),
}))
"""


def test_defaults_when_the_user_has_set_nothing(python, tmp_path):
    found = python(REPORT, XDG_CACHE_HOME=str(tmp_path / "cache"), HOME=str(tmp_path))
    assert Path(found["cache"]).is_relative_to(tmp_path) and Path(found["cache"]).name == "jax"
    assert (found["precision"], found["minimum"], found["backend"]) == ("highest", 0.0, "jax")


def test_settings_in_the_environment_are_kept(python, tmp_path):
    settings = {
        "KERAS_BACKEND": "jax",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine"),
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "7",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    found = python(REPORT, **settings)
    assert (found["cache"], found["precision"], found["minimum"]) == (str(tmp_path / "mine"), "bfloat16", 7.0)
    assert {name: found["environment"][name] for name in settings} == settings


def test_a_minimum_compile_time_without_a_cache_folder_is_kept(python, tmp_path):
    before = "import jax\njax.config.update('jax_persistent_cache_min_compile_time_secs', 5.0)\n"
    assert python(before + REPORT, XDG_CACHE_HOME=str(tmp_path))["minimum"] == 5.0


def test_settings_made_in_python_are_kept(python, tmp_path):
    before = f"""
import jax
jax.config.update("jax_compilation_cache_dir", {str(tmp_path / "mine")!r})
jax.config.update("jax_default_matmul_precision", "tensorfloat32")
"""
    found = python(before + REPORT)
    assert (found["cache"], found["precision"], found["minimum"]) == (str(tmp_path / "mine"), "tensorfloat32", 1.0)
