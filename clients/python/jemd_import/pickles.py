# SPDX-License-Identifier: Apache-2.0
"""Reads a pickle as data.

pickletools names the opcodes; the small stack machine below follows them. It imports nothing,
calls nothing and sets no attribute of a real object: a name in the pickle becomes a Global, a call
becomes one of the few values in BUILDERS or an inert Record of what was asked for. Names that only
an attack needs are refused as soon as they are mentioned.
"""
import _compat_pickle
import pickletools
import sys

from . import Refused, Unusable

MAX_OPCODES = 5_000_000  # a large checkpoint has some 100,000
MAX_COPIED = 1_000_000  # entries that calls may copy, so that a memoised list is no bomb
MAX_LINE = 1 << 16  # of the text opcodes
SCALARS = (str, bytes, int, float, bool, type(None))

# Standard library names that occur in honest checkpoints. All the rest of it is refused.
HARMLESS = {
    "_codecs.encode", "argparse.Namespace", "collections.Counter", "collections.OrderedDict",
    "collections.defaultdict", "collections.deque", "copyreg._reconstructor", "datetime.date",
    "datetime.datetime", "datetime.timedelta", "pathlib.Path", "pathlib.PosixPath",
    "pathlib.PurePosixPath", "pathlib.WindowsPath", "types.SimpleNamespace",
} | {"builtins." + n for n in (
    "bool bytearray bytes complex dict float frozenset int list object range set slice str "
    "tuple").split()}
DTYPES = ("float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 bool half float double "
          "long int short complex64 complex128").split()
STORAGES = {  # storage class -> element type
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4,
              "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
HARMLESS |= {"torch." + n for n in [*DTYPES, *STORAGES, "Size", "Tensor", "device"]}
HARMLESS |= {"torch.cuda." + n for n in STORAGES} | {"torch.storage." + n for n in STORAGES}
HARMLESS |= {"torch._utils." + n for n in (
    "_rebuild_tensor _rebuild_tensor_v2 _rebuild_parameter _rebuild_parameter_with_state").split()}
HARMLESS |= {"torch._tensor._rebuild_from_type_v2", "torch.serialization._get_layout",
             "numpy.ndarray", "numpy.dtype"}
HARMLESS |= {f"numpy.{core}.multiarray.{n}" for core in ("core", "_core")
             for n in ("_reconstruct", "scalar")}
# Inside these only the names above, or anything below the listed modules, may be mentioned.
CLOSED = {"torch", "numpy"}
OPEN_MODULES = ("torch.nn.", "torch.optim.", "torch.distributions.", "numpy.random.")
# Packages that are known ways to code execution although no part of the standard library.
GADGETS = set("IPython aiohttp cffi cloudpickle commands dill distutils fabric imp jinja2 joblib "
              "numba pandas paramiko pip pkg_resources popen2 requests setuptools".split())
# Names refused in whatever module they are looked for.
NEVER = set("__builtins__ __call__ __class__ __dict__ __getattribute__ __import__ __reduce__ "
            "__reduce_ex__ __setstate__ __subclasses__ apply attrgetter call check_call "
            "check_output compile delattr eval exec execfile execl execv execve file_input fork "
            "getattr getoutput globals import_module itemgetter load load_module loads locals "
            "methodcaller open popen run run_module run_path runstring setattr spawn startfile system "
            "_load_from_bytes".split())


class Global:
    """A name the pickle mentions. Never imported."""

    __slots__ = ("module", "name")

    def __init__(self, module, name):
        self.module, self.name = module, name

    @property
    def path(self):
        return f"{self.module}.{self.name}"


class Record:
    """What the pickle wanted to build of a class nobody here knows: its parts, inert."""

    __slots__ = ("kind", "arguments", "state", "items")

    def __init__(self, kind, arguments=()):
        self.kind, self.arguments, self.state, self.items = kind, arguments, None, []


class Storage:
    """A run of elements in the file. `read()` gives its bytes when they are wanted."""

    __slots__ = ("key", "dtype", "elements", "read")

    def __init__(self, key, dtype, elements):
        self.key, self.dtype, self.elements, self.read = key, dtype, elements, None


class Tensor:
    """A view of a storage: offset, shape and strides in elements, checked against its length."""

    __slots__ = ("storage", "offset", "shape", "strides")

    def __init__(self, storage, offset, shape, strides):
        shape, strides = _sizes(shape), _sizes(strides)
        if not isinstance(storage, Storage) or not _is_size(offset) or len(shape) > 8:
            raise Unusable("a tensor in the checkpoint is not described by storage, offset, shape")
        if len(shape) != len(strides):
            raise Unusable(f"a tensor has {len(shape)} dimensions but {len(strides)} strides")
        count = 1
        for n in shape:
            count *= n
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides)) if count else offset - 1
        if last >= storage.elements or count > storage.elements:
            raise Unusable(f"a tensor of shape {list(shape)} reaches beyond its storage "
                           f"'{storage.key}' of {storage.elements} elements")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


