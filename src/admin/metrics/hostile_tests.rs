//! Whatever text a status contains, from a host name to the reason of a resolver's failure: it stays the value of its label.

use super::tests::{node_summary, port};
use super::*;
use crate::ingress::ebpf::{FrontendConnections, RefusalCount};
use crate::model::{Revision, Timestamp};
use crate::status::{CertificateSummary, ResolverFailures};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const HOSTILE: [&str; 7] = ["\"", "\\", "\\\"", "\n", "\r\n# TYPE x counter\n", "a\"} 1\nskep_fake{x=\"\\", "{},=#\u{2028}é\0"];

/// A status with a sample in every family that has labels.
fn full() -> Status {
    let one = |name: &str| -> BTreeMap<String, u64> { [(name.to_owned(), 1)].into() };
    let mut status = Status {
        version: "1.2.3".to_owned(),
        node: Some("id0".into()),
        role: Some(Role::Manager),
        leader: Some("leader".to_owned()),
        applied: [("dns".to_owned(), Revision::default())].into(),
        troubles: [("dns".to_owned(), "why".to_owned())].into(),
        certificate: Some(CertificateSummary {
            expires: Timestamp(1_795_000_000_000_000_000),
            seconds_left: 1,
            failures: 1,
            warning: "w".to_owned(),
        }),
        nodes: vec![NodeSummary { here: true, ..node_summary("id0", "here") }, node_summary("id1", "there")],
        ports: vec![port(80, "web")],
        ..Status::default()
    };
    let refusal =
        |left| RefusalCount { left, reason: "reason".to_owned(), hook: "hook".to_owned(), service: "web".to_owned(), count: 1 };
    status.ebpf.connections =
        vec![FrontendConnections { service: "web".to_owned(), frontend: "8080/tcp".to_owned(), connections: 1 }];
    status.ebpf.refusals = vec![refusal(false), refusal(true)];
    status.ebpf.counters = one("event");
    status.ebpf.maps =
        [("map".to_owned(), serde_json::from_value(serde_json::json!({ "entries": 1, "room": 2, "forgets": false })).unwrap())]
            .into();
    status.names.questions = one("kind");
    status.names.answers = one("code");
    status.names.refusals = one("bound");
    status.names.resolvers = vec![ResolverFailures { resolver: "::1".to_owned(), reason: "timeout".to_owned(), count: 1 }];
    status
}

/// Pointers to every text in a document; a key of a map is the pointer of its value with `#`.
fn texts(value: &Value, at: &str, out: &mut Vec<String>) {
    match value {
        Value::String(_) => out.push(at.to_owned()),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, value)| texts(value, &format!("{at}/{i}"), out)),
        Value::Object(map) => {
            for (key, value) in map {
                texts(value, &format!("{at}/{key}"), out);
                out.push(format!("{at}/{key}#"));
            }
        }
        _ => {}
    }
}

/// The document with one text, or one key, replaced.
fn replaced(document: &Value, pointer: &str, text: &str) -> Value {
    let mut document = document.clone();
    if let Some(key) = pointer.strip_suffix('#') {
        let (map, key) = key.rsplit_once('/').unwrap();
        let map = document.pointer_mut(map).unwrap().as_object_mut().unwrap();
        let value = map.remove(key).unwrap();
        map.insert(text.to_owned(), value);
    } else {
        *document.pointer_mut(pointer).unwrap() = text.into();
    }
    document
}

/// Label values of a sample `name{label="value",…} number`, as Prometheus reads them; `None` if it is none.
fn parse(line: &str) -> Option<Vec<String>> {
    let name = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))?;
    let (name, mut rest) = line.split_at(name);
    let mut values = Vec::new();
    if let Some(labels) = rest.strip_prefix('{') {
        rest = labels;
        loop {
            let (label, value) = rest.split_once("=\"")?;
            label.chars().all(|c| c.is_ascii_lowercase() || c == '_').then_some(())?;
            let mut text = String::new();
            let mut chars = value.char_indices();
            let end = loop {
                match chars.next()? {
                    (at, '"') => break at + 1,
                    (_, '\\') => text.push(match chars.next()?.1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        _ => return None,
                    }),
                    (_, c) => text.push(c),
                }
            };
            values.push(text);
            rest = &value[end..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}')?;
    }
    rest.strip_prefix(' ')?.parse::<u64>().ok()?;
    name.starts_with("skep_").then_some(values)
}

#[test]
fn no_text_of_a_status_leaves_its_label() {
    let document = serde_json::to_value(full()).unwrap();
    let names = |text: &str| -> BTreeSet<String> {
        text.split('\n').filter_map(|line| line.strip_prefix("# TYPE ")).map(str::to_owned).collect()
    };
    let samples = |text: &str| text.split('\n').filter(|line| !line.starts_with("# ") && !line.is_empty()).count();
    let usual = render(&full(), MetricsFormat::default());
    let mut pointers = Vec::new();
    texts(&document, "", &mut pointers);
    let mut shown = BTreeSet::new();
    for pointer in &pointers {
        for hostile in HOSTILE {
            // Numbers of ports and names of roles are no free text.
            let Ok(status) = serde_json::from_value::<Status>(replaced(&document, pointer, hostile)) else { continue };
            let text = render(&status, MetricsFormat::default());
            assert_eq!(names(&text).difference(&names(&usual)).count(), 0, "{pointer} {hostile:?}\n{text}");
            assert!(samples(&text) <= samples(&usual), "{pointer} {hostile:?} adds a sample\n{text}");
            for line in text.split('\n').filter(|line| !line.starts_with("# ") && !line.is_empty()) {
                let values = parse(line).unwrap_or_else(|| panic!("{pointer} {hostile:?}: {line:?} is no sample"));
                if values.iter().any(|value| value == hostile) {
                    shown.insert(pointer.trim_end_matches('#').rsplit('/').next().unwrap().to_owned());
                }
            }
        }
    }
    // What comes from outside is among them.
    for field in
        ["version", "id", "hostname", "service", "frontend", "reason", "hook", "resolver", "dns", "kind", "code", "bound"]
    {
        assert!(shown.contains(field), "{field} is no label: {shown:?}");
    }
}
