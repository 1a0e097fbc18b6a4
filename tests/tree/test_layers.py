# SPDX-License-Identifier: Apache-2.0
"""Who may include whom: core <- proto <- server, inside core base <- {ops, file} <- net <- ebm <-
learn, clients nothing of the daemon; and one home for each third-party header. Besides that, what
every source file begins with and what does not belong into the tree."""
import os
import re
import unittest

import tree

# A file may include its own folder and those it names here.
CORE = {
    "base": set(),
    "ops": {"base"},
    "file": {"base"},
    "net": {"base", "ops", "file"},
    "ebm": {"base", "ops", "file", "net"},
    "learn": {"base", "ops", "file", "net", "ebm"},
}
LAYERS = {"core": {"core"}, "proto": {"core", "proto"}, "server": {"core", "proto", "server"}}

# Each third-party header and the one file that includes it.
HOMES = {
    "microhttpd.h": "server/http_internal.h",
    "jansson.h": "core/file/json.h",
    "cblas.h": "core/ops/gemm.c",
    "png.h": "proto/image_png.c",
    "jpeglib.h": "proto/image_jpeg.c",
    "jerror.h": "proto/image_jpeg.c",
    "ini.h": "server/settings.c",
    "zlib.h": "core/file/idx.c",
    "sqlite3.h": "server/store_sqlite_internal.h",
    "nettle/sha2.h": "core/file/digest.c",
    "nettle/base64.h": "proto/base64.c",
    "liburing.h": "tests/bench/offer.c",
}
# A home that is a private header: only files that begin so (and their tests) include it.
PRIVATE = {"server/http_internal.h": ("server/http", "tests/unit/server_http"),
           "server/store_sqlite_internal.h": ("server/store_sqlite", "tests/unit/server_store_sqlite",
                                              "tests/fuzz/fuzz_server_store")}

LIBC = {name + ".h" for name in (
    # C17
    "assert ctype errno fenv float inttypes limits locale math setjmp signal stdalign stdarg "
    "stdatomic stdbool stddef stdint stdio stdlib stdnoreturn string tgmath threads time uchar "
    "wchar wctype "
    # POSIX and glibc
    "dirent dlfcn elf endian execinfo fcntl ftw getopt grp ifaddrs link malloc netdb poll pthread pwd regex sched "
    "semaphore spawn strings syslog termios unistd "
    # the compiler's
    "cpuid immintrin").split()}
LIBC_FOLDERS = ("sys/", "netinet/", "arpa/", "net/", "linux/")

# What the rules have to say, by example.
REFUSED = [
    ("core/base/fail.c", "proto/image.h"), ("proto/image.c", "server/http.h"),
    ("core/base/pool.c", "core/ops/ops.h"), ("core/ops/ops.c", "core/file/json.h"),
    ("core/file/idx.c", "core/ops/ops.h"), ("core/net/net.c", "core/ebm/model.h"),
    ("core/ebm/model.c", "core/learn/dataset.h"), ("core/odd/x.c", "core/base/fail.h"),
    ("core/base/fail.c", "tests/unit/x.h"), ("clients/jem/main.c", "core/base/fail.h"),
    ("tests/unit/core_json.c", "proto/image.h"), ("tests/fuzz/fuzz_proto_image.c", "server/http.h"),
    ("server/routes.c", "server/http_internal.h")]
ALLOWED = [
    ("core/learn/dataset.c", "core/base/fail.h"), ("proto/image.c", "core/base/mem.h"),
    ("server/http_door.c", "server/http_internal.h"), ("clients/jem/main.c", "clients/jem/jem.h"),
    ("tests/unit/server_http.c", "tests/unit/http_fixture.h")]

LICENCE = "SPDX-License-Identifier: Apache-2.0"
MAX_BYTES = 5 << 20
BUILD_OUTPUT = re.compile(
    r"(^|/)(build|CMakeFiles|__pycache__|Testing)/|"
    r"(^|/)(CMakeCache\.txt|cmake_install\.cmake|build\.ninja|compile_commands\.json|core)$|"
    r"\.(o|a|so|d|obj|pyc|gcda|gcno|profraw)$")
BINARY_MAGIC = (b"\x7fELF", b"!<arch>\n")


def includes():
    """(file, line number, what is included, in quotes) of every #include of the tree."""
    for path in tree.files(".c", ".h"):
        for number, line in enumerate(tree.lines(path), 1):
            found = re.match(r'\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>|(.*))', line)
            if found and found.group(3) != "TARGET_HEADER":  # ops/isa/target_*.h, by CMake
                own, other, odd = found.groups()
                yield path, number, own or other or odd, own is not None


