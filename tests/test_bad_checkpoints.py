"""Damaged and malicious weight files are refused in one line, before anything runs or is allocated."""

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch_writer
from hypothesis import given, settings, strategies
from torch_writer import Call, Global, storage, view
from weight_files import (
    SAFETENSORS,
    TORCH,
    TORCH_FILES,
    allocating_less_than,
    assert_refused,
    assert_same,
    read,
    write,
)

from optbook.presets.weight_files import open_checkpoint


def pickled(value):
    return torch_writer.dump(value)


def zipped(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def write_state(path, value, numbers=12):
    """A torch file whose pickle is given, with one storage of some float32 numbers."""
    data_pkl = value if isinstance(value, bytes) else pickled(value)
    zipped(path, {"a/data.pkl": data_pkl, "a/data/0": np.arange(numbers, dtype="float32").tobytes()})


def floats(offset=0, shape=(3, 4), strides=(4, 1), size=12, key="0"):
    return {"w": view(storage(key, "float32", size), offset, shape, strides)}


def test_the_bad_files_below_are_bad_for_one_reason_only(tmp_path):
    write_state(tmp_path / TORCH, floats())
    assert_same(read(tmp_path), {"w": np.arange(12, dtype="float32").reshape(3, 4)})


def nested(levels=60):
    """A tuple of two of a tuple of two …, which only its memo keeps small: following it takes 2 ** levels steps."""
    return b")q\x00" + b"h\x00\x86q\x00" * levels


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
PARAMETER = Global("torch._utils", "_rebuild_parameter")
FLOATS = storage("0", "float32", 12)
STATES = {
    "reads past the storage": (floats(shape=(4, 4)), "'w' reaches beyond its storage, which has 12 numbers"),
    "starts near the end": (floats(offset=1), "beyond its storage"),
    "steps past the storage": (floats(strides=(5, 1)), "beyond its storage"),
    "the storage has less than it says": (floats(shape=(5, 5), strides=(5, 1), size=25), "storage, which has 12"),
    "the storage says less than it has": (floats(size=11), "storage, which has 11"),
    "repeats a number without end": (floats(shape=(2**40, 4), strides=(0, 1)), "larger than the whole file"),
    "an exabyte": (floats(shape=(2**60,), strides=(1,)), "larger than the whole file"),
    "nothing of a size without end": (floats(shape=(2**70, 0)), "larger than the whole file"),
    "a size of 600 digits": (floats(shape=(2**2000, 2**2000), strides=(0, 0)), "larger than the whole file"),
    "an offset of 600 digits": (floats(offset=2**2000), "beyond its storage"),
    "a stride of 600 digits": (floats(strides=(2**2000, 1)), "beyond its storage"),
    "65 axes": (floats(shape=(1,) * 65, strides=(1,) * 65), "65 axes"),
    "a negative offset": (floats(offset=-1), "negative"),
    "a negative size": (floats(shape=(-3, -4)), "negative"),
    "a negative stride": (floats(strides=(-4, 1)), "negative"),
    "a stride missing": (floats(strides=(1,)), "negative or missing"),
    "True for a size": (floats(shape=(True, 4)), "negative or missing"),
    "a text for a shape": (floats(shape=("3", "4")), "negative or missing"),
    "no storage": (floats(key="1"), "'w' lies in the storage '1', which is missing"),
    "a storage elsewhere": (floats(key="../data/0"), "which is missing"),
    "a negative storage": (floats(size=-1), "storage, which has -1"),
    "no reference": ({"w": view("0", 0, (3,), (1,))}, "damaged"),
    "another reference": ({"w": view(torch_writer.Reference(("module", 1)), 0, (3,), (1,))}, "damaged"),
    "a parameter of nothing": ({"w": Call(PARAMETER, ("0", True, ()))}, "'w' is not a tensor"),
    "too few arguments": ({"w": Call(REBUILD, (FLOATS,))}, "damaged"),
    "calls a type": ({"w": Call(Global("torch", "FloatStorage"), ("0",))}, "damaged"),
    "fills a dict": ({"w": Call(Global("collections", "OrderedDict"), ((("a", 1),),))}, "damaged"),
    "a number in place of a tensor": ({"w": 3}, "'w' is not a tensor"),
    "a dict of dicts": ({"model": floats()}, "'model' is not a tensor"),
    "no dict": (floats()["w"], "something else than a dict"),
    "a number for a name": ({3: floats()["w"]}, "damaged"),
    "a list": (pickle.dumps([1]), "more than tensors .EMPTY_LIST"),
    "nothing": (b"", "data.pkl is damaged"),
    "text that is none": (b"\x80\x02X\x01\x00\x00\x00\xff.", "data.pkl is damaged"),
    "no end": (pickled(floats())[:-1], "STOP"),
    "the end at once": (b"\x80\x02.", "damaged"),
    "a mark too few": (b"\x80\x02t.", "damaged"),
    "what was never kept": (b"\x80\x02h\x07.", "damaged"),
    "no such operation": (b"\x80\x02\xff.", "data.pkl is damaged.*unknown"),
    "a text longer than the file": (b"\x80\x02X\xff\xff\xff\x7f.", "remain"),
    "a longer one": (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".", "remain"),
    "bytes of a terabyte": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".", "remain"),
    "bytes of 4 GB": (b"\x80\x02B\xff\xff\xff\xff.", "remain"),
    "a number of 2 GB": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "not enough data"),
    "a tuple without end as a name": (b"\x80\x02}" + nested() + b"Ns.", "damaged"),
    "a tuple without end as a tensor": (b"\x80\x02}X\x01\x00\x00\x00w" + nested() + b"s.", "'w' is not a tensor"),
    "a tuple without end as a storage": (b"\x80\x02" + nested() + b"Q.", "damaged"),
}


