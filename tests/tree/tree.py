# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder share: the files of the tree, as they are or would be committed."""
import functools
import os
import subprocess

SOURCE = os.path.abspath(os.environ.get("JEMD_SOURCE") or
                         os.path.join(os.path.dirname(__file__), "..", ".."))
NOT_OURS = {".git", "build", "__pycache__"}


def _listed_by_git():
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others",
         "--exclude-standard"], cwd=SOURCE, capture_output=True, timeout=60, check=False)
    return done.stdout.decode().split("\0") if done.returncode == 0 else None


def _found_by_walking():
    for folder, folders, names in os.walk(SOURCE):
        folders[:] = [f for f in folders if f not in NOT_OURS]
        for name in names:
            yield os.path.relpath(os.path.join(folder, name), SOURCE)


@functools.cache
def files(*endings):
    """Paths, relative to SOURCE and sorted, of what git tracks or would add; without git, of
    everything. With endings, of those files only."""
    try:
        listed = _listed_by_git() if os.path.exists(os.path.join(SOURCE, ".git")) else None
    except FileNotFoundError:
        listed = None
    listed = _found_by_walking() if listed is None else listed
    return sorted({f for f in listed if f and os.path.isfile(os.path.join(SOURCE, f)) and
                   (not endings or f.endswith(endings))})


def read(path):
    with open(os.path.join(SOURCE, path), "rb") as f:
        return f.read()


def lines(path):
    return read(path).decode("utf-8").splitlines()
