"""An index of Python packages and a registry of npm on one port of the loopback, with packages made here.

Arguments: the directory to work in, and the port that a hostile build script is to try. Prints its own port.
Every request is a line in `requests` of that directory.
"""

import base64
import hashlib
import http.server
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import zipfile

DIRECTORY, TARGET = pathlib.Path(sys.argv[1]), sys.argv[2]


def wheel(name, version, files, requires=(), scripts=(), tag="py3-none-any"):
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {other}\n" for other in requires)
    files = dict(files)
    files[f"{info}/METADATA"] = metadata
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"
    if scripts:
        files[f"{info}/entry_points.txt"] = "[console_scripts]\n" + "".join(f"{s}\n" for s in scripts)
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return f"{name}-{version}-{tag}.whl", out.getvalue()


def tar(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path, text in files.items():
            data = text.encode()
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def sdist(name, version, build):
    """One whose build script runs `build`, which may set `found`, and makes a wheel with that in it."""
    backend = f'''
import base64, io, json, os, zipfile
def build_wheel(directory, settings=None, metadata=None):
    found = None
    scope = {{}}
    exec(base64.b64decode({base64.b64encode(build.encode()).decode()!r}).decode(), scope)
    found = scope.get("found")
    info = "{name}-{version}.dist-info"
    with zipfile.ZipFile(os.path.join(directory, "{name}-{version}-py3-none-any.whl"), "w") as archive:
        archive.writestr("{name}.py", "found = " + repr(found))
        archive.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        archive.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(info + "/RECORD", "")
    return "{name}-{version}-py3-none-any.whl"
'''
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    top = f"{name}-{version}"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {f"{top}/PKG-INFO": about, f"{top}/pyproject.toml": project, f"{top}/backend.py": backend}
    return f"{top}.tar.gz", tar(files)


HOSTILE = f'''
import glob, os, socket, urllib.request
found = {{}}
def attempt(name, act):
    try:
        found[name] = repr(act())[:300]
    except BaseException as error:
        found[name] = "refused: " + type(error).__name__ + " " + str(error)[:200]
def connect(host, port):
    with socket.create_connection((host, port), 3) as there:
        return "connected"
def through_proxy(target):
    host, port = os.environ["http_proxy"].rsplit("/", 1)[1].split(":")
    with socket.create_connection((host, int(port)), 3) as there:
        there.sendall(f"CONNECT {{target}} HTTP/1.1\\r\\n\\r\\n".encode())
        return there.recv(200)
attempt("network", lambda: connect("1.1.1.1", 80))
attempt("metadata", lambda: connect("169.254.169.254", 80))
attempt("gateway", lambda: connect("127.0.0.1", {TARGET}))
attempt("gateway by proxy", lambda: through_proxy("127.0.0.1:{TARGET}"))
attempt("elsewhere by proxy", lambda: through_proxy("example.org:443"))
attempt("gateway by http", lambda: urllib.request.urlopen("http://127.0.0.1:{TARGET}/api/v1/health", timeout=5).read())
attempt("names", lambda: socket.getaddrinfo("example.org", 443))
attempt("shadow", lambda: open("/etc/shadow").read())
attempt("home", lambda: os.listdir("/root"))
attempt("house", lambda: os.listdir("/run/sandmesh"))
attempt("write system", lambda: open("/usr/evil", "w"))
found["environment"] = "HOST_SECRET" in os.environ or "do-not-show" in repr(dict(os.environ))
found["processes"] = sorted(open(p).read().strip() for p in glob.glob("/proc/[0-9]*/comm"))
found["uid"] = os.getuid()
'''

BOMB = '''
import os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    except OSError:
        pass
'''


def native():
    source, library = DIRECTORY / "native.c", DIRECTORY / "native.so"
    source.write_text("int answer(void) { return 42; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    code = "import ctypes, os\nanswer = ctypes.CDLL(os.path.join(os.path.dirname(__file__), 'native.so')).answer\n"
    return wheel("nativepkg", "1.0", {"nativepkg/__init__.py": code, "nativepkg/native.so": library.read_bytes()})


def plain(version):
    code = f"version = {version!r}\ndef main():\n    print('alpha', version)\n"
    return wheel("alpha", version, {"alpha.py": code}, scripts=["alpha-tool = alpha:main"])


PYTHON = {
    "alpha": [plain("1.0"), plain("2.0")],
    "beta": [wheel("beta", "1.0", {"beta.py": "import alpha\nuses = alpha.version\n"}, requires=["alpha>=1"])],
    "slow": [sdist("slow", "1.0", "import time; time.sleep(300)")],
    "pause": [sdist("pause", "1.0", "import time; time.sleep(4)")],
    "hostile": [sdist("hostile", "1.0", HOSTILE)],
    "bomb": [sdist("bomb", "1.0", BOMB)],
    "broken": [sdist("broken", "1.0", "raise RuntimeError('this build script is broken')")],
    "nativepkg": [native()],
}
FILES = {name: data for files in PYTHON.values() for name, data in files}

NPM = {
    "left": tar({
        "package/package.json": json.dumps({"name": "left", "version": "1.2.3", "main": "index.js", "bin": {"left-tool": "tool.js"}}),
        "package/index.js": "exports.left = (text) => '<' + text;\n",
        "package/tool.js": "#!/usr/bin/env node\nconsole.log('left tool');\n",
    })
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with open(DIRECTORY / "requests", "a") as log:
            log.write(self.path + "\n")
        kind, body = self.answer([part for part in self.path.split("?")[0].split("/") if part])
        self.send_response(200 if body is not None else 404)
        body = body if body is not None else b"not here"
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, path):
        here = f"http://{self.headers['host']}"
        if path[:1] == ["simple"] and len(path) == 2 and path[1] in PYTHON:
            links = "".join(f'<a href="{here}/files/{name}">{name}</a>\n' for name, _ in PYTHON[path[1]])
            return "text/html", f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        if path[:1] == ["files"] and path[-1] in FILES:
            return "application/octet-stream", FILES[path[-1]]
        if path[:1] == ["npm"] and len(path) == 2 and path[1] in NPM:
            data = NPM[path[1]]
            dist = {
                "tarball": f"{here}/tarballs/{path[1]}.tgz",
                "shasum": hashlib.sha1(data).hexdigest(),
                "integrity": "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode(),
            }
            version = {"name": path[1], "version": "1.2.3", "dist": dist, "bin": {"left-tool": "tool.js"}}
            about = {"name": path[1], "dist-tags": {"latest": "1.2.3"}, "versions": {"1.2.3": version}}
            return "application/json", json.dumps(about).encode()
        if path[:1] == ["tarballs"]:
            return "application/octet-stream", NPM[path[-1].removesuffix(".tgz")]
        return "text/plain", None

    def log_message(self, *words):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
