"""Writes tests/golden/torch: small files by the real ``torch.save``, and the arrays that must be read from them.

Needs torch, which this project does not:

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.13.0 numpy
    /tmp/torch/bin/python tools/make_torch_fixtures.py

Array ``FILE/TENSOR`` of expected.npz is the tensor, in float32 when it is bfloat16, which NumPy lacks.
"""

from pathlib import Path

import numpy as np
import torch

OUTPUT = Path(__file__).parents[1] / "tests" / "golden" / "torch"


def state_dicts(generator):
    def normal(*shape):
        return torch.randn(shape, generator=generator)

    table = normal(6, 4)
    long = normal(40)
    linear = torch.nn.Linear(4, 3)
    torch.nn.init.normal_(linear.weight, generator=generator)
    torch.nn.init.normal_(linear.bias, generator=generator)
    return {
        "types": {
            "float16": normal(3, 2).half(),
            "bfloat16": normal(3, 2).bfloat16(),
            "float32": normal(3, 2),
            "float64": normal(3, 2).double(),
            "int64": torch.arange(-2, 4),
            "bool": torch.tensor([True, False, True]),
        },
        "module": linear.state_dict(),  # an OrderedDict with the attribute _metadata
        "parameters": dict(linear.named_parameters()),
        "views": {
            "transposed": normal(3, 5).T,
            "permuted": normal(2, 3, 4).permute(2, 0, 1),
            "from_the_middle": long[7:19].reshape(3, 4),
            "every_third": long[1::3],
            "one_row": normal(4, 3)[2:3],
            "expanded": normal(3, 1).expand(3, 4),
            "scalar": torch.tensor(1.5),
            "empty": torch.zeros(0, 3),
        },
        "tied": {"model.decoder.embed_tokens.weight": table, "lm_head.weight": table},
    }


def main():
    dicts = state_dicts(torch.Generator().manual_seed(0))
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name, state in dicts.items():
        torch.save(state, OUTPUT / f"{name}.bin")
    torch.save(dicts["tied"], OUTPUT / "protocol_4.bin", pickle_protocol=4)
    torch.serialization.set_crc32_options(False)
    torch.save(dicts["tied"], OUTPUT / "no_checksums.bin")
    torch.save(dicts["tied"], OUTPUT / "before_torch_1_6.bin", _use_new_zipfile_serialization=False)
    dicts |= {name: dicts["tied"] for name in ("protocol_4", "no_checksums")}
    expected = {
        f"{name}/{key}": (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
        for name, state in dicts.items()
        for key, tensor in state.items()
    }
    np.savez_compressed(OUTPUT / "expected.npz", **expected, made_with=np.array(f"torch {torch.__version__}"))
    print(f"{OUTPUT}: {sum(file.stat().st_size for file in OUTPUT.iterdir()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