def _is_size(value):
    return type(value) is int and 0 <= value < 1 << 48


def _sizes(value):
    if isinstance(value, Record) and value.kind == "torch.Size" and value.arguments:
        value = value.arguments[0]
    if not isinstance(value, (tuple, list)) or not all(map(_is_size, value)):
        raise Unusable("a tensor's shape in the checkpoint is not a list of sizes")
    return tuple(value)


def look_up(module, name):
    """The Global of a name, or Refused."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    module = _compat_pickle.IMPORT_MAPPING.get(module, module)
    path = f"{module}.{name}"
    if path in HARMLESS:
        return Global(module, name)
    top = module.split(".")[0]
    plain = name.isidentifier() and all(part.isidentifier() for part in module.split("."))
    if not plain or name in NEVER:
        known = False
    elif top in CLOSED:
        known = (module + ".").startswith(OPEN_MODULES)
    else:
        known = top not in sys.stdlib_module_names and top not in GADGETS
    if not known:
        raise Refused(f"the checkpoint asks for {path!r}, which no model needs and which could run "
                      "a program; it was refused and nothing was run. Think twice before you give "
                      "this file to torch.load")
    return Global(module, name)


def _encode(text, encoding="latin1"):
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Unusable("the checkpoint holds bytes in an encoding other than latin1")
    return text.encode("latin1")


def _rebuild_typed(rebuild, _kind, arguments, _state=None):
    if not isinstance(rebuild, Global) or rebuild.path not in TENSOR_BUILDERS:
        raise Unusable("a tensor of the checkpoint is rebuilt in a way nobody knows")
    return call(rebuild, arguments)


TENSOR_BUILDERS = {
    "torch._utils._rebuild_tensor": Tensor,
    "torch._utils._rebuild_tensor_v2": lambda s, o, size, stride, *more: Tensor(s, o, size, stride),
    "torch._utils._rebuild_parameter": lambda data, *more: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *more: data,
}
BUILDERS = TENSOR_BUILDERS | {
    "_codecs.encode": _encode,
    "collections.OrderedDict": lambda *pairs: fill({}, pairs[0] if pairs else ()),
    "collections.defaultdict": lambda *factory: {},
    "copyreg._reconstructor": lambda cls, base=None, state=None: call(cls, ()),
    "torch._tensor._rebuild_from_type_v2": _rebuild_typed,
}


def call(function, arguments):
    """The value of function(*arguments), built here; nothing of the pickle's is called."""
    if not isinstance(function, Global):
        raise Refused("the checkpoint's pickle calls something that is not a named class; it was "
                      "refused and nothing was run")
    if not isinstance(arguments, tuple):
        raise Unusable("damaged pickle: arguments that are not a tuple")
    builder = BUILDERS.get(function.path)
    if builder is None:
        return Record(function.path, arguments)
    try:
        return builder(*arguments)
    except TypeError:
        raise Unusable(f"damaged pickle: wrong arguments for {function.path}") from None


def fill(mapping, pairs):
    """Adds pairs to a dict. Keys are plain, so that hashing them is cheap whatever they hold."""
    for pair in pairs:
        key, value = pair
        parts = key if type(key) is tuple else (key,)
        if not all(isinstance(p, SCALARS + (Record, Tensor, Global)) for p in parts):
            raise Unusable("the checkpoint uses a compound object as a dictionary key")
        mapping[key] = value
    return mapping


