"""Run a real ComfyUI server in a separate process, with the parts of its protocol that tests need."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limits import HANGING_SECONDS
from places import ROOT

HOME = Path.home() / "comfy"
HOW_TO_GET_ONE = (
    "no ComfyUI: clone github.com/comfyanonymous/ComfyUI into ~/comfy/ComfyUI, install its requirements into its "
    ".venv, or name one with COMFYUI_PATH and COMFYUI_PYTHON"
)
PACK = Path("custom_nodes", "onestep_sr")
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC_COMBO}
NOTES = {"Note", "MarkdownNote"}
# Two threads that wait for each other starve on a busy machine; the pictures are small.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

Prompt = dict[str, dict[str, Any]]


def installed_hosts() -> list[Path]:
    """Checkouts that can be started: COMFYUI_PATH (a list like PATH), else those in ~/comfy."""
    named = os.environ.get("COMFYUI_PATH")
    folders = map(Path, named.split(os.pathsep)) if named else (HOME / "ComfyUI", HOME / "ComfyUI-0.33.0")
    return [folder for folder in folders if (folder / "main.py").is_file() and interpreter(folder)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def interpreter(folder: Path) -> str | None:
    if "COMFYUI_PYTHON" in os.environ:
        return os.environ["COMFYUI_PYTHON"]
    found = (folder / name / "bin" / "python" for name in (".venv", "venv"))
    return next((str(path) for path in found if path.exists()), None)


@dataclass
class Host:
    """A running server. `base` holds input/, output/, models/ and custom_nodes/ with a link to the pack."""

    folder: Path
    base: Path
    port: int
    process: subprocess.Popen[bytes]
    object_info: dict[str, Any] = field(default_factory=dict)

    @property
    def log(self) -> str:
        return (self.base / "log.txt").read_text(errors="replace")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=HANGING_SECONDS) as answer:
            return answer.read()

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post(self, path: str, content: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=HANGING_SECONDS) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    def queue(self, prompt: Prompt, client: str = "") -> str:
        return self.post("/prompt", {"prompt": prompt, "client_id": client or uuid.uuid4().hex})["prompt_id"]

    def wait(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a prompt, once it has finished or failed."""
        end = time.monotonic() + HANGING_SECONDS
        while time.monotonic() < end:
            entry = self.get_json(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                return entry
            time.sleep(0.03)
        raise TimeoutError(f"prompt {prompt_id} did not end; the log: {self.log[-2000:]}")

    def results(self, prompt: Prompt) -> list[Path]:
        """Run a prompt that must succeed; returns the files that it saved."""
        entry = self.wait(self.queue(prompt))
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
        images = [image for output in entry["outputs"].values() for image in output.get("images", ())]
        return [self.base / image["type"] / image["subfolder"] / image["filename"] for image in images]

    def error(self, prompt: Prompt) -> str:
        """Run a prompt that must fail; returns the message for the user."""
        messages = dict(self.wait(self.queue(prompt))["status"]["messages"])
        return messages["execution_error"]["exception_message"]

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024


def start(folder: Path, base: Path, device: Sequence[str] = ("--cpu",)) -> Host:
    """Start the server of a checkout on a base folder of its own and wait until it answers. Without a pack in the base
    folder, this repository is linked there. `device`: options that say where it computes."""
    for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
        (base / name).mkdir(parents=True, exist_ok=True)
    if not (base / PACK).exists():
        (base / PACK).symlink_to(ROOT, target_is_directory=True)
    (base / "paths.yaml").write_text(f"elsewhere:\n  base_path: {base}/elsewhere\n  onestep_sr: models\n")
    port = free_port()
    options = [*device, "--listen", "127.0.0.1", "--port", port, "--disable-auto-launch", "--disable-api-nodes"]
    if "COMFYUI_FRONT_END" in os.environ:
        options += ["--front-end-root", os.environ["COMFYUI_FRONT_END"]]
    options += ["--base-directory", base, "--extra-model-paths-config", base / "paths.yaml"]
    command = [interpreter(folder), "main.py", *map(str, options), "--database-url", "sqlite:///:memory:"]
    with (base / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=os.environ | ONE_THREAD
        )
    host = Host(folder, base, port, process)
    end = time.monotonic() + HANGING_SECONDS
    while not host.object_info:
        try:
            host.object_info = host.get_json("/object_info")
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                stop(host)
                raise RuntimeError(f"{folder} did not start; the log: {host.log[-3000:]}") from None
            time.sleep(0.2)
    return host


def stop(host: Host) -> None:
    host.process.terminate()
    try:
        host.process.wait(HANGING_SECONDS)
    except subprocess.TimeoutExpired:
        host.process.kill()
        host.process.wait()


def events(host: Host, client: str) -> Iterator[dict[str, Any] | bytes]:
    """The messages that the server sends to a browser: dictionaries, or bytes for binary messages."""
    with socket.create_connection(("127.0.0.1", host.port), timeout=HANGING_SECONDS) as connection:
        request = (
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: 127.0.0.1:{host.port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        connection.sendall(request.encode())
        stream = connection.makefile("rb")
        while stream.readline() not in (b"\r\n", b""):
            pass
        while len(head := stream.read(2)) == 2:
            size = head[1]
            if size >= 126:
                size = struct.unpack(">H" if size == 126 else ">Q", stream.read(2 if size == 126 else 8))[0]
            content = stream.read(size)
            if head[0] & 15 == 1:
                yield json.loads(content)
            elif head[0] & 15 == 2:
                yield content


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """A saved workflow as a browser would queue it. Fails if widgets or sockets do not fit the nodes."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: Prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        info = object_info[node["type"]]
        inputs = widget_values(node, info)
        for socket_ in node["inputs"]:
            assert socket_["name"] in (name for group in info["input"].values() for name in group), socket_
            if socket_["link"] is not None:
                inputs[socket_["name"]] = sources[socket_["link"]]
        outputs = [output["type"] for output in node["outputs"]]
        assert outputs == list(info["output"])[: len(outputs)], node["type"]  # newer hosts' nodes may have more
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """`widgets_values` by name. Widgets that the host has and the workflow does not know have their defaults."""
    values = list(node["widgets_values"])
    result = taken(info["input"], values)
    assert not values, f"{node['type']} has no widgets for {values}"
    return result


def taken(groups: dict[str, dict[str, Any]], values: list[Any], prefix: str = "") -> dict[str, Any]:
    """Takes one of `values` for each widget in the schema's order, and one for each widget that pages add."""
    result = {}
    for name, spec in (
        (name, spec) for group in ("required", "optional") for name, spec in groups.get(group, {}).items()
    ):
        kind, options = [*spec, {}][:2]
        if not (isinstance(kind, list) or kind in WIDGETS) or options.get("hidden"):
            continue
        value = result[prefix + name] = values.pop(0) if values else default_of(spec)
        added = options.get("image_upload") or options.get("video_upload")
        if values and (added or options.get("control_after_generate", name in ("seed", "noise_seed"))):
            values.pop(0)
        if kind == DYNAMIC_COMBO:
            chosen = next(option for option in options["options"] if option["key"] == value)
            result |= taken(chosen["inputs"], values, f"{prefix}{name}.")
    return result


def default_of(spec: list[Any]) -> Any:
    options = spec[1] if len(spec) > 1 else {}
    return options["default"] if "default" in options else choices(spec)[0]


def choices(spec: list[Any]) -> list[str]:
    """The choices of a combo in `object_info`."""
    if isinstance(spec[0], list):
        return spec[0]
    options = spec[1]["options"]
    return [option["key"] for option in options] if spec[0] == DYNAMIC_COMBO else options
