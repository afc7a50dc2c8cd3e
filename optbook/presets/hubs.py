"""From the handle of a published preset to a local folder, downloading only what is needed and missing.

The clients of Kaggle and Hugging Face do the downloading, into their own caches, which KerasHub fills and reads too.
What they leave to be done is here: to look into the cache before asking the network, to ask for no more files than an
OPT needs, and to answer at once and in one line when the network, a right or the preset is missing.
"""

import contextlib
import errno
import functools
import queue
import re
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import kagglehub
import keras_hub
import requests
from huggingface_hub import constants as hugging_face
from huggingface_hub import errors as hugging_face_errors
from huggingface_hub.utils import WeakFileLock
from kagglehub.config import get_cache_folder as kaggle_cache_folder
from kagglesdk import kaggle_env

from optbook._files import is_beside, read_json
from optbook.presets.table import DEFAULT

CONNECT_SECONDS = 1.5  # to find the hub; with it, no network is known within two seconds
ANSWER_SECONDS = 10  # for a hub that was found to say something

# The files of either layout: tokenizers and weights by preference, a group of tokenizer files being of use only whole.
# What is added to a tokenizer may be in further files. An index of weights names its shards.
KERAS_HUB_FILES = {
    "tokenizer": [("assets/tokenizer/vocabulary.json", "assets/tokenizer/merges.txt")],
    "added_tokens": ["tokenizer.json"],
    "weights": ["model.weights.json", "model.weights.h5"],
}
HUGGING_FACE_FILES = {
    "tokenizer": [("vocab.json", "merges.txt"), ("tokenizer.json",)],
    "added_tokens": ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"],
    "weights": [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ],
}

_KAGGLE = re.compile(r"kaggle://([\w.-]+/[\w.-]+/keras/[\w.-]+)(?:/([1-9]\d*))?")
_HUGGING_FACE = re.compile(r"hf://([\w.-]+/[\w.-]+)")
_SENDING = threading.Lock()


class PresetUnavailable(OSError):
    """A preset that could not be downloaded; the message says why, and what to do.

    Attributes
    ----------
    reason : str
        "no network", "time-out", "offline variable", "not found", "not authorized", "forbidden", "gated", "disk full",
        or "hub error" for anything else that the hub or its client answered.
    """

    def __init__(self, message, reason="hub error"):
        super().__init__(message)
        self.reason = reason


def is_handle(preset):
    """Whether a preset lies at a hub: one of KerasHub's names, ``kaggle://…`` or ``hf://…``."""
    return isinstance(preset, str) and (
        preset in keras_hub.models.OPTBackbone.presets or preset.startswith(("kaggle://", "hf://"))
    )


def download(preset, weights=True, tokenizer=False):
    """The local folder of a published preset, after downloading what is needed of it and not in the cache.

    Parameters
    ----------
    preset : str
        A built-in name of KerasHub's such as ``"opt_125m_en"``, ``"kaggle://owner/model/keras/variation"`` with or
        without ``"/version"``, or ``"hf://owner/name"``, in KerasHub's or in transformers' layout.
    weights : bool
        False leaves them out.
    tokenizer : bool
        Whether the folder is useless without its tokenizer. Otherwise tokenizer files are taken along when something
        has to be downloaded, but not missed: a bare backbone has none.

    Returns
    -------
    pathlib.Path
        Inside the cache of ``kagglehub`` or ``huggingface_hub``. Where all that is needed is there, no network is
        asked; but which version a Kaggle handle without one means is Kaggle's to say, and only if Kaggle cannot be
        reached it is the newest in the cache.

    Raises
    ------
    PresetUnavailable
        When it cannot be downloaded; ``reason`` tells why. Without network within two seconds.
    ValueError
        For a malformed handle.
    """
    hub = _hub(preset)
    gather = functools.partial(_gather, weights=weights, tokenizer=tokenizer)
    folder, missing = gather(hub.cached)
    if missing:
        hub.missing = missing
        try:
            hub.connect()
        except PresetUnavailable as error:
            if error.reason in ("no network", "time-out") and (folder := hub.newest_cached(gather)):
                return folder
            raise
        folder, missing = gather(hub.cached)  # now that the version is known
    if missing:
        folder, missing = gather(hub.fetch)
    if missing:
        raise hub.unavailable("not found", f"it has no {missing}")
    return folder


def _hub(preset):
    handle = keras_hub.models.OPTBackbone.presets.get(preset, {}).get("kaggle_handle", preset)
    if match := _KAGGLE.fullmatch(handle):
        return _Kaggle(preset, match[1], match[2])
    if match := _HUGGING_FACE.fullmatch(handle):
        return _HuggingFace(preset, match[1])
    form = "hf://owner/name" if handle.startswith("hf://") else "kaggle://owner/model/keras/variation[/version]"
    raise ValueError(f"{preset} is not a handle: the form is {form}.")