class Machine:
    """One pickle. `persistent` turns a persistent id into a Storage."""

    def __init__(self, persistent):
        self.persistent = persistent
        self.stack, self.marks, self.memo = [], [], {}
        self.copied = 0

    def run(self, stream):
        """The object; the stream is left right behind the STOP opcode."""
        count, where, name = 0, 0, "start"
        try:
            for opcode, argument, where in pickletools.genops(stream):
                name = opcode.name
                count += 1
                if count > MAX_OPCODES:
                    raise Unusable(f"the pickle has more than {MAX_OPCODES} operations")
                if name in CONSTANTS:
                    self.stack.append(CONSTANTS[name]() if argument is None else argument)
                elif name != "STOP":
                    OPERATIONS[name](self, argument)
            return self.stack.pop()
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, MemoryError,
                UnicodeError, RecursionError) as error:
            raise Unusable(f"damaged pickle: {error or type(error).__name__} (in or behind {name} "
                           f"at byte {where})") from None

    def to_mark(self):
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _):
        self.marks.append(self.stack)
        self.stack = []

    def pop(self, _):
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def make_tuple(self, n):
        items = tuple(self.stack[-n:])
        if len(items) != n:
            raise IndexError("the stack is too short")
        self.stack[-n:] = [items]

    def append(self, items):
        target = self.stack[-1]
        if isinstance(target, Record):
            target = target.items
        if not isinstance(target, list):
            raise TypeError("items appended to something that is no list")
        target.extend(items)

    def set_items(self, flat):
        if len(flat) % 2:
            raise ValueError("a key without a value")
        pairs = list(zip(flat[::2], flat[1::2]))
        target = self.stack[-1]
        if isinstance(target, Record):
            target.items.extend(pairs)
        elif isinstance(target, dict):
            fill(target, pairs)
        else:
            raise TypeError("items set in something that is no dictionary")

    def build(self, _):
        state = self.stack.pop()
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state
        elif not isinstance(self.stack[-1], (dict, Tensor)):
            raise TypeError("a state for something that has none")

    def call(self, function, arguments):
        if isinstance(arguments, tuple):
            for a in arguments:
                self.copied += len(a) >> 6 if isinstance(a, (str, bytes)) else \
                    len(a) if isinstance(a, (list, tuple, dict)) else 0
        if self.copied > MAX_COPIED:
            raise Unusable(f"the pickle copies more than {MAX_COPIED} entries")
        self.stack.append(call(function, arguments))

    def get(self, index):
        self.stack.append(self.memo[index])

    def put(self, index):
        self.memo[index] = self.stack[-1]

    def global_name(self, text):
        self.stack.append(look_up(*text.split(" ", 1)))

    def stack_global(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("a name that is not text")
        self.stack.append(look_up(module, name))

    def reduce(self, _):
        arguments, function = self.stack.pop(), self.stack.pop()
        self.call(function, arguments)

    def new_object_ex(self, _):
        named, arguments, cls = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.call(cls, arguments)
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = named

    def inst(self, text):
        arguments = tuple(self.to_mark())
        self.call(look_up(*text.split(" ", 1)), arguments)

    def obj(self, _):
        items = self.to_mark()
        self.call(items[0], tuple(items[1:]))

    def extension(self, code):
        raise Refused(f"the checkpoint uses the pickle extension code {code}, which stands for a "
                      "function registered elsewhere; it was refused and nothing was run")

    def out_of_band(self, _):
        raise Unusable("the pickle refers to buffers outside of it")

    def persist(self, identifier):
        self.stack.append(self.persistent(identifier))


CONSTANTS = {name: (lambda: None) for name in (  # opcodes whose argument is the value
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 "
    "NONE").split()}
CONSTANTS |= {"NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list,
              "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": lambda: Record("builtins.set")}

_ignore = lambda machine, argument: None  # noqa: E731
_push = lambda machine, value: machine.stack.append(value)  # noqa: E731
OPERATIONS = {
    "PROTO": _ignore, "FRAME": _ignore,
    "MARK": Machine.mark, "POP": Machine.pop, "POP_MARK": lambda m, _: m.to_mark(),
    "DUP": lambda m, _: _push(m, m.stack[-1]),
    "GET": Machine.get, "BINGET": Machine.get, "LONG_BINGET": Machine.get,
    "PUT": Machine.put, "BINPUT": Machine.put, "LONG_BINPUT": Machine.put,
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "LIST": lambda m, _: _push(m, m.to_mark()),
    "TUPLE": lambda m, _: _push(m, tuple(m.to_mark())),
    "DICT": lambda m, _: _dict(m, m.to_mark()),
    "FROZENSET": lambda m, _: _push(m, Record("builtins.frozenset", tuple(m.to_mark()))),
    "TUPLE1": lambda m, _: m.make_tuple(1), "TUPLE2": lambda m, _: m.make_tuple(2),
    "TUPLE3": lambda m, _: m.make_tuple(3),
    "APPEND": lambda m, _: m.append([m.stack.pop()]), "APPENDS": lambda m, _: m.append(m.to_mark()),
    "ADDITEMS": lambda m, _: m.append(m.to_mark()),
    "SETITEM": lambda m, _: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.to_mark()),
    "BUILD": Machine.build, "REDUCE": Machine.reduce, "NEWOBJ": Machine.reduce,
    "NEWOBJ_EX": Machine.new_object_ex, "INST": Machine.inst, "OBJ": Machine.obj,
    "GLOBAL": Machine.global_name, "STACK_GLOBAL": Machine.stack_global,
    "EXT1": Machine.extension, "EXT2": Machine.extension, "EXT4": Machine.extension,
    "NEXT_BUFFER": Machine.out_of_band, "READONLY_BUFFER": Machine.out_of_band,
    "PERSID": Machine.persist, "BINPERSID": lambda m, _: m.persist(m.stack.pop()),
}


