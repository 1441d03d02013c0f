"""A load test of `align3gr serve`: requests a second, waiting times, and whether anything is lost.

    python benchmarks/serving.py --json serving.json        # a random Llama of 4 layers x 256, 20,000 items
    python benchmarks/serving.py --model runs/yelp/sft/model

Clients ask one question after the other over connections that they keep, each with a history of its own. The same
load goes to a server that searches for one request at a time and to one that searches for up to 32 together. Times
are those of the wall, with the clients on the same machine; the server's processor time does not depend on what else
runs there. At the end the server is told to stop, and every list that a client got must stand in the log of events.
"""

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align3gr.data import read_events
from align3gr.decoding import Recommender
from align3gr.scid.vocabulary import scid_tokens

ITEMS, CODES, K = 20_000, 256, 10


def save_random_model(folder: Path) -> None:
    """A recommender that nobody trained; a search takes as long as with one that was."""
    random = np.random.default_rng(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<s>": 0, "[UNK]": 1}, unk_token="[UNK]")), bos_token="<s>"
    )
    tokenizer.add_tokens(scid_tokens("i", [CODES] * 3))
    codes = np.stack(np.unravel_index(random.choice(CODES**3, ITEMS, replace=False), (CODES,) * 3), axis=1)
    names = [str(number) for number in range(ITEMS)]
    items = pl.DataFrame({"item_id": names, "title": names, "codes": codes.tolist()})
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    Recommender(LlamaForCausalLM(config), tokenizer, items).save_pretrained(folder)


class Server:
    """`align3gr serve` in a process of its own, for the time of a `with`."""

    def __init__(self, model: str, work: Path, max_batch_size: int):
        self.log, self._output = work / f"log-{max_batch_size}", work / f"output-{max_batch_size}.txt"
        options = ["--port", "0", "--max_batch_size", str(max_batch_size), "--event_log", str(self.log)]
        with self._output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "align3gr.cli", "serve", model, *options],
                stderr=file,
                env={"OMP_NUM_THREADS": "1"} | os.environ,
            )

    def __enter__(self) -> "Server":
        while (found := re.search(r"http://[\d.]+:(\d+) answers", self._output.read_text())) is None:
            if self.process.poll() is not None:
                raise SystemExit(self._output.read_text())
            time.sleep(0.1)
        self.port = int(found[1])
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def cpu_seconds(self) -> float:
        """Processor time so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def metric(self, name: str) -> float:
        """A value of `/metrics` without labels."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return float(text.split(f"\n{name} ")[1].split("\n")[0])


def ask_all(port: int, bodies: Sequence[dict[str, Any]]) -> list[tuple[float, str | None]]:
    """One client: seconds of each question, and the id of its list; none where there was no good answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    answers: list[tuple[float, str | None]] = []
    for body in bodies:
        start = time.perf_counter()
        try:
            connection.request("POST", "/recommend", json.dumps(body))
            response = connection.getresponse()
            content = json.loads(response.read())
            good = response.status == 200 and len({item["item_id"] for item in content["items"]}) == K
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            good = False
            connection.close()
        answers.append((time.perf_counter() - start, content["request_id"] if good else None))
    connection.close()
    return answers


def load(server: Server, items: Sequence[str], clients: int, requests: int) -> dict[str, float]:
    """Figures of one server under one load."""
    random = np.random.default_rng(1)
    bodies = [
        {"history": random.choice(items, random.integers(1, 21)).tolist(), "user_id": str(number), "k": K}
        for number in range(requests)
    ]
    ask_all(server.port, bodies[:1])  # that does not count
    cpu, batches = server.cpu_seconds(), server.metric("align3gr_batch_users_count")
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        parts = list(threads.map(lambda first: ask_all(server.port, bodies[first::clients]), range(clients)))
    wall = time.perf_counter() - start
    cpu = server.cpu_seconds() - cpu
    answers = [answer for part in parts for answer in part]
    milliseconds = 1000 * np.array([seconds for seconds, _ in answers])
    return {
        "requests": requests,
        "lost": sum(name is None for _, name in answers),
        "requests_per_second": requests / wall,
        "requests_per_cpu_second": requests / cpu,
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "mean_batch": requests / (server.metric("align3gr_batch_users_count") - batches),
    }


def measure(model: str | None, clients: int, requests: int) -> dict[str, dict[str, float]]:
    """Figures by the largest batch."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if model is None:
            save_random_model(work / "model")
            model = str(work / "model")
        items = pl.read_parquet(Path(model) / "item_codes.parquet")["item_id"].cast(pl.String).to_list()
        for size in (1, 32):
            with Server(model, work, size) as server:
                figures[str(size)] = load(server, items, clients, requests)
            lists = read_events(server.log)["request_id"].n_unique()
            figures[str(size)]["not_logged"] = requests + 1 - figures[str(size)]["lost"] - lists
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder (default: a random model)")
    parser.add_argument("--clients", type=int, default=32, help="clients at once")
    parser.add_argument("--requests", type=int, default=1000, help="requests of all clients together")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    figures = measure(options.model, options.clients, options.requests)
    table = Table("largest batch", *next(iter(figures.values())))
    for size, row in figures.items():
        table.add_row(size, *(f"{value:,.1f}" for value in row.values()))
    Console().print(table)
    result = {"model": options.model or "random", "clients": options.clients, "by_batch_size": figures}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
