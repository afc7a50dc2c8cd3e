"""Weight files are read tensor by tensor, as torch and safetensors write them."""

import concurrent.futures
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import psutil
import pytest
from torch_writer import write_torch_file
from weight_files import (
    SAFETENSORS,
    TENSORS,
    TORCH,
    TORCH_FILES,
    allocating_less_than,
    assert_refused,
    assert_same,
    read,
    write,
    write_index,
    write_shards,
)

from optbook.presets.weight_files import open_checkpoint


def torch_cases():
    with np.load(TORCH_FILES / "expected.npz") as file:
        return sorted({name.split("/")[0] for name in file if "/" in name})


@pytest.mark.parametrize("case", torch_cases())
def test_real_torch_files(tmp_path, case):
    shutil.copy(TORCH_FILES / f"{case}.bin", tmp_path / TORCH)
    with np.load(TORCH_FILES / "expected.npz") as file:
        expected = {name.removeprefix(f"{case}/"): file[name] for name in file if name.startswith(f"{case}/")}
    if case == "types":
        expected["bfloat16"] = expected["bfloat16"].astype(ml_dtypes.bfloat16)
    assert_same(read(tmp_path), expected)


def test_a_torch_file_from_before_1_6(tmp_path):
    shutil.copy(TORCH_FILES / "before_torch_1_6.bin", tmp_path / TORCH)
    assert_refused(tmp_path, TORCH, "before torch 1.6; torch.save.* renews it")


@pytest.mark.parametrize("file", [TORCH, SAFETENSORS])
def test_either_kind_of_file(tmp_path, file):
    write(tmp_path / file, TENSORS)
    assert_same(read(tmp_path), TENSORS)


@pytest.mark.parametrize("file", [TORCH, SAFETENSORS])
def test_a_tensor_tells_what_it_is_before_it_is_read(tmp_path, file):
    write(tmp_path / file, TENSORS)
    with open_checkpoint(str(tmp_path)) as tensors:
        for name, array in TENSORS.items():
            tensor = tensors[name]
            assert (tensor.dtype, tensor.shape, tensor.nbytes) == (array.dtype, array.shape, array.nbytes)
            assert tensor.file == file


@pytest.mark.parametrize("case", ["views", "types"])
def test_what_is_read_lies_in_memory_of_its_own_that_jax_can_take_over(tmp_path, case):
    shutil.copy(TORCH_FILES / f"{case}.bin", tmp_path / TORCH)
    with open_checkpoint(tmp_path) as tensors:
        for tensor in tensors.values():
            first, second = tensor.read(), tensor.read()
            for array in (first, second):
                assert array.flags.c_contiguous and array.flags.writeable
                assert array.ctypes.data % 64 == 0 or not array.size
            assert not np.shares_memory(first, second)


def test_tied_tensors_are_both_there(tmp_path):
    table = TENSORS["float16"]
    write_torch_file(tmp_path / TORCH, [("table", table.shape, "float16", lambda: table)], tied={"head": "table"})
    assert_same(read(tmp_path), {"table": table, "head": table})
    assert (tmp_path / TORCH).stat().st_size < 2 * table.nbytes + 1500
    assert [path.name for path in tmp_path.iterdir()] == [TORCH]


def test_the_writer_refuses_another_shape(tmp_path):
    with pytest.raises(ValueError, match=r"table must have shape \(4, 3\), but has \(3, 4\)"):
        write_torch_file(tmp_path / TORCH, [("table", (4, 3), "float16", TENSORS["float16"])])
    assert not (tmp_path / TORCH).exists()


@pytest.mark.parametrize("file", [TORCH, SAFETENSORS])
def test_shards(tmp_path, file):
    stem, suffix = file.split(".")
    names = list(TENSORS)
    shards = {
        f"{stem}-0000{number}-of-00002.{suffix}": {name: TENSORS[name] for name in part}
        for number, part in ((1, names[:3]), (2, names[3:]))
    }
    write_shards(tmp_path, file, shards)
    assert_same(read(tmp_path), TENSORS)
    with open_checkpoint(tmp_path) as tensors:
        for shard, part in shards.items():
            assert {tensors[name].file for name in part} == {shard}


def test_which_files_come_first(tmp_path):
    """From the last to the first choice: each new one is taken before those already there."""
    write_shards(tmp_path, TORCH, {"part.bin": {"torch index": TENSORS["float32"]}})
    assert list(read(tmp_path)) == ["torch index"]
    write(tmp_path / TORCH, {"torch": TENSORS["float32"]})
    assert list(read(tmp_path)) == ["torch"]
    write_shards(tmp_path, SAFETENSORS, {"part.safetensors": {"safetensors index": TENSORS["float32"]}})
    assert list(read(tmp_path)) == ["safetensors index"]
    write(tmp_path / SAFETENSORS, {"safetensors": TENSORS["float32"]})
    assert list(read(tmp_path)) == ["safetensors"]


