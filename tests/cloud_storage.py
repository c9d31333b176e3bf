"""A stand-in for Google Cloud Storage: a server of objects, and epath's way to it.

Objects appear whole, have a generation, cannot be appended to or renamed, and folders
are no more than what names have in common. TensorStore reads and writes the server as
it would the real one (the JSON API, with its conditions on generations); `Files` does
the rest as TensorFlow's file system would, which cannot be turned to another address.
"""

import contextlib
import fnmatch
import io
import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from etils.epath import backend, stat_utils

_OBJECTS = "/storage/v1/b/bucket/o"
_UPLOADS = f"/upload{_OBJECTS}"


class Server(ThreadingHTTPServer):
    """Holds the objects of the bucket 'bucket': name -> (generation, bytes)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("localhost", 0), _Handler)
        self.lock, self.clock, self.objects = threading.Lock(), 0, {}
        # The names of all that was written, in order.
        self.written = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://localhost:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, query = self._asked()
        with self.server.lock:
            if path == _OBJECTS.removesuffix("/o"):
                return self._answer(200, {"kind": "storage#bucket", "name": "bucket"})
            if path == _OBJECTS:
                start, end = query.get("startOffset", ""), query.get("endOffset")
                names = [
                    name
                    for name in sorted(self.server.objects)
                    if name.startswith(query.get("prefix", ""))
                    and name >= start
                    and (not end or name < end)
                ]
                return self._answer(200, {"items": [self._told(n) for n in names]})
            name = self._name(path)
            generation, content = self.server.objects.get(name, (0, b""))
        if not generation:
            return self._answer(404)
        status = self._condition(generation, query)
        if status:
            return self._answer(status)
        if query.get("alt") != "media":
            return self._answer(200, self._told(name))
        headers = {"x-goog-generation": generation}
        if "Range" not in self.headers:
            return self._answer(200, content, headers)
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last or len(content)) + 1]
        end = int(first) + len(part) - 1
        headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
        return self._answer(206, part, headers)

    def do_POST(self):
        path, query = self._asked()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert path == _UPLOADS
        assert query["uploadType"] == "media"
        with self.server.lock:
            generation, _ = self.server.objects.get(query["name"], (0, b""))
            status = self._condition(generation, query)
            if not status:
                self.server.clock += 1
                self.server.objects[query["name"]] = (self.server.clock, content)
                self.server.written.append(query["name"])
            told = None if status else self._told(query["name"])
        return self._answer(status or 200, told)

    def do_DELETE(self):
        path, query = self._asked()
        with self.server.lock:
            generation, _ = self.server.objects.get(self._name(path), (0, b""))
            status = self._condition(generation, query) if generation else 404
            if not status:
                del self.server.objects[self._name(path)]
        return self._answer(status or 204)

    def _asked(self):
        parts = urllib.parse.urlsplit(self.path)
        return parts.path, dict(urllib.parse.parse_qsl(parts.query))

    @staticmethod
    def _name(path):
        return urllib.parse.unquote(path.removeprefix(f"{_OBJECTS}/"))

    def _told(self, name):
        generation, content = self.server.objects[name]
        return {"name": name, "generation": f"{generation}", "size": f"{len(content)}"}

    @staticmethod
    def _condition(generation, query):
        """The status of an answer whose condition does not hold, else None."""
        if int(query.get("ifGenerationMatch", generation)) != generation:
            return 412
        if int(query.get("ifGenerationNotMatch", -1)) == generation:
            return 304
        return None

    def _answer(self, status, content=b"", headers=None):
        if not isinstance(content, bytes):
            content = json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, str(value))
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(content)

    def handle(self):
        # Programs are killed on purpose, while they ask.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *arguments):
        pass


class Files(backend.Backend):
    """The file system of gs://bucket, by the server at `address`."""

    def __init__(self, address):
        self.address = address

    def open(self, path, mode):
        if "a" in mode:
            raise NotImplementedError("objects are not appended to")
        if "r" in mode:
            content = self.read(_name_of(path))
            return io.BytesIO(content) if "b" in mode else io.StringIO(content.decode())
        return _Upload(self, _name_of(path), "b" not in mode)

    def exists(self, path):
        name = _name_of(path)
        return any(n == name or n.startswith(f"{name}/") for n in self.names(name))

    def isdir(self, path):
        return bool(self.names(f"{_name_of(path)}/"))

    def listdir(self, path):
        prefix = f"{_name_of(path)}/"
        rest = [name.removeprefix(prefix) for name in self.names(prefix)]
        # Folders end with a slash, as TensorFlow gives them.
        return sorted({first + slash for first, slash in _firsts(rest) if first})

    def glob(self, path):
        folder, _, pattern = str(path).rpartition("/")
        names = [name.rstrip("/") for name in self.listdir(folder)]
        return [f"{folder}/{name}" for name in fnmatch.filter(names, pattern)]

    def walk(self, top, **options):
        raise NotImplementedError

    def makedirs(self, path, *, exist_ok=False, mode=None):
        if not exist_ok and self.exists(path):
            raise FileExistsError(path)
        self.write(f"{_name_of(path)}/", b"")

    mkdir = makedirs

    def rmtree(self, path):
        for name in self.names(f"{_name_of(path)}/"):
            self.delete(name)

    def remove(self, path):
        self.delete(_name_of(path))

    def rename(self, path, dst):
        raise NotImplementedError("objects are not renamed")

    replace = rename

    def copy(self, path, dst, overwrite):
        self.write(_name_of(dst), self.read(_name_of(path)))

    def stat(self, path):
        folder = self.isdir(path)
        length = 0 if folder else len(self.read(_name_of(path)))
        return stat_utils.StatResult(is_directory=folder, length=length, mtime=0)

    def names(self, prefix):
        """The names of all objects that begin so."""
        query = urllib.parse.urlencode({"prefix": prefix})
        answer = json.loads(self._ask("GET", f"{_OBJECTS}?{query}"))
        return [item["name"] for item in answer["items"]]

    def read(self, name):
        """The bytes of an object."""
        return self._ask("GET", f"{_object(name)}?alt=media")

    def write(self, name, content):
        """Makes an object, in place of the former one."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        self._ask("POST", f"{_UPLOADS}?{query}", content)

    def delete(self, name):
        """Removes an object."""
        self._ask("DELETE", _object(name))

    def _ask(self, method, path, content=None):
        request = urllib.request.Request(self.address + path, content, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise FileNotFoundError(f"gs://bucket: {path}: {error}") from error


class _Upload(io.BytesIO):
    """A file that is written: an object when it is closed."""

    def __init__(self, files, name, text):
        super().__init__()
        self._files, self._name, self._text = files, name, text

    def write(self, content):
        return super().write(content.encode() if self._text else content)

    def close(self):
        if not self.closed:
            self._files.write(self._name, self.getvalue())
        super().close()


def _name_of(path):
    bucket, _, name = str(path).removeprefix("gs://").partition("/")
    assert bucket == "bucket", path
    return name.rstrip("/")


def _object(name):
    return f"{_OBJECTS}/{urllib.parse.quote(name, safe='')}"


def _firsts(names):
    return {name.partition("/")[:2] for name in names}
