//! Where the replies of skep deviate from the recorded ones, and why. Everything else must be the same.

use serde_json::Value;

const FIELD: &str = "a field of the spec that is not supported yet: 501 with its path";
const DRIVER_OPTS: &str = "DriverOpts beside its aliases: 501 with its path; replay.rs sends it without them too";
const UNKNOWN_KEY: &str = "a constraint on a key that no node has is refused: its tasks would wait for ever";
const MANAGERS: &str = "keys are drawn, and the node of the test is not locked: words/trust.txt has these cases";
const ATTACHING: &str = "a container on a network that is not attachable is refused at its creation, in the words of its start";
const EMPTY: &str = "an empty spec, which sets everything of the swarm to zero, is refused";
const DEFAULTS: &str = "what an update of the swarm leaves out has its default: words/managers.txt has this case";
const NO_CONTAINERS: &str = "the test has an engine without containers";
const NO_TARGET_PORT: &str = "a published port without a target port leads nowhere: refused";
const NO_MANAGER_LOOPS: &str = "the test has a store without allocator and orchestrator";
const ADDRESSES: &str = "the node of the test takes any address: words/addresses.txt has this case";
const PREDEFINED: &str =
    "it names a predefined network by the id that this had in the recorded swarm; skep takes its own id and the name";
const OTHER_STATE: &str = "recorded in another state than the rest of its group, or on another host";

/// Exchanges that are not compared: (name of the recording, method or empty, beginning of the path, reason).
const SKIPPED: &[(&str, &str, &str, &str)] = &[
    ("swarm/init-autolock", "", "", MANAGERS),
    ("swarm/init-bad-advertise", "POST", "/swarm/init", ADDRESSES),
    ("swarm/init-force-new-cluster", "GET", "", OTHER_STATE),
    ("swarm/update-autolock", "", "", MANAGERS),
    ("swarm/update-autolock-off", "GET", "/swarm", "recorded after the swarm was re-created with --force-new-cluster"),
    ("swarm/update-snapshots", "GET", "/swarm", OTHER_STATE),
    ("raw/swarm-update-spec-3", "GET", "/swarm", DEFAULTS),
    ("raw/swarm-update-spec-4", "POST", "/swarm/update", EMPTY),
    ("raw/swarm-update-spec-4", "GET", "/swarm", MANAGERS),
    ("swarm/unlock-not-locked", "GET", "/info", OTHER_STATE),
    ("raw/create-minimal", "GET", "/services/rawend2", NO_MANAGER_LOOPS),
    ("raw/networks", "POST", "/networks/prune", NO_MANAGER_LOOPS),
    ("raw/logs", "GET", "/tasks/ydrjpowkobhoss9nku25fam80/logs", "the task is shown in no recording of its group"),
    ("raw/networks", "GET", "/networks/net1", NO_MANAGER_LOOPS),
    ("raw/node-name", "GET", "/nodes", "membership=pending is a bug of the engine (trap 38), not copied"),
    ("node/inspect-self-drained", "GET", "/info", OTHER_STATE),
    ("node/ls-from-other-manager", "GET", "/info", OTHER_STATE),
    ("node/ls-filter-node-label-zone", "", "", OTHER_STATE),
    ("node/ls-locked", "", "", MANAGERS),
    ("node/ls-pending", "", "", OTHER_STATE),
    ("service/ls-locked", "", "", MANAGERS),
    ("service/error-host-network", "POST", "", PREDEFINED),
    ("service/error-local-network", "POST", "", PREDEFINED),
    ("service/error-constraint-3", "POST", "", UNKNOWN_KEY),
    ("service/create-credential-spec", "POST", "", FIELD),
    ("service/create-network-alias", "POST", "", DRIVER_OPTS),
    ("service/create-sctp", "POST", "", FIELD),
    ("service/create-*", "GET", "/tasks", NO_MANAGER_LOOPS),
    ("service/update-image", "GET", "/tasks", NO_MANAGER_LOOPS),
    ("raw/services-filters", "GET", "/services", "its global services are shown by their ids alone"),
    ("service/create-port-unknown-protocol", "GET", "/services/p1", NO_MANAGER_LOOPS),
    ("service/create-quorum-lost", "POST", "", OTHER_STATE),
    ("task/inspect-on-worker", "GET", "/info", OTHER_STATE),
    ("network/create-scope-swarm-bridge", "POST", "", FIELD),
    ("network/ls-on-worker", "", "", OTHER_STATE),
    ("network/rm", "DELETE", "/networks/att1", OTHER_STATE),
    ("network/rm-in-use-by-container", "DELETE", "", NO_CONTAINERS),
    ("network/connect", "POST", "", NO_CONTAINERS),
    ("network/connect-with-ip", "POST", "", NO_CONTAINERS),
    ("network/disconnect", "POST", "", NO_CONTAINERS),
    ("network/run-on-not-attachable", "POST", "/containers/create", ATTACHING),
];

/// Why an exchange is not compared; `None` if it is.
pub fn reason(recording: &str, exchange: &Value) -> Option<&'static str> {
    let method = exchange["method"].as_str().unwrap_or_default();
    let port = &exchange["request_body"]["EndpointSpec"]["Ports"][0];
    if port.is_object() && port["TargetPort"].is_null() {
        return Some(NO_TARGET_PORT);
    }
    let path = exchange["path"].as_str().unwrap_or_default();
    let path = path.strip_prefix("/v1.50").or(path.strip_prefix("/v1.51")).unwrap_or(path);
    SKIPPED
        .iter()
        .find(|(name, m, p, _)| {
            let named = name.strip_suffix('*').map_or(*name == recording, |prefix| recording.starts_with(prefix));
            named && (m.is_empty() || *m == method) && path.starts_with(p)
        })
        .map(|(_, _, _, reason)| *reason)
}

/// Random values, counts and times: only their types are compared.
pub fn varies(path: &str) -> bool {
    let last = path.rsplit(['.', ']']).next().unwrap_or_default();
    [
        "Index",
        "CreatedAt",
        "UpdatedAt",
        "LastExecution",
        "Created",
        "Timestamp",
        "TrustRoot",
        "CertIssuerSubject",
        "CertIssuerPublicKey",
        "Worker",
        "Manager",
        "Plugins",
        "Id",
        "Nodes",
        "Managers",
    ]
    .contains(&last)
        || path == ".ID" // of the swarm: the fake node's
}

/// Fields that skep omits.
pub fn missing(path: &str) -> bool {
    // skep has no VXLAN ids, no gossip between engines, hence no peers. The test has no orchestrator, which writes states of updates.
    [".vxlanid_list", ".DriverState.Options", ".Peers", ".ingress-sbox", ".Services", ".UpdateStatus", ".Swarm.Warnings"]
        .iter()
        .any(|end| path.ends_with(end))
}

/// Fields that skep adds.
pub fn added(path: &str, _value: &Value) -> bool {
    path == ".Swarm.Warnings"
}

/// Lists whose length is not compared.
pub fn length_varies(path: &str) -> bool {
    // The engine behind the test has fewer components; the other managers depend on what was recorded.
    [".Components", ".RemoteManagers"].contains(&path) || path.ends_with(".RemoteManagers")
}

/// Different values with the same meaning.
pub fn equivalent(path: &str, recorded: &Value, actual: &Value) -> bool {
    // Recorded on a node whose engine has the network; the fake engine does not.
    let part = path.ends_with(".Containers") && recorded.is_object() && actual.is_null();
    let labels = path.ends_with(".Labels") && recorded.as_object().is_some_and(serde_json::Map::is_empty) && actual.is_null();
    part || labels
}
