"""Runs one piece of user code and tells its return value or its error.

Started by sandmesh-executor inside the jail. Descriptor 4 holds the request: ten lines, then the
code, then the event. Descriptor 3 takes the answer: "R" and the return value as JSON, or "E" and
a JSON object with type, message and traceback. The standard streams belong to the user's code.

The first argument says how it starts, the second, if there is one, where the packages of the session are.
With "parent" it is warmed up once and then forked for each execution by the native
library beside it; the parent itself never sees a request. A "rehearsed-parent" takes longer to
start, and less to fork. What a child does costs most by the pages of
memory that it is the first to write to (about 4 us each). So what can be done before the fork is done there.
"""

import atexit
import json
import os
import sys
import time

RESULT, REQUEST, START = 3, 4, 5
CODE = "<code>"
HANDLER = "__handler__"
# Of these a return value cannot be awaited.
PLAIN = {type(None), bool, int, float, str, list, dict}


class OwnPath:
    """While it lasts, what is imported is this interpreter's: what has such a name in the workspace is for
    the user's code, not for the runner."""

    modules = sys.path[1:]

    def __enter__(self):
        self.path = sys.path[:]
        sys.path[:] = self.modules

    def __exit__(self, *error):
        sys.path[:] = self.path


class Context:
    """What a handler is told about its execution; the names are those of AWS Lambda."""

    def __init__(self, head, began):
        self.execution_id = self.aws_request_id = head.execution_id.decode()
        self.session_id = head.session_id.decode()
        self.function_name = head.entry.decode()
        self.function_version = "$LATEST"
        self.memory_limit_in_mb = int(head.memory_mb)
        self._deadline = began + int(head.timeout_ms) / 1000

    def get_remaining_time_in_millis(self):
        return max(0, int((self._deadline - time.monotonic()) * 1000))


class UserError(Exception):
    """An error that the runner finds in what the code did; it has no frame to show."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


class Head:
    """The ten lines before the code and the event; `env` is JSON or nothing, `entry` is nothing for a script."""

    __slots__ = ("execution_id", "session_id", "entry", "code_bytes", "event_bytes", "result_bytes", "memory_mb", "timeout_ms", "now", "env")


from_json = json.JSONDecoder().raw_decode


def read_request(fd):
    """The head, the code and the event."""
    data = os.read(fd, 4096)
    while data.count(b"\n") < 10:
        data += read_some(fd, 1 << 20)
    head = Head()
    (head.execution_id, head.session_id, head.entry, head.code_bytes, head.event_bytes, head.result_bytes, head.memory_mb, head.timeout_ms, head.now, head.env, rest) = data.split(b"\n", 10)
    code_bytes = int(head.code_bytes)
    missing = code_bytes + int(head.event_bytes) - len(rest)
    if missing:
        parts = [rest]
        while missing:
            parts.append(read_some(fd, missing))
            missing -= len(parts[-1])
        rest = b"".join(parts)
    os.close(fd)
    return head, rest[:code_bytes], rest[code_bytes:]


def read_some(fd, most):
    data = os.read(fd, most)
    if not data:  # the order was withdrawn
        os._exit(1)
    return data


def send(data):
    while data:
        data = data[os.write(RESULT, data) :]


def to_utf8(text):
    try:
        return text.encode()
    except UnicodeEncodeError:  # lone surrogates, which no UTF-8 text can hold
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def new_module(name):
    module = type(sys)(name)
    module.__file__ = os.path.join(os.getcwd(), "main.py")
    module.__builtins__ = __builtins__
    return module


def load(code, name):
    module = sys.modules[name] = MODULES[name]
    exec(compile(code, CODE, "exec", dont_inherit=True), module.__dict__)
    return module


def call(handler, event, head, began):
    code = getattr(handler, "__code__", None)
    if code is None:
        with OwnPath():
            import inspect
        parameters = inspect.signature(handler).parameters.values()
        kinds = [p.kind for p in parameters]
        positional = sum(k in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for k in kinds)
        takes_context = positional >= 2 or inspect.Parameter.VAR_POSITIONAL in kinds
    else:
        takes_context = code.co_argcount >= 2 or bool(code.co_flags & 0x04)
    value = handler(event, Context(head, began)) if takes_context else handler(event)
    if type(value) not in PLAIN and hasattr(value, "__await__"):
        with OwnPath():
            import asyncio

        async def finish():
            return await value

        value = asyncio.run(finish())
    return value


def new_encoder():
    """What `json.dumps` makes each time: it gives the parts of a text."""
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if json.encoder.c_make_encoder is None:
        return lambda value, level: encoder.iterencode(value)
    return json.encoder.c_make_encoder({}, encoder.default, json.encoder.encode_basestring, None, ":", ",", False, False, False)


to_json = new_encoder()


def encode(value, limit):
    try:
        try:
            text = "".join(to_json(value, 0))
        except ValueError:  # NaN, an infinity, or a circle
            text = "".join(to_json(finite(value, "$", []), 0))
    except TypeError:
        where, what = culprit(value, "$") or ("$", value)
        name = type(what).__name__
        raise UserError("ReturnValueNotSerializable", f"the return value at {where} is of type {name}, which is not JSON") from None
    except RecursionError:
        raise UserError("ReturnValueNotSerializable", "the return value is nested too deeply") from None
    if len(text) > limit:
        raise UserError("ReturnValueTooLarge", f"the return value has {len(text)} bytes of JSON; at most {limit} can be returned")
    return text


def finite(value, where, parents):
    """A copy in which NaN and the infinities are None."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if not isinstance(value, (dict, list, tuple)):
        return value
    if any(value is parent for parent in parents):
        raise UserError("ReturnValueNotSerializable", f"the return value at {where} contains itself")
    parents = [*parents, value]
    if isinstance(value, dict):
        return {key: finite(item, f"{where}.{key}", parents) for key, item in value.items()}
    return [finite(item, f"{where}[{index}]", parents) for index, item in enumerate(value)]


