# SPDX-License-Identifier: Apache-2.0
"""The checkpoint importer runs nothing that a pickle brings along."""
import io
import os
import pickle
import random
import struct
import sys
import unittest
import warnings

import numpy as np

from checkpoints import Call, Case, Name, Persistent, Writer, dump, gibbs_arrays, p
from jemd_import import Refused, Unusable, containers, pickles


class HostilePickles(Case):
    """None of these may run anything: every payload would leave a file behind."""

    def setUp(self):
        super().setUp()
        self.marker = os.path.join(self.folder, "ran")

    def hostile(self, code, expected=2, message="refused and nothing was run"):
        """Refused in both containers, as the object and inside one."""
        inner = code
        for wrap in (lambda c: c, lambda c: b"}(X\x01\x00\x00\x00a" + c + b"u"):
            pickled = b"\x80\x04" + wrap(inner) + b"."
            writer = Writer()
            legacy = dump(containers.MAGIC) + dump(1001) + dump({"little_endian": True})
            for data in (writer.zip(None, pickled), legacy + pickled + dump([]),
                         dump(containers.MAGIC) + dump(1001) + pickled):
                self.refuse(expected, message, data)
                self.assertFalse(os.path.exists(self.marker))

    def test_the_payload_is_real(self):
        pickle.loads(b"\x80\x04" + p(Call(Name("os", "system"), ("touch " + self.marker,))) + b".")
        self.assertTrue(os.path.exists(self.marker))

    def test_calls_of_dangerous_functions_are_refused(self):
        touch = "touch " + self.marker
        python = f"open({self.marker!r}, 'w').close()"
        for module, name, arguments in (
                ("os", "system", (touch,)), ("posix", "system", (touch,)),
                ("nt", "system", (touch,)), ("commands", "getoutput", (touch,)),
                ("subprocess", "call", (["touch", self.marker],)),
                ("builtins", "eval", (python,)), ("__builtin__", "eval", (python,)),
                ("builtins", "exec", (python,)), ("builtins", "getattr", (1, "x")),
                ("builtins", "__import__", ("os",)), ("builtins", "open", (self.marker, "w")),
                ("builtins", "compile", (python, "", "exec")), ("builtins", "type", ("a",)),
                ("importlib", "import_module", ("os",)), ("runpy", "run_path", (self.marker,)),
                ("operator", "attrgetter", ("system",)), ("functools", "partial", ()),
                ("types", "FunctionType", ()), ("marshal", "loads", (b"",)),
                ("pickle", "loads", (b"",)), ("ctypes", "CDLL", ("libc.so.6",)),
                ("copyreg", "add_extension", ("os", "system", 7)),
                ("torch", "load", (self.marker,)), ("torch.hub", "load", ("a", "b")),
                ("torch.storage", "_load_from_bytes", (b"",)),
                ("torch.serialization", "load", ("a",)),
                ("numpy.testing", "runstring", (python, {})), ("numpy", "load", (self.marker,)),
                ("pip", "main", (["install", "x"],)), ("webbrowser", "open", ("x",)),
                ("pty", "spawn", (touch,)), ("__main__", "eval", (python,)),
                ("mylib", "system", (touch,)),
                ("pathlib", "os", ()), ("socket", "socket", ()), ("sys", "exit", ()),
                ("io", "open", (self.marker, "w")), ("_io", "open", (self.marker, "w"))):
            with self.subTest(module=module, name=name):
                self.hostile(p(Call(Name(module, name), arguments)))

    def test_a_mere_mention_is_refused(self):
        self.hostile(p(Name("os", "system")))

    def test_every_opcode_that_calls_is_refused(self):
        touch = p("touch " + self.marker)
        system = p(Name("os", "system"))
        for code in (b"(" + touch + b"ios\nsystem\n",  # INST
                     b"(" + system + touch + b"o",  # OBJ
                     system + touch + b"\x85\x81",  # NEWOBJ
                     system + touch + b"\x85}\x92",  # NEWOBJ_EX
                     p(Call(Name("__main__", "Thing"), ())) + system + b"b",  # BUILD
                     p(Call(Name("__main__", "Thing"), (), {"__setstate__": Name("os", "system")}))
                     + touch + b"b",
                     p(Call(Name("collections", "defaultdict"), (Name("os", "system"),)))):
            self.hostile(code)

    def test_stack_global_tricks_are_refused(self):
        touch = p("touch " + self.marker)
        for module, name in (("os", "system"), ("collections", "OrderedDict.__class__"),
                             ("torch", "serialization.os.system"), ("mylib", "os.system"),
                             ("os.path", "os.system"), ("", "eval"), ("builtins", ""), (".", "."),
                             ("os\0", "x"), ("os", "system\n"), ("__main__", "__builtins__"),
                             ("mylib", "__class__"), ("torch.nn.modules.os", "system")):
            with self.subTest(module=module, name=name):
                self.hostile(p(module) + p(name) + b"\x93" + touch + b"\x85R")
        memoised = p("system") + b"\x940" + p("os") + b"h\x00\x93" + touch + b"\x85R"
        self.hostile(memoised)
        self.hostile(p(7) + p("system") + b"\x93", 1, "a name that is not text")

    def test_calls_of_things_that_are_not_names_are_refused(self):
        for function in ("os.system", 3, [], {}, Call(Name("__main__", "Thing"))):
            self.hostile(p(function) + b")R")
        self.hostile(p(Call(Name("copyreg", "_reconstructor"), ("os", None, None))))

    def test_extension_codes_are_refused(self):
        for code in (b"\x82\x07", b"\x83\x07\x00", b"\x84\x07\x00\x00\x00"):
            self.hostile(code)

    def test_persistent_ids_that_name_no_storage_are_refused(self):
        storage = Name("torch", "FloatStorage")
        for identifier in ("../../etc/passwd", 3, (), ("storage",), ("storage", "x", "0", "cpu", 1),
                           ("module", storage, "0", "cpu", 1), ("storage", storage, 0, "cpu", 1),
                           ("storage", storage, "0", "cpu", 1, ("view", 0, 1)),
                           ("storage", Name("torch", "float32"), "0", "cpu", 1),
                           ("storage", Name("__main__", "FloatStorage"), "0", "cpu", 1)):
            self.hostile(p(Persistent(identifier)), 1, "import_torch.py: ")
        self.hostile(b"Pos.system\n", 1, "persistent id")
        self.hostile(p(Persistent(("storage", Name("os", "system"), "0", "cpu", 1))))
        for key in ("../data.pkl", "0/../../x", "/etc/passwd"):
            writer = Writer()
            tensor = writer.view(writer.storage(np.zeros(2, "f4"), key="0"), 0, (2,), (1,))
            tensor.arguments[0].identifier = ("storage", storage, key, "cpu", 2)
            self.refuse(1, "is not in the zip file", writer.zip({"cnn.0.weight": tensor}))

    def test_bombs_are_refused(self):
        put = b"r" + struct.pack("<I", 0xFFFFFFFF)
        _, _, out = self.convert(self.with_code(p("x") + put))  # a huge memo index is nothing
        self.assertIn("wrote", out)
        self.hostile(b"\x8d" + struct.pack("<Q", 1 << 62) + b"x", 1, "damaged pickle")
        self.hostile(b"\x8e" + struct.pack("<Q", 1 << 40) + b"x", 1, "damaged pickle")
        self.hostile(b"B" + struct.pack("<I", 0xFFFFFFFF) + b"x", 1, "damaged pickle")
        self.hostile(b"I" + b"9" * 10000 + b"\n", 1, "damaged pickle")
        self.hostile(b"}(" + b")" + b"\x85" * 3000 + b"Nu", 1, "compound object")
        pairs = b"](" + (p("k") + b"N\x86") * 3000 + b"e\x940"
        again = (p(Name("collections", "OrderedDict")) + b"h\x00\x85R0") * 3000
        self.refuse(1, "copies more than", self.with_code(pairs + again + b"N"))
        self.convert(self.with_code(b"]" + b"]a" * 10 + b"(" * 5 + b"1" * 5))
        deep = b"]" * 100000 + b"a" * 99999
        self.convert(self.with_code(deep))
        laughs = p({"a": 1}) + b"\x94" + b"".join(
            b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"e\x94" for i in range(100))
        self.convert(self.with_code(laughs))
        nested = b"}\x940" + b"".join(
            b"}(" + p("a") + b"h" + bytes([i]) + p("b") + b"h" + bytes([i]) + b"u\x940"
            for i in range(60))
        self.convert(self.with_code(nested + b"h\x3c"))

    def with_code(self, code):
        """A good checkpoint with one more member made by the opcodes."""
        writer = Writer()
        state = p(writer.state(gibbs_arrays()))
        return writer.zip(None, b"\x80\x04}(" + p("models") + state + p("more") + code + b"u.")

    def test_damaged_pickles_never_end_in_a_traceback(self):
        writer, rng = Writer(), random.Random(5)
        good = dump({"models": writer.state(gibbs_arrays(n_f=1, hidden=2)), "args": Call(
            Name("argparse", "Namespace"), (), {"a": [1, 2.5, None]})})
        outcomes = set()
        for _ in range(1500):
            damaged = bytearray(good)
            for _ in range(rng.choice((1, 1, 2, 5))):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    pickles.Machine(pickles.Storages(1 << 20)).run(io.BytesIO(bytes(damaged)))
                outcomes.add("read")
            except (Unusable, Refused) as error:
                outcomes.add(type(error).__name__)
        self.assertEqual(outcomes, {"read", "Unusable", "Refused"})

    def test_unknown_classes_become_inert_records(self):
        thing = Call(Name("my.package", "Schedule"), (1, 2), {"a": 3})
        record = pickles.Machine(pickles.no_persistent).run(io.BytesIO(dump([thing])))[0]
        self.assertEqual((type(record).__name__, record.kind, record.arguments, record.state),
                         ("Record", "my.package.Schedule", (1, 2), {"a": 3}))
        self.assertNotIn("my.package", sys.modules)


if __name__ == "__main__":
    unittest.main()
