//! The layers of the house: which room may import which, where each outside crate lives, where `unsafe` may stand.
//! A new arrow or home is a line here, with its reason in the commit.

use super::source::{files, is_test_file, root, without_literals};
use std::fs;

/// What a room may import besides `model` and the small services of [`EVERYONE`]. `*`: everything (the root layer).
const ARROWS: &[(&str, &str)] = &[
    ("model", ""),
    ("accept", ""),
    ("clock", ""),
    ("durable", ""),
    ("backoff", ""),
    ("sync", ""),
    ("splice", ""),
    ("http", ""),
    ("acme", "store http trust"),
    ("settings", ""),
    ("telemetry", ""),
    ("memory", ""),
    ("store", "durable sync"),
    ("trust", ""),
    ("raft", ""),
    ("protocol", ""),
    ("datapath", ""),
    ("runtime", "http"),
    ("overlay", "datapath http"),
    ("ingress", "datapath protocol http trust telemetry"),
    ("dns", "datapath"),
    ("agent", "runtime"),
    ("manager", "store raft trust protocol"),
    ("rpc", "trust protocol datapath"),
    ("api", "store raft http trust manager settings acme"),
    ("status", "ingress datapath dns"),
    ("admin", "status ingress"),
    ("dashboard", "status ingress http"),
    ("doctor", "status ingress datapath http settings"),
    ("cli", "*"),
    ("lab", "*"),
    ("node", "*"),
    ("lib", "*"),
    ("main", "*"),
];
/// Services that know nothing of anybody: every room but the pure ones may use them.
const EVERYONE: &str = "accept clock durable backoff splice sync";
/// Rooms that are nothing but data and arithmetic.
const PURE: &str = "model store";
/// Where `unsafe` may stand.
const UNSAFE: &str = "datapath memory";
/// Where an outside crate may be named.
const HOMES: &[(&str, &str)] = &[
    ("raft", "raft"),
    ("protobuf", "raft"),
    ("slog", "raft"),
    ("redb", "raft"),
    ("imbl", "store"),
    ("flate2", "protocol"),
    ("bollard", "runtime"),
    ("hickory_proto", "dns"),
    ("gotatun", "datapath"),
    ("wireguard_control", "datapath"),
    ("x25519_dalek", "datapath trust"),
    ("hmac", "trust"),
    ("chacha20poly1305", "trust"),
    ("argon2", "trust"),
    ("zeroize", "model"),
    ("rtnetlink", "datapath"),
    ("aya", "datapath"),
    ("skep_ebpf", "datapath ingress"),
    // The one way to serve HTTP is src/http.rs; the handlers and the raw pass-through speak its types.
    ("axum", "http api overlay admin ingress dashboard"),
    ("hyper", "http api"),
    ("hyper_util", "http api"),
    ("httparse", "api ingress"),
    ("rcgen", "trust"),
    ("x509_parser", "trust"),
    // The Docker API over TCP is with TLS (`api/tls.rs`); `http` has the client of servers with TLS.
    ("rustls", "trust rpc ingress http acme api"),
    ("rustls_native_certs", "http"),
    ("instant_acme", "acme"),
    ("pingora", "ingress"),
    ("arc_swap", "ingress"),
    ("parking_lot", "ingress"),
    ("bcrypt", "ingress"),
    ("md5", "ingress"),
    ("tokio_rustls", "rpc http api"),
    // `skep tunnel` and `skep http serve` are programs of their own inside the binary: their arguments stand beside them.
    ("clap", "cli main datapath ingress"),
    ("toml", "settings"),
    ("sd_notify", "node"),
    ("libmimalloc_sys", "memory"),
];