def culprit(value, where):
    """The first part of a value that JSON has no word for."""
    if value is None or isinstance(value, (str, int, float)):
        return None
    if isinstance(value, dict):
        for key, item in value.items():
            if key is not None and not isinstance(key, (str, int, float)):
                return f"{where} (a key)", key
            found = culprit(item, f"{where}.{key}")
            if found:
                return found
        return None
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            found = culprit(item, f"{where}[{index}]")
            if found:
                return found
        return None
    return where, value


def report(error, code):
    """Shows an uncaught exception as Python does, without the runner's own frames, and tells of it."""
    with OwnPath():
        import linecache
        import traceback
    text = code.decode("utf-8", "replace")
    linecache.cache[CODE] = (len(text), None, text.splitlines(True), CODE)
    if isinstance(error, UserError):
        kind, message, shown = error.kind, str(error), ""
        sys.stderr.write(f"{kind}: {message}\n")
    else:
        kind = type(error).__qualname__
        try:
            message = str(error)
        except Exception:
            message = "<the message of the error cannot be shown>"
        with OwnPath():
            trace = traceback.TracebackException(type(error), error, error.__traceback__)
            keep_user_frames(trace, set())
            shown = "".join(trace.format())
        sys.stderr.write(to_utf8(shown).decode())
    return b"E" + to_utf8(json.dumps({"type": kind, "message": message[:16384], "traceback": shown[-65536:]}, ensure_ascii=False))


def keep_user_frames(trace, seen):
    if trace is None or id(trace) in seen:
        return
    seen.add(id(trace))
    home = os.getcwd() + os.sep
    first = (i for i, frame in enumerate(trace.stack) if frame.filename == CODE or frame.filename.startswith(home))
    trace.stack[:] = trace.stack[next(first, len(trace.stack)) :]
    for other in (trace.__cause__, trace.__context__, *(getattr(trace, "exceptions", None) or ())):
        keep_user_frames(other, seen)


def exit_code(stop):
    """What `sys.exit(x)` means."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    sys.stderr.write(f"{stop.code}\n")
    return 1


def run(head, code, event, began):
    """The return value as JSON, of a handler."""
    if not head.entry:
        load(code, "__main__")
        return None
    module = load(code, HANDLER)
    name = head.entry.decode()
    handler = getattr(module, name, None)
    if not callable(handler):
        raise UserError("HandlerNotFound", f"the code defines no function `{name}`: define `def {name}(event)`, or run the code in script mode")
    try:
        event = from_json(event.decode().strip(" \t\n\r"))[0]
    except RecursionError:
        raise UserError("EventTooDeep", "the event is nested too deeply for Python's json") from None
    return encode(call(handler, event, head, began), int(head.result_bytes))


def finish(code):
    """Ends as an interpreter does, but for taking itself apart piece by piece."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
    except SystemExit as stop:
        code = exit_code(stop)
    flush()
    leave(code)


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass


