"""Run by COMFYUI_PYTHON, never by pytest: keeps one ComfyUI server and runs graphs on it.

Usage: server.py COMFYUI_DIR BASE_DIRECTORY

The first line on stdout is the server's address. Then each line on stdin is a request as JSON, `graph` and optionally
`interrupt_after` (a number of progress messages), and each line on stdout its outcome. The server ends with stdin, so
it never outlives the tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp

START_SECONDS = 180
SILENCE_SECONDS = 120
PREVIEW_WITH_METADATA = 4
TEXT = 3
ENDS = {"execution_success": "success", "execution_error": "error", "execution_interrupted": "interrupted"}


def main() -> None:
    """Starts the server, answers requests until stdin ends, stops the server."""
    comfyui, base = (Path(argument).resolve() for argument in sys.argv[1:3])
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (base / "host.log").open("w") as log:
        process = subprocess.Popen(
            command(comfyui, base, port), cwd=base, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            asyncio.run(wait_until_ready(url, process))
            reply(url)
            for line in sys.stdin:
                reply(asyncio.run(run_graph(url, **json.loads(line))))
        finally:
            stop(process)


def reply(answer: object) -> None:
    """Writes one line for the tests."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(comfyui: Path, base: Path, port: int) -> list[str]:
    """How the server is started: on the CPU, with nothing outside its base directory."""
    options = ["--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    options += ["--database-url", f"sqlite:///{base}/user/comfyui.db", "--disable-api-nodes", "--disable-auto-launch"]
    # the default cache forgets results when other programs leave the machine little memory
    options += ["--cache-classic"]
    return [sys.executable, "-u", str(comfyui / "main.py"), *options]


def environment() -> dict[str, str]:
    """Without a network, and with one thread: the models are tiny."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "NO_PROXY": "*"}
    return kept | offline | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


async def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Returns once the server answers; raises if it ends or stays silent."""
    deadline = time.monotonic() + START_SECONDS
    async with aiohttp.ClientSession() as session:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                async with session.get(url + "/system_stats"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.2)
    raise RuntimeError(f"ComfyUI did not start; its exit status is {process.poll()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server, gently at first."""
    process.terminate()
    try:
        process.wait(8)
    except subprocess.TimeoutExpired:
        process.kill()


async def run_graph(url: str, graph: dict[str, Any], interrupt_after: int | None = None) -> dict[str, Any]:
    """Everything that the server says while it runs a graph, and what it made."""
    client = uuid.uuid4().hex
    outcome: dict[str, Any] = {
        "status": None,
        "executed": [],
        "cached": [],
        "progress": defaultdict(list),
        "previews": defaultdict(int),
        "texts": {},
    }
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws?clientId={client}", max_msg_size=0) as socket_,
    ):
        await socket_.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        body = {"prompt": graph, "client_id": client, "extra_data": {"preview_method": "latent2rgb"}}
        async with session.post(url + "/prompt", json=body) as response:
            answer = await response.json()
            if response.status != 200:
                return outcome | {"status": "refused", "error": answer}
        while outcome["status"] is None:
            message = await socket_.receive(SILENCE_SECONDS)
            if message.type is aiohttp.WSMsgType.BINARY:
                note_preview(outcome, message.data)
            elif message.type is aiohttp.WSMsgType.TEXT:
                note(outcome, json.loads(message.data))
            else:
                return outcome | {"status": "gone"}
            if interrupt_after is not None and sum(map(len, outcome["progress"].values())) >= interrupt_after:
                interrupt_after = None
                await session.post(url + "/interrupt", json={})
        return outcome | {"outputs": await outputs_of(session, url, answer["prompt_id"])}


def note_preview(outcome: dict[str, Any], message: bytes) -> None:
    """Counts a preview for its node, or keeps the text that a node shows."""
    (kind,) = struct.unpack(">I", message[:4])
    if kind == PREVIEW_WITH_METADATA:
        (length,) = struct.unpack(">I", message[4:8])
        outcome["previews"][json.loads(message[8 : 8 + length])["node_id"]] += 1
    elif kind == TEXT:
        (length,) = struct.unpack(">I", message[4:8])
        outcome["texts"][message[8 : 8 + length].decode()] = message[8 + length :].decode()


def note(outcome: dict[str, Any], message: dict[str, Any]) -> None:
    """Adds what one message says."""
    kind, content = message["type"], message.get("data") or {}
    if kind == "executing" and content.get("node") is not None:
        outcome["executed"].append(content["node"])
    elif kind == "execution_cached":
        outcome["cached"] = content["nodes"]
    elif kind == "progress":
        outcome["progress"][content["node"]].append([content["value"], content["max"]])
    elif kind in ENDS:
        outcome |= {"status": ENDS[kind], "error": content.get("exception_message")}


async def outputs_of(session: aiohttp.ClientSession, url: str, prompt_id: str) -> dict[str, Any]:
    """What the graph's output nodes report; the history is written shortly after the last message."""
    for _ in range(100):
        async with session.get(f"{url}/history/{prompt_id}") as response:
            history = await response.json()
        if history:
            return history[prompt_id]["outputs"]
        await asyncio.sleep(0.05)
    raise RuntimeError(f"no history of {prompt_id}")


if __name__ == "__main__":
    main()
