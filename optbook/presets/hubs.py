"""From the handle of a published preset to a local folder, downloading only what is needed and missing.

The clients of Kaggle and Hugging Face do the downloading, into their own caches, which KerasHub fills and reads too.
What they leave to be done is here: to look into the cache before asking the network, to ask for no more files than an
OPT needs, and to answer at once and in one line when the network, a right or the preset is missing.
"""

import contextlib
import errno
import functools
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
from kagglehub.cache import Cache as KaggleCache
from kagglehub.clients import build_kaggle_client, download_file
from kagglehub.env import is_in_colab_notebook
from kagglehub.handle import parse_model_handle
from kagglesdk import kaggle_env
from kagglesdk.models.types import model_api_service as kaggle_models

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

_KAGGLE = re.compile(r"kaggle://([\w.-]+/[\w.-]+/keras/[\w.-]+(?:/[1-9]\d*)?)")
_HUGGING_FACE = re.compile(r"hf://([\w.-]+/[\w.-]+)")
_ELSEWHERE = (
    "o do without {host}, run the same call on a machine with network and copy {folder} from there, keeping its "
    "layout; or give the path of a local preset folder; or pass load_weights=False, which builds a published size with "
    f'random weights, without any download; or take the embedded preset "{DEFAULT}".'
)
_ADVICE = {
    "no network": f"T{_ELSEWHERE}",
    "time-out": f"Try again later; t{_ELSEWHERE}",
    "offline variable": f"Unset it; t{_ELSEWHERE}",
    "not found": "Look at {page}; if it is private, {log_in}.",
    "not authorized": "Correct or remove them: {log_in}; what is public needs none.",
    "forbidden": "Accept its terms at {page}, and {log_in}.",
    "gated": "Ask for access at {page}, then {log_in}.",
    "disk full": "Make room, or set {cache_variable} to a roomier place than that of {folder}.",
    "hub error": "Load the preset again: what was downloaded completely is kept.",
}


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
    folder, hub.missing = gather(hub.cached)
    if hub.missing:
        try:
            hub.connect()
        except PresetUnavailable as error:
            if error.reason in ("no network", "time-out") and (folder := hub.newest_cached(gather)):
                return folder
            raise
        folder, hub.missing = gather(hub.cached)  # now that the version is known
    if hub.missing:
        folder, missing = gather(hub.fetch)
        if missing:
            raise hub.unavailable("not found", f"it has no {missing}")
    return folder


def _hub(preset):
    handle = keras_hub.models.OPTBackbone.presets.get(preset, {}).get("kaggle_handle", preset)
    if match := _KAGGLE.fullmatch(handle):
        return _Kaggle(preset, match[1])
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
        if file := get(name):
            shards = _shards(file) if name.endswith(".json") else ()
            return next((shard for shard in shards if get(shard) is None), None)
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

    missing = None  # the file that the cache lacks, or that is being fetched, for the message

    def newest_cached(self, gather):
        """The folder of what stands in for the newest version, which nobody could be asked for."""

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
        words = {name: getattr(self, name) for name in ("page", "folder", "log_in", "cache_variable")}
        advice = _ADVICE[reason].format(host=urlsplit(self.url).netloc, **words)
        cache = f"; the cache {self.folder} lacks {self.missing}" if _ELSEWHERE in _ADVICE[reason] else ""
        return PresetUnavailable(f"{self.preset} is not available ({reason}): {detail}{cache}. {advice}", reason)