def _gather(get, weights, tokenizer):
    """The folder of a preset and the first needed file that is missing, or None.

    ``get`` maps a file's name to its path, or to None where there is no such file: from the cache or from the hub.
    """
    config_file = get("config.json")
    if config_file is None:
        return None, "config.json"
    folder, config = config_file.parent, _read_json(config_file)
    if config.get("model_type") == "opt":
        files = HUGGING_FACE_FILES
    elif "OPTBackbone" in str(config.get("registered_name")):
        files = KERAS_HUB_FILES
    else:
        return folder, None  # another model: who reads the config refuses it, so nothing more is needed
    has_tokenizer = any(all(get(name) for name in group) for group in files["tokenizer"])
    if has_tokenizer:
        for name in files["added_tokens"]:
            get(name)
    elif tokenizer:
        return folder, files["tokenizer"][0][0]
    return folder, _gather_weights(get, files["weights"]) if weights else None


def _gather_weights(get, names):
    for name in names:
        if (file := get(name)) is None:
            continue
        if name.endswith(".json"):
            for shard in _shards(file):
                if get(shard) is None:
                    return shard
        return None
    return " or ".join(name for name in names if not name.endswith(".json"))


def _shards(index_file):
    """The file names in an index of weights; KerasHub lists several where one layer is spread over files."""
    values = _read_json(index_file).get("weight_map", {}).values()
    shards = sorted({name for value in values for name in ([value] if isinstance(value, str) else value)})
    for name in shards:
        if not is_beside(name):  # never let it write elsewhere
            raise ValueError(f"{index_file} is not an index of weights: {name!r} is not the name of a file beside it.")
    return shards


def _read_json(file):
    try:
        return read_json(file)
    except ValueError:
        raise ValueError(f"{file} is not JSON: delete it and load the preset again.") from None


class _Hub:
    """What the two hubs have in common: to be found, and to fail in one line.

    A subclass sets ``url`` (asked for files), ``page`` (shown to people), ``folder`` (in the cache),
    ``cache_variable`` (which moves it) and ``log_in`` (advice).
    """

    missing = "config.json"  # or what is being fetched, for the message

    def __init__(self, preset):
        self.preset = preset
        self.host = urlsplit(self.url).netloc

    def newest_cached(self, gather):
        return None

    def find(self):
        if problem := _connection_problem(self.url):
            raise self.unavailable("no network", problem)

    @contextlib.contextmanager
    def failing_in_one_line(self):
        """Turns whatever the client raises into ``PresetUnavailable``, except trouble with a local file."""
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.filename is not None and error.errno != errno.ENOSPC:
                raise
            raise self.unavailable(*_reason(error)) from None

    def unavailable(self, reason, detail):
        elsewhere = (
            f"to do without {self.host}, run the same call on a machine with network and copy {self.folder} from "
            "there, keeping its layout; or give the path of a local preset folder; or pass load_weights=False, which "
            "builds a published size with random weights, without any download; or take the embedded preset "
            f'"{DEFAULT}".'
        )
        advice = {
            "no network": f"T{elsewhere[1:]}",
            "time-out": f"Try again later; {elsewhere}",
            "offline variable": f"Unset it; {elsewhere}",
            "not found": f"Look at {self.page}; if it is private, {self.log_in}.",
            "not authorized": f"Correct or remove them: {self.log_in}; what is public needs none.",
            "forbidden": f"Accept its terms at {self.page}, and {self.log_in}.",
            "gated": f"Ask for access at {self.page}, then {self.log_in}.",
            "disk full": f"Make room, or set {self.cache_variable} to a roomier place than that of {self.folder}.",
            "hub error": "Load the preset again: what was downloaded completely is kept.",
        }[reason]
        cache = f"; the cache {self.folder} lacks {self.missing}" if elsewhere[1:] in advice else ""
        return PresetUnavailable(f"{self.preset} is not available ({reason}): {detail}{cache}. {advice}", reason)


