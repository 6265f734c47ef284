#!/usr/bin/env bash
# docker-py 7.2.0 (Python's package docker): some of what it sends fits only a server that reads JSON and booleans as Go does.
# Expected: the spellings of Docker's API reference, since the client is Docker's own.
# Instead:
# 1. A new service has "Mode": {"replicated": ...}; the reference says "Replicated". Jobs are spelled as in the reference.
#    Go's JSON decoder takes keys in any case. Most other decoders do not.
# 2. scale() reads the service, takes "Replicated" out of its mode and posts "replicated" in its place. update() leaves what
#    it has read. Both read with ?insertDefaults=True, in Python's spelling of a boolean.
# 3. The command and arguments that nobody gave are sent as null; the reference says arrays.
# Why it matters: a server that matches keys exactly starts one replica where two were asked for, or refuses the request.
# Needs python3 with venv. Run time: about 10 seconds. The server is a thread that listens on a unix socket.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check docker==7.2.0 requests==2.34.2 urllib3==2.8.0
cat >finding.py <<'E'
import json, os, socketserver, threading
from http.server import BaseHTTPRequestHandler
import docker
from docker.types import ServiceMode

asked, posted = [], []
stored = {"ID": "s1", "Version": {"Index": 7}, "Spec": {
    "Name": "web", "Mode": {"Replicated": {"Replicas": 2}},
    "TaskTemplate": {"ContainerSpec": {"Image": "web:1"}}}}


class Server(BaseHTTPRequestHandler):
    def reply(self, body):
        body = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        asked.append(self.path)
        self.reply(stored)

    def do_POST(self):
        posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.reply({"ID": "s1", "Warnings": None})

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


server = socketserver.ThreadingUnixStreamServer("s", Server)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
client = docker.DockerClient(base_url=f"unix://{os.getcwd()}/s", version="1.41")


def same(what, seen, known):
    if seen != known:
        raise SystemExit(f"CHANGED: {what}: {seen!r}, it was {known!r}")


service = client.services.create("web:1", name="web", mode=ServiceMode("replicated", 2))
created = posted[-1]
same("mode of a new service", created["Mode"], {"replicated": {"Replicas": 2}})
same("mode of a job", dict(ServiceMode("replicated-job", 2)), {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 2}})
nulls = {k: v for k, v in created["TaskTemplate"]["ContainerSpec"].items() if v is None}
same("null fields of a new service", nulls, {"Command": None, "Args": None})

del asked[:]
service.scale(3)
same("mode after scale()", posted[-1]["Mode"], {"replicated": {"Replicas": 3}})
service.update(labels={"a": "b"})
same("mode after update()", posted[-1]["Mode"], {"Replicated": {"Replicas": 2}})
same("what scale() and update() read", asked, ["/v1.41/services/s1?insertDefaults=True"] * 2)
print(f"docker-py 7.2.0: created with {created['Mode']} and {nulls}; scale() posts {{'replicated': ...}}, "
      f"update() {{'Replicated': ...}}; both read {asked[0]}")
E
env/bin/python finding.py
