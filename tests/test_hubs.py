"""Downloading presets: what is asked for, what is kept, and how each way to fail is told.

The real clients of Kaggle and Hugging Face run in Pythons of their own and talk to stand-ins on a loopback port.
"""

import json
import shutil
from pathlib import Path

import pytest
from hub_stand_in import StandIn, Worker, closed_port

from optbook.presets import ASSETS, hubs

CONFIG = json.dumps({"registered_name": "keras_hub>OPTBackbone", "config": {}}).encode()
TOKENIZER = {"assets/tokenizer/vocabulary.json": b"{}", "assets/tokenizer/merges.txt": b"#", "tokenizer.json": b"{}"}
NOT_NEEDED = {"task.json": b"{}", "preprocessor.json": b"{}", "metadata.json": b"{}", "README.md": b"x"}
SINGLE = {"config.json": CONFIG, **TOKENIZER, **NOT_NEEDED, "model.weights.h5": b"weights" * 1000}
SHARDS = {"model_00000.weights.h5": b"first", "model_00001.weights.h5": b"second", "model_00002.weights.h5": b"third"}
SHARDED = {
    **{"config.json": CONFIG, **TOKENIZER, **NOT_NEEDED, **SHARDS},
    "model.weights.json": json.dumps(
        {"weight_map": {"/a/vars": "model_00000.weights.h5", "/b/vars": list(SHARDS)[1:]}}
    ).encode(),
}
TRANSFORMERS = {
    "config.json": b'{"model_type": "opt"}',
    "vocab.json": b"{}",
    "merges.txt": b"#",
    "flax_model.msgpack": b"flax",
    "tf_model.h5": b"tensorflow",
    "generation_config.json": b"{}",
    "pytorch_model.bin": b"pickle",
}
SAFE = {**TRANSFORMERS, "model.safetensors": b"safe", "tokenizer.json": b"{}"}
BIN_SHARDS = {"pytorch_model-00001-of-00002.bin": b"first", "pytorch_model-00002-of-00002.bin": b"second"}
BIN_SHARDED = {
    **{name: content for name, content in TRANSFORMERS.items() if name != "pytorch_model.bin"},
    **BIN_SHARDS,
    "pytorch_model.bin.index.json": json.dumps({"weight_map": dict(zip("ab", BIN_SHARDS))}).encode(),
}
HUBS = ["kaggle", "hf"]


@pytest.fixture(scope="module")
def stand_in():
    with StandIn().running() as server:
        yield server


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """The folder of both caches, one for all workers; each test has presets of its own."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module")
def client(stand_in, caches):
    """A Python connected to the stand-ins."""
    url = f"http://127.0.0.1:{stand_in.server_port}"
    worker = Worker(caches, HF_ENDPOINT=url, HTTP_PROXY=url)
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def no_network(caches):
    """A Python whose connections are refused."""
    url = f"http://127.0.0.1:{closed_port()}"
    worker = Worker(caches, HF_ENDPOINT=url, HTTP_PROXY=url)
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def no_names(caches):
    """A Python in whose network no name is known, and which Hugging Face's variable takes offline."""
    worker = Worker(caches, HF_ENDPOINT="http://hub.invalid", HTTP_PROXY="http://proxy.invalid:3128")
    yield worker
    worker.close()


@pytest.fixture
def publish(stand_in, request):
    """Puts files on a stand-in, under a handle that no other test uses; answers the preset's handle."""

    def publish(hub, files, fault=None):
        handle = f"owner/{''.join(c if c.isalnum() else '_' for c in request.node.name)}"
        if hub == "kaggle":
            handle = f"{handle}/keras/small_en/3"
        stand_in.repositories[handle] = files
        if fault:
            stand_in.faults[handle] = fault
        return f"{hub}://{handle}"

    return publish


def names_in(folder):
    """The files of a preset folder."""
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def handle_of(preset):
    return preset.split("://")[1]


