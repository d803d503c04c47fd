"""A stand-in for a W&B server: what `wandb sync` (0.31) asks of one while it uploads histories."""

import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROJECT = {"id": "UHI=", "name": "mpsoftmax", "entity": {"id": "RQ==", "name": "team"}}


class Server(ThreadingHTTPServer):
    """What it was told: by run id the lines of the history, and titles of alerts."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.histories: dict[str, list[dict]] = {}
        self.resumed: list[bool] = []
        self.alerts: list[str] = []

    def answer(self, query: str, variables: dict) -> dict:
        """The data of one GraphQL query; nothing for those that need no answer."""
        if "RunResumeStatus" in query:
            known = self.histories.get(variables["name"])
            self.resumed.append(known is not None)
            bucket = None if known is None else self.bucket(variables["name"], known)
            return {"model": {**PROJECT, "bucket": bucket}}
        if "upsertBucket" in query:
            name = variables["name"]
            bucket = self.bucket(name, self.histories.setdefault(name, []))
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "notifyScriptableRunAlert" in query:
            self.alerts.append(variables["title"])
            return {"notifyScriptableRunAlert": {"success": True}}
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": []}}
        return {}

    def bucket(self, name: str, lines: list[dict]) -> dict:
        newest = json.dumps(lines[-1]) if lines else "{}"
        return {
            "id": "UnVu", "name": name, "displayName": name, "project": PROJECT, "config": "{}",
            "historyLineCount": len(lines), "logLineCount": 0, "eventsLineCount": 0,
            "historyTail": json.dumps([newest]), "eventsTail": "[]", "summaryMetrics": newest,
            "wandbConfig": '{"t": 1}', "tags": [], "sweepName": None, "description": None,
        }  # fmt: skip

    def stream(self, run: str, files: dict) -> None:
        """Lines written at an offset of a file, over what is there, as W&B does."""
        for name, chunk in files.items():
            if name == "wandb-history.jsonl":
                lines, start = self.histories[run], chunk["offset"]
                new = [json.loads(text) for text in chunk["content"]]
                lines[start : start + len(new)] = new


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = {}
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            answer = {"data": self.server.answer(asked["query"], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body).get("files") or {})
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving():
    """A server in a thread of its own."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
