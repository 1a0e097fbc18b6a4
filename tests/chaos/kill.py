#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Kills the daemon at random moments under a mixed load of jobs, and asks for all that was promised.

Each cycle starts the daemon, lets clients submit, cancel, change and read for a random time and ends it:
with SIGKILL, or SIGTERM (--signal TERM), also while it starts. At the end every job that was accepted is
there, once, in a state it may have, and the artifacts of all that succeeded are byte-identical to those of a
daemon that nobody disturbed.

--fault enospc or fsync: instead, the store's files refuse to be written or synced for a random time (tests/faults),
and every third time the daemon is killed meanwhile, and sometimes started so. --damage: between cycles a page of the
store's file is overwritten; then the jobs that are lost are those that the daemon says it has lost.

The moments come from --seed; what they hit does not. Takes about a second a cycle.
"""
import argparse
import errno
import collections
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "http"), os.path.join(HERE, "..", "faults")]
os.environ.setdefault("JEMD_BIN", os.path.join(HERE, "..", "..", "build", "release", "server", "jemd"))
import faults  # noqa: E402
import jemd_test  # noqa: E402
import load  # noqa: E402
from jemd_test import Daemon, patience, wait_until  # noqa: E402
from test_mcmc import write_bowl  # noqa: E402

SETTINGS = ("--sampler.checkpoint_ms=200", "--sampler.nice=0", "--jobs.max_store_bytes=8G", "--jobs.retention_bytes=0",
            "--jobs.retention_jobs=0", "--http.max_connections_per_ip=64")
CLIENTS, ACTIVE = 4, 8  # jobs that a client keeps going
FAULTS = {"enospc": (("write", "truncate"), errno.ENOSPC), "fsync": (("sync",), errno.EIO)}
PAGE, LOST_AT_MOST = 4096, 24  # jobs that have something on one page


class Chaos:
    def __init__(self, options):
        self.options, self.seed = options, options.seed
        self.rng = random.Random(options.seed)
        self.port = 0  # 0 = there is no daemon to talk to
        self.stop = self.closing = False
        self.may_lose = options.damage
        self.events = collections.Counter()
        self.folder = tempfile.TemporaryDirectory(prefix="jemd-chaos-")
        self.models = os.path.join(self.folder.name, "models")
        os.mkdir(self.models)
        write_bowl(self.models)
        if not options.bare:
            os.symlink(jemd_test.MODEL, os.path.join(self.models, "sprites.safetensors"))
        self.documents = load.documents(options.seed, not options.bare)
        self.flags = (*SETTINGS, f"--sampler.workers={options.workers}", "--models.directory=" + self.models)
        self.daemon = Daemon(*self.flags, *(("--jobs.lease_ms=1000",) if options.fault else ()))
        self.store = os.path.join(self.daemon.folder.name, "jobs")
        self.faults, self.failed = None, 0
        if options.fault:
            self.faults = faults.Faults(self.folder.name, self.store)
            self.daemon.environment.update(self.faults.environment())
        self.clients, self.going_at_kill, self.lost = [], [], set()
        self.killed_early = 0  # before it was ready

    def close(self):
        self.stop = True
        for client in self.clients:
            client.join(30)
        self.daemon.discard()
        self.folder.cleanup()

    # the daemon

    def spawn(self):
        self.daemon.spawn()

    def await_ready(self, until):
        """Whether it can be talked to before then."""
        while time.monotonic() < until:
            ready = self.daemon.logged("ready")
            if ready:
                self.daemon.port = self.port = int(re.search(r"port=(\d+)", ready[0]).group(1))
                return True
            if self.daemon.process.poll() is not None:
                raise AssertionError("jemd ended at once: " + self.daemon.log())
            time.sleep(.005)
        return False

    def end(self, number):
        self.daemon.signal(number)
        begin = time.monotonic()
        code = self.daemon.process.wait(patience(30))
        self.port = 0
        ready = bool(self.daemon.logged("ready"))  # before it cares for signals they end it
        if code != -number and code != 0 or (number == signal.SIGTERM and ready and code != 0):
            raise AssertionError(f"jemd ended with {code}: ... {self.daemon.log()[-3000:]}")
        self.events.update(re.findall(r"\bevent=(\w+)", self.daemon.log()))
        if self.options.log:
            with open(self.options.log, "a", encoding="utf-8") as f:
                f.write(self.daemon.log())
        return time.monotonic() - begin

    # what befalls it

    def fail(self):
        """The store's files cannot be written, or synced, for a while; the daemon may be killed meanwhile."""
        calls, error = FAULTS[self.options.fault]
        if self.daemon.process.poll() is None:
            if not self.await_ready(time.monotonic() + patience(20)):
                raise AssertionError("jemd is not ready: " + self.daemon.log())
            time.sleep(self.rng.uniform(0, self.options.mean))
        self.faults.arm(faults.ALWAYS, calls, self.rng.randrange(1, 40), error, own_files=True)
        time.sleep(self.rng.uniform(0, self.options.mean))
        self.going_at_kill.append(sum(i.id is not None and not i.ended for i in self.items()))
        if self.rng.random() < 1 / 3:
            self.end(signal.SIGKILL)
            if self.rng.random() < .5:
                self.spawn()  # and cannot write from the beginning
                time.sleep(self.rng.uniform(0, self.options.mean))
                self.failed += self.faults.off()
                return
        self.failed += self.faults.off()
        if self.daemon.process.poll() is not None:
            self.spawn()

    def damage(self):
        """Overwrites a page of the file, and has the daemon, when it is back, say what that cost."""
        path = os.path.join(self.store, "jobs.sqlite")
        with open(path, "r+b") as f:
            page = self.rng.randrange(1, max(2, os.path.getsize(path) // PAGE))
            f.seek(page * PAGE + self.rng.choice((0, 0, self.rng.randrange(PAGE))))
            f.write(self.rng.randbytes(self.rng.choice((1, 16, PAGE // 2))))
        self.spawn()
        if not self.await_ready(time.monotonic() + patience(20)):
            raise AssertionError("jemd is not ready: " + self.daemon.log())
        with open(os.path.join(jemd_test.SAMPLES, "orc-blue-hair.png"), "rb") as f:
            image = f.read()
        if not self.options.bare:
            answer = self.daemon.post("/v1/models/sprites:predict", image, "image/png", check=False)
            assert answer.status == 200, answer
        wait_until(self.is_looked_through, 30, "recovery of the store")
        lost = set(self.store_check()[1])
        assert len(lost - self.lost) <= LOST_AT_MOST, f"{len(lost - self.lost)} jobs lost with one page"
        self.lost |= lost

    def is_looked_through(self):
        """The store is well, and was looked through since it was opened, or mended."""
        log = self.daemon.log()
        return not self.store_check()[0] and log.rfind("event=store_verified") > log.rfind("event=store_failed")

    def store_check(self):
        """(what is wrong with the store, ids of jobs that were lost)"""
        said = self.daemon.get("/readyz?verbose", check=False).json()
        check = [c for c in said["checks"] if c["name"] == "store"][0]
        return None if check["ok"] else check["detail"], check.get("lost_jobs") or said.get("lost_jobs") or []

    # before and after

    def undisturbed(self):
        """The outcome of each document, by a daemon that is left alone."""
        daemon = Daemon(*self.flags).start()
        try:
            jobs = [jemd_test.submit(daemon, document) for document in self.documents]
            done = [jemd_test.wait_ended(daemon, job["id"], 120) for job in jobs]
            for job in done:
                if job["state"] != "succeeded":
                    raise AssertionError(f"undisturbed, a job {job['state']}: {job}")
            expected = [load.outcome(lambda path: daemon.get(path, check=False), job) for job in done]
            daemon.stop()
            return expected
        finally:
            daemon.discard()

    def items(self):
        return [item for client in self.clients for item in client.items]

    def check_clients(self):
        for client in self.clients:
            if client.error:
                raise client.error

    def settle(self):
        """Lets everything that was accepted come to its end, undisturbed."""
        self.closing = True
        if self.daemon.process.poll() is not None:
            self.spawn()
        if not self.await_ready(time.monotonic() + patience(20)):
            raise AssertionError("jemd is not ready: " + self.daemon.log())
        until = time.monotonic() + patience(self.options.patience)
        while any(not i.ended and not i.lost for i in self.items()) and time.monotonic() < until:
            self.check_clients()
            time.sleep(.1)
        self.stop = True
        for client in self.clients:
            client.join(30)
        self.check_clients()
        left = [(i.key, i.id) for i in self.items() if not i.ended and not i.lost]
        if left:
            states = [self.daemon.get("/v1/jobs/" + i[1], check=False) for i in left[:3] if i[1]]
            raise AssertionError(f"{len(left)} jobs have not ended: {left[:5]} {states}")

    def listed(self):
        """Every job that the daemon has, by its list."""
        jobs, path = [], "/v1/jobs?limit=100"
        while path:
            page = self.daemon.get(path, check=False).json()
            jobs += page["jobs"]
            path = page.get("next_cursor") and "/v1/jobs?limit=100&cursor=" + page["next_cursor"]
        return jobs

    def judge(self, expected):
        """Nothing lost, nothing twice, every byte as it should be."""
        items, states = self.items(), collections.Counter()
        for item in items:
            if item.lost or item.id in self.lost:
                item.lost = True
                answer = self.daemon.get("/v1/jobs/" + item.id, check=False)
                assert item.id in self.lost, f"job {item.id} is gone, and not said to be lost"
                assert answer.status == 410, answer
                states["lost"] += 1
                continue
            job = self.daemon.get("/v1/jobs/" + item.id).json()
            assert job == item.ended, f"an ended job has changed: {item.ended} is now {job}"
            state = job["state"]
            states[state] += 1
            allowed = {"succeeded"} if not item.must_cancel else set()
            allowed |= {"canceled"} if item.may_cancel else set()
            allowed |= {"expired"} if item.may_expire else set()
            assert state in allowed, f"job {item.id} may not be {state}: {job['error']} {item.__dict__}"
            if state == "succeeded":
                got = load.outcome(lambda path: self.daemon.get(path, check=False), job)
                assert got == expected[item.which], f"job {item.id} of request {item.which} left something else: {got}"
        ids = [job["id"] for job in self.listed()]
        assert len(ids) == len(set(ids)), "a job is listed twice"
        wanted = {item.id for item in items if not item.lost}
        assert len(wanted) == sum(not i.lost for i in items), "two keys have the same job"
        assert self.lost <= {item.id for item in items}, "lost jobs that nobody submitted"
        assert set(ids) == wanted, f"not listed: {wanted - set(ids)}; nobody's: {set(ids) - wanted}"
        return states

    # the cycles

    def cycle(self, number):
        if self.options.fault:
            self.fail()
            self.check_clients()
            return 0
        if self.options.damage:
            number = self.rng.choice((signal.SIGKILL, signal.SIGTERM))
            if os.path.exists(os.path.join(self.store, "jobs.sqlite")):
                self.damage()
            else:
                self.spawn()
                self.await_ready(time.monotonic() + patience(20))
            time.sleep(self.rng.uniform(0, 2 * self.options.mean))
            self.check_clients()
            self.going_at_kill.append(sum(i.id is not None and not i.ended for i in self.items()))
            return self.end(number)
        length = self.rng.uniform(0, 2 * self.options.mean)
        early = self.rng.random() < .25  # counted from the start, else from when it is ready
        self.spawn()
        until = time.monotonic() + (length if early else patience(20))
        if self.await_ready(until):
            time.sleep(max(0, until - time.monotonic()) if early else length)
            self.check_clients()
            self.going_at_kill.append(sum(i.id is not None and not i.ended for i in self.items()))
        else:
            self.killed_early += 1
        return self.end(number)

    def run(self):
        begin = time.monotonic()
        expected = self.undisturbed()
        print(f"undisturbed: {len(expected)} requests in {time.monotonic() - begin:.1f} s", flush=True)
        number = getattr(signal, "SIG" + self.options.signal)
        self.clients = [load.Client(self, n, ACTIVE) for n in range(CLIENTS)]
        for client in self.clients:
            client.start()
        if self.options.fault:
            self.spawn()
        begin, slowest = time.monotonic(), 0
        for n in range(self.options.cycles):
            slowest = max(slowest, self.cycle(number))
            if (n + 1) % 50 == 0:
                print(f"cycle {n + 1}: {len(self.items())} jobs, {time.monotonic() - begin:.0f} s", flush=True)
        cycles_s = time.monotonic() - begin
        self.settle()
        states = self.judge(expected)
        self.daemon.stop()
        self.events.update(re.findall(r"\bevent=(\w+)", self.daemon.log()))
        self.report(states, cycles_s, slowest)

    def report(self, states, cycles_s, slowest):
        counts = sum((collections.Counter(c.counts) for c in self.clients), collections.Counter())
        attempts = [i.ended["attempts"] for i in self.items() if i.ended]
        resumed = sum(i.ended["resumed_from_step"] is not None for i in self.items() if i.ended)
        kind = self.options.fault or "damage" * self.options.damage or "SIG" + self.options.signal
        print(f"{self.options.cycles} cycles of {kind} in {cycles_s:.0f} s; slowest end {slowest:.2f} s")
        going = sorted(self.going_at_kill) or [0]
        print(f"jobs going at the end of a cycle: {going[0]} to {going[-1]}, mostly {going[len(going) // 2]}; "
              f"ended before it was ready: {self.killed_early} times")
        print(f"jobs: {len(self.items())}, {dict(states)}; attempts at most {max(attempts, default=0)}, "
              f"{sum(attempts)} in all, resumed from a checkpoint: {resumed}")
        print("requests:", dict(counts))
        print("events:", {k: v for k, v in self.events.items() if not k.startswith(("model_", "job_state"))})
        if self.options.fault:
            print(f"calls that failed: {self.failed}")
            assert self.failed > 0, "no call failed"
        bad = set() if self.options.fault else {"store_failed", "job_lost", "checkpoint_failed", "job_crashed"} & set(self.events)
        assert not bad or self.may_lose, f"the log tells of {bad}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--cycles", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--mean", type=float, default=.8, help="seconds of a cycle")
    parser.add_argument("--patience", type=float, default=120, help="seconds for what is left at the end")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--bare", action="store_true", help="without the jobs of the real model")
    parser.add_argument("--damage", action="store_true", help="overwrite pages of the store between cycles")
    parser.add_argument("--fault", choices=sorted(FAULTS), help="the store's files fail instead")
    parser.add_argument("--log", help="append the daemon's log to this file")
    chaos = Chaos(parser.parse_args())
    try:
        chaos.run()
    finally:
        chaos.close()


if __name__ == "__main__":
    main()
