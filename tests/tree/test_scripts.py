# SPDX-License-Identifier: Apache-2.0
"""The scripts of the README: what they ask the machine for, and how they behave when it says no.
Packages, cmake and the daemon are played by small programs put first on the PATH."""
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import tree

SCRIPTS = ("scripts/deps.sh", "scripts/run.sh", "scripts/test.sh", ".ci/run")
SECONDS = 30

# Answers "installed" unless the package is listed in $MISSING.
DPKG_QUERY = '''#!/bin/sh
for last in "$@"; do :; done
case " $MISSING " in *" $last "*) exit 1 ;; esac
printf installed
'''
APT_GET = '''#!/bin/sh
echo "apt-get $* ($DEBIAN_FRONTEND)" >> "$LOG"
exit "$APT_STATUS"
'''
PROGRAMS = {
    "dpkg-query": DPKG_QUERY,
    "apt-get": APT_GET,
    "apt-cache": '#!/bin/sh\n[ "$KNOWN" = yes ]\n',
    "id": '#!/bin/sh\necho "$FAKE_UID"\n',
    "sudo": '#!/bin/sh\n[ "$SUDO" = yes ] || exit 1\nshift\necho sudo >> "$LOG"\nexec "$@"\n',
}
# Ready after half a second.
DAEMON = f'''#!{sys.executable}
import http.server, signal, sys, time
port = [int(a.split("=")[1]) for a in sys.argv if a.startswith("--http.port=")][-1]
begin = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ready = time.monotonic() - begin > 0.5
        self.send_response(200 if ready and self.path in ("/", "/readyz") else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *a):
        pass
print("daemon", *sys.argv[1:], flush=True)
signal.signal(signal.SIGINT, lambda *a: sys.exit(0))
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
'''