class _Kaggle(_Hub):
    cache_variable = "KAGGLEHUB_CACHE"
    log_in = "put a token from https://www.kaggle.com/settings into the variable KAGGLE_API_TOKEN"

    def __init__(self, preset, model, version):
        environment = kaggle_env.get_env()
        self.url = kaggle_env.get_endpoint(environment)
        self.page = f"{kaggle_env.get_web_endpoint(environment)}/models/{model}"
        self.folder = Path(kaggle_cache_folder(), "models", *model.split("/"))
        self.model, self.version = model, version
        super().__init__(preset)

    def cached(self, name):
        """A file that kagglehub marked as complete: by itself, or with all files of its version."""
        file = self.folder / str(self.version) / name
        markers = (
            self.folder / ".complete" / str(self.version) / f"{name}.complete",
            self.folder / f"{self.version}.complete",
        )
        return file if file.is_file() and any(marker.exists() for marker in markers) else None

    def connect(self):
        if not kaggle_env.is_in_kaggle_notebook():  # which has the models without any network
            self.find()
        if self.version is None:
            folder = self.fetch("config.json").parent
            self.version = folder.name if folder.parent == self.folder else None  # elsewhere: mounted by Colab

    def newest_cached(self, gather):
        if self.version is not None:
            return None
        for version in sorted((int(path.name) for path in self.folder.glob("*") if path.name.isdigit()), reverse=True):
            self.version = version
            folder, missing = gather(self.cached)
            if not missing:
                return folder
        self.version = None
        return None

    def fetch(self, name):
        self.missing = name
        handle = self.model if self.version is None else f"{self.model}/{self.version}"
        self.folder.mkdir(parents=True, exist_ok=True)
        # kagglehub writes straight into the file, so two processes must not download it at once; Hugging Face's lock
        # also serves file systems without locks.
        with self.failing_in_one_line(), _requests_time_out(), WeakFileLock(self.folder / ".lock"):
            try:
                return self.cached(name) or Path(kagglehub.model_download(handle, name))
            except requests.HTTPError as error:
                if error.response.status_code == 404 and name != "config.json":
                    return None
                raise
            except ValueError as error:  # where Colab or Kaggle mounts the model
                if "is not present in the model files" in str(error):
                    return None
                raise


@contextlib.contextmanager
def _requests_time_out():
    """Gives up on a silent server: kagglehub sends its requests without any time limit. One thread at a time."""
    with _SENDING:
        send = requests.Session.send
        requests.Session.send = functools.partialmethod(send, timeout=ANSWER_SECONDS)
        try:
            yield
        finally:
            requests.Session.send = send


class _HuggingFace(_Hub):
    cache_variable = "HF_HOME"
    log_in = "log in (hf auth login, or a token in the variable HF_TOKEN)"

    def __init__(self, preset, repository):
        self.url = hugging_face.ENDPOINT
        self.page = f"{self.url}/{repository}"
        self.folder = Path(hugging_face.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
        self.repository = repository
        super().__init__(preset)

    def cached(self, name):
        file = huggingface_hub.try_to_load_from_cache(self.repository, name)
        return Path(file) if isinstance(file, str) else None

    def connect(self):
        if hugging_face.HF_HUB_OFFLINE:
            raise self.unavailable("offline variable", "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set")
        self.find()
        with self.failing_in_one_line():  # the one request with a time limit and without retries, so the first
            info = huggingface_hub.HfApi().model_info(self.repository, timeout=ANSWER_SECONDS)
        self.names = {file.rfilename for file in info.siblings or ()}
        self.revision = None  # of the config, which is asked for first: the newest

    def fetch(self, name):
        if name not in self.names:
            return None
        self.missing = name
        with self.failing_in_one_line():
            file = Path(huggingface_hub.hf_hub_download(self.repository, name, revision=self.revision))
        if name == "config.json":
            self.revision = file.parent.name  # and of all others, should a newer one appear meanwhile
        return file


def _reason(error):
    """Why a client failed, in one of our words and in one of its own, from the error and those it was raised from."""
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    # By name, since the library under Hugging Face's client has been three different ones.
    names = {base.__name__ for link in chain for base in type(link).__mro__}
    statuses = [link.response.status_code for link in chain if getattr(link, "response", None) is not None]
    status = statuses[0] if statuses else None
    detail = f"{type(chain[0]).__name__}: {' '.join(str(chain[0]).split())}"
    if any(getattr(link, "errno", None) == errno.ENOSPC for link in chain):
        return "disk full", detail
    if any(isinstance(link, hugging_face_errors.GatedRepoError) for link in chain):
        return "gated", "its owner decides who may download it"
    if status == 404 or "RepositoryNotFoundError" in names:  # which comes as 401 to whoever is not logged in
        return "not found", "there is no such preset, or it is private"
    if status == 401:
        return "not authorized", "the credentials are missing or wrong"
    if status == 403:
        return "forbidden", "it has terms to accept, is private or does not exist"
    if any("Timeout" in name for name in names):
        return "time-out", "the server does not answer"
    if status is None and names & {"ConnectionError", "ConnectError"}:
        return "no network", detail
    return "hub error", detail


def _connection_problem(url):
    """What keeps a connection to the host of a URL, or to the proxy in front of it, from being made; else None."""
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    target = urlsplit(requests.utils.prepend_scheme_if_needed(proxy, "http") if proxy else url)
    address = target.hostname, target.port or {"https": 443, "http": 80}.get(target.scheme, 1080)
    outcome = queue.SimpleQueue()

    def connect():
        try:
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
            outcome.put(None)
        except (OSError, UnicodeError) as error:
            outcome.put(getattr(error, "strerror", None) or str(error))

    # In a thread, since looking a name up may hang and takes no time limit.
    threading.Thread(target=connect, daemon=True).start()
    try:
        problem = outcome.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        problem = f"no answer within {CONNECT_SECONDS} seconds"
    return problem and f"{'the proxy ' if proxy else ''}{target.hostname} cannot be reached ({problem})"
