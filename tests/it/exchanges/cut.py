#!/usr/bin/env python3
"""Cuts the recordings of ../shared/reference/exchanges down to what tests/it/api/replay.rs sends and compares.

    tests/it/exchanges/cut.py ../shared/reference/exchanges

One file per state of the node; in it an array of {name, exchanges}. Left out: paths that are the engine's, polls that
were recorded as differences, root certificates, CA rotation (`ForceRotate`), and the tails of long lists.
"""
import glob, json, os, re, sys

SOURCE, HERE = sys.argv[1].rstrip("/") + "/", os.path.dirname(os.path.abspath(__file__)) + "/"
GROUPS = {
    "nonmember": "nonmember/* swarm/leave-again swarm/join-no-token swarm/join-malformed-token swarm/join-wrong-secret "
    "swarm/join-wrong-ca-digest swarm/join-unreachable swarm/init-bad-pool system/info-nonmember system/info-format-swarm-nonmember",
    "worker": "worker/* raw/worker system/ping-worker system/info-worker system/info-format-swarm-worker "
    "swarm/init-already-member-worker swarm/join-already-member swarm/leave-worker network/inspect-on-worker-unused",
    "pending": "node/ls-pending system/ping-pending system/info-pending swarm/join-while-pending swarm/leave-pending",
    "manager": "raw/api-versions raw/auth-headers raw/bodies raw/create-minimal raw/create-unknown-network-old-api "
    "raw/create-with-local-network raw/error-headers raw/networks raw/node-lookup raw/node-name raw/node-update raw/nodes-filters "
    "raw/ping raw/secrets raw/service-* raw/services-* raw/swarm-* raw/task* raw/unknown-path raw/update-echo raw/version raw/logs "
    "node/inspect-* node/ls* node/ps* node/demote-last-manager node/rm-alive node/rm-manager node/rm-manager-force node/rm-not-found "
    "node/rm-self node/update-* service/error-* service/inspect-rep service/inspect-not-found service/inspect-ambiguous-prefix "
    "service/inspect-id-prefix service/inspect-vip service/ls* service/ps* service/rm* service/scale-detach service/scale-not-found "
    "service/update-replicas service/update-not-found service/update-image service/update-force service/rollback-no-previous "
    "service/create-* task/* network/create-* network/inspect network/inspect-not-found network/inspect-stack network/ls* network/rm* "
    "network/connect* network/disconnect swarm/api-get-swarm swarm/join-token-* swarm/update-* swarm/init-again "
    "swarm/leave-last-manager swarm/unlock-key-autolock-off swarm/unlock-not-locked system/version system/info-manager "
    "system/info-format-swarm-manager system/ping-manager system/prune-networks network/run-on-not-attachable",
    # Larger contents than allowed are not in the recordings.
    "payloads": "raw/config-and-secret-update secret/create-[!t]* secret/create-te* secret/[!c]* config/create-[!t]* "
    "config/create-te* config/[!c]*",
    "fresh": "swarm/init swarm/init-two-addresses swarm/init-default-addr-pool swarm/init-bad-advertise swarm/init-all-options-2 "
    "swarm/init-autolock swarm/init-force-new-cluster",
}
OURS = re.compile(
    r"^(/v[0-9.]+|/vx)?/((swarm|nodes|services|tasks|secrets|configs|networks|_ping|version|info|nosuch)(/|$)|containers/create$)"
)
KEPT = ["method", "path", "query", "request_body", "request_body_changes", "status", "response_body"]


def small(value):
    if isinstance(value, dict):
        return {k: "PEM" if k == "TrustRoot" else small(v) for k, v in value.items() if k != "ForceRotate"}
    if isinstance(value, list):
        if len(value) > 3 and isinstance(value[0], dict) and "ID" in value[0]:
            value = value[:2] + ["... and more"]
        return [small(v) for v in value]
    return value[:40] + "..." if isinstance(value, str) and len(value) > 700 else value


def cut(exchange):
    out = {k: small(exchange[k]) for k in KEPT if k in exchange}
    kind = exchange.get("request_headers", {}).get("Content-Type")
    if kind:
        out["content_type"] = kind
    if exchange.get("response_headers"):
        out["response_headers"] = exchange["response_headers"]
    if exchange["path"].endswith("/info") and isinstance(out.get("response_body"), dict):
        out["response_body"] = {"Swarm": out["response_body"].get("Swarm"), "...": "the rest is the engine's"}
    if exchange["path"].endswith("/containers/create"):
        body = exchange["request_body"]
        host = {"NetworkMode": body["HostConfig"]["NetworkMode"]}
        out["request_body"] = {"Image": "lab:1", "HostConfig": host, "NetworkingConfig": body.get("NetworkingConfig")}
    return out


for group, patterns in GROUPS.items():
    names = []
    for pattern in patterns.split():
        found = sorted(f[len(SOURCE) : -len(".json")] for f in glob.glob(SOURCE + pattern + ".json"))
        names += [n for n in found if n not in names]
    recordings = []
    for name in names:
        with open(SOURCE + name + ".json") as file:
            exchanges = json.load(file)["exchanges"]
        sent = [cut(e) for e in exchanges if OURS.match(e["path"]) and e.get("status") and "response_changes" not in e]
        if sent:
            recordings.append({"name": name, "exchanges": sent})
    lines = ",\n".join(json.dumps(r, separators=(",", ":"), ensure_ascii=False) for r in recordings)
    with open(HERE + group + ".json", "w") as file:
        file.write("[\n" + lines + "\n]\n")