def assert_unavailable(reply, reason, *words):
    assert (reply.get("error"), reply.get("reason")) == ("PresetUnavailable", reason), reply
    assert "\n" not in reply["message"]
    for word in words:
        assert word in reply["message"]


# What is downloaded


@pytest.mark.parametrize(
    "files, extra", [(SINGLE, ["model.weights.h5"]), (SHARDED, ["model.weights.json", *SHARDS])], ids=["one", "shards"]
)
@pytest.mark.parametrize("hub", HUBS)
def test_a_folder_of_keras_hub(hub, files, extra, publish, stand_in, client):
    preset = publish(hub, files)
    needed = {"config.json", *TOKENIZER, *extra}
    reply = client.download(preset)
    assert names_in(reply["result"]) == needed
    for name in needed:
        assert (Path(reply["result"]) / name).read_bytes() == files[name]
    # Kaggle is asked for files only, and for the index to learn whether there are shards.
    besides = {"model.weights.json"} if hub == "kaggle" else {"*"}
    assert set(stand_in.asked(handle_of(preset))) == needed | besides
    assert len(stand_in.asked(handle_of(preset))) == len(needed | besides)

    stand_in.log.clear()
    assert client.download(preset)["result"] == reply["result"]
    assert stand_in.log == []


@pytest.mark.parametrize(
    "files, needed",
    [
        (SAFE, {"vocab.json", "merges.txt", "tokenizer.json", "model.safetensors"}),
        (TRANSFORMERS, {"vocab.json", "merges.txt", "pytorch_model.bin"}),
        (BIN_SHARDED, {"vocab.json", "merges.txt", "pytorch_model.bin.index.json", *BIN_SHARDS}),
        (
            {name: content for name, content in SAFE.items() if name not in ("vocab.json", "merges.txt")},
            {"tokenizer.json", "model.safetensors"},
        ),
    ],
    ids=["safetensors", "bin", "bin in shards", "tokenizer.json"],
)
def test_a_folder_of_transformers(files, needed, publish, stand_in, client):
    preset = publish("hf", files)
    reply = client.download(preset)
    assert names_in(reply["result"]) == needed | {"config.json"}
    assert set(stand_in.asked(handle_of(preset))) == needed | {"config.json", "*"}

    stand_in.log.clear()
    assert client.download(preset)["result"] == reply["result"]
    assert stand_in.log == []


@pytest.mark.parametrize("hub", HUBS)
def test_without_weights_and_then_with_them(hub, publish, stand_in, client):
    preset = publish(hub, SINGLE)
    reply = client.download(preset, weights=False)
    assert names_in(reply["result"]) == {"config.json", *TOKENIZER}
    assert not any("weights" in name for name in stand_in.asked(handle_of(preset)))

    stand_in.log.clear()
    assert client.download(preset, weights=False, tokenizer=True)["result"] == reply["result"]
    assert stand_in.log == []

    assert names_in(client.download(preset)["result"]) == {"config.json", *TOKENIZER, "model.weights.h5"}
    assert not set(stand_in.asked(handle_of(preset))) & set(TOKENIZER)


@pytest.mark.parametrize("hub", HUBS)
def test_a_tokenizer_is_missed_only_when_asked_for(hub, publish, stand_in, client):
    preset = publish(hub, {name: SINGLE[name] for name in ("config.json", "model.weights.h5")})
    assert names_in(client.download(preset)["result"]) == {"config.json", "model.weights.h5"}
    stand_in.log.clear()
    assert "result" in client.download(preset)
    assert stand_in.log == []
    reply = client.download(preset, weights=False, tokenizer=True)
    assert_unavailable(reply, "not found", "it has no assets/tokenizer/vocabulary.json")

    stand_in.repositories[handle_of(preset)] = SINGLE
    assert names_in(client.download(preset, tokenizer=True)["result"]) >= set(TOKENIZER)


@pytest.mark.parametrize("hub", HUBS)
def test_another_model_is_left_to_whoever_reads_the_config(hub, publish, client):
    preset = publish(hub, {**SINGLE, "config.json": b'{"model_type": "gpt2"}'})
    assert names_in(client.download(preset)["result"]) == {"config.json"}
    reply = client(f"optbook.OPTBackbone.from_preset({preset!r})")
    assert "gpt2" in reply["message"] and "not an OPT" in reply["message"]


