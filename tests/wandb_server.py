"""A W&B server on the loopback, for the real client: just what runs, sweeps and artifacts ask for."""

from __future__ import annotations

import json
import re
import threading
import traceback
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

from mmkd.sweeps import Hyperband

ENTITY, PROJECT, KEY = "tester", "distillation", "0" * 40


@dataclass
class Run:
    """What the server knows of a run."""

    name: str
    sweep: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    starts: int = 0
    preempting: bool = False
    preempted: int = 0
    stop: bool = False

    @property
    def state(self) -> str:
        if len(self.exit_codes) < self.starts:
            return "running"
        if self.exit_codes[-1] == 0:
            return "finished"
        return "preempted" if self.preempting else "failed"

    def values(self, key: str) -> list[Any]:
        """The logged values of a key."""
        return [row[key] for row in self.history if key in row]


@dataclass
class Sweep:
    """A sweep: which values to suggest, and what its agents are told.

    Attributes:
        suggestions: values of the parameters, one dict per run.
        stop_by: how a run is stopped: through the agent, or the run's own connection.
    """

    name: str
    config: dict[str, Any]
    suggestions: list[dict[str, Any]] = field(default_factory=list)
    stop_by: str = "agent"
    runs: list[str] = field(default_factory=list)


@dataclass
class Artifact:
    """An artifact, its files by their path in it."""

    name: str
    type: str
    metadata: dict[str, Any]
    aliases: list[str]
    run: str
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


