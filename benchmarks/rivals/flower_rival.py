"""The cohort through Flower's simulation; runs in Flower's own environment.

    python -c "from flower_rival import main; main()" FOLDER NAME ROUNDS ACTORS

As its guide "Run simulations" advises: the Ray backend with one core a client, so that as many clients run at a time
as there are actors. A round asks every node for its message, and the server adds the replies up. A worker reads the
cohort's data once. Nothing is sent to the clients, and nothing is bounded or noised: less work than the others do.

Import it, do not run it: what is run is pickled whole for every client.
"""

from __future__ import annotations

import os
import sys
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
from clock import processor_s
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from work import Work, report

client = ClientApp()


@lru_cache(maxsize=1)
def _work() -> Work:
    return Work.load(Path(os.environ["RIVALS_FOLDER"]))


@client.train()
def train(message: Message, context: Context) -> Message:
    """One user's message."""
    work = _work()
    records = work.latents[int(context.node_config["partition-id"])]
    return Message(RecordDict({"histograms": ArrayRecord([work.message(records)])}), reply_to=message)


def main() -> None:
    folder, name, rounds, actors = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    os.environ["RIVALS_FOLDER"] = str(folder)
    users = len(Work.load(folder).latents)
    server = ServerApp()

    @server.main()
    def rounds_of_all(grid: Grid, context: Context) -> None:
        seconds, total, before = [], np.zeros(0), 0.0
        deadline = time.monotonic() + 60
        while len(nodes := list(grid.get_node_ids())) < users and time.monotonic() < deadline:
            time.sleep(0.1)
        for number in range(rounds + 1):  # the first starts the actors
            before = processor_s(int(os.environ["RIVALS_ROOT"])) if number == 1 else before
            start = time.perf_counter()
            asked = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes]
            replies = list(grid.send_and_receive(asked))
            total = np.zeros(1)
            for reply in replies:
                total = total + reply.content["histograms"].to_numpy_ndarrays()[0]
            seconds.append(time.perf_counter() - start)
        used = (processor_s(int(os.environ["RIVALS_ROOT"])) - before) / rounds
        report(folder, name, seconds[1:], used, total)

    run_simulation(
        server, client, users,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"address": "local", "num_cpus": actors}},
    )  # fmt: skip
