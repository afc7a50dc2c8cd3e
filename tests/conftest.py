"""Fixtures of the unit tests: a pair of equal small OPTs, batches for them, and Hugging Face's golden arrays."""

from pathlib import Path

import numpy as np
import pytest
from small_models import INPUTS, make_golden_backbone, make_pair

# isort: split
import keras  # after optbook, which chooses the backend

GOLDEN = Path(__file__).parent / "golden" / "hf_opt.npz"


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


@pytest.fixture(scope="session")
def golden():
    """The arrays that tools/make_golden.py made."""
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="session")
def golden_backbone(golden):
    """Our backbone with Hugging Face's weights, positions counted from the left edge as KerasHub does."""
    return make_golden_backbone(golden)


@pytest.fixture(scope="session")
def golden_backbone_mask_positions(golden):
    """The same with positions that follow the padding mask."""
    return make_golden_backbone(golden, positions_from_mask=True)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from one seed, whatever ran before it."""
    keras.utils.set_random_seed(0)