class WandbServer:
    """The server; usable as a context.

    Attributes:
        runs: by their names.
        sweeps: by their names.
        artifacts: by their ids.
        requests: names of the GraphQL operations so far.
        errors: tracebacks of requests that the server could not answer.
        suggestions: for the sweeps that will be created.
        stop_by: for the sweeps that will be created.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.suggestions: list[dict[str, Any]] = []
        self.stop_by = "agent"
        self.agents: dict[str, str] = {}
        self.uploads: dict[str, bytes] = {}
        self._lock = threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that went away
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """Close the connection for good."""
        self._http.shutdown()
        self._http.server_close()

    def environment(self) -> dict[str, str]:
        """What makes a client use this server."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB_ENTITY": ENTITY,
            "WANDB_PROJECT": PROJECT,
        }

    def create_sweep(self, config: dict[str, Any]) -> str:
        """Take a sweep; returns its name."""
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = Sweep(name, config, list(self.suggestions), self.stop_by)
        return name

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """Answer a query or mutation."""
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)
        with self._lock:
            self.requests.append(name[1] if name else query)
            answer = getattr(self, f"_on_{_snake(self.requests[-1])}", None)
            if answer is None:
                raise NotImplementedError(query)
            result: dict[str, Any] = answer(given)
            return result

    def stream(self, run_name: str, content: dict[str, Any]) -> dict[str, Any]:
        """Take rows and files of a run."""
        with self._lock:
            run = self.runs[run_name]
            for name, chunk in content.get("files", {}).items():
                lines = [json.loads(line) for line in chunk["content"]] if name.startswith("wandb-") else []
                if name == "wandb-history.jsonl":
                    del run.history[chunk["offset"] :]
                    run.history += lines
                elif name == "wandb-summary.json":
                    run.summary = lines[-1]
            run.preempting = run.preempting or bool(content.get("preempting"))
            if content.get("complete"):
                run.exit_codes.append(content["exitcode"])
                run.preempted += run.state == "preempted"
            self._prune(run)
            sweep = self.sweeps.get(run.sweep or "")
            stop = run.stop and (sweep is None or sweep.stop_by == "run")
            return {"exitcode": None, "limits": {}, **({"stopped": True} if stop else {})}

    def _prune(self, run: Run) -> None:
        sweep = self.sweeps.get(run.sweep or "")
        if sweep is None or "early_terminate" not in sweep.config:
            return
        metric = sweep.config["metric"]
        rule = Hyperband.from_config(sweep.config["early_terminate"], metric["goal"] == "maximize")
        others = [self.runs[name].values(metric["name"]) for name in sweep.runs if name != run.name]
        run.stop = run.stop or rule.should_stop(run.values(metric["name"]), others)

    def _on_viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        user = {"id": "1", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": {**user, "teams": {"edges": []}, "admin": False, "apiKeys": {"edges": []}}}

    def _on_server_features_query(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _on_organization_core_weave_organization_i_d(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def _on_run_resume_status(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        if run is None:
            return {"model": None}
        bucket = {
            "id": run.name,
            "name": run.name,
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.name,
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "tags": [],
            "notes": "",
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {
            "model": {"id": "p", "name": PROJECT, "entity": {"id": "1", "name": ENTITY}, "bucket": bucket}
        }

    def _on_upsert_bucket(self, given: dict[str, Any]) -> dict[str, Any]:
        inserted = given["name"] not in self.runs
        run = self.runs.setdefault(given["name"], Run(given["name"]))
        if given.get("host"):  # of wandb.init; later ones carry the config alone
            run.starts += 1
            run.preempting = run.stop = False
        run.sweep = given.get("sweep") or run.sweep
        if given.get("config"):
            run.config = json.loads(given["config"])
        bucket = {
            "id": run.name,
            "name": run.name,
            "displayName": run.name,
            "description": "",
            "config": json.dumps(run.config),
            "sweepName": run.sweep,
            "project": {"id": "p", "name": PROJECT, "entity": {"id": "1", "name": ENTITY}},
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _on_upsert_sweep(self, given: dict[str, Any]) -> dict[str, Any]:
        name = self.create_sweep(yaml.safe_load(given["config"]))
        project = {"id": "p", "name": PROJECT, "entity": {"id": "1", "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}}

    def _on_sweep_with_runs(self, given: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps.get(given["sweep"])
        if sweep is None:
            return {"project": {"sweep": None}}
        config = yaml.dump(sweep.config)
        return {
            "project": {
                "sweep": {"id": sweep.name, "name": sweep.name, "config": config, "runs": {"edges": []}}
            }
        }

    def _on_create_agent(self, given: dict[str, Any]) -> dict[str, Any]:
        agent = f"agent{len(self.agents)}"
        self.agents[agent] = given["sweep"]
        return {"createAgent": {"agent": {"id": agent}}}

    def _on_heartbeat(self, given: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps[self.agents[given["id"]]]
        commands = self._commands(sweep, json.loads(given["runState"]))
        return {"agentHeartbeat": {"agent": {"id": given["id"]}, "commands": json.dumps(commands)}}

    def _commands(self, sweep: Sweep, running: dict[str, bool]) -> list[dict[str, Any]]:
        if running:
            stopping = [name for name in running if name in self.runs and self.runs[name].stop]
            return [{"type": "stop", "run_id": name} for name in stopping if sweep.stop_by == "agent"]
        for name in sweep.runs:
            if name in self.runs and self.runs[name].state == "preempted":
                return [self._start(sweep, name, "resume")]
        if len(sweep.runs) < len(sweep.suggestions):
            sweep.runs.append(f"{sweep.name}run{len(sweep.runs)}")
            return [self._start(sweep, sweep.runs[-1], "run")]
        return [{"type": "exit"}]

    def _start(self, sweep: Sweep, run: str, kind: str) -> dict[str, Any]:
        values = sweep.suggestions[sweep.runs.index(run)]
        args = {key: {"value": value} for key, value in values.items()}
        return {"type": kind, "run_id": run, "program": sweep.config["program"], "args": args}

    def _on_create_run_files(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/run/{given['run']}/{name}"}
            for name in given["files"]
        ]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _on_mark_run_files_uploaded(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"markRunFilesUploaded": {"success": True}}

    def _on_notify_scriptable_run_alert(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"notifyScriptableRunAlert": {"success": True}}

    def _on_x_x_hash_digests_enabled(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _on_fetch_artifact_digest_algorithm(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifactType": None}}

    def _on_artifact_type(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _on_create_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        about = given["input"]
        name = f"artifact{len(self.artifacts)}"
        self.artifacts[name] = Artifact(
            name=about["artifactCollectionName"],
            type=about["artifactTypeName"],
            metadata=json.loads(about.get("metadata") or "{}"),
            aliases=[alias["alias"] for alias in about.get("aliases") or []],
            run=about["runName"],
        )
        artifact = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _on_create_artifact_files(self, given: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for file in given["input"]["artifactFiles"]:
            node = {
                "storagePath": file["name"],
                "uploadUrl": f"{self.url}/upload/artifact/{file['artifactID']}/{file['name']}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_create_artifact_manifest(self, given: dict[str, Any]) -> dict[str, Any]:
        file = {
            "id": "f",
            "uploadUrl": f"{self.url}/upload/manifest/{given['artifactID']}",
            "uploadHeaders": [],
        }
        return {
            "createArtifactManifest": {"artifactManifest": {"id": f"m{given['artifactID']}", "file": file}}
        }

    def _on_update_artifact_manifest(self, given: dict[str, Any]) -> dict[str, Any]:
        artifact = given["artifactManifestID"][1:]
        file = {"id": "f", "uploadUrl": f"{self.url}/upload/manifest/{artifact}", "uploadHeaders": []}
        return {
            "updateArtifactManifest": {"artifactManifest": {"id": given["artifactManifestID"], "file": file}}
        }

    def _on_commit_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        self.artifacts[given["artifactID"]].committed = True
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}

    def upload(self, path: str, content: bytes) -> None:
        """Take an uploaded file."""
        kind, owner, *name = path.removeprefix("/upload/").split("/", 2)
        with self._lock:
            if kind == "run":
                self.runs[owner].files[name[0]] = content
            elif kind == "artifact":
                self.artifacts[owner].files[name[0]] = content


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                if self.path == "/graphql":
                    request = json.loads(body)
                    answer = {"data": server.graphql(request["query"], request.get("variables") or {})}
                elif self.path.endswith("/file_stream"):
                    answer = server.stream(self.path.split("/")[-2], json.loads(body))
                else:
                    answer = {}  # the client's own telemetry
                self._reply(200, answer)
            except Exception:
                server.errors.append(traceback.format_exc())
                self._reply(400, {"errors": [{"message": server.errors[-1]}]})

        def do_PUT(self) -> None:
            server.upload(self.path, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self._reply(200, {})

        def do_GET(self) -> None:
            self._reply(200, {})

        def _reply(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