def become_child():
    """Makes this process a warm parent, and returns in its children. They have what is imported here
    for nothing; `threading` is left out, because what it does after a fork costs more than it saves."""
    import ctypes
    import datetime
    import gc
    import linecache
    import re
    import traceback

    import_random()
    library = ctypes.PyDLL(os.path.join(os.path.dirname(os.path.abspath(__file__)), "libsandmesh.so"))
    # Forked as Python and the C library do it, which sets right locks and the ids of threads.
    python = ctypes.pythonapi
    hooks = (python.PyOS_BeforeFork, ctypes.PyDLL(None).fork, python.PyOS_AfterFork_Child, python.PyOS_AfterFork_Parent)
    serve = library.sandmesh_serve
    sequences = restartable_sequences(ctypes)
    merge_program(ctypes)
    del datetime, linecache, re, traceback
    # Of the jail, and of the loader's: not the user's.
    for name in ("LD_BIND_NOW", "PWD"):
        os.environ.pop(name, None)
    sys.stdout.reconfigure(line_buffering=True)
    # Some of what Python runs is rewritten the first few times.
    for _ in range(9):
        warm_up()
    become_main()
    gc.collect()
    fill_pools()
    gc.freeze()
    if HOLDS_REHEARSAL:
        plan_rehearsal(ctypes, library)
    if IS_TEMPLATE:
        library.sandmesh_message.restype = ctypes.c_char_p
        library.sandmesh_be_template()
    del ctypes
    role = serve(*hooks, *sequences)
    if role == 3:
        os.environ["PATH"], packages = library.sandmesh_message().decode().split("\n")
        show_packages(packages)
        role = serve(*hooks, *sequences)
    if role == 2:
        begin_rehearsal(library)
    elif role == 1:
        warm_up()


def import_random():
    """Imports it with a cheaper hook than its own, which does the same by way of many more pages."""
    import functools

    hooks = []
    register, os.register_at_fork = os.register_at_fork, lambda **hook: hooks.append(hook)
    try:
        import random
    finally:
        os.register_at_fork = register
    generator = random._inst
    if hooks == [{"after_in_child": generator.seed}]:
        import _random

        reseed = functools.partial(_random.Random.seed, generator)
        forget = functools.partial(setattr, generator, "gauss_next", None)
        hooks = [{"after_in_child": reseed}, {"after_in_child": forget}]
    for hook in hooks:
        register(**hook)


def merge_program(ctypes):
    """Has what is read-only of the interpreter's program mapped as one, if it lies in memory as in its file. Where that
    is in large pages (see `large_pages.rs`), a child then gets as much by one fault."""
    large, read_and_execute, madv_hugepage = 2 << 20, 1 | 4, 14
    library, program, begin, end = ctypes.CDLL(None), os.readlink("/proc/self/exe"), 0, 0
    for low, high, access, offset, name in areas():
        file = low - offset  # where its beginning would be
        if name == program and "w" not in access and (file, low) == (begin or file, end or file):
            begin, end = file, high
    if end - begin >= large and begin % large == 0:
        place = ctypes.c_void_p(begin), ctypes.c_size_t(end - begin)
        if library.mprotect(*place, read_and_execute) == 0:
            library.madvise(*place, madv_hugepage)


def areas():
    """The areas of this memory: where each begins and ends, its access, from where in its file it is, and the file's name."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            area, access, offset, _, _, *name = line.rstrip("\n").split(None, 5)
            begin, end = (int(word, 16) for word in area.split("-"))
            yield begin, end, access, int(offset, 16), "".join(name)


def fill_pools():
    """Takes the gaps that the imports left in Python's pools of small blocks, for good. Each size has pools of
    its own of four pages, so a child that gets a gap writes to two pages, that of the gap and that of the pool's
    head; in a pool that is new these are the same. Older Pythons, and those without a global lock, have no such pools."""
    pool, head, most = 16384, 48, 1024
    if sys.version_info < (3, 10) or "t" in sys.abiflags:
        return
    for size in range(32, 513, 16):
        for _ in range(most):
            block = bytes(size - 33) if size > 33 else float(size)
            if id(block) % pool == head:  # the first of a pool; it is given back
                break
            GAPS.append(block)


def plan_rehearsal(ctypes, library):
    """Has `sandmesh_serve` first make a child for a request of ours, and keep this memory so that children like it cost
    little (see `rehearsal.rs`). Small areas are not worth it, of huge ones little is used, and what the C library has
    for this thread changes at a fork. Where `/proc` does not tell, there is none."""
    import _thread

    page, least, most, words = os.sysconf("SC_PAGESIZE"), 64, 1 << 18, []
    thread = _thread.get_ident()
    try:
        with open("/proc/self/pagemap", "rb", 0) as page_map:
            for begin, end, access, _, name in areas():
                first, count = begin // page, (end - begin) // page
                if access == "rw-p" and name != "[stack]" and least <= count <= most and not begin <= thread < end:
                    entries = memoryview(os.pread(page_map.fileno(), count * 8, first * 8)).cast("Q")
                    for index, pages in present(entries):
                        if pages >= least:
                            words += [begin + index * page, pages]
    except Exception:
        return
    size = ctypes.c_size_t
    pairs = (size * len(words))(*words)
    request = request_for(b"def handler(event):\n    print(1)\n    return {'a': 1, 'b': 'c'}\n", b"{}")
    KEPT.extend((pairs, request))
    library.sandmesh_rehearse(size(page), pairs, size(len(words) // 2), request, size(len(request)))


def present(entries):
    """Where pages are in a row, by the entries of a pagemap; a gap of a few does not count."""
    begin, end, gap = None, 0, 16
    for index, entry in enumerate(entries):
        if entry >> 63:
            if begin is not None and index - end > gap:
                yield begin, end - begin
                begin = None
            begin, end = index if begin is None else begin, index + 1
    if begin is not None:
        yield begin, end - begin


def begin_rehearsal(library):
    """Does what a spare does, and has `main` end the rehearsal. This process is not restrained, so what the session's
    user has made takes no part in it."""
    global leave, HAS_PTH
    leave, HAS_PTH = library.sandmesh_rehearsed, False
    sys.path[:] = OwnPath.modules
    warm_up()


def restartable_sequences(ctypes):
    """Where the C library keeps them: how far from the thread's pointer, and how many bytes."""
    library = ctypes.CDLL(None)
    try:
        offset = ctypes.c_ssize_t.in_dll(library, "__rseq_offset")
        return offset, ctypes.c_uint.in_dll(library, "__rseq_size")
    except ValueError:
        return ctypes.c_ssize_t(0), ctypes.c_uint(0)


