"""A web server on this machine whose answers go wrong on request."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """`content` under /file, and under a name that says how it goes wrong. `asked`: paths and Range of the requests."""

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.asked = content, []
        self.tag = '"1"'

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        way = self.path.strip("/").partition("/")[0]
        times = sum(path == self.path for path, _ in server.asked)
        server.asked.append((self.path, wanted))
        if way == "redirect":
            self.send_response(302)
            self.send_header("Location", server.url("file"))
            self.end_headers()
            return
        if way in ("missing", "busy") and (way == "missing" or not times):
            self.send_error(404 if way == "missing" else 503)
            return
        start = 0
        if wanted and self.headers.get("If-Range") == server.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html; charset=utf-8" if way == "page" else "application/zip")
        self.send_header("ETag", server.tag)
        self.send_header("Content-Length", str(len(server.content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        body = server.content[start:]
        breaks = way == "broken" or (way == "broken_once" and not times)
        self.wfile.write(body[: len(body) // 2] if breaks else body)


@contextmanager
def serving(content):
    server = Server(content)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
