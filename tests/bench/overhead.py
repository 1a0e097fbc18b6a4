#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""overhead.py [--jemd PATH] [--model FILE] [--image FILE] [--rounds N] [--seconds S]

What the daemon costs beside its engine, on the demo model:

1. octet-stream bodies of 16 images: throughput as a share of the bare engine's on the cores that the
   load generator (wrk, its CPU measured) leaves;
2. single PNGs: CPU of the daemon for a request outside of the engine;
3. latency of one request on an idle daemon: p50 less the engine's own time.

Every figure is the median of several rounds; engine and daemon are measured in turns, so that a noisy
machine disturbs both alike. Needs wrk (Debian).
"""
import argparse
import http.client
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BATCH = 16


def start_daemon(jemd, model):
    cache = tempfile.mkdtemp(prefix="jemd-bench-")
    process = subprocess.Popen(
        [jemd, "serve", "--http.port=0", "--models.directory=", f"--models.model={model}",
         f"--models.cache={cache}", "--log.access=no"], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        found = re.search(r"event=ready .*port=(\d+)", line)
        if found:
            return process, int(found.group(1)), cache
    raise SystemExit("the daemon did not start")


def cpu_of(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def engine(jemd, model, threads):
    out = subprocess.run([jemd, "bench", "--json", "--threads", str(threads), "--images",
                          str(BATCH), "--seconds", "0.1", model], capture_output=True, check=True)
    return json.loads(out.stdout)


def load(port, seconds, connections, body, headers):
    """wrk: requests done, wall seconds, CPU seconds of the generator."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", os.path.join(HERE, "post.lua"),
         f"http://127.0.0.1:{port}/v1/predict", "--", body] + headers,
        capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if "answer with status" in out.stdout or "Non-2xx" in out.stdout:
        raise SystemExit("the daemon refused requests:\n" + out.stdout)
    found = re.search(r"(\d+) requests in ([\d.]+)s", out.stdout)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return int(found.group(1)), float(found.group(2)), cpu


def throughput_share(args, port, raw, cores):
    bare = BATCH / engine(args.jemd, args.model, cores)["batch_seconds"]
    requests, wall, generator = load(port, args.seconds, 2 * cores, raw, [
        "Content-Type=application/octet-stream", f"X-Image-Shape={BATCH},32,32,3"])
    left = cores - generator / wall
    rate = requests * BATCH / wall
    return {"share": rate / (bare * left / cores), "images_per_second": rate,
            "bare_images_per_second": bare, "generator_cores": generator / wall}


def request_cpu(args, pid, port):
    one = engine(args.jemd, args.model, 1)["single_cpu_seconds"]
    before = cpu_of(pid)
    requests, _, _ = load(port, args.seconds, 1, args.image, ["Content-Type=image/png"])
    used = (cpu_of(pid) - before) / requests
    return {"outside_us": (used - one) * 1e6, "daemon_us": used * 1e6, "engine_us": one * 1e6}


def idle_latency(args, port):
    one = engine(args.jemd, args.model, 1)["single_seconds"]
    with open(args.image, "rb") as f:
        body = f.read()
    times = []
    client = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(400):
        begin = time.perf_counter()
        client.request("POST", "/v1/predict", body, {"Content-Type": "image/png"})
        client.getresponse().read()
        times.append(time.perf_counter() - begin)
        time.sleep(0.002)
    client.close()
    p50 = statistics.median(times)
    return {"p50_ms": p50 * 1e3, "engine_ms": one * 1e3, "over_ms": (p50 - one) * 1e3}


def median_of(rows):
    return {key: statistics.median(r[key] for r in rows) for key in rows[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jemd", default=os.path.join(ROOT, "build/release/server/jemd"))
    parser.add_argument("--model", default=os.path.join(ROOT, "models/sprites.safetensors"))
    parser.add_argument("--image", default=os.path.join(ROOT, "tests/samples/orc-blue-hair.png"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    args = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: apt-get install wrk")
    cores = len(os.sched_getaffinity(0))
    process, port, cache = start_daemon(args.jemd, args.model)
    try:
        with tempfile.NamedTemporaryFile() as raw:
            raw.write(bytes(i * 37 % 251 for i in range(BATCH * 32 * 32 * 3)))
            raw.flush()
            rows = [(throughput_share(args, port, raw.name, cores),
                     request_cpu(args, process.pid, port), idle_latency(args, port))
                    for _ in range(args.rounds)]
    finally:
        process.terminate()
        process.stderr.close()
        process.wait(30)
        shutil.rmtree(cache)
    share, cpu, latency = (median_of([r[i] for r in rows]) for i in range(3))
    print(f"1. octet-stream, {BATCH} images a body, {cores} cores: {share['images_per_second']:.0f} "
          f"images/s; bare engine {share['bare_images_per_second']:.0f} on all cores, generator used "
          f"{share['generator_cores']:.2f} cores: {100 * share['share']:.1f} % (aim >= 85 %)")
    print(f"2. single PNG: daemon {cpu['daemon_us']:.0f} us of CPU a request, engine "
          f"{cpu['engine_us']:.0f}: {cpu['outside_us']:.0f} us outside (aim <= 150)")
    print(f"3. one request on an idle daemon: p50 {latency['p50_ms']:.3f} ms, engine "
          f"{latency['engine_ms']:.3f}: {latency['over_ms']:.3f} ms over (aim <= 1)")


if __name__ == "__main__":
    main()