def _dict(machine, flat):
    machine.stack.append({})
    machine.set_items(flat)


def no_persistent(_identifier):
    raise Unusable("a persistent id where none belongs")


class Storages:
    """Makes one Storage for each key that persistent ids name; their bytes come later."""

    def __init__(self, file_bytes):
        self.file_bytes, self.by_key = file_bytes, {}

    def __call__(self, identifier):
        # ('storage', class, key, device, elements[, view]): torch/serialization.py, persistent_id.
        # ('module', class, file, source) stands for a class whose source was saved along.
        if isinstance(identifier, tuple) and len(identifier) == 4 and identifier[0] == "module":
            return identifier[1]
        if not isinstance(identifier, tuple) or len(identifier) not in (5, 6):
            raise Unusable("a persistent id that does not describe a storage")
        word, cls, key, _, elements = identifier[:5]
        if word != "storage" or not isinstance(cls, Global) or not isinstance(key, str):
            raise Unusable("a persistent id that does not describe a storage")
        if len(identifier) == 6 and identifier[5] is not None:
            raise Unusable("storage views of PyTorch before 0.4: save the checkpoint again with a "
                           "newer PyTorch")
        dtype = STORAGES.get(cls.name) if cls.path in HARMLESS else None
        if dtype is None:
            raise Unusable(f"storages of type {cls.path} are not supported")
        if not _is_size(elements) or elements * ITEM_BYTES[dtype] > self.file_bytes:
            raise Unusable(f"storage '{key}' claims {elements} elements, more than the file can "
                           "hold")
        known = self.by_key.setdefault(key, Storage(key, dtype, elements))
        if (known.dtype, known.elements) != (dtype, elements):
            raise Unusable(f"storage '{key}' is described in two ways")
        return known


class Bounded:
    """A binary stream whose reads never ask for more than is left of the file."""

    def __init__(self, stream, size):
        self.stream, self.size = stream, size

    def read(self, n=-1):
        left = max(self.size - self.stream.tell(), 0)
        return self.stream.read(left if n < 0 else min(n, left))

    def readline(self):
        return self.stream.readline(MAX_LINE)

    def tell(self):
        return self.stream.tell()