@pytest.mark.parametrize("hub", HUBS)
def test_a_real_preset_is_downloaded_and_loaded(hub, publish, client):
    source = ASSETS / "optbook_700k_en"
    preset = publish(hub, {name: (source / name).read_bytes() for name in names_in(source)})
    reply = client(f"optbook.OPTBackbone.from_preset({preset!r}).count_params()")
    assert reply.get("result") == client("optbook.OPTBackbone.from_preset('optbook_700k_en').count_params()")["result"]
    assert client(f"optbook.tokenizer({preset!r})('I like you.')") | {"seconds": 0} == client(
        "optbook.tokenizer()('I like you.')"
    ) | {"seconds": 0}


def test_a_built_in_name_means_its_kaggle_handle(stand_in, client):
    stand_in.repositories["keras/opt/keras/opt_125m_en/3"] = SINGLE
    reply = client.download("opt_125m_en")
    assert reply["result"].endswith("models/keras/opt/keras/opt_125m_en/3")


def test_a_handle_without_a_version_means_the_newest(publish, stand_in, client, no_network, caches):
    preset = publish("kaggle", SINGLE)
    model = handle_of(preset).removesuffix("/3")
    newest = client.download(f"kaggle://{model}")["result"]
    assert newest.endswith("/3")
    assert stand_in.asked(model) == ["*"]  # one version for all files
    assert no_network.download(f"kaggle://{model}")["result"] == newest

    stand_in.repositories[f"{model}/10"] = SINGLE
    assert client.download(f"kaggle://{model}", weights=False)["result"].endswith("/10")
    assert no_network.download(f"kaggle://{model}")["result"] == newest  # 10 has no weights yet
    newest = client.download(f"kaggle://{model}")["result"]
    assert newest.endswith("/10")
    stand_in.log.clear()
    assert client.download(f"kaggle://{model}")["result"] == newest
    assert stand_in.log == [(model, "*")]  # Kaggle decides each time, and has nothing new
    assert no_network.download(f"kaggle://{model}")["result"] == newest


# Caches


@pytest.mark.parametrize("hub", HUBS)
def test_a_cache_that_keras_hub_filled(hub, publish, client, no_network):
    source = ASSETS / "optbook_700k_en"
    preset = publish(hub, {name: (source / name).read_bytes() for name in names_in(source)})
    reply = client(f"keras_hub.models.OPTBackbone.from_preset({preset!r})")
    assert "error" not in reply, reply
    reply = no_network.download(preset)
    assert names_in(reply["result"]) >= {"config.json", "model.weights.h5"}


def test_a_cache_that_was_filled_with_the_whole_of_a_kaggle_version(caches, no_network):
    folder = caches / "kagglehub" / "models" / "owner" / "whole" / "keras" / "small_en"
    for name, content in SINGLE.items():
        (folder / "1" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "1" / name).write_bytes(content)
    assert_unavailable(no_network.download("kaggle://owner/whole/keras/small_en/1"), "no network")
    (folder / "1.complete").touch()
    assert no_network.download("kaggle://owner/whole/keras/small_en/1")["result"] == str(folder / "1")


@pytest.mark.parametrize("hub", HUBS)
def test_a_cache_that_was_copied(hub, publish, client, no_network, caches):
    preset = publish(hub, SHARDED)
    folder = Path(client.download(preset)["result"])
    root = folder.parent if hub == "kaggle" else folder.parent.parent
    shutil.copytree(root, caches / "elsewhere", symlinks=True)
    shutil.rmtree(root)
    assert_unavailable(no_network.download(preset), "no network", str(root), "lacks config.json")
    shutil.move(caches / "elsewhere", root)
    assert no_network.download(preset)["result"] == str(folder)