@pytest.mark.parametrize("state, message", STATES.values(), ids=STATES)
def test_a_pickle_that_is_no_state_dict(tmp_path, state, message):
    write_state(tmp_path / TORCH, state)
    with allocating_less_than(3_000_000):
        assert_refused(tmp_path, TORCH, message)


def test_a_memo_number_takes_no_memory(tmp_path):
    content = pickled(floats())
    write_state(tmp_path / TORCH, content[:-1] + b"r\xff\xff\xff\xff" + content[-1:])
    with allocating_less_than(3_000_000):
        assert sorted(read(tmp_path)) == ["w"]


class Payload:
    """What runs when Python's own unpickler meets it."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function, name", [(os.mkdir, r"posix\.mkdir"), (eval, r"__builtin__\.eval|builtins\.eval")])
def test_a_foreign_function_is_named_and_not_called(tmp_path, monkeypatch, protocol, function, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    argument = "made" if function is os.mkdir else "__import__('os').mkdir('made')"
    content = pickle.dumps(Payload(function, argument), protocol)
    write_state(folder / TORCH, content)
    assert_refused(folder, TORCH, name)
    assert not os.path.exists("made")
    pickle.loads(content)
    assert os.path.exists("made")  # so the file would have done it


def test_a_foreign_class_of_the_oldest_kind_is_named(tmp_path):
    write_state(tmp_path / TORCH, b"(ios\nsystem\n.")
    assert_refused(tmp_path, TORCH, "INST 'os system'")


def torch_file(**changes):
    """The bytes of a good file, with entries replaced, added or (None) left out."""
    entries = {
        "data.pkl": pickled(floats()),
        "byteorder": b"little",
        "version": b"3\n",
        "data/0": np.arange(12, dtype="float32").tobytes(),
    } | changes
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, value in entries.items():
            if value is not None:
                archive.writestr(f"a/{name}", value)
    return content.getvalue()


def patched(content, entry, *fields):
    """The same with fields of one entry's line in the zip's directory set: (offset in the line, format, value)."""
    content = bytearray(content)
    start = content.rindex(b"PK\x01\x02", 0, content.rindex(entry))
    for offset, kind, value in fields:
        struct.pack_into(kind, content, start + offset, value)
    return bytes(content)


def compressed(content):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    return out.getvalue()


GOOD = torch_file()
FILES = {
    "empty": (b"", "not a file that torch.save wrote"),
    "a web page": (b"<!DOCTYPE html>", "not a file that torch.save wrote"),
    "a pickle": (pickle.dumps({"w": 3}), "before torch 1.6"),
    "half of it": (GOOD[: len(GOOD) // 2], "damaged or cut short"),
    "without its last byte": (GOOD[:-1], "damaged or cut short"),
    "a zip of something else": (torch_file(**{"data.pkl": None}), "writes one data.pkl, and this has 0"),
    "two in one": (torch_file(**{"b/data.pkl": b""}), "writes one data.pkl, and this has 2"),
    "another machine's numbers": (torch_file(byteorder=b"big"), "not little-endian"),
    "a huge pickle": (torch_file(**{"data.pkl": b"N" * 1_000_001}), "data.pkl' has 1000001 bytes"),
    "a storage of fewer bytes": (torch_file(**{"data/0": bytes(47)}), "'w' reaches beyond its storage, which has 11"),
    "no storage": (torch_file(**{"data/0": None}), "which is missing"),
    "compressed": (compressed(GOOD), "is compressed or encrypted"),
    "compressed, says one entry": (patched(GOOD, b"a/data/0", (10, "<H", 8)), "'a/data/0' is compressed"),
    "encrypted, says one entry": (patched(GOOD, b"a/data/0", (8, "<H", 1)), "'a/data/0' is compressed or encrypted"),
    "two sizes": (patched(GOOD, b"a/data/0", (24, "<I", 2**31)), "'a/data/0' is compressed"),
    "a storage of 2 GB": (
        patched(GOOD, b"a/data/0", (20, "<I", 2**31), (24, "<I", 2**31)),
        "'a/data/0' reaches beyond its end",
    ),
    "a pickle of 2 GB": (
        patched(GOOD, b"a/data.pkl", (20, "<I", 2**31), (24, "<I", 2**31)),
        "'a/data.pkl' reaches beyond its end",
    ),
    "an entry behind the end": (patched(GOOD, b"a/data/0", (42, "<I", 2**31)), "'a/data/0' reaches beyond its end"),
    "an entry elsewhere": (patched(GOOD, b"a/data/0", (42, "<I", 7)), "damaged where 'a/data/0' should start"),
    "another checksum": (patched(GOOD, b"a/data/0", (16, "<I", 7)), "does not have its checksum"),
    "another checksum of the pickle": (patched(GOOD, b"a/data.pkl", (16, "<I", 7)), "does not have its checksum"),
}


@pytest.mark.parametrize("content, message", FILES.values(), ids=FILES)
def test_a_file_that_is_no_torch_file(tmp_path, content, message):
    (tmp_path / TORCH).write_bytes(content)
    with allocating_less_than(3_000_000):
        assert_refused(tmp_path, TORCH, message)


def safetensors_file(header, numbers=12, length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(header) if length is None else length
    return struct.pack("<Q", length) + header + np.arange(numbers, dtype="float32").tobytes()


def described(shape=(3, 4), dtype="F32", data_offsets=(0, 48)):
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


SAFETENSORS_FILES = {
    "empty": b"",
    "four bytes": b"\0\0\0\0",
    "a web page": b"<!DOCTYPE html>",
    "the header goes on": safetensors_file({"w": described()}, length=2**20),
    "the header goes on for exabytes": safetensors_file({"w": described()}, length=2**63 + 1),
    "no JSON": safetensors_file(b"{w: 3}"),
    "cut short": safetensors_file({"w": described()})[:-1],
    "too long": safetensors_file({"w": described()}, numbers=13),
    "another type": safetensors_file({"w": described(dtype="F8_E4M3", data_offsets=(0, 12))}, numbers=3),
    "a shape that needs more": safetensors_file({"w": described(shape=(4, 4))}),
    "a shape beyond all numbers": safetensors_file({"w": described(shape=(2**40, 2**40))}),
    "nothing of a size without end": safetensors_file(
        {"w": described(shape=(2**63, 0), data_offsets=(0, 0))}, numbers=0
    ),
    "a negative size": safetensors_file({"w": described(shape=(-3, -4))}),
    "65 axes": safetensors_file({"w": described(shape=(1,) * 64 + (12,))}),
    "one beyond the end": safetensors_file({"w": described(), "v": described(data_offsets=(48, 96))}),
    "overlapping": safetensors_file({"w": described(), "v": described(data_offsets=(24, 72))}, numbers=18),
    "both in one place": safetensors_file({"w": described(), "v": described()}),
    "a hole": safetensors_file({"w": described(), "v": described(data_offsets=(52, 100))}, numbers=25),
    "a hole at the start": safetensors_file({"w": described(data_offsets=(4, 52))}, numbers=13),
}


def test_the_bad_files_below_are_bad_for_one_reason_only_too(tmp_path):
    (tmp_path / SAFETENSORS).write_bytes(safetensors_file({"w": described()}))
    assert_same(read(tmp_path), {"w": np.arange(12, dtype="float32").reshape(3, 4)})


@pytest.mark.parametrize("content", SAFETENSORS_FILES.values(), ids=SAFETENSORS_FILES)
def test_a_file_that_is_no_safetensors_file(tmp_path, content):
    (tmp_path / SAFETENSORS).write_bytes(content)
    assert_refused(tmp_path, SAFETENSORS, "cannot be read: ")


def test_a_file_that_is_cut_while_it_is_open(tmp_path):
    write(tmp_path / SAFETENSORS, {"w": np.zeros(100_000, "float32")})
    with open_checkpoint(tmp_path) as tensors:
        os.truncate(tmp_path / SAFETENSORS, 300_000)
        with pytest.raises(ValueError, match=r"safetensors is cut short: 1\d{5} bytes are missing"):
            tensors["w"].read()


# Any damage at all


@strategies.composite
def damaged(draw, content):
    """A few bytes set, taken out or put in, or the end cut off."""
    content = bytearray(content)
    for _ in range(draw(strategies.integers(1, 3))):
        position = draw(strategies.integers(0, max(len(content) - 1, 0)))
        match draw(strategies.sampled_from(["set", "remove", "insert", "cut"])):
            case "set":
                content[position : position + 1] = draw(strategies.binary(min_size=1, max_size=1))
            case "remove":
                del content[position : position + draw(strategies.integers(1, 8))]
            case "insert":
                content[position:position] = draw(strategies.binary(min_size=1, max_size=8))
            case "cut":
                del content[position:]
    return bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where each example overwrites the one before."""
    folder = tmp_path_factory.mktemp("damaged")
    for name in ("torch", "safetensors"):
        (folder / name).mkdir()
    return folder


def read_damaged(path, content):
    """What a damaged file gives or None if it is refused, as it must be: in one line and without much memory."""
    path.write_bytes(content)
    with allocating_less_than(1_000_000):
        try:
            return read(path.parent)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 600


UNCHECKED = (TORCH_FILES / "no_checksums.bin").read_bytes()
with zipfile.ZipFile(TORCH_FILES / "views.bin") as views:
    VIEWS = views.read("views/data.pkl")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(content=damaged(UNCHECKED))
def test_any_damage_to_a_torch_file(folder, content):
    read_damaged(folder / "torch" / TORCH, content)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data_pkl=damaged(VIEWS))
def test_any_damage_to_a_pickle(folder, data_pkl):
    file = folder / "torch" / TORCH
    write_state(file, data_pkl, numbers=40)
    read_damaged(file, file.read_bytes())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(content=damaged(safetensors_file({"w": described(), "v": described((2, 2), data_offsets=(48, 64))}, numbers=16)))
def test_any_damage_to_a_safetensors_file(folder, content):
    """What is read all the same is what the library reads."""
    found = read_damaged(folder / "safetensors" / SAFETENSORS, content)
    if found is not None:
        assert_same(found, safetensors.numpy.load(content))
