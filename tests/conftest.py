"""Fixtures of the unit tests: a pair of equal small OPTs, batches for them, and Hugging Face's golden arrays."""

from pathlib import Path

import numpy as np
import pytest
from small_models import INPUTS, make_pair, write_golden_folder

# isort: split
import keras  # after optbook, which chooses the backend

import optbook

GOLDEN = Path(__file__).parent / "golden"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Pictures are always compared with tests/baseline, as if ``--mpl`` had been given."""
    config.option.mpl = True


@pytest.fixture(scope="session", params=[0.1, 0.0], ids=["dropout", "no dropout"])
def pair(request):
    """(KerasHub's backbone, ours), the same random float32 weights in both. Read only.

    With a dropout rate KerasHub computes attention step by step, as we do; without, in one fused operation.
    """
    return make_pair(dropout=request.param)


@pytest.fixture(scope="session")
def backbone():
    """Ours alone. Read only."""
    return make_pair()[1]


@pytest.fixture(params=list(INPUTS))
def inputs(request):
    """Token ids and mask: unpadded, then padded on the right, then on the left."""
    return INPUTS[request.param]


@pytest.fixture(scope="session", params=["hf_opt", "hf_opt_350m"])
def golden(request):
    """The arrays that tools/make_golden.py made: an OPT as most sizes are, then one built like OPT-350m."""
    with np.load(GOLDEN / f"{request.param}.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def golden_folder(golden, tmp_path_factory):
    """The golden model as Hugging Face would save it."""
    return write_golden_folder(golden, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def golden_backbone(golden_folder):
    """Our backbone with Hugging Face's weights, positions counted from the left edge as KerasHub does."""
    return optbook.OPTBackbone.from_preset(golden_folder)


@pytest.fixture(scope="session")
def golden_backbone_mask_positions(golden_folder):
    """The same with positions that follow the padding mask."""
    return optbook.OPTBackbone.from_preset(golden_folder, positions_from_mask=True)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from one seed, whatever ran before it."""
    keras.utils.set_random_seed(0)
