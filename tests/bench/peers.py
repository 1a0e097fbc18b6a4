#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""jemd's engine against PyTorch and ONNX Runtime on the same networks, images and threads, on an
otherwise idle machine.

Every engine is a child process that stays warm while its network is measured. First all engines
must agree on logits and on the gradient of log p(x). Then each configuration of an engine (memory
layout, compiler, how its threads wait) is tried on every case and the fastest is kept. The rounds
go from engine to engine, in another order each time: one measurement is the median call of some
tenths of a second, and is repeated where another program disturbed it. Reported are medians over
the rounds, and the ratio to jemd within a round: its median and quartiles.

MODELS_DIR holds what networks.py makes. PyTorch is Debian's python3-torch; ONNX Runtime is npm's
onnxruntime-node of the version in package-lock.json here, which npm installs into --cache.
"""
import argparse
import filecmp
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

import onnx_file

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
                     "jemd-bench")
JEMD, TORCH, ORT = "jemd", "PyTorch", "ONNX Runtime"
NETWORKS = ["wrn-28-10", "wrn-16-4", "gibbs-64"]
CHECKED = 6  # images of the agreement check
AGREE = 1e-4  # relative L2 error of logits and gradients
AGREE_KINKED = 1e-3  # of gradients where a slope jumps: PyTorch's own layouts are 3e-4 apart
DISTURBED = 0.05  # share of the cores used by others above which a measurement is repeated
TRIES = 4
TICK = os.sysconf("SC_CLK_TCK")
# PyTorch at its best: large allocations that are kept, in huge pages (a tenth of a Langevin step).
KEEP_MEMORY = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:"
                                 "glibc.malloc.trim_threshold=17179869184:glibc.malloc.hugetlb=1"}


def machine_busy() -> float:
    """CPU seconds of everything on this machine, what a hypervisor took included."""
    with open("/proc/stat", encoding="ascii") as stream:
        user, nice, system, _, _, irq, softirq, steal = map(int, stream.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICK


class Case:
    """One thing to measure on one network, and what came out, a number for every round."""

    def __init__(self, command: str, n: int):
        self.command, self.n = command, n
        self.chosen: list["Child"] = []  # the fastest configuration of every engine
        self.seconds: dict[str, list[float]] = {}  # by engine
        self.others: list[float] = []  # share of the cores that other programs used

    def title(self) -> str:
        if self.command == "step":
            return f"Langevin step, {self.n} chain{'s' * (self.n > 1)}"
        return f"forward, {self.n} image{'s' * (self.n > 1)}"

    def ratios(self, engine: str, base: str) -> list[float]:
        return [a / b for a, b in zip(self.seconds[engine], self.seconds[base])]


class Child:
    """One engine in one configuration with one network. It reads commands, one line each, and
    answers each with a line of JSON; images are raw float32 [N][C][H][W] in files.

    forward BATCH SECONDS   {"seconds_per_call": the median, "calls": their number}, after one
    step CHAINS SECONDS     untimed call, in about so many seconds, one call at least
    logits IN OUT N         {}: writes [N][logits], raw float32
    gradient IN OUT N       {}: writes d log p(x) / dx, [N][C][H][W]

    What fails is answered by {"error": text}.
    """

    def __init__(self, engine: str, label: str, command: list, steps: bool = True, **environment):
        self.engine, self.label, self.steps = engine, label, steps
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True,
                                        env=os.environ | environment)

    def ask(self, *words) -> dict:
        try:
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            answer = {"error": "no answer"}
        if "error" in answer:
            sys.exit(f"peers.py: {self.engine} ({self.label}), {words[0]}: {answer['error']}")
        return answer

    def cpu(self) -> float:
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as stream:
            fields = stream.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def measure(self, case: Case, seconds: float) -> tuple[float, float]:
        """(share of the cores that others used meanwhile, seconds of a call): of the first quiet
        measurement, else of the quietest."""
        found = []
        while len(found) < TRIES and (not found or found[-1][0] > DISTURBED):
            time.sleep(0.05 if not found else 0.5)  # until the others' threads sleep
            busy, own, begin = machine_busy(), self.cpu(), time.monotonic()
            answer = self.ask(case.command, case.n, seconds)
            wall = time.monotonic() - begin
            others = machine_busy() - busy - (self.cpu() - own)
            found.append((max(others, 0) / wall / os.cpu_count(), answer["seconds_per_call"]))
        return min(found)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


# The engines: every configuration of each, on one network.

def jemd_children(args, model: str) -> Iterator[Child]:
    yield Child(JEMD, "-", [args.jemd, "bench", "--serve", "--threads", args.threads, model])


def torch_children(args, model: str) -> Iterator[Child]:
    for mode in ("nchw", "channels_last", "jit"):
        for waiting in ("active", "passive"):
            policy = {"OMP_WAIT_POLICY": "passive"} if waiting == "passive" else {}
            yield Child(TORCH, f"{mode}, {waiting} wait",
                        [sys.executable, "-B", os.path.join(HERE, "peer_torch.py"), "--mode", mode,
                         "--threads", args.threads, model], mode != "jit", **KEEP_MEMORY, **policy)


def ort_children(args, model: str) -> Iterator[Child]:
    described, tensors = onnx_file.read_model(model)
    size = described["input"]
    path = os.path.join(args.folder, described["name"] + ".onnx")
    with open(path, "wb") as stream:
        stream.write(onnx_file.onnx_model(described, tensors))
    for spin in (1, 0):
        yield Child(ORT, "active wait" if spin else "passive wait",
                    ["node", os.path.join(HERE, "peer_ort.mjs"), args.cache, path, args.threads,
                     spin, size["channels"], size["height"], size["width"]], False)


ENGINES = {JEMD: jemd_children, TORCH: torch_children, ORT: ort_children}


def install_ort(folder: str) -> None:
    """onnxruntime-node into the folder. Its install script is not run: it would fetch CUDA."""
    lock = os.path.join(folder, "package-lock.json")
    if os.path.isdir(os.path.join(folder, "node_modules")) and os.path.exists(lock) and filecmp.cmp(
            lock, os.path.join(HERE, "package-lock.json"), shallow=False):
        return
    os.makedirs(folder, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(os.path.join(HERE, name), folder)
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"],
                   cwd=folder, check=True)


# Agreement

def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def logits_error(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest error of one image's logits, and of what in them depends on the image: beside
    the biases' part that is little in a fresh network."""
    return max([relative(got - got.mean(0), expected - expected.mean(0)),
                *map(relative, got, expected)])