def write_program(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    os.chmod(path, 0o755)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Form(unittest.TestCase):
    def test_every_script_can_be_run_and_explains_itself(self):
        for script in SCRIPTS:
            path = os.path.join(tree.SOURCE, script)
            self.assertTrue(os.access(path, os.X_OK), script)
            done = subprocess.run([path, "--help"], capture_output=True, text=True, check=False,
                                  timeout=SECONDS)
            self.assertEqual((done.returncode, done.stderr), (0, ""), script)
            self.assertIn("usage: " + script, done.stdout)

    def test_shellcheck_finds_nothing(self):
        program = shutil.which("shellcheck")
        if not program:
            self.skipTest("shellcheck is not installed")
        done = subprocess.run([program, *SCRIPTS], cwd=tree.SOURCE, capture_output=True, text=True,
                              timeout=SECONDS, check=False)
        self.assertEqual(done.stdout, "")


class Machine(unittest.TestCase):
    """A machine where the programs above decide."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.log = os.path.join(self.folder, "log")
        for name, text in PROGRAMS.items():
            write_program(os.path.join(self.folder, "bin", name), text)

    def environment(self, **changes):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("JEMD_")}
        return {**kept, "PATH": os.path.join(self.folder, "bin") + ":" + os.environ["PATH"],
                "LOG": self.log, "MISSING": "", "KNOWN": "yes", "FAKE_UID": "0", "SUDO": "no",
                "APT_STATUS": "0", **changes}

    def logged(self):
        if not os.path.exists(self.log):
            return []
        with open(self.log, encoding="utf-8") as f:
            return f.read().splitlines()


class Deps(Machine):
    def deps(self, *sets, **changes):
        return subprocess.run([os.path.join(tree.SOURCE, "scripts/deps.sh"), *sets],
                              env=self.environment(**changes), capture_output=True, text=True,
                              timeout=SECONDS, check=False)

    def test_nothing_is_asked_for_when_all_is_there(self):
        done = self.deps("run", "test", FAKE_UID="1000")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        self.assertEqual(self.logged(), [])

    def test_root_installs_what_is_missing_and_no_more(self):
        done = self.deps("run", MISSING="libjansson-dev libpng-dev libcmocka-dev")
        self.assertEqual(done.returncode, 0, done.stderr)
        [line] = self.logged()
        self.assertRegex(line, r"^apt-get .*install --no-install-recommends libjansson-dev "
                               r"libpng-dev \(noninteractive\)$")

    def test_the_package_lists_are_updated_when_they_do_not_know_a_package(self):
        self.assertEqual(self.deps("test", MISSING="libcmocka-dev", KNOWN="no").returncode, 0)
        self.assertEqual([line.split(" update ")[0] == line for line in self.logged()],
                         [False, True])

    def test_sudo_is_taken_when_it_asks_for_nothing(self):
        done = self.deps("run", MISSING="libinih-dev", FAKE_UID="1000", SUDO="yes")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(self.logged()[-1], r"install .* libinih-dev \(noninteractive\)$")

    def test_without_root_and_sudo_the_missing_packages_are_named(self):
        done = self.deps("run", MISSING="libinih-dev nettle-dev", FAKE_UID="1000")
        self.assertEqual(done.returncode, 3)
        self.assertIn("missing packages: libinih-dev nettle-dev\n", done.stderr)
        self.assertEqual(self.logged(), [])

    def test_a_failing_apt_is_tried_again_after_an_update_and_then_told(self):
        done = self.deps("run", MISSING="libinih-dev", APT_STATUS="100")
        self.assertEqual(done.returncode, 3)
        self.assertIn("apt-get could not install them; missing packages: libinih-dev", done.stderr)
        self.assertEqual(["install" in x for x in self.logged()], [True, False])

    def test_any_variant_of_openblas_will_do(self):
        variants = "libopenblas-pthread-dev libopenblas-openmp-dev libopenblas-serial-dev"
        pthread, openmp, _ = variants.split()
        self.assertEqual(self.deps("run", MISSING=pthread, FAKE_UID="1000").returncode, 0)
        done = self.deps("run", MISSING=variants, FAKE_UID="1000")
        self.assertEqual(done.returncode, 3)
        self.assertIn(pthread, done.stderr)
        self.assertNotIn(openmp, done.stderr)

    def test_an_unknown_set_is_wrong_usage(self):
        self.assertEqual(self.deps().returncode, 2)
        self.assertEqual(self.deps("everything").returncode, 2)


@unittest.skipUnless(shutil.which("curl"), "curl is not installed")
class Run(Machine):
    """run.sh in a copy of the tree that holds only what it touches, with a daemon of ours."""

    def setUp(self):
        super().setUp()
        write_program(os.path.join(self.folder, "bin", "cmake"), '#!/bin/sh\necho "cmake $*"\n')
        write_program(os.path.join(self.folder, "build/release/server/jemd"), DAEMON)
        shutil.copytree(os.path.join(tree.SOURCE, "scripts"), os.path.join(self.folder, "scripts"))
        os.makedirs(os.path.join(self.folder, "tests", "samples"))
        with open(os.path.join(self.folder, "tests", "samples", "orc-blue-hair.png"), "wb"):
            pass

    def start(self, *arguments, **changes):
        out = open(os.path.join(self.folder, "out"), "w+", encoding="utf-8")
        self.addCleanup(out.close)
        process = subprocess.Popen([os.path.join(self.folder, "scripts/run.sh"), *arguments],
                                   cwd="/", env=self.environment(**changes), stdout=out,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        if process.poll() is None:
            process.kill()
        process.wait(timeout=SECONDS)

    def output(self):
        with open(os.path.join(self.folder, "out"), encoding="utf-8") as f:
            return f.read()

    def wait_for(self, condition, what):
        deadline = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"{what} did not come about:\n{self.output()}")
            time.sleep(0.05)

    def test_it_greets_when_the_daemon_is_up_and_ctrl_c_leaves_nothing_behind(self):
        port = free_port()
        process = self.start("--log.level=debug", JEMD_PORT=str(port))
        self.wait_for(lambda: "/v1/jobs " in self.output(), "the greeting")
        output = self.output()
        self.assertIn("cmake --build --preset release --target jemd", output)
        self.assertIn("JEMD_TESTS=OFF", output)
        self.assertIn("daemon serve --models.directory=models", output)
        self.assertIn(f"--http.port={port} --log.level=debug", output)
        self.assertLess(output.index("daemon serve"), output.index("jemd is up"))
        self.assertIn(f"open      http://127.0.0.1:{port}/\n", output)
        self.assertIn("--data-binary @tests/samples/orc-blue-hair.png -H 'Content-Type: image/png' "
                      f"http://127.0.0.1:{port}/v1/predict", output)
        os.killpg(process.pid, signal.SIGINT)
        self.assertEqual(process.wait(timeout=SECONDS), 0)
        self.wait_for(lambda: not self.group_lives(process.pid), "the end of the group")

    @staticmethod
    def group_lives(group):
        try:
            os.killpg(group, 0)
            return True
        except ProcessLookupError:
            return False

    def test_a_port_among_the_arguments_comes_first(self):
        port = free_port()
        self.start(f"--http.port={port}", JEMD_PORT="1")
        self.wait_for(lambda: f"jemd is up: http://127.0.0.1:{port} " in self.output(),
                      "the greeting")

    def test_a_daemon_that_does_not_start_is_not_greeted_for(self):
        write_program(os.path.join(self.folder, "build/release/server/jemd"),
                      "#!/bin/sh\necho no such model >&2\nexit 1\n")
        process = self.start(JEMD_PORT=str(free_port()))
        self.assertEqual(process.wait(timeout=SECONDS), 1)
        self.wait_for(lambda: not self.group_lives(process.pid), "the end of the group")
        self.assertNotIn("jemd is up", self.output())

    def test_a_port_that_is_taken_is_told_before_anything_is_built(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            port = s.getsockname()[1]
            process = self.start(JEMD_PORT=str(port))
            self.assertEqual(process.wait(timeout=SECONDS), 1)
        self.assertEqual(self.output(), f"run: port {port} is taken; another one: "
                                        f"JEMD_PORT={port + 1} scripts/run.sh\n")


if __name__ == "__main__":
    unittest.main()
