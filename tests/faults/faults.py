# SPDX-License-Identifier: Apache-2.0
"""Says to a daemon under faults.c which calls are to fail: a Daemon started with environment() of a
Faults has it preloaded. JEMD_FAULTS_LIBRARY is the shared object."""
import glob
import mmap
import os
import re
import struct
import subprocess

from jemd_test import BIN

LIBRARY = os.environ.get("JEMD_FAULTS_LIBRARY") or os.path.join(
    os.path.dirname(BIN), "..", "tests", "libfaults.so")

# As in faults.c.
CALLS = ("alloc", "open", "read", "write", "sync", "truncate", "rename", "mmap", "thread", "accept",
         "event", "sqlite")
OFF, COUNT, ONCE, ALWAYS, NEW = range(5)
STACKS = 1 << 16
FIELDS = ("how", "calls", "nth", "error", "own_files", "counted", "failed", "attached")
SIZE = 8 * (len(FIELDS) + STACKS)


class Faults:
    """One control file in `folder`; `files` is the directory that own_files means."""

    def __init__(self, folder, files=""):
        self.path, self.log_path = os.path.join(folder, "faults"), os.path.join(folder, "faults.log")
        self.files = files
        with open(self.path, "wb") as f:
            f.truncate(SIZE)
        with open(self.path, "r+b") as f:
            self.map = mmap.mmap(f.fileno(), SIZE)

    def environment(self):
        """Under AddressSanitizer (a shared one) its allocator comes after ours."""
        # pylint: disable=consider-using-with
        linked = subprocess.run(["ldd", BIN], capture_output=True, text=True,
                                check=False).stdout
        asan = re.search(r"(/\S*libasan\S*)", linked)
        preload = [LIBRARY] + ([asan.group(1)] if asan else [])
        options = os.environ.get("ASAN_OPTIONS", "")
        return {"LD_PRELOAD": " ".join(preload), "JEMD_FAULTS": self.path,
                "JEMD_FAULTS_LOG": self.log_path, "JEMD_FAULTS_DIRECTORY": self.files,
                "ASAN_OPTIONS": options + ":verify_asan_link_order=0"}

    def get(self, field):
        return struct.unpack_from("<q", self.map, 8 * FIELDS.index(field))[0]

    def put(self, field, value):
        struct.pack_into("<q", self.map, 8 * FIELDS.index(field), value)

    def arm(self, how, calls=CALLS, nth=1, error=0, own_files=False):
        """From here on; counts begin anew."""
        self.put("how", OFF)
        self.put("calls", sum(1 << CALLS.index(c) for c in calls))
        for field, value in (("nth", nth), ("error", error), ("own_files", int(own_files)),
                             ("counted", 0), ("failed", 0), ("how", how)):
            self.put(field, value)

    def off(self):
        """How many calls have been made to fail."""
        self.put("how", OFF)
        return self.get("failed")

    def stacks(self):
        """From how many places calls have failed in the mode NEW."""
        return sum(1 for (h,) in struct.iter_unpack("<Q", self.map[8 * len(FIELDS):]) if h)

    def last(self):
        """The stack of the call that failed last, with names where the files have them."""
        try:
            with open(self.log_path, encoding="utf-8", errors="replace") as f:
                text = f.read()
        except FileNotFoundError:
            return "none"
        return named(text[text.rfind("call="):])


def named(text):
    """Frames as `file(+offset)` become function and line, as far as addr2line knows."""
    out = []
    for line in text.splitlines():
        found = re.match(r"(\S+)\((\+0x[0-9a-f]+)\)", line)
        if found and glob.glob(found.group(1)):
            done = subprocess.run(["addr2line", "-fsie", found.group(1), found.group(2)],
                                  capture_output=True, text=True, check=False)
            line = " ".join(done.stdout.split()) or line
        out.append("  " + line)
    return "\n".join(out)
