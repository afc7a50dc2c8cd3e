"""For kernels started with IPYTHONDIR set to this folder: every loaded weight times 1 + 1e-6 of noise.

Stands in for other arithmetic (a GPU, another BLAS): outputs that survive this do not hang on the last digits.
"""

import numpy as np

from optbook import presets

_load_weights = presets.load_weights


def _load_noisy_weights(backbone, folder):
    _load_weights(backbone, folder)
    rng = np.random.default_rng()
    for weight in backbone.weights:
        noise = 1 + 1e-6 * rng.standard_normal(weight.shape)
        weight.assign(np.asarray(weight, "float32") * noise)


presets.load_weights = _load_noisy_weights
