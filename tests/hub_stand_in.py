"""Stand-ins for both hubs on a loopback port, and Pythons whose real clients talk to them.

Hugging Face's client is sent there by HF_ENDPOINT, Kaggle's by a proxy variable: its endpoint http://localhost has no
port to choose.
"""

import contextlib
import hashlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
KAGGLE = "/api/v1/models.ModelApiService/"
WORKER = """
import contextlib, json, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
reply_to, sys.stdout = sys.stdout, sys.stderr  # keras_hub and the clients print too
import optbook
import kagglehub, keras_hub
from optbook.presets import hubs
kagglehub.clients.get_user_agent = lambda: "test"  # the real one searches all modules, half a second a request
print("ready", file=reply_to, flush=True)
for line in sys.stdin:
    call = json.loads(line)
    hubs.ANSWER_SECONDS = call["answer_seconds"]
    started = time.monotonic()
    try:
        reply = {"result": str(eval(call["code"]))}
    except BaseException as error:
        reply = {"error": type(error).__name__, "reason": getattr(error, "reason", None), "message": str(error)}
    reply["seconds"] = time.monotonic() - started
    print(json.dumps(reply), file=reply_to, flush=True)
"""


class StandIn(http.server.ThreadingHTTPServer):
    """Serves ``repositories[handle][file]``, bytes, to either client and logs what it was asked for.

    ``faults[handle]`` is an HTTP status with headers to answer instead, or "slow", "silent" or "half": half of each
    weights file and then nothing more. A third entry beside status and headers spares the list of files.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.faults, self.log = {}, {}, []
        self.half_sent, self.closing = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        yield self
        self.closing.set()
        self.shutdown()
        self.server_close()
        thread.join()

    def asked(self, handle):
        """The files asked for under a handle, in order, and "*" for the list of them or the newest version."""
        return [name for asked, name in self.log if asked == handle]

    def handle_error(self, request, client_address):
        """A client that was stopped is no error."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.removeprefix("http://localhost")
        assert path.startswith(KAGGLE), path
        model = f"{request['ownerSlug']}/{request['modelSlug']}/keras/{request['instanceSlug']}"
        if path == f"{KAGGLE}GetModelInstance":
            versions = [int(name.split("/")[-1]) for name in self.server.repositories if name.startswith(f"{model}/")]
            self.answer(model, "*", json.dumps({"versionNumber": max(versions)}).encode() if versions else None)
        else:
            handle = f"{model}/{request['versionNumber']}"
            self.answer(handle, request["path"], self.server.repositories.get(handle, {}).get(request["path"]))

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            handle = "/".join(parts[2:4])
            if (files := self.server.repositories.get(handle)) is None:
                return self.answer(handle, "*", None, {"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": name} for name in files]
            return self.answer(handle, "*", json.dumps({"id": handle, "sha": COMMIT, "siblings": siblings}).encode())
        if len(parts) < 5 or parts[2] != "resolve":
            return self.answer("elsewhere", self.path, None)
        handle, name = "/".join(parts[:2]), "/".join(parts[4:])
        content = self.server.repositories.get(handle, {}).get(name)
        if content is None:
            return self.answer(handle, name, None, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        tag = hashlib.sha256(name.encode() + content).hexdigest()
        return self.answer(handle, name, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def answer(self, handle, name, content, headers=None):
        if self.command != "HEAD":
            self.server.log.append((handle, name))
        fault = self.server.faults.get(handle)
        if fault == "slow":
            time.sleep(0.2)
        if fault == "silent":
            self.server.closing.wait()
            return
        if isinstance(fault, tuple) and (name != "*" or not fault[2:]):
            status, headers, content = fault[0], fault[1], b""
        else:
            status = 404 if content is None else 200
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", len(content or b""))
        if name == "*" and status == 200:
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command == "HEAD" or not content:
            return
        if fault == "half" and "weights" in name:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.server.half_sent.set()
            self.server.closing.wait()
            return
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


class Worker:
    """A Python that has imported optbook and evaluates what it is sent, patient with a slow machine unless told."""

    def __init__(self, folder, **variables):
        kept = ("PATH", "LD_LIBRARY_PATH", "XDG_CACHE_HOME")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment |= {
            "HOME": str(folder),
            "KAGGLEHUB_CACHE": str(folder / "kagglehub"),
            "HF_HOME": str(folder / "huggingface"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "NO_PROXY": "127.0.0.1,hub.invalid",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
            env=environment | variables,
        )
        assert self.process.stdout.readline() == "ready\n"

    def send(self, code, answer_seconds=60):
        print(json.dumps({"code": code, "answer_seconds": answer_seconds}), file=self.process.stdin, flush=True)

    def reply(self):
        return json.loads(self.process.stdout.readline())

    def __call__(self, code, answer_seconds=60):
        self.send(code, answer_seconds)
        return self.reply()

    def download(self, preset, answer_seconds=60, **options):
        arguments = "".join(f", {name}={value}" for name, value in options.items())
        return self(f"hubs.download({preset!r}{arguments})", answer_seconds)

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def close(self):
        self.process.kill()
        self.process.communicate()


def closed_port():
    """A port of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