#[test]
fn arrows_point_down_and_crates_and_unsafe_have_their_homes() {
    let src = root().join("src");
    let mut wrong = Vec::new();
    for file in files(&src, &["rs"]) {
        let text = fs::read_to_string(&file).unwrap();
        let path = file.strip_prefix(&src).unwrap();
        // Tests in files of their own may compare a room with its neighbour.
        if is_test_file(path) {
            continue;
        }
        let room = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        for (number, said) in check(room, &text) {
            wrong.push(format!("src/{}:{number}: {said}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// Rooms of the root layer know every other; the rest must have an order.
#[test]
fn the_arrows_form_no_circle() {
    let mut left: Vec<(&str, Vec<&str>)> = ARROWS
        .iter()
        .filter(|(_, allowed)| *allowed != "*")
        .map(|(room, allowed)| (*room, allowed.split(' ').filter(|target| !target.is_empty()).collect()))
        .collect();
    while let Some(at) =
        left.iter().position(|(_, targets)| targets.iter().all(|target| !left.iter().any(|(room, _)| room == target)))
    {
        left.remove(at);
    }
    assert_eq!(left, [], "these rooms may import each other in a circle");
}

#[test]
fn the_check_sees_groups_paths_and_unsafe_and_is_not_misled_by_comments() {
    let said = |room: &str, text: &str| check(room, text).into_iter().map(|(n, s)| format!("{n}: {s}")).collect::<Vec<_>>();
    assert!(
        said("dns", "use crate::{\n    datapath::Sockets,\n    model::NodeId,\n};\n// crate::api\nlet x = \"unsafe\";")
            .is_empty()
    );
    assert_eq!(said("dns", "use crate::{model::{NodeId, view::X}, api::Y};").len(), 1);
    assert_eq!(said("dns", "\nlet a = crate::manager::x();").first().unwrap()[..2], *"2:");
    assert!(said("agent", "use crate::runtime::X;").is_empty());
    assert_eq!(said("agent", "use crate::rpc::tls::X;").len(), 1);
    assert_eq!(said("dns", "use raft::RawNode;\nlet y = redb::Database::open();").len(), 2);
    assert!(said("manager", "use crate::raft::{self, Handle};\nraft::x(); crate::raft::x();").is_empty());
    assert_eq!(said("api", "unsafe { x() }").len(), 1);
    assert_eq!(said("attic", "use crate::model::X;").len(), 1, "a room must have its line in the table");
}

/// Line and words for everything that is wrong with a file of `room`.
fn check(room: &str, text: &str) -> Vec<(usize, String)> {
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == room) else {
        return vec![(1, format!("room `{room}` has no line in ARROWS of tests/it/layers.rs"))];
    };
    // Without comments and literals, line by line, so that numbers stay right.
    let code: String = text.lines().map(|line| without_literals(line) + "\n").collect();
    let line_of = |at: usize| code[..at].matches('\n').count() + 1;
    let has = |list: &str, word: &str| list.split(' ').any(|one| one == word);
    let may = |target: &str| {
        let head = target.split("::").next().unwrap_or_default();
        head == room
            || head == "model"
            || *allowed == "*"
            || has(allowed, head)
            || has(allowed, target)
            || (has(EVERYONE, head) && !has(PURE, room))
    };
    let mut wrong = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with('$') {
            continue;
        }
        for target in targets(&code[at + "crate::".len()..]) {
            if !may(&target) {
                wrong.push((line_of(at), format!("arrow {room} → {target} is not in ARROWS of tests/it/layers.rs")));
            }
        }
    }
    for (name, homes) in HOMES {
        // Where the room of that name is imported, `raft::` means the room.
        if code.contains(&format!("use crate::{name}::{{self")) || code.contains(&format!("use crate::{name};")) {
            continue;
        }
        for (at, _) in code.match_indices(&format!("{name}::")) {
            let outside = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            if outside && !has(homes, room) {
                wrong.push((line_of(at), format!("crate {name} is named in room {room}; its home is {homes}")));
            }
        }
    }
    if !has(UNSAFE, room) {
        for (at, _) in code.match_indices("unsafe ") {
            wrong.push((line_of(at), format!("unsafe in room {room}; its homes are {UNSAFE}")));
        }
    }
    wrong
}

/// The first two steps of the paths that follow `crate::`, one for each member of a group.
fn targets(rest: &str) -> Vec<String> {
    let path = |text: &str| {
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
        text[..end].split("::").take(2).filter(|step| !step.is_empty()).collect::<Vec<_>>().join("::")
    };
    let Some(group) = rest.strip_prefix('{') else { return vec![path(rest)] };
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        if depth == 0 && (c == ',' || c == '}') {
            found.push(path(group[start..at].trim()));
            start = at + 1;
        }
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            _ => {}
        }
    }
    found.retain(|target| !target.is_empty());
    found
}