class _Kaggle(_Hub):
    cache_variable = "KAGGLEHUB_CACHE"
    log_in = "put a token from https://www.kaggle.com/settings into the variable KAGGLE_API_TOKEN"

    def __init__(self, preset, handle):
        self.preset, self.handle, self.cache = preset, parse_model_handle(handle), KaggleCache()
        self.url, self.page = kaggle_env.get_endpoint(kaggle_env.get_env()), self.handle.to_url()
        self.folder = Path(self.cache.get_path(self.handle)).parent  # of all versions
        # Colab and Kaggle mount most models, and kagglehub alone knows how.
        self.may_be_mounted = is_in_colab_notebook() or kaggle_env.is_in_kaggle_notebook()

    def cached(self, name):
        """A file that kagglehub knows as complete: by itself, or with all files of its version."""
        if any(self.cache.load_from_cache(self.handle, path) for path in (name, None)):
            file = Path(self.cache.get_path(self.handle, name))
            return file if file.is_file() else None

    def newest_cached(self, gather):
        if self.handle.is_versioned():
            return None
        for version in sorted((int(path.name) for path in self.folder.glob("*") if path.name.isdigit()), reverse=True):
            self.handle = self.handle.with_version(version)
            folder, missing = gather(self.cached)
            if not missing:
                return folder
        self.handle = self.handle.with_version(None)
        return None

    def connect(self):
        if self.may_be_mounted:
            return
        self.find()
        if not self.handle.is_versioned():
            with self.failing_in_one_line(), self.client() as client:
                version = client.get_model_instance(self.request(kaggle_models.ApiGetModelInstanceRequest))
            self.handle = self.handle.with_version(version.version_number)

    @contextlib.contextmanager
    def client(self):
        """kagglehub's client, with what it does without: a limit to how long a server may be silent."""
        with build_kaggle_client() as client:
            for scheme in ("http://", "https://"):
                client.http_client()._session.mount(scheme, _Impatient())
            yield client.models.model_api_client

    def request(self, kind, **fields):
        handle, request = self.handle, kind()
        fields |= {"owner_slug": handle.owner, "model_slug": handle.model, "instance_slug": handle.variation}
        for field, value in {"framework": handle.framework_enum(), **fields}.items():
            setattr(request, field, value)
        return request

    def fetch(self, name):
        self.missing = name
        self.folder.mkdir(parents=True, exist_ok=True)
        # kagglehub writes straight into the file, so two processes must not download it at once; Hugging Face's lock
        # also serves file systems without locks.
        with self.failing_in_one_line(), WeakFileLock(self.folder / ".lock"):
            try:
                return self.cached(name) or self.download(name)
            except requests.HTTPError as error:
                if error.response.status_code == 404 and name != "config.json":
                    return None
                raise
            except ValueError as error:  # where Colab or Kaggle mounts the model
                if "is not present in the model files" in str(error):
                    return None
                raise

    def download(self, name):
        if self.may_be_mounted:
            return Path(kagglehub.model_download(str(self.handle), name))
        file = Path(self.cache.get_path(self.handle, name))
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = kaggle_models.ApiDownloadModelInstanceVersionRequest
        with self.client() as client:
            request = self.request(kind, version_number=self.handle.version, path=name)
            response = client.download_model_instance_version(request)
            download_file(response, str(file), self.handle, extract_auto_compressed_file=True)
        self.cache.mark_as_complete(self.handle, name)
        return file


class _Impatient(requests.adapters.HTTPAdapter):
    def send(self, request, *, timeout=None, **options):
        return super().send(request, timeout=ANSWER_SECONDS, **options)


class _HuggingFace(_Hub):
    cache_variable = "HF_HOME"
    log_in = "log in (hf auth login, or a token in the variable HF_TOKEN)"

    def __init__(self, preset, repository):
        self.preset, self.handle, self.url = preset, repository, hugging_face.ENDPOINT
        self.page = f"{self.url}/{repository}"
        self.folder = Path(hugging_face.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")

    def cached(self, name):
        file = huggingface_hub.try_to_load_from_cache(self.handle, name)
        return Path(file) if isinstance(file, str) else None

    def connect(self):
        if hugging_face.HF_HUB_OFFLINE:
            raise self.unavailable("offline variable", "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set")
        self.find()
        with self.failing_in_one_line():  # the one request with a time limit and without retries, so the first
            info = huggingface_hub.HfApi().model_info(self.handle, timeout=ANSWER_SECONDS)
        self.names = {file.rfilename for file in info.siblings or ()}
        self.revision = None  # of the config, which is asked for first: the newest

    def fetch(self, name):
        if name not in self.names:
            return None
        self.missing = name
        with self.failing_in_one_line():
            file = Path(huggingface_hub.hf_hub_download(self.handle, name, revision=self.revision))
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
    responses = [link.response for link in chain if getattr(link, "response", None) is not None]
    status = responses[0].status_code if responses else None
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
    problem = f"no answer within {CONNECT_SECONDS} seconds"

    def connect():
        nonlocal problem
        try:
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
            problem = None
        except (OSError, UnicodeError) as error:
            problem = getattr(error, "strerror", None) or str(error)

    # In a thread, since looking a name up may hang and takes no time limit.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return problem and f"{'the proxy ' if proxy else ''}{target.hostname} cannot be reached ({problem})"