def output(child: Child, command: str, images: str, shape: tuple[int, ...]) -> np.ndarray:
    with tempfile.NamedTemporaryFile() as out:
        child.ask(command, images, out.name, CHECKED)
        return np.fromfile(out.name, "<f4").astype(float).reshape(shape)


def check(children: list[Child], described: dict) -> dict[str, float]:
    """The largest relative error of every engine's configurations against the first child."""
    size = described["input"]
    shape = (CHECKED, size["channels"], size["height"], size["width"])
    x = np.random.default_rng(1).uniform(*size["range"], shape)
    x *= 4.0 ** np.arange(CHECKED)[:, None, None, None]  # fainter and stronger than any image
    kinked = any(layer["kind"] in ("lrelu", "relu") for layer in described["layers"])
    limits = {"logits": AGREE, "gradient": AGREE_KINKED if kinked else AGREE}
    expected, errors = {}, {}
    with tempfile.NamedTemporaryFile() as images:
        images.write(x.astype("<f4").tobytes())
        images.flush()
        for child in children:
            for what in ("logits", "gradient")[:1 + child.steps]:
                got = output(child, what, images.name, (CHECKED, -1))
                compare = logits_error if what == "logits" else relative
                error = compare(got, expected.setdefault(what, got))
                if not error <= limits[what]:
                    sys.exit(f"peers.py: {described['name']}: {what} of {child.engine} "
                             f"({child.label}) have a relative error of {error:.1e}")
                name = f"{child.engine}, {what}"
                errors[name] = max(errors.get(name, 0), error)
    return errors


# The measurements

def choose(children: list[Child], cases: list[Case], seconds: float) -> None:
    """Keeps the fastest configuration of every engine for every case, from two turns."""
    for case in cases:
        able = [c for c in children if c.steps or case.command != "step"]
        times = {c: min(c.measure(case, seconds)[1] for _ in range(2)) for c in able}
        engines = dict.fromkeys(c.engine for c in able)
        case.chosen = [min((c for c in able if c.engine == e), key=times.get) for e in engines]


def play_round(cases: list[Case], seconds: float) -> None:
    """Every case once on every engine, in turns of random order."""
    for case in cases:
        for child in random.sample(case.chosen, len(case.chosen)):
            share, found = child.measure(case, seconds)
            case.seconds.setdefault(child.engine, []).append(found)
            case.others.append(share)


