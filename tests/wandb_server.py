"""A stand-in for the W&B server on 127.0.0.1, as small as wandb 0.31 accepts: enough to receive runs and
resume them.

    with Server() as server:          server.url, server.runs[id].history (list of dicts), .config, .exit_code
        ...
        server.stop()                 the server is gone (connections are refused from then on)

Not implemented: artifacts, several entities, authorisation (any key of 40 characters is accepted unless
behaviour="refuse", which answers every request with 401, or "mute", which
answers none and keeps the caller waiting).
"""

import contextlib
import gzip
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY = "0123456789abcdef0123456789abcdef01234567"
ENTITY = "somebody"


@dataclass
class Run:
    name: str
    project: str
    config: dict = field(default_factory=dict)
    group: str | None = None
    title: str | None = None
    tags: list = field(default_factory=list)
    history: list = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    exit_code: int | None = None


class Server:
    def __init__(self, behaviour: str = "serve"):
        self.runs: dict[str, Run] = {}
        self.operations: list[str] = []
        self.views: list[dict] = []  # reports that were saved
        self.behaviour = behaviour
        self.released = threading.Event()
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._http = _Http(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._stopped = False

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self.released.set()
            self._http.shutdown()
            self._thread.join()
            self._http.hang_up()
            self._http.server_close()

    def graphql(self, query: str, values: dict) -> dict:
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = name.group(1) if name else "?"
        self.operations.append(operation)
        answer = getattr(self, f"_{operation}", None)
        return answer(values) if answer else {}

    def _Viewer(self, values):
        return {
            "viewer": {
                "id": "1",
                "entity": ENTITY,
                "username": ENTITY,
                "flags": "{}",
                "teams": {"edges": []},
            }
        }

    def _ServerFeaturesQuery(self, values):
        return {"serverInfo": {"features": []}}

    def _OrganizationCoreWeaveOrganizationID(self, values):
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def _RunResumeStatus(self, values):
        project = {"id": "p", "name": values.get("project"), "entity": {"id": "e", "name": ENTITY}}
        run = self.runs.get(values.get("name"))
        bucket = None
        if run is not None:
            tail = [json.dumps(row) for row in run.history[-1:]]
            bucket = {
                "name": run.name,
                "id": "id-" + run.name,
                "displayName": run.title,
                "summaryMetrics": json.dumps(run.summary),
                "historyLineCount": len(run.history),
                "historyTail": json.dumps(tail),
                "eventsTail": "[]",
                "eventsLineCount": 0,
                "logLineCount": 0,
                "config": json.dumps(run.config),
                "tags": run.tags,
                "wandbConfig": json.dumps({"t": 1}),  # resuming needs an entry "t" here
            }
        return {"model": {**project, "bucket": bucket}}

    def _UpsertBucket(self, values):
        key = values.get("name")
        inserted = key not in self.runs
        run = self.runs.setdefault(key, Run(key, values.get("project")))
        if values.get("config"):
            run.config = json.loads(values["config"])
        run.group = values.get("groupName") or run.group
        run.title = values.get("displayName") or run.title
        run.tags = values.get("tags") or run.tags
        return {
            "upsertBucket": {
                "bucket": {
                    "id": "id-" + key,
                    "name": key,
                    "displayName": run.title,
                    "description": None,
                    "config": json.dumps(run.config),
                    "sweepName": None,
                    "historyLineCount": len(run.history),
                    "project": {
                        "id": "p",
                        "name": run.project,
                        "entity": {"id": "e", "name": ENTITY},
                    },
                },
                "inserted": inserted,
            }
        }

    def _GetDefaultEntity(self, values):
        return {"viewer": {"id": "1", "defaultEntity": {"name": ENTITY}, "entity": ENTITY}}

    def _ProjectInternalId(self, values):
        return {"project": {"id": "p", "internalId": "internal"}}

    def _GetProjects(self, values):
        node = {"id": "p", "name": "adabatch", "entityName": ENTITY, "createdAt": "2026-01-01T00:00:00",
                "isBenchmark": False, "user": None}  # fmt: skip
        page = {"endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": page, "edges": [{"node": node, "cursor": ""}]}}

    def _upsertView(self, values):
        """Keeps a report in `views`, as it is sent."""
        self.views.append(values)
        project = {"id": "p", "name": values["projectName"], "entityName": values["entityName"]}
        view = {"id": "VIEW", "type": "runs", "name": "n", "displayName": values["displayName"],
                "description": "", "project": project, "spec": values["spec"], "updatedAt": None}  # fmt: skip
        return {"upsertView": {"view": view, "inserted": True}}

    def _ArtifactType(self, values):
        """Asked before a table is kept as an artifact: there is none of that name."""
        return {"project": None}

    def _CreateArtifact(self, values):
        """Committed at once, as if its files had been sent before."""
        sequence = {"id": "s", "latestArtifact": None}
        return {
            "createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}
        }

    def _CreateRunFiles(self, values):
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in values.get("files", [])]
        return {"createRunFiles": {"runID": "id", "uploadHeaders": [], "files": files}}

    def stream(self, name: str, body: dict) -> None:
        run = self.runs.setdefault(name, Run(name, None))
        for file, part in body.get("files", {}).items():
            rows = [json.loads(line) for line in part["content"]] if file.endswith(("jsonl", "json")) else []
            if file == "wandb-history.jsonl":
                run.history[part["offset"] :] = rows
            elif file == "wandb-summary.json":
                run.summary = rows[-1]
        if body.get("complete"):
            run.exit_code = body.get("exitcode")


class _Http(ThreadingHTTPServer):
    """Keeps its connections, so that stopping it ends those too: a client's open ones would be served on."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.connections = set()

    def process_request(self, request, client_address) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address) -> None:
        """A client that was killed or hung up on is what the tests are about: not worth a traceback."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def _body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def _send(self, value: dict, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = self._body()
        if self.server_state.behaviour == "mute":
            self.server_state.released.wait()
        if self.server_state.behaviour == "refuse":
            return self._send({"errors": [{"message": "invalid key"}]}, 401)
        if self.path.endswith("/graphql"):
            request = json.loads(body)
            return self._send(
                {"data": self.server_state.graphql(request["query"], request.get("variables") or {})}
            )
        if self.path.endswith("/file_stream"):
            self.server_state.stream(self.path.split("/")[-2], json.loads(body))
        self._send({})

    def do_PUT(self) -> None:
        self._body()
        self._send({})

    def do_GET(self) -> None:
        self._send({})

    def log_message(self, *_) -> None:
        """Silence: nothing may be written among the tests' output."""


def offline_records(folder: Path) -> list:
    """All records of the run files under `folder`, read by their format: a LevelDB log of protobuf messages.

    The file: 7 bytes of header, then blocks of 32 KiB of chunks (crc32, length, kind; kind 1 = whole record,
    2, 3, 4 = its first, middle and last part).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    records = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        data, at, parts = path.read_bytes(), 7, []
        assert data[:4] == b":W&B"
        while at + 7 <= len(data):
            if (room := 32768 - at % 32768) < 7:
                at += room
                continue
            _, length, kind = struct.unpack_from("<IHB", data, at)
            parts.append(data[at + 7 : at + 7 + length])
            at += 7 + length
            if kind in (1, 4):
                records.append(Record.FromString(b"".join(parts)))
                parts = []
    return records


def history(records) -> list[dict]:
    """The rows that were logged, among all records of a run file."""
    found = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = [(item.key or ".".join(item.nested_key), item.value_json) for item in record.history.item]
            found.append({key: json.loads(value) for key, value in items})
    return found
