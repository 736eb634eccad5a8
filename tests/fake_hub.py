"""A server with the part of the Hugging Face hub's interface that we use."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections import defaultdict

SHA = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(http.server.ThreadingHTTPServer):
  """Repositories in memory; a request needs the token "secret".

  Attributes:
    files: {(repository, branch): {file: content}}.
    private: whether each repository is private.
    messages: of all commits.
  """

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.files = defaultdict(dict)
    self.private = {}
    self.messages = []
    self.url = f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def running():
  with FakeHub() as hub:
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def _answer(self, status, content=b"", **headers):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    self.send_response(status)
    for name, value in {"Content-Length": len(data), **headers}.items():
      self.send_header(name.replace("_", "-"), str(value))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)

  def do_POST(self):
    size = int(self.headers.get("Content-Length", 0))
    if self.headers.get("Transfer-Encoding") == "chunked":
      body = b""
      while size := int(self.rfile.readline(), 16):
        body += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
    else:
      body = self.rfile.read(size)
    if self.headers.get("Authorization") != "Bearer secret":
      return self._answer(401, {"error": "Invalid username or password."})
    match self.path.strip("/").split("/"):
      case ["api", "repos", "create"]:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        if repo in self.server.private:
          return self._answer(409, {"url": f"{self.server.url}/{repo}"})
        is_private = asked.get("private") or asked.get("visibility") == "private"
        self.server.private[repo] = is_private
        self._answer(200, {"url": f"{self.server.url}/{repo}"})
      case ["api", "validate-yaml"]:
        self._answer(200, {"errors": [], "warnings": []})
      case ["api", "models", owner, name, "branch", branch]:
        self.server.files[f"{owner}/{name}", branch] = {}
        self._answer(201, {})
      case ["api", "models", _, _, "preupload", _]:
        names = [file["path"] for file in json.loads(body)["files"]]
        files = [
          {"path": x, "uploadMode": "regular", "shouldIgnore": False} for x in names
        ]
        self._answer(200, {"files": files})
      case ["api", "models", owner, name, "commit", branch]:
        repo = f"{owner}/{name}"
        for line in body.splitlines():
          entry = json.loads(line)
          value = entry["value"]
          if entry["key"] == "header":
            self.server.messages.append(value["summary"])
          elif entry["key"] == "file":
            content = base64.b64decode(value["content"])
            self.server.files[repo, branch][value["path"]] = content
        url = f"{self.server.url}/{repo}/commit/{SHA}"
        self._answer(200, {"success": True, "commitOid": SHA, "commitUrl": url})
      case _:
        self._answer(404, {"error": self.path})

  def do_GET(self):
    match urllib.parse.unquote(self.path).strip("/").split("/"):
      case ["api", "datasets", owner, name, *rest]:
        branch = "/".join(rest[1:]) or "main"
        files = self.server.files.get((f"datasets/{owner}/{name}", branch))
        if files is None:
          return self._answer(404, X_Error_Code="RepoNotFound")
        listed = [{"rfilename": file} for file in files]
        sha = hashlib.sha1(branch.encode()).hexdigest()
        self.server.files[f"datasets/{owner}/{name}", sha] = files
        self._answer(200, {"id": f"{owner}/{name}", "sha": sha, "siblings": listed})
      case ["datasets", owner, name, "resolve", sha, *file]:
        content = self.server.files[f"datasets/{owner}/{name}", sha]["/".join(file)]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._answer(200, content, ETag=etag, X_Repo_Commit=sha)
      case [owner, name, "resolve", branch, file]:
        content = self.server.files[f"{owner}/{name}", branch].get(file)
        if content is None:
          return self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=SHA)
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._answer(200, content, ETag=etag, X_Repo_Commit=SHA)
      case ["api", "models", owner, name, "revision", branch]:
        known = f"{owner}/{name}" in self.server.private
        self._answer(200 if known else 404, {"id": f"{owner}/{name}", "sha": SHA})
      case _:
        self._answer(404, {"error": self.path})

  do_HEAD = do_GET  # noqa: N815
