#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How fast the daemon starts with a model, and what a second one on the host costs.

    start.py --jemd build/release/server/jemd MODEL.safetensors

Starts the daemon several times, by turns without packed weights (their segment is removed before)
and with them, and prints the medians of the time until it is ready; then starts two and prints the
private memory of the second, idle before its first request. The digest of the model file is cached,
and the file is in the page cache, as after a restart.
"""
import argparse
import glob
import os
import re
import signal
import statistics
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATIENCE = 60  # seconds


def start(args, folder: str) -> tuple[subprocess.Popen, float]:
    """A daemon that is ready, and the seconds that took."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [args.jemd, "serve", "--http.port=0", "--models.directory=", "--models.model=" + args.model,
         "--models.cache=" + folder, "--compute.share=" + args.share, *args.flags],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if re.search(r"\bevent=ready\b", line):
            return process, time.monotonic() - begin
        if time.monotonic() - begin > PATIENCE:
            break
    process.kill()
    raise SystemExit("start.py: the daemon did not start")


def stop(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)


def private_mb(pid: int) -> float:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as stream:
        return sum(int(n) for n in re.findall(r"^Private_\w+:\s+(\d+) kB", stream.read(), re.M)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--jemd", default=os.path.join(ROOT, "build/release/server/jemd"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", default="/dev/shm", help="directory of packed weights")
    parser.add_argument("flags", nargs="*", help="further --section.key=value, after --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.share, prefix="jemd-bench-") as share, \
            tempfile.TemporaryDirectory() as cache:
        args.share = share
        stop(start(args, cache)[0])  # caches the digest
        packing, attaching = [], []
        for _ in range(args.rounds):
            for path in glob.glob(os.path.join(share, "jemd-*")):
                os.remove(path)
            for seconds in (packing, attaching):
                process, took = start(args, cache)
                seconds.append(took)
                stop(process)
        first, second = start(args, cache)[0], start(args, cache)[0]
        shared = sum(os.path.getsize(p) for p in glob.glob(os.path.join(share, "jemd-*")))
        mb = private_mb(second.pid)
        stop(first)
        stop(second)
    print(f"ready without packed weights: {statistics.median(packing) * 1e3:.0f} ms "
          f"({min(packing) * 1e3:.0f} to {max(packing) * 1e3:.0f})")
    print(f"ready with packed weights:    {statistics.median(attaching) * 1e3:.0f} ms "
          f"({min(attaching) * 1e3:.0f} to {max(attaching) * 1e3:.0f})")
    print(f"packed weights: {shared / 2**20:.0f} MB; private memory of a second daemon: {mb:.1f} MB")


if __name__ == "__main__":
    main()
