"""Runs one piece of user code and tells its return value or its error.

Started by sandmesh-executor inside the jail. Descriptor 4 holds the request: a line of JSON, then
the code, then the event. Descriptor 3 takes the answer: "R" and the return value as JSON, or "E" and
a JSON object with type, message and traceback. The standard streams belong to the user's code.

With the argument "parent" it is warmed up once and then forked for each execution by the native
library beside it; the parent itself never sees a request.
"""

import json
import os
import sys
import time

RESULT, REQUEST, START = 3, 4, 5
CODE = "<code>"


class Context:
    """What a handler is told about its execution; the names are those of AWS Lambda."""

    def __init__(self, head, clock):
        self.execution_id = self.aws_request_id = head["execution_id"]
        self.session_id = head["session_id"]
        self.function_name = head["entry"]
        self.function_version = "$LATEST"
        self.memory_limit_in_mb = head["memory_mb"]
        self._deadline = clock + head["timeout_ms"] / 1000

    def get_remaining_time_in_millis(self):
        return max(0, int((self._deadline - time.monotonic()) * 1000))


class UserError(Exception):
    """An error that the runner finds in what the code did; it has no frame to show."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def read_request():
    with open(REQUEST, "rb") as file:
        head = json.loads(file.readline())
        return head, file.read(head["code_bytes"]), file.read(head["event_bytes"])


def send(tag, text):
    data = tag + to_utf8(text)
    while data:
        data = data[os.write(RESULT, data) :]


def to_utf8(text):
    try:
        return text.encode()
    except UnicodeEncodeError:  # lone surrogates, which no UTF-8 text can hold
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def load(code, name):
    module = type(sys)(name)
    module.__file__ = os.path.join(os.getcwd(), "main.py")
    module.__builtins__ = __builtins__
    sys.modules[name] = module
    exec(compile(code, CODE, "exec", dont_inherit=True), module.__dict__)
    return module


def call(handler, event, context):
    code = getattr(handler, "__code__", None)
    if code is None:
        import inspect

        parameters = inspect.signature(handler).parameters.values()
        kinds = [p.kind for p in parameters]
        positional = sum(k in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for k in kinds)
        takes_context = positional >= 2 or inspect.Parameter.VAR_POSITIONAL in kinds
    else:
        takes_context = code.co_argcount >= 2 or bool(code.co_flags & 0x04)
    value = handler(event, context) if takes_context else handler(event)
    if hasattr(value, "__await__"):
        import asyncio

        async def finish():
            return await value

        value = asyncio.run(finish())
    return value


def encode(value, limit):
    try:
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except ValueError:  # NaN, an infinity, or a circle
            text = json.dumps(finite(value, "$", []), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
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
    """Shows an uncaught exception as Python does, without the runner's own frames."""
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
        trace = traceback.TracebackException(type(error), error, error.__traceback__)
        keep_user_frames(trace, set())
        shown = "".join(trace.format())
        sys.stderr.write(to_utf8(shown).decode())
    send(b"E", json.dumps({"type": kind, "message": message[:16384], "traceback": shown[-65536:]}, ensure_ascii=False))


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


def run(head, code, event, context):
    if head["entry"] is None:
        load(code, "__main__")
        return
    module = load(code, "__handler__")
    handler = getattr(module, head["entry"], None)
    if not callable(handler):
        name = head["entry"]
        raise UserError("HandlerNotFound", f"the code defines no function `{name}`: define `def {name}(event)`, or run the code in script mode")
    try:
        event = json.loads(event)
    except RecursionError:
        raise UserError("EventTooDeep", "the event is nested too deeply for Python's json") from None
    send(b"R", encode(call(handler, event, context), head["result_bytes"]))


def finish(code):
    """Ends as an interpreter does, but for taking itself apart piece by piece."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        import atexit

        atexit._run_exitfuncs()
    except SystemExit as stop:
        code = exit_code(stop)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass
    os._exit(code)


def become_child():
    """Makes this process a warm parent, and returns in its children. They have what is imported here
    for nothing; `threading` is left out, because what it does after a fork costs more than it saves."""
    import ctypes
    import datetime
    import gc
    import linecache
    import random
    import re
    import traceback

    warm_up()
    library = ctypes.PyDLL(os.path.join(os.path.dirname(os.path.abspath(__file__)), "libsandmesh.so"))
    # Forked as Python and the C library do it, which sets right locks, ids of threads, and the state of
    # random numbers.
    python = ctypes.pythonapi
    hooks = (python.PyOS_BeforeFork, ctypes.PyDLL(None).fork, python.PyOS_AfterFork_Child, python.PyOS_AfterFork_Parent)
    del datetime, linecache, random, re, traceback
    gc.collect()
    gc.freeze()
    library.sandmesh_serve(*hooks)
    if library.sandmesh_enter():
        warm_up()


def warm_up():
    """Runs something, so that what it needs is compiled and in memory."""
    name = "__warm__"
    module = load(b"import json\ndef handler(event):\n    return {'a': [event, 1.5, None]}\n", name)
    encode(call(module.handler, json.loads(b'{"a": ["b", 1]}'), None), 1 << 20)
    del sys.modules[name]


def take_environment(head):
    """The environment of this execution, for an interpreter that was started before it was known."""
    # First: from here on the time limit counts, and what the environment names may be slow.
    os.write(START, b"S")
    os.close(START)
    os.environ.clear()
    os.environ.update(head["env"])
    if "TZ" in os.environ:
        time.tzset()


def main():
    head, code, event = read_request()
    clock = time.monotonic() - max(0.0, time.time() - head["now"])
    if head["env"] is not None:
        take_environment(head)
    os.set_inheritable(RESULT, False)
    sys.stdout.reconfigure(line_buffering=True)
    sys.path[0] = os.getcwd()
    sys.argv[:] = ["main.py"]
    status = 0
    try:
        run(head, code, event, Context(head, clock))
    except SystemExit as stop:
        status = exit_code(stop)
    except BaseException as error:
        report(error, code)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    finish(status)


if sys.argv[1:] == ["parent"]:
    become_child()
main()