def run_network(args, name: str) -> tuple[dict[str, float], list[Case]]:
    model = os.path.join(args.models, name + ".safetensors")
    children: list[Child] = []
    cases = ([Case("forward", n) for n in args.forward] + [Case("step", n) for n in args.step])
    try:
        for engine in args.engines:
            children += ENGINES[engine](args, model)
        errors = check(children, onnx_file.read_model(model)[0])
        choose(children, cases, args.seconds)
        used = {child for case in cases for child in case.chosen}
        for child in set(children) - used:
            child.close()
            children.remove(child)
        for _ in range(args.rounds):
            play_round(cases, args.seconds)
    finally:
        for child in children:
            child.close()
    return errors, [case for case in cases if case.chosen]


# The report

def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(q) for q in np.quantile(values, (.25, .5, .75))]


def case_row(name: str, case: Case, base: str) -> dict:
    """What --json holds of one case."""
    engines = {}
    for child in case.chosen:
        seconds = case.seconds[child.engine]
        engines[child.engine] = {
            "configuration": child.label, "seconds": statistics.median(seconds),
            "rounds": seconds, "ratio": quartiles(case.ratios(child.engine, base))}
    return {"network": name, "case": case.command, "n": case.n, "engines": engines,
            "others_median": statistics.median(case.others), "others_max": max(case.others)}


def table_line(row: dict, title: str, engines: list[str]) -> str:
    cells = [row["network"], title]
    for engine in engines:
        found = row["engines"].get(engine)
        cells.append(f"{found['seconds'] * 1e3:.3g} ms" if found else "")
    for engine in engines[1:]:
        found = row["engines"].get(engine)
        low, middle, high = found["ratio"] if found else (0, 0, 0)
        cells.append(f"**{middle:.2f}** ({low:.2f} to {high:.2f})" if found else "")
        cells.append(found["configuration"] if found else "")
    return "| " + " | ".join(cells) + " |"


def table_head(engines: list[str]) -> str:
    cells = ["network", "case", *engines]
    for engine in engines[1:]:
        cells += [f"{engine} : {engines[0]}", f"{engine} ran"]
    return "| " + " | ".join(cells) + " |\n|" + "---|" * len(cells)


def processor() -> str:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:
        for line in stream:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", metavar="MODELS_DIR", help="model files, from networks.py")
    parser.add_argument("names", metavar="NAME", nargs="*", default=NETWORKS,
                        help=f"networks (default: {' '.join(NETWORKS)})")
    parser.add_argument("--jemd", default=os.path.join(ROOT, "build/release/server/jemd"))
    parser.add_argument("--engines", default=",".join(ENGINES), metavar="LIST",
                        help="the first one is what the others are compared with (default: "
                        "%(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="of one measurement")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--forward", type=numbers, default=[1, 4, 16, 32], metavar="LIST",
                        help="batches to measure (default 1,4,16,32)")
    parser.add_argument("--step", type=numbers, default=[1, 4, 16], metavar="LIST",
                        help="chains to measure (default 1,4,16)")
    parser.add_argument("--cache", default=CACHE, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="every round's numbers, too")
    args = parser.parse_args()
    args.engines = args.engines.split(",")
    if not set(args.engines) <= set(ENGINES):
        parser.error(f"engines are {', '.join(ENGINES)}")
    return args


def main() -> None:
    args = parse_arguments()
    if ORT in args.engines:
        install_ort(args.cache)
    rows = []
    print(f"{processor()}, {args.threads} threads; median of {args.rounds} rounds; ratio of times "
          f"in a round, its quartiles in brackets\n\n{table_head(args.engines)}", flush=True)
    notes = []
    with tempfile.TemporaryDirectory() as args.folder:
        for name in args.names:
            errors, cases = run_network(args, name)
            for case in cases:
                rows.append(case_row(name, case, args.engines[0]))
                print(table_line(rows[-1], case.title(), args.engines), flush=True)
            agreed = ", ".join(f"{k} {v:.1e}" for k, v in errors.items() if v > 0)
            notes.append(f"{name}: relative errors against {args.engines[0]}: {agreed}")
    print("\n" + "\n".join(notes))
    print(f"Other programs used {100 * statistics.median(r['others_median'] for r in rows):.1f} % "
          f"of the cores meanwhile, {100 * max(r['others_max'] for r in rows):.0f} % at most.")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as stream:
            json.dump({"processor": processor(), "threads": args.threads, "notes": notes,
                       "rows": rows}, stream, indent=1)


if __name__ == "__main__":
    main()
