#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""slots.py [--jemd PATH] [--model NAME] [--jobs N] [--seconds S] [--rounds N]

How well a backlog of jobs keeps the chain engine busy. A daemon with a store on the disk is given N (100)
jobs of all sorts: 1 to 16 chains, 1 to 10 times as many steps, Langevin, Gibbs, MALA and HMC, three
priorities, some with previews and all artifacts. From the moment they may begin until the last one has:

* busy slots: time of all slots with a chain that was being moved, as a share of all (aim: at least 95 %);
* chain-steps/s as a share of the bare engine's (`jemd bench --serve`: as many chains as there are slots,
  nothing else), which is measured before and after (aim: at least 90 %).

Also printed: both until the very end, when there is no backlog any more; and how long jobs took over
what was estimated when they might begin (jemd_job_estimate_error_ratio: median and quartiles).
"""
import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

from daemons import JEMD, Daemon, model

COUNTS, TIMES, SLOTS = (1, 2, 4, 8, 16), (1, 2, 5, 10), 16
KINDS = ("sgld", "gibbs", "mala", "hmc")
PRIORITIES = ("low", "normal", "high")


class Engine:
    """The bare engine, which waits on its standard input."""

    def __init__(self, jemd, path, threads):
        self.threads = threads
        self.process = subprocess.Popen([jemd, "bench", "--serve", "--threads", str(threads), path],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def chain_steps(self, seconds):
        """A second."""
        chains = SLOTS * self.threads
        print(f"step {chains} {seconds}", file=self.process.stdin, flush=True)
        return chains / json.loads(self.process.stdout.readline())["seconds_per_call"]

    def end(self):
        self.process.stdin.close()
        self.process.wait(30)


def jobs_of(number, chain_steps, rng):
    """Documents that ask for so many chain-steps in all, about."""
    shapes = [(rng.choice(COUNTS), rng.choice(TIMES)) for _ in range(number)]
    unit = chain_steps / sum(count * times for count, times in shapes)
    for i, (count, times) in enumerate(shapes):
        steps = max(10, round(unit * times))
        job = {"type": "sample", "conditions": [{"count": count}], "seed": str(i),
               "sampler": {"kind": KINDS[i % len(KINDS)], "steps": steps},
               "priority": PRIORITIES[i % len(PRIORITIES)]}
        if i % 10 == 0:
            job |= {"outputs": ["grid", "images", "tensor", "trace"], "preview_every_steps": max(1, steps // 4)}
        yield job


def quantile(page, name, q):
    """Of a histogram on the page of metrics, between the bounds of a bucket by proportion; None = it is empty."""
    buckets = sorted((float(re.search(r'le="([^"]+)"', series).group(1)), count) for series, count in page.items()
                     if series.startswith(name + "_bucket"))
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count > below and count >= q * buckets[-1][1]:
            return low if bound == float("inf") else low + (bound - low) * (q * buckets[-1][1] - below) / (count - below)
        low, below = bound, count
    return None


class Reading:
    def __init__(self, daemon):
        page = daemon.metrics()
        self.time = time.monotonic()
        self.steps = page["jemd_chain_steps_total"]
        self.busy = page['jemd_chain_slot_seconds_total{state="busy"}']
        self.free = page['jemd_chain_slot_seconds_total{state="free"}']
        self.waiting = page['jemd_jobs{state="queued",type="sample"}']
        self.running = page['jemd_jobs{state="running",type="sample"}']

    def since(self, before):
        """Share of busy slot time, chain-steps a second, seconds."""
        busy, free, seconds = self.busy - before.busy, self.free - before.free, self.time - before.time
        return busy / (busy + free), (self.steps - before.steps) / seconds, seconds


def run(daemon, documents):
    """The readings when jobs may begin, when the last had begun, and when all had ended."""
    daemon.call("/v1/queue:pause", {})
    ids = [daemon.call("/v1/jobs", d)["id"] for d in documents]
    daemon.call("/v1/queue:resume", {})
    begin = backlog = Reading(daemon)
    while True:
        now = Reading(daemon)
        if now.waiting > 0:
            backlog = now
        if now.waiting + now.running == 0:
            break
        time.sleep(0.1)
    for job in ids:
        state = daemon.call(f"/v1/jobs/{job}")["state"]
        if state != "succeeded":
            raise SystemExit(f"job {job} is {state}")
    return begin, backlog, now


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jemd", default=JEMD)
    parser.add_argument("--model", default="wrn-16-4")
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120, help="what a round is to take, about")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("flags", nargs="*", help="settings of the daemon, after --")
    args = parser.parse_args()
    cores, rng, rows = len(os.sched_getaffinity(0)), random.Random(1), []
    with tempfile.TemporaryDirectory(prefix="jemd-bench-") as folder:
        path = model(folder, args.model)
        engine = Engine(args.jemd, path, cores)
        with Daemon(args.jemd, path, folder, "--store.kind=sqlite", f"--store.directory={folder}/store",
                    *args.flags) as daemon:
            bare = engine.chain_steps(5)
            chains = SLOTS * cores  # a full engine: without its speed there are no estimates
            run(daemon, [{"type": "sample", "conditions": [{"count": chains}],
                          "sampler": {"steps": max(20, round(4 * bare / chains))}}])
            for _ in range(args.rounds):
                documents = list(jobs_of(args.jobs, bare * args.seconds, rng))
                begin, backlog, end = run(daemon, documents)
                after = engine.chain_steps(5)
                engine_rate, bare = (bare + after) / 2, after
                busy, rate, seconds = backlog.since(begin)
                all_busy, all_rate, all_seconds = end.since(begin)
                rows.append((busy, rate / engine_rate))
                print(f"with a backlog ({seconds:.0f} s): slots busy {100 * busy:.1f} %, {rate:.0f} chain-steps/s; "
                      f"to the end ({all_seconds:.0f} s): {100 * all_busy:.1f} %, {all_rate:.0f}; bare engine "
                      f"{engine_rate:.0f}", flush=True)
            quartiles = [quantile(daemon.metrics(), "jemd_job_estimate_error_ratio", q) for q in (0.25, 0.5, 0.75)]
        engine.end()
    busy, share = (statistics.median(column) for column in zip(*rows))
    print(f"{args.jobs} jobs: slots busy {100 * busy:.1f} % (aim >= 95), chain-steps/s {100 * share:.1f} % of the bare "
          f"engine's (aim >= 90)")
    print("time of a job over the estimate: quartiles " + " ".join("none" if q is None else f"{q:.2f}" for q in quartiles))


if __name__ == "__main__":
    sys.exit(main())