def test_a_file_without_its_marker_is_not_complete(publish, stand_in, client, no_network):
    preset = publish("kaggle", SHARDED)
    folder = Path(client.download(preset)["result"])
    (folder.parent / ".complete" / "3" / "model_00001.weights.h5.complete").unlink()
    assert_unavailable(no_network.download(preset), "no network", "lacks model_00001.weights.h5")
    assert no_network.download(preset, weights=False)["result"] == str(folder)
    stand_in.log.clear()
    client.download(preset)
    assert stand_in.asked(handle_of(preset)) == ["model_00001.weights.h5"]


def test_a_marker_without_its_file_is_not_complete(publish, client, no_network):
    preset = publish("kaggle", SINGLE)
    folder = Path(client.download(preset)["result"])
    (folder / "model.weights.h5").unlink()
    assert_unavailable(no_network.download(preset), "no network", "lacks model.weights.h5")


@pytest.mark.parametrize("hub", HUBS)
def test_an_interrupted_download_is_not_complete(hub, publish, stand_in, client, no_network):
    preset = publish(hub, SINGLE, "half")
    stand_in.half_sent.clear()
    client.send(f"hubs.download({preset!r})")
    assert stand_in.half_sent.wait(timeout=60)
    client.interrupt()
    assert client.reply()["error"] == "KeyboardInterrupt"
    assert_unavailable(no_network.download(preset), "no network", "lacks model.weights.h5")

    del stand_in.faults[handle_of(preset)]
    stand_in.log.clear()
    folder = Path(client.download(preset)["result"])
    assert (folder / "model.weights.h5").read_bytes() == SINGLE["model.weights.h5"]
    assert not set(stand_in.asked(handle_of(preset))) & {"config.json", *TOKENIZER}  # these had arrived


def test_two_processes_at_once_ask_once(publish, stand_in, client, caches):
    preset = publish("kaggle", SHARDED, "slow")
    second = Worker(caches, HTTP_PROXY=f"http://127.0.0.1:{stand_in.server_port}")
    for worker in (client, second):
        worker.send(f"hubs.download({preset!r})")
    folders = {worker.reply()["result"] for worker in (client, second)}
    second.close()
    assert len(folders) == 1
    found = [name for name in stand_in.asked(handle_of(preset)) if name in SHARDED]
    assert sorted(found) == sorted(set(found))


# Each way to fail


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk(publish, client, caches):
    preset = publish("kaggle", SINGLE)
    folder = Path(client.download(preset, weights=False)["result"])
    (folder / "model.weights.h5").symlink_to("/dev/full")
    assert_unavailable(client.download(preset), "disk full", "Make room", "KAGGLEHUB_CACHE", str(folder.parent))


@pytest.mark.parametrize("hub", HUBS)
@pytest.mark.parametrize("network", ["no_network", "no_names"])
def test_no_network_is_answered_within_two_seconds(hub, network, publish, request):
    preset = publish(hub, SINGLE)
    reply = request.getfixturevalue(network).download(preset)
    assert_unavailable(
        reply,
        "no network",
        "cannot be reached",
        "lacks config.json",
        "copy",
        "local preset folder",
        "load_weights=False",
        "optbook_700k_en",
    )
    assert reply["seconds"] < 2


@pytest.mark.parametrize("hub", HUBS)
def test_a_silent_server_is_a_time_out(hub, publish, client):
    preset = publish(hub, SINGLE, "silent")
    assert_unavailable(client.download(preset, answer_seconds=1), "time-out", "Try again later", "load_weights=False")


def test_kaggle_falling_silent_midway_is_a_time_out(publish, client):
    reply = client.download(publish("kaggle", SINGLE, "half"), answer_seconds=1)
    assert_unavailable(reply, "time-out", "Try again later", "lacks model.weights.h5")


def test_nothing_of_another_library_is_replaced_while_kaggle_answers(publish, stand_in, client):
    look = "repr(vars(hubs.requests.Session)['send'])"
    before = client(look)["result"]
    stand_in.half_sent.clear()
    start = "__import__('threading').Thread(target=hubs.download, args=[{!r}], daemon=True).start()"
    client(start.format(publish("kaggle", SINGLE, "half")))
    assert stand_in.half_sent.wait(timeout=60)
    assert client(look)["result"] == before


