# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of the daemon share: starting one, its numbers, the load generator."""
import json
import os
import re
import subprocess
import tempfile
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
JEMD = os.path.join(ROOT, "build/release/server/jemd")


def model(folder, name):
    """The file of a network of networks.py."""
    subprocess.run(["/usr/bin/python3", os.path.join(HERE, "networks.py"), folder, name],
                   check=True, stdout=subprocess.DEVNULL)
    return os.path.join(folder, name + ".safetensors")


class Daemon:
    """jemd with one model, for a with statement."""

    def __init__(self, jemd, model_file, folder, *flags):
        command = [jemd, "serve", "--http.port=0", "--models.directory=", f"--models.model={model_file}",
                   f"--models.cache={folder}", "--log.access=no", "--http.max_connections_per_ip=1024", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            found = re.search(r"event=ready .*port=(\d+)", line)
            if found:
                self.port = int(found.group(1))
                break
        else:
            raise SystemExit("the daemon did not start")
        # somebody has to read what it says, else it waits for room in the pipe
        self.log = tempfile.TemporaryFile()
        self.reader = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=self.log)
        self.process.stderr.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)
        self.reader.wait(10)
        self.log.close()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def call(self, path, body=None):
        """The JSON that a GET, or a POST of JSON, is answered with."""
        request = urllib.request.Request(self.url(path))
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def metrics(self):
        """{series with its labels as the page has them: value}."""
        with urllib.request.urlopen(self.url("/metrics"), timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in
                (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as f:
            return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1)) / 1024


def generator(folder):
    """offer.c, compiled."""
    path = os.path.join(folder, "offer")
    subprocess.run(["gcc", "-O2", "-D_GNU_SOURCE", "-o", path, os.path.join(HERE, "offer.c"), "-luring", "-lm"],
                   check=True)
    return path
