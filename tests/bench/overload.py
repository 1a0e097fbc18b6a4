#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""overload.py [--jemd PATH] [--model NAME] [--seconds S] [--load X]

What becomes of predictions when more are asked for than can be computed, and beside sampling. A daemon
of its own, a WRN-16-4 (networks.py), single 32x32 PNGs, one at a time a request:

1. capacity: what 16 connections get answered, each asking again at once;
2. an open loop (Poisson; latency from when a request was due) at 0.8 of capacity, as the measure;
3. the same at X times capacity (10) for S seconds (60): p99 of what is accepted as a multiple of that,
   what is refused, whether each refusal says when to come again, memory;
4. one prediction after the other on an idle daemon, then beside a full backlog of sampling jobs.

offer.c is the generator (built with gcc, needs liburing-dev); its CPU is printed (aim: at most 10 % of one core).
"""
import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from daemons import JEMD, ROOT, Daemon, generator, model

CAPACITY_CONNECTIONS, OPEN_CONNECTIONS = 16, 200
IMAGE = os.path.join(ROOT, "tests/samples/orc-blue-hair.png")
JOBS, CHAINS, STEPS = 8, 16, 5000


def write_request(path):
    with open(IMAGE, "rb") as f:
        body = f.read()
    head = (f"POST /v1/predict HTTP/1.1\r\nHost: bench\r\nContent-Type: image/png\r\n"
            f"Content-Length: {len(body)}\r\n\r\n")
    with open(path, "wb") as f:
        f.write(head.encode() + body)
    return path


class Memory(threading.Thread):
    """The daemon's resident memory, every second."""

    def __init__(self, daemon):
        super().__init__(daemon=True)
        self.source, self.seen, self.over = daemon, [], threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(1):
            self.seen.append(self.source.rss_mb())

    def end(self):
        self.over.set()
        self.join()
        return self.seen


class Bench:
    def __init__(self, args, daemon, folder):
        self.args, self.daemon = args, daemon
        self.offer_path, self.request = generator(folder), write_request(os.path.join(folder, "request"))

    def offer(self, rate, seconds, connections):
        before = self.daemon.cpu_seconds()
        out = subprocess.run([self.offer_path, str(self.daemon.port), self.request, str(rate), str(seconds),
                              str(connections)], stdout=subprocess.PIPE, check=True)
        found = json.loads(out.stdout)
        found["daemon_cores"] = (self.daemon.cpu_seconds() - before) / found["wall_seconds"]
        found["offer_cores"] = found["cpu_seconds"] / found["wall_seconds"]
        if found["other"] or found["unanswered"]:
            raise SystemExit(f"answers that are neither 200 nor a refusal: {found}")
        return found

    def capacity(self):
        self.offer(0, 2, CAPACITY_CONNECTIONS)
        return statistics.median(self.offer(0, self.args.warm_seconds, CAPACITY_CONNECTIONS)["good_per_second"]
                                 for _ in range(3))

    def open(self, name, rate, seconds):
        memory = Memory(self.daemon)
        found = self.offer(rate, seconds, OPEN_CONNECTIONS)
        rss = memory.end()
        good, refused = found["good"], found["refused"]
        print(f"{name}: {rate:.0f}/s offered; {good['n']} accepted ({found['good_per_second']:.0f}/s), p50 "
              f"{good['p50']:.1f} p99 {good['p99']:.1f} p99.9 {good['p999']:.1f} max {good['max']:.1f} ms; "
              f"{100 * refused['n'] / (good['n'] + refused['n']):.1f} % refused; daemon "
              f"{found['daemon_cores']:.2f} cores, generator {100 * found['offer_cores']:.1f} % of one")
        if refused["n"]:
            print(f"    refusals: p50 {refused['p50']:.1f} p99 {refused['p99']:.1f} ms, Retry-After "
                  f"{found['retry_after_least']} to {found['retry_after_most']} s, {found['without_retry_after']} "
                  f"without")
        print(f"    sent late by at most {found['late_most_ms']:.1f} ms, {found['unsent']} not sent; RSS after 1 s, "
              f"half, end: {rss[0]:.0f}, {rss[len(rss) // 2]:.0f}, {rss[-1]:.0f} MB", flush=True)
        return found

    def one_at_a_time(self, seconds):
        good = self.offer(0, seconds, 1)["good"]
        return good["p50"], good["p99"]

    def backlog(self):
        """Jobs that keep every slot busy until they are canceled."""
        made = [self.daemon.call("/v1/jobs", {
            "type": "sample", "conditions": [{"count": CHAINS}], "sampler": {"steps": STEPS}, "seed": str(i)})["id"]
                for i in range(JOBS)]
        wanted = self.daemon.call("/v1/queue")
        for _ in range(100):
            time.sleep(0.1)
            if self.daemon.metrics()['jemd_chain_slots{state="free"}'] == 0:
                return made
        raise SystemExit(f"the slots never filled: {wanted}")

    def beside_sampling(self):
        """Idle and beside sampling in turns, so that a noisy machine disturbs both alike."""
        rows = []
        for _ in range(self.args.rounds):
            idle = self.one_at_a_time(self.args.turn_seconds)
            jobs = self.backlog()
            steps, begin = self.daemon.metrics()["jemd_chain_steps_total"], time.monotonic()
            busy = self.one_at_a_time(self.args.turn_seconds)
            rate = (self.daemon.metrics()["jemd_chain_steps_total"] - steps) / (time.monotonic() - begin)
            for job in jobs:
                self.daemon.call(f"/v1/jobs/{job}:cancel", {})
            while self.daemon.metrics()['jemd_chain_slots{state="busy"}'] > 0:
                time.sleep(0.05)
            rows.append((*idle, *busy, rate))
        return [statistics.median(column) for column in zip(*rows)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jemd", default=JEMD)
    parser.add_argument("--model", default="wrn-16-4")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--load", type=float, default=10)
    parser.add_argument("--warm-seconds", type=float, default=4)
    parser.add_argument("--turn-seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("overload", "sampling"))
    parser.add_argument("flags", nargs="*", help="settings of the daemon, after --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jemd-bench-") as folder:
        with Daemon(args.jemd, model(folder, args.model), folder, *args.flags) as daemon:
            bench = Bench(args, daemon, folder)
            if args.only != "sampling":
                capacity = bench.capacity()
                print(f"capacity: {capacity:.0f} predictions/s", flush=True)
                usual = bench.open("0.8 of capacity", 0.8 * capacity, args.seconds)
                much = bench.open(f"{args.load:g} times capacity", args.load * capacity, args.seconds)
                again = bench.open("0.8 of capacity, afterwards", 0.8 * capacity, args.seconds / 3)
                ratio = much["good"]["p99"] / usual["good"]["p99"]
                print(f"p99 of accepted predictions: {ratio:.2f} times that at 0.8 of capacity (aim <= 1.5); "
                      f"p99 afterwards {again['good']['p99']:.1f} ms")
            if args.only != "overload":
                idle50, idle99, busy50, busy99, rate = bench.beside_sampling()
                print(f"one prediction at a time: idle p50 {idle50:.2f} p99 {idle99:.2f} ms, beside a full backlog of "
                      f"sampling p50 {busy50:.2f} p99 {busy99:.2f} ms ({rate:.0f} chain-steps/s meanwhile): p99 "
                      f"{busy99 / idle99:.2f} times (aim <= 2)")


if __name__ == "__main__":
    sys.exit(main())