def request_for(code, event):
    """A request of the runner's own."""
    return b"\n".join((b"", b"", b"handler", b"%d" % len(code), b"%d" % len(event), b"4096", b"1", b"1", b"1.5", b"", code + event))


def warm_up():
    """Answers a request of its own, so that what that needs is compiled and in memory."""
    code, event = b"def handler(event, context):\n    return {'a': [event['b'], 1.5, None]}\n", b'{"b": 1}'
    reader, writer = os.pipe()
    os.write(writer, request_for(code, event))
    os.close(writer)
    head, code, event = read_request(reader)
    take_environment(head)
    to_utf8(run(head, code, event, begin(head)))
    flush()
    del sys.modules[HANDLER]
    MODULES[HANDLER] = new_module(HANDLER)


def take_environment(head):
    """What this execution has besides what every one has, for an interpreter that was started before."""
    if head.env:
        os.environ.update(from_json(head.env.decode())[0])
        if "TZ" in os.environ:
            time.tzset()


def begin(head):
    """When the executor wrote the request, on this process's own clock."""
    return time.monotonic() - max(0.0, time.time() - float(head.now))


def become_main():
    """What the user's code is to find."""
    sys.path[0] = os.getcwd()
    sys.argv[:] = ["main.py"]
    show_packages(GIVEN_PACKAGES)


def show_packages(place):
    """Where the packages of the session are; nothing if it has none."""
    global PACKAGES, HAS_PTH
    if place:
        # After the standard library, which no package is to replace, and before what the host has.
        hosts = (i for i, path in enumerate(sys.path) if path.endswith(("site-packages", "dist-packages")))
        sys.path.insert(next(hosts, len(sys.path)), place)
        # For the interpreters that it starts.
        os.environ.setdefault("PYTHONPATH", place)
        PACKAGES, HAS_PTH = place, any(name.endswith(".pth") for name in os.listdir(place))


def add_packages():
    """What packages want to be done at the start of an interpreter. It is code of theirs: only a child runs it."""
    import site

    site.addsitedir(PACKAGES)


def main(is_forked):
    head, code, event = read_request(REQUEST)
    if is_forked:
        # From here on the time limit counts, and what the environment names may be slow.
        os.write(START, b"S")
        os.close(START)
        take_environment(head)
    else:
        os.set_inheritable(RESULT, False)
        sys.stdout.reconfigure(line_buffering=True)
        become_main()
    status, answer, pid = 0, b"", os.getpid()
    try:
        if HAS_PTH:
            add_packages()
        text = run(head, code, event, begin(head))
        if text is not None:
            answer = b"R" + to_utf8(text)
    except SystemExit as stop:
        status = exit_code(stop)
    except BaseException as error:
        answer = report(error, code)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    # What the code forked and comes by here, too, does not speak for all.
    if os.getpid() == pid:
        try:
            send(answer)
        except OSError as error:  # the code closed it
            status = status or 1
            sys.stderr.write(f"the result cannot be told: {error}\n")
    finish(status)


leave = os._exit
KEPT = []  # what the library has pointers to
MODULES = {name: new_module(name) for name in (HANDLER, "__main__")}
GAPS = []
IS_TEMPLATE = sys.argv[1:2] == ["template"]  # of a snapshot, see `snapshot.rs`
HOLDS_REHEARSAL = IS_TEMPLATE or sys.argv[1:2] == ["rehearsed-parent"]
IS_PARENT = HOLDS_REHEARSAL or sys.argv[1:2] == ["parent"]
GIVEN_PACKAGES = "".join(sys.argv[2:3])
PACKAGES, HAS_PTH = "", False
if IS_PARENT:
    become_child()
main(IS_PARENT)
