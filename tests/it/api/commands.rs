//! Exit codes and errors of the stock CLI, as data: `words/commands.txt`.

use super::docker_cli::run_docker;
use super::managers::Swarm;
use super::recorded_store;
use super::words::{cases, table};
use serde_json::{Value, json};
use skep::clock::{Clock, SystemClock};
use skep::model::{ServiceUpdate, UpdateState};
use skep::store::{Action, Kind, Store};
use std::sync::Arc;

/// Stack files by name.
const FILES: &[(&str, &str)] = &[
    ("small.yml", "services:\n  web:\n    image: lab:1\n"),
    (
        "external.yml",
        "services:\n  web:\n    image: lab:1\n    networks: [nosuchnet]\nnetworks:\n  nosuchnet: {external: true}\n",
    ),
    ("compose-spec.yml", "name: spec\nservices:\n  web:\n    image: lab:1\n"),
    ("conf.yml", "services:\n  web:\n    image: lab:1\n    configs: [app]\nconfigs:\n  app: {file: ./conf.yml}\n"),
    (
        "conf-changed.yml",
        "services:\n  web:\n    image: lab:1\n    configs: [app]\nconfigs:\n  app: {file: ./conf-changed.yml}\n",
    ),
];

/// The services beside web1, of which only two have ids that begin with r.
fn services() -> Vec<Action> {
    let replicated = json!({ "Replicated": { "Replicas": 1 } });
    let job = json!({ "ReplicatedJob": { "MaxConcurrent": 1, "TotalCompletions": 1 } });
    let ports = json!({ "Mode": "vip", "Ports": [{ "TargetPort": 80, "PublishedPort": 8081 }] });
    let service = |(name, mode, ports): (&str, &Value, &Value)| {
        let spec = json!({ "Name": name, "Mode": mode, "TaskTemplate": { "ContainerSpec": { "Image": "lab:1" } }, "EndpointSpec": ports });
        let id = format!("{name}{:0>1$}", 0, 25 - name.len());
        Action::create(skep::model::fixture::service(&id, serde_json::from_value(spec).unwrap()))
    };
    let mut ingress = recorded_store::network("ingressnetworkidaaaaaaaaa", "ingress", Some("10.0.0.0/24"));
    ingress.spec.ingress = true;
    let services = [
        ("a", &replicated, &Value::Null),
        ("gl", &json!({ "Global": {} }), &Value::Null),
        ("job", &job, &Value::Null),
        ("ing", &replicated, &ports),
        ("ra", &replicated, &Value::Null),
        ("rb", &replicated, &Value::Null),
    ];
    services.map(service).into_iter().chain([Action::create(ingress)]).collect()
}

/// Words as a shell splits them: single quotes keep blanks, and are removed.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '\'' => (quoted, begun) = (!quoted, true),
            ' ' if !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// Every id in a text as `ID`, whatever stands around it.
fn without_ids(text: &str) -> String {
    let is_of_id = |c: char| c.is_ascii_digit() || c.is_ascii_lowercase();
    let (mut out, mut run) = (String::new(), String::new());
    for c in text.chars().chain(['\n']) {
        if is_of_id(c) {
            run.push(c);
            continue;
        }
        out.push_str(if run.len() == 25 { "ID" } else { &run });
        run.clear();
        out.push(c);
    }
    out.pop();
    out
}

/// `EXIT STANDARD-ERROR` of the last of these commands.
async fn ends(state: &str, commands: &str) -> String {
    let swarm = Swarm::new(state).await;
    let files = swarm.fixture.socket.with_file_name("stacks");
    std::fs::create_dir_all(&files).unwrap();
    for (name, text) in FILES {
        std::fs::write(files.join(name), text).unwrap();
    }
    if let (Some(store), true) = (&swarm.store, state.contains('/')) {
        store.write(SystemClock.now(), services()).await.unwrap();
    }
    let mut last = String::new();
    for command in commands.split("; ") {
        let is_file = |word: &String| FILES.iter().any(|(name, _)| name == word);
        let words = split(command)
            .into_iter()
            .map(|word| if is_file(&word) { files.join(&word).to_str().unwrap().to_owned() } else { word });
        let words: Vec<String> = words.collect();
        let shows_output = words.first().is_some_and(|word| word == "out");
        let words: Vec<&str> = words.iter().map(String::as_str).skip(usize::from(shows_output)).collect();
        let (code, output, error) = run_docker(&swarm.fixture, &words, "").await;
        let lines: Vec<&str> =
            if shows_output { &output } else { &error }.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        format!("{} {}", code.unwrap_or(-1), without_ids(&lines.join(" | "))).trim().clone_into(&mut last);
    }
    last
}

/// Needs the stock CLI.
#[tokio::test]
async fn commands_of_the_stock_cli_end_as_with_a_real_swarm_or_unlike_it_for_a_reason() {
    let table = table("commands.txt");
    let cases = cases(&table);
    let mut wrong = Vec::new();
    for case in &cases {
        let (state, commands) = case.request.split_once(' ').unwrap();
        let is = ends(state, commands).await;
        let expected = case.unlike.map_or(case.real, |(ours, _)| ours.trim());
        if !case.matches(&is) {
            wrong.push(format!("line {}: {}\n    is {is}\n    not {expected}", case.number, case.request));
        }
        if case.unlike.is_some_and(|(ours, _)| ours.trim() == case.real) {
            wrong.push(format!("line {}: not unlike the real one", case.number));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// An attached command watches the service; what the leader makes of it is written here. Needs the stock CLI.
#[tokio::test]
async fn an_attached_update_ends_as_with_a_real_swarm() {
    let message = "update paused due to failure or early termination of task x";
    for (state, expected) in [
        (Some(UpdateState::Paused), format!("service update paused: {message}")),
        (Some(UpdateState::RollbackPaused), format!("service rollback paused: {message}")),
        (None, "Error response from daemon: service web1 not found".to_owned()),
    ] {
        let swarm = Swarm::new("1/1").await;
        let store = swarm.store.as_ref().unwrap();
        let change = async {
            let mut changes = store.watch();
            let is_updated = |store: &Arc<Store>| store.service_named("web1").unwrap().spec.task_template.force_update != 0;
            let mut service = changes.wait_for(is_updated).await.unwrap().service_named("web1").unwrap().clone();
            let (started_at, message) = (Some(SystemClock.now()), message.to_owned());
            let action = match state {
                None => Action::Remove(Kind::Service, service.id.to_string()),
                Some(state) => {
                    service.update = Some(ServiceUpdate { state, started_at, message, ..ServiceUpdate::requested(false) });
                    Action::update(service)
                }
            };
            store.write(SystemClock.now(), vec![action]).await.unwrap();
        };
        let command = run_docker(&swarm.fixture, &["service", "update", "--force", "web1"], "");
        let ((code, _, error), ()) = tokio::join!(command, change);
        assert_eq!((code, error.trim()), (Some(1), expected.as_str()));
    }
}

#[test]
fn a_line_is_split_and_ids_are_found_as_the_table_needs_it() {
    assert_eq!(split("a --b='x y' ''  c"), ["a", "--b=x y", "", "c"]);
    assert_eq!(without_ids("'ing' (9o3pwj13w205azww85h6zl78v) x"), "'ing' (ID) x");
    assert_eq!(without_ids("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 9o3pwj13w205azww85h6zl78v"), "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ID");
}
