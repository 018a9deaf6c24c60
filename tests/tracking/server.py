"""A W&B server on loopback, as much of it as the real client uses, with faults that can be switched on."""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal["none", "401", "500", "garbage", "stall"]
KEY = "local-" + "0123456789" * 4


@dataclass
class Bucket:
    """A run as the server has it."""

    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    """What UpsertBucket said last of each: displayName, groupName, jobType, tags, config."""
    lines: dict[str, dict[int, str]] = field(default_factory=dict[str, dict[int, str]])
    """Of each streamed file: line number -> text."""
    overwritten: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """Lines that were sent twice with different content."""
    starts: int = 0
    preempting: bool = False
    exit_codes: list[int] = field(default_factory=list[int])

    def history(self) -> list[dict[str, Any]]:
        """Return the rows in the order of their lines."""
        lines = self.lines.get("wandb-history.jsonl", {})
        return [json.loads(lines[number]) for number in sorted(lines)]

    def config(self) -> dict[str, Any]:
        """Return the config without W&B's own part."""
        config: dict[str, Any] = json.loads(self.fields.get("config") or "{}")
        return {key: entry["value"] for key, entry in config.items() if key != "_wandb"}


class Server:
    """Runs in threads of this process from `with` to its end; `die` and `revive` keep the port."""

    def __init__(self, fault: Fault = "none") -> None:
        self.fault: Fault = fault
        self.delay = 0.0
        """Seconds before each answer."""
        self.buckets: dict[str, Bucket] = {}
        self.files: dict[str, bytes] = {}
        """What was PUT, by path."""
        self.bodies: list[bytes] = []
        """All that was ever received, headers of requests included."""
        self.operations: list[str] = []
        self.lock, self.over = threading.Lock(), threading.Event()
        self.http = self.listen(0)
        self.port: int = self.http.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def listen(self, port: int) -> ThreadingHTTPServer:
        state = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                state.answer(self)

            do_GET = do_PUT = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        return http

    def die(self) -> None:
        """Refuse all connections from now on."""
        self.http.shutdown()
        self.http.server_close()

    def revive(self) -> None:
        self.http = self.listen(self.port)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.die()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self.lock:
            self.bodies.append(f"{request.command} {request.path}\n{request.headers}".encode() + body)
        time.sleep(self.delay)
        if self.fault == "stall":
            self.over.wait(60)
        status, text = {"401": (401, '{"errors": [{"message": "bad key"}]}'), "500": (500, "")}.get(
            self.fault, (200, "<html>" if self.fault == "garbage" else "")
        )
        if self.fault == "none":
            with self.lock:
                text = json.dumps(self.handled(request.command, request.path, body))
        try:
            request.send_response(status)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(text)))
            request.end_headers()
            request.wfile.write(text.encode())
        except OSError:
            pass  # the client has gone

    def handled(self, command: str, path: str, body: bytes) -> dict[str, Any]:
        """Return the answer of a healthy server."""
        if path.endswith("/file_stream"):
            self.stream(self.buckets.setdefault(path.split("/")[-2], Bucket()), json.loads(body))
        elif command == "PUT":
            self.files[path] = body
        elif path == "/graphql":
            asked = json.loads(body)
            operation = asked["query"].split("(")[0].split("{")[0].split()[-1]
            self.operations.append(operation)
            if operation == "RunResumeStatus":
                self.buckets.setdefault(asked["variables"]["name"], Bucket()).starts += 1
            return {"data": self.graphql(operation, asked.get("variables") or {})}
        return {}

    def stream(self, bucket: Bucket, sent: dict[str, Any]) -> None:
        for name, part in (sent.get("files") or {}).items():
            lines = bucket.lines.setdefault(name, {})
            for number, line in enumerate(part["content"], part["offset"]):
                if name != "wandb-summary.json" and lines.get(number, line) != line:
                    bucket.overwritten.append((name, number))
                lines[number] = line
        bucket.preempting = bucket.preempting or bool(sent.get("preempting"))
        if sent.get("complete"):
            bucket.exit_codes.append(sent.get("exitcode", 0))

    def graphql(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        owner = {"id": "e", "name": "me"}
        if operation == "Viewer":
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": None}}
        if operation == "RunResumeStatus":
            there = self.buckets[given["name"]]
            bucket = self.resumed(given["name"], there) if there.fields else None
            return {"model": {"id": "m", "name": given["project"], "entity": owner, "bucket": bucket}}
        if operation == "UpsertBucket":
            inserted = not self.buckets.setdefault(given["name"], Bucket()).fields
            bucket = self.buckets[given["name"]]
            bucket.fields |= {key: value for key, value in given.items() if value is not None}
            project = {"id": "p", "name": given.get("project") or "uncategorized", "entity": owner}
            names = {"id": "b", "name": given["name"], "displayName": bucket.fields.get("displayName") or given["name"]}
            rest = {"description": "", "config": "{}", "sweepName": None, "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": names | rest, "inserted": inserted}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/put/{given['run']}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return self.artifact(operation, given)

    def resumed(self, name: str, bucket: Bucket) -> dict[str, Any]:
        """Return what a client that continues asks for: the number of lines of each file, and the last ones."""
        history, events = (bucket.lines.get(f"wandb-{kind}.jsonl", {}) for kind in ("history", "events"))
        summary = bucket.lines.get("wandb-summary.json", {})
        return {
            "id": "b",
            "name": name,
            "summaryMetrics": summary[max(summary)] if summary else "{}",
            "displayName": bucket.fields.get("displayName"),
            "logLineCount": 0,
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "historyTail": json.dumps([history[max(history)]] if history else []),
            "eventsTail": json.dumps([events[max(events)]] if events else []),
            "config": bucket.fields.get("config") or "{}",
            "tags": bucket.fields.get("tags") or [],
            "notes": None,
            "wandbConfig": '{"t": 1}',
        }

    def artifact(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """Answer the calls that upload an artifact."""
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "CreateArtifact":
            made = {"id": "a", "state": "PENDING", "artifactSequence": {"id": "s", "latestArtifact": None}}
            self.files["artifact " + given["input"]["artifactCollectionName"]] = b""
            return {"createArtifact": {"artifact": made}}
        if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            name = operation[0].lower() + operation[1:]
            file = {"id": "f", "uploadUrl": f"{self.url}/put/manifest", "uploadHeaders": []}
            return {name: {"artifactManifest": {"id": "n", "file": file}}}
        if operation == "CreateArtifactFiles":
            nodes = [
                {
                    "node": {
                        "storagePath": one["name"],
                        "uploadUrl": f"{self.url}/put/artifact/{one['name']}",
                        "uploadHeaders": [],
                        "uploadMultipartUrls": None,
                        "artifact": {"id": "a"},
                    }
                }
                for one in given["input"]["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": nodes}}}
        if operation == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
        return {}