def resolve(path, name):
    """The file that #include "name" in `path` means, or None."""
    known = set(tree.files(".c", ".h"))
    beside = os.path.normpath(os.path.join(os.path.dirname(path), name))
    for candidate in ("core/" + name, name, "tests/" + name, beside):
        if candidate in known:
            return candidate
    return None


def layer_of(path):
    """core, proto or server, also of a test (tests/unit/core_x.c); None for anything else."""
    parts = path.split("/")
    if parts[0] in LAYERS:
        return parts[0]
    prefix = parts[-1].removeprefix("fuzz_").split("_")[0]
    return prefix if parts[0] == "tests" and path.endswith(".c") and prefix in LAYERS else None


def trespass(path, target):
    """Why `path` may not include `target`, or None."""
    top = target.split("/")[0]
    layer = layer_of(path)
    if path.startswith("clients/"):
        return "clients include nothing of the daemon" if top in LAYERS else None
    if layer and top in LAYERS and top not in LAYERS[layer]:
        return f"{layer} includes nothing of {top}"
    if path.startswith("core/") and target.startswith("core/"):
        here, there = path.split("/")[1], target.split("/")[1]
        if here not in CORE or there not in CORE[here] | {here}:
            return f"core/{here} includes nothing of core/{there}"
    if not path.startswith("tests/") and top == "tests":
        return "only tests include tests"
    allowed = PRIVATE.get(target)
    if allowed and not path.startswith(allowed):
        return f"{target} is private to {allowed[0]}*"
    return None


class Layers(unittest.TestCase):
    def test_every_include_goes_to_a_lower_layer_or_the_same(self):
        wrong, seen = [], 0
        for path, number, name, own in includes():
            if not own:
                continue
            seen += 1
            target = resolve(path, name)
            why = trespass(path, target) if target else "no such file in the tree"
            if why:
                wrong.append(f'{path}:{number}: "{name}": {why}')
        self.assertGreater(seen, 100)
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))

    def test_every_third_party_header_has_one_home(self):
        wrong, found = [], {}
        for path, number, name, own in includes():
            if own or name in LIBC or name.startswith(LIBC_FOLDERS):
                continue
            if name == "cmocka.h" and path.startswith("tests/unit/"):
                continue
            found[name] = path
            if HOMES.get(name) != path:
                home = HOMES.get(name, "nowhere")
                wrong.append(f"{path}:{number}: <{name}>: its home is {home}")
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))
        self.assertEqual(sorted(set(HOMES) - set(found)), [], "no longer included by their homes")

    def test_the_rules_refuse_what_they_are_for(self):
        for path, target in REFUSED:
            self.assertIsNotNone(trespass(path, target), f"{path} -> {target}")
        for path, target in ALLOWED:
            self.assertIsNone(trespass(path, target), f"{path} -> {target}")


class Files(unittest.TestCase):
    def test_every_source_names_its_licence(self):
        wrong = []
        for path in tree.files(".c", ".h", ".py", ".sh", ".js", "CMakeLists.txt", ".ci/run"):
            head = tree.lines(path)[:2]
            exact = path.endswith((".c", ".h"))
            named = head[:1] == [f"/* {LICENCE} */"] if exact else any(LICENCE in x for x in head)
            if not named:
                wrong.append(path)
        self.assertEqual(wrong, [])

    def test_every_header_is_included_once(self):
        headers = tree.files(".h")
        self.assertGreater(len(headers), 10)
        self.assertEqual([h for h in headers if tree.lines(h)[1:2] != ["#pragma once"]], [])

    def test_no_file_is_larger_than_5_mb(self):
        sizes = {f: os.path.getsize(os.path.join(tree.SOURCE, f)) for f in tree.files()}
        self.assertEqual({f: n for f, n in sizes.items() if n > MAX_BYTES}, {})

    def test_nothing_that_a_build_makes_is_tracked(self):
        wrong = [f for f in tree.files() if BUILD_OUTPUT.search(f) or
                 tree.read(f)[:8].startswith(BINARY_MAGIC)]
        self.assertEqual(wrong, [])
        for path in ("build/x.txt", "a/b.o", "core/libcore.a", "x/__pycache__/y.pyc",
                     "CMakeCache.txt"):
            self.assertTrue(BUILD_OUTPUT.search(path), path)


if __name__ == "__main__":
    unittest.main()