def test_a_silent_server_leaves_the_newest_cached_version(publish, stand_in, client):
    preset = publish("kaggle", SINGLE)
    folder = client.download(preset)["result"]
    model = handle_of(preset).removesuffix("/3")
    stand_in.faults[model] = "silent"
    assert client.download(f"kaggle://{model}", answer_seconds=1)["result"] == folder


@pytest.mark.parametrize("hub", HUBS)
def test_a_server_that_says_no(hub, publish, client):
    for status, reason, word in [
        (401, "not authorized", "KAGGLE_API_TOKEN" if hub == "kaggle" else "HF_TOKEN"),
        (403, "forbidden", "terms"),
        (404, "not found", "Look at http"),
        (500, "hub error", "500"),
    ]:
        preset = publish(hub, SINGLE, (status, {}))
        assert_unavailable(client.download(preset), reason, word)


@pytest.mark.parametrize("hub", HUBS)
def test_a_preset_that_is_not_there(hub, client):
    preset = "kaggle://owner/nothing/keras/small_en" if hub == "kaggle" else "hf://owner/nothing"
    assert_unavailable(client.download(preset), "not found", "there is no such preset")


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("code, reason", [("GatedRepo", "gated"), ("RepoNotFound", "not found")])
def test_hugging_face_tells_by_its_own_code(status, code, reason, publish, client):
    preset = publish("hf", SINGLE, (status, {"X-Error-Code": code}, "of the files only"))
    assert_unavailable(client.download(preset), reason, "/owner/", "hf auth login")


@pytest.mark.parametrize("hub", HUBS)
@pytest.mark.parametrize("gone", ["config.json", "model.weights.h5"])
def test_a_preset_without_a_needed_file(hub, gone, publish, client):
    preset = publish(hub, {name: content for name, content in SINGLE.items() if name != gone})
    assert_unavailable(client.download(preset), "not found")


@pytest.mark.parametrize("hub", HUBS)
def test_an_index_that_names_files_elsewhere(hub, publish, client):
    index = json.dumps({"weight_map": {"/a/vars": "../../outside"}}).encode()
    reply = client.download(publish(hub, {**SHARDED, "model.weights.json": index}))
    assert reply["error"] == "ValueError"
    assert "'../../outside' is not the name of a file beside it" in reply["message"]


def test_hugging_face_offline_by_variable(publish, client, caches):
    preset = publish("hf", SINGLE)
    worker = Worker(caches, HF_HUB_OFFLINE="1")
    assert_unavailable(worker.download(preset), "offline variable", "HF_HUB_OFFLINE", "Unset it")
    folder = client.download(preset)["result"]
    assert worker.download(preset)["result"] == folder
    worker.close()


@pytest.mark.parametrize(
    "handle, form",
    [
        ("hf://opt-125m", "hf://owner/name"),
        ("hf://a/b/c", "hf://owner/name"),
        ("hf://", "hf://owner/name"),
        ("kaggle://keras/opt", "kaggle://owner/model/keras/variation[/version]"),
        ("kaggle://keras/opt/keras/opt_125m_en/latest", "kaggle://owner/model/keras/variation[/version]"),
        ("kaggle://keras/opt/jax/opt_125m_en", "kaggle://owner/model/keras/variation[/version]"),
    ],
)
def test_a_malformed_handle(handle, form):
    with pytest.raises(ValueError) as raised:
        hubs.download(handle)
    assert str(raised.value) == f"{handle} is not a handle: the form is {form}."


def test_what_is_a_handle():
    assert all(map(hubs.is_handle, ["opt_125m_en", "kaggle://a/b/keras/c", "hf://a/b", "hf://malformed"]))
    assert not any(map(hubs.is_handle, ["optbook_700k_en", "opt_1t_en", "some/folder", Path("folder"), "gs://a/b"]))