@pytest.mark.parametrize("file", [TORCH, SAFETENSORS])
def test_links_out_of_the_folder_as_in_hugging_faces_cache(tmp_path, file):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    part = f"part{Path(file).suffix}"
    write(blobs / part, TENSORS)
    write_index(blobs, file, dict.fromkeys(TENSORS, part))
    for name, blob in ((part, "aaaa"), (f"{file}.index.json", "bbbb")):
        (blobs / name).rename(blobs / blob)
        (snapshot / name).symlink_to(Path("..") / ".." / "blobs" / blob)
    assert_same(read(snapshot), TENSORS)
    with open_checkpoint(snapshot) as tensors:
        assert {tensor.file for tensor in tensors.values()} == {part}


def test_threads_may_read_at_once(tmp_path):
    arrays = {str(number): np.full(300_000, number, "float32") for number in range(8)}
    write(tmp_path / SAFETENSORS, arrays)
    with open_checkpoint(tmp_path) as tensors, concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert_same(dict(zip(arrays, pool.map(lambda name: tensors[name].read(), arrays))), arrays)


@pytest.mark.parametrize("file", [TORCH, SAFETENSORS])
def test_never_more_than_one_tensor_in_memory(tmp_path, file):
    megabytes = 40
    write(tmp_path / file, {str(number): np.ones((megabytes, 250_000), "float32") for number in range(4)})
    process = psutil.Process()
    before, resident = process.memory_info().rss, []
    with allocating_less_than((megabytes + 1) * 1e6), open_checkpoint(tmp_path) as tensors:
        for tensor in tensors.values():
            array = tensor.read()
            resident.append(process.memory_info().rss)
            del array
    assert max(resident) - before < (megabytes + 10) * 1e6


# What a folder may lack


def test_no_weights_at_all(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"has none of model\.safetensors, .*pytorch_model\.bin\.index\.json\.$"
    ):
        read(tmp_path)


def test_weights_of_other_libraries_only(tmp_path):
    (tmp_path / "tf_model.h5").touch()
    assert_refused(tmp_path, TORCH, r"; tf_model\.h5 cannot be read here", FileNotFoundError)
    (tmp_path / "flax_model.msgpack").touch()
    assert_refused(tmp_path, TORCH, r"; flax_model\.msgpack and tf_model\.h5 cannot be read", FileNotFoundError)


@pytest.mark.parametrize("file", [TORCH, SAFETENSORS])
def test_a_pointer_that_git_lfs_left(tmp_path, file):
    (tmp_path / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 250540281\n")
    assert_refused(tmp_path, file, "git lfs pull")


@pytest.mark.parametrize("file", [TORCH, SAFETENSORS])
def test_a_missing_shard_is_named(tmp_path, file):
    part = f"part{Path(file).suffix}"
    write_shards(tmp_path, file, {part: TENSORS})
    (tmp_path / part).unlink()
    assert_refused(tmp_path, file, f"has no '{part}'", FileNotFoundError)


def test_an_index_that_does_not_belong_to_its_shards(tmp_path):
    write(tmp_path / "part.bin", TENSORS)
    write_index(tmp_path, TORCH, {"float16": "part.bin", "other": "part.bin"})
    assert_refused(tmp_path, TORCH, "part.bin has no 'other'")


@pytest.mark.parametrize("shard", ["../part.bin", "/etc/passwd", "sub/part.bin", "..", ".", "", "part.bin/"])
def test_an_index_that_points_out_of_its_folder(tmp_path, shard):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder, folder / "sub"):
        write(place / "part.bin", TENSORS)
    write_index(folder, TORCH, {"float16": shard})
    assert_refused(folder, TORCH, "must lie in the same folder")


@pytest.mark.parametrize("shard", ["part\0.bin", "a" * 5000, "\ud800.bin"])
def test_an_index_that_names_what_no_file_can_be_called(tmp_path, shard):
    write_index(tmp_path, TORCH, {"float16": shard})
    assert_refused(tmp_path, TORCH, "has no ", FileNotFoundError)


INDICES = {
    "empty": b"",
    "not JSON": b"{weight_map",
    "not text": b"\xff\xfe\x00",
    "a list": b"[1]",
    "without a map": b'{"metadata": {}}',
    "the map is a list": b'{"weight_map": ["part.bin"]}',
    "a number for a file": b'{"weight_map": {"float16": 3}}',
    "nested without end": b"[" * 100_000,
}


@pytest.mark.parametrize("content", INDICES.values(), ids=INDICES)
def test_an_index_that_is_none(tmp_path, content):
    (tmp_path / f"{TORCH}.index.json").write_bytes(content)
    assert_refused(tmp_path, TORCH, "weight_map")
