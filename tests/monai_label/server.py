"""A MONAI Label server for a test: its environment, its process, and requests to it. Standard library only."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import venv
from pathlib import Path
from typing import Any

VERSION = "0.8.5"
ROOT = Path(__file__).resolve().parents[2]
_STAND_IN = '''"""Stands in for torchvision, whose builds do not fit every torch; the server never calls these."""


def make_grid(*args, **options):
    raise NotImplementedError


save_image = make_grid
'''


class Environment:
    """A virtual environment with MONAI Label, and with what this package needs but without this package.

    Parameters
    ----------
    folder : Path
        Made where there is none yet.
    base : Path, optional
        A ``site-packages`` folder to see packages in, such as torch, instead of installing them.
    """

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        self.folder = folder.resolve()
        if not (self.folder / "ready").exists():
            self._make(base)

    @property
    def python(self) -> str:
        """Path of the interpreter."""
        return str(self.folder / ("Scripts" if os.name == "nt" else "bin") / "python")

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of a server's process: nothing of this one's Python, and no way out of the machine."""
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "MONAI"))}
        dead_end = "http://127.0.0.1:9"
        proxies = {name: dead_end for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
        path = os.pathsep.join([str(Path(self.python).parent), os.environ.get("PATH", "")])
        return {**mine, **proxies, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", "PATH": path, "MPLBACKEND": "Agg"}

    def _make(self, base: Path | None) -> None:
        venv.create(self.folder, with_pip=True, clear=True)
        site = Path(self._ask("import sysconfig; print(sysconfig.get_paths()['purelib'])"))
        if base is not None:
            (site / "base.pth").write_text(f"{base.resolve()}\n")
        packages = [] if base is not None else _own_requirements()
        # pydicom 3, which constraints.txt pins, is too new for MONAI Label; the package itself takes both.
        pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "dicom" not in line]
        constraints = self.folder / "constraints.txt"
        constraints.write_text("\n".join(pins) + "\n")
        requirements = str(Path(__file__).with_name("requirements.txt"))
        self._pip("-c", str(constraints), "-r", requirements, *packages)
        self._pip("--no-deps", f"monailabel=={VERSION}", "pydicom-seg==0.4.1")
        (site / "torchvision").mkdir(exist_ok=True)
        (site / "torchvision" / "__init__.py").touch()
        (site / "torchvision" / "utils.py").write_text(_STAND_IN)
        (self.folder / "ready").touch()

    def _pip(self, *arguments: str) -> None:
        subprocess.run([self.python, "-m", "pip", "install", "--quiet", *arguments], check=True)

    def _ask(self, code: str) -> str:
        return subprocess.run([self.python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _own_requirements() -> list[str]:
    import configparser

    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser["options"]["install_requires"].split()


class Server:
    """A server on the loopback interface, for a ``with`` block: it is gone after it, whatever happens.

    Parameters
    ----------
    environment : Environment
    app, studies : Path
    model : str
        Name of the bundle in the app.
    log : Path
        Gets what the server prints.
    timeout : float
        Seconds until it must answer.
    """

    def __init__(
        self, environment: Environment, app: Path, studies: Path, *, model: str, log: Path, timeout: float = 180
    ) -> None:
        self.environment, self.app, self.studies = environment, app, studies
        self.model, self.log, self.timeout = model, log, timeout

    def __enter__(self) -> Server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [self.environment.python, "-m", "monailabel.main", "start_server"]
        command += ["--app", str(self.app), "--studies", str(self.studies), "--conf", "models", self.model]
        command += ["--conf", "zoo_source", "local", "--conf", "sam2", "false"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        variables = {**self.environment.variables, "MONAI_LABEL_SESSION_PATH": str(self.app / "sessions")}
        with self.log.open("wb") as log:
            # A process group of its own, because a training that runs is a child of the server.
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=variables, cwd=self.app, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(timeout=15)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    def _wait(self) -> None:
        until = time.monotonic() + self.timeout
        while time.monotonic() < until and self.process.poll() is None:
            try:
                self.get("/info/")
                return
            except (ConnectionError, urllib.error.URLError):
                time.sleep(0.5)
        raise RuntimeError(f"the server did not start; {self.log} ends with:\n{self.tail()}")

    def tail(self, lines: int = 30) -> str:
        """Last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def get(self, path: str) -> Any:
        """GET; the JSON that comes back."""
        return json.loads(self._request("GET", path))

    def post_json(self, path: str, content: Any) -> Any:
        """POST a JSON document; the JSON that comes back."""
        body = json.dumps(content).encode()
        return json.loads(self._request("POST", path, body, "application/json"))

    def infer(self, image: str, output: str = "json", **params: Any) -> Any:
        """Inference of an image of the datastore, or of a path; the JSON that comes back."""
        query = urllib.parse.urlencode({"image": image, "output": output})
        return json.loads(self._form("POST", f"/infer/{self.model}?{query}", {"params": json.dumps(params)}))

    def infer_file(self, image: str, **params: Any) -> bytes:
        """Inference of an image; the file that comes back."""
        query = urllib.parse.urlencode({"image": image, "output": "image"})
        return self._form("POST", f"/infer/{self.model}?{query}", {"params": json.dumps(params)})

    def submit(self, image: str, label: Path, **params: Any) -> Any:
        """Submit a final label, as a client does."""
        query = urllib.parse.urlencode({"image": image, "tag": "final"})
        return json.loads(self._form("PUT", f"/datastore/label?{query}", {"params": json.dumps(params)}, label=label))

    def train(self, *, timeout: float = 600, **params: Any) -> dict[str, Any]:
        """Train in the background, as clients do, and wait; the task's last status."""
        self.post_json(f"/train/{self.model}", params)
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            status = self.get("/train/")
            if status["status"] not in ("SUBMITTED", "RUNNING"):
                return status
            time.sleep(1)
        raise RuntimeError(f"the training did not end in {timeout} s:\n{self.tail()}")

    def _form(self, method: str, path: str, fields: dict[str, str], **files: Path) -> bytes:
        boundary = uuid.uuid4().hex
        parts = [(f'name="{name}"', value.encode(), "text/plain") for name, value in fields.items()] + [
            (f'name="{name}"; filename="{file.name}"', file.read_bytes(), "application/octet-stream")
            for name, file in files.items()
        ]
        body = b"".join(
            f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\nContent-Type: {kind}\r\n\r\n".encode()
            + content
            + b"\r\n"
            for head, content, kind in parts
        )
        return self._request(
            method, path, body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
        )

    def _request(self, method: str, path: str, body: bytes | None = None, kind: str = "text/plain") -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=body, method=method, headers={"Content-Type": kind}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=300) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            raise HTTPStatus(error.code, error.read().decode(errors="replace")) from error


class HTTPStatus(Exception):
    """An answer other than 200.

    Attributes
    ----------
    code : int
    text : str
    """

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text
        super().__init__(f"HTTP {code}: {text}")
