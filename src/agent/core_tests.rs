//! The agent's core, event by event: its effects as text.

use super::core::{Core, CoreConfig, Effect, Event, Job};
use super::plan::TaskStep;
use super::testing::{ME, at, network, on_network, task, view};
use crate::model::task::{Mount, RestartPolicy};
use crate::model::{NetworkId, NodeId, NodeView, Payload, PayloadId, Task, TaskId, TaskState};
use crate::runtime::{Container, ContainerState, EngineError, Health, LocalNetwork};
use std::sync::Arc;
use std::time::Duration;

fn core() -> Core {
    Core::new(CoreConfig {
        me: NodeId::from(ME),
        engine_socket: "/run/docker.sock".into(),
        skep_socket: None,
        files: "/run/skep/files".into(),
        unassigned_grace: Duration::from_secs(10),
    })
}

fn text(effects: &[Effect]) -> String {
    let line = |effect: &Effect| match effect {
        Effect::Report(task, status) => TaskStep::Report(task.clone(), status.clone()).to_string(),
        Effect::Run(task, number, job) => match job {
            Job::Fetch(fetch) => format!("{number}: fetch {} for {task}", fetch.image),
            Job::Connect(networks) => {
                format!("{number}: connect {}", networks.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(" "))
            }
            Job::Files(plan) => format!("{number}: files of {} from {} payloads", plan.task.id, plan.payloads.len()),
            Job::Create(plan) => format!("{number}: create {}", plan.task.container_name()),
            Job::Start(id, _) => format!("{number}: start {id}"),
            Job::Stop(id, grace) => format!("{number}: stop {id} {grace:?}"),
            Job::Remove(id) => format!("{number}: remove {id}"),
        },
        Effect::Applied(revision) => format!("applied {}", revision.index),
        Effect::Wake(at) => format!("wake {}", at.0 / 1_000_000_000),
        Effect::KeepFiles(tasks) => format!("keep files of {tasks:?}"),
        other => format!("{other:?}"),
    };
    // The order to remove what an earlier run has left is in every first answer.
    let is_shown = |effect: &&Effect| !matches!(effect, Effect::KeepFiles(tasks) if tasks.is_empty());
    effects.iter().filter(is_shown).map(line).collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn check(effects: &[Effect], expected: &str) {
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    assert_eq!(text(effects), expected.join("\n"));
}

fn container(id: &str, task: &str, state: ContainerState) -> Container {
    Container {
        id: id.to_owned(),
        task_id: Some(TaskId::from(task)),
        state,
        health: None,
        pid: if state == ContainerState::Running { 77 } else { 0 },
        exit_code: 0,
        oom_killed: false,
        error: String::new(),
        ports: Vec::new(),
    }
}

/// A core that had a view with these tasks and a list of these containers at time zero.
fn settled(tasks: &[Task], containers: &[Container]) -> Core {
    let mut core = core();
    core.handle(at(0), Event::View(view(1, tasks, &[])));
    core.handle(at(0), Event::EngineBack);
    core.handle(at(0), Event::Listed(1, Ok((containers.to_vec(), Vec::new()))));
    core
}

fn inspected(core: &mut Core, number: u64, c: Container) -> Vec<Effect> {
    core.handle(at(20), Event::Inspected(number, c.id.clone(), Ok(Some(c))))
}

#[test]
fn a_task_from_assignment_to_removal() {
    let mut core = core();
    let t = on_network(task("t1"), "n1", "10.0.1.5/24");
    check(&core.handle(at(0), Event::View(view(7, std::slice::from_ref(&t), &[network("n1", 1)]))), "");
    check(&core.handle(at(1), Event::EngineBack), "List(1)");
    check(
        &core.handle(at(1), Event::Listed(1, Ok((vec![], vec![])))),
        r#"report t1 accepted "accepted"
           report t1 preparing "preparing"
           2: fetch web:1 for t1
           wake 10
           applied 7"#,
    );
    check(&core.handle(at(20), Event::Done(t.id.clone(), 2, Ok(None))), "3: connect net-n1\napplied 7");
    check(&core.handle(at(20), Event::Done(t.id.clone(), 3, Ok(None))), "ListNetworks(4)\n5: create web.1.t1\napplied 7");
    check(&core.handle(at(20), Event::Done(t.id.clone(), 5, Ok(Some("c1".into())))), "Inspect(6, \"c1\")\napplied 7");
    check(
        &inspected(&mut core, 6, container("c1", "t1", ContainerState::Created)),
        r#"report t1 ready "prepared" container c1 pid 0 exit 0
           report t1 starting "starting" container c1 pid 0 exit 0
           7: start c1
           applied 7"#,
    );
    // The event arrives before the call returns.
    check(&core.handle(at(20), Event::Changed("c1".into())), "Inspect(8, \"c1\")\napplied 7");
    check(
        &inspected(&mut core, 8, container("c1", "t1", ContainerState::Running)),
        "report t1 running \"started\" container c1 pid 77 exit 0\napplied 7",
    );
    check(&core.handle(at(20), Event::Done(t.id.clone(), 7, Ok(None))), "Inspect(9, \"c1\")\napplied 7");
    check(&inspected(&mut core, 9, container("c1", "t1", ContainerState::Running)), "applied 7");
    // The process ends; the container is kept until the task is removed from the view.
    let mut ended = container("c1", "t1", ContainerState::Exited);
    ended.exit_code = 3;
    check(
        &inspected(&mut core, 10, ended),
        "report t1 failed \"started\" err \"task: non-zero exit (3)\" container c1 pid 0 exit 3\napplied 7",
    );
    check(&core.handle(at(30), Event::View(view(8, &[], &[]))), "10: remove c1\napplied 8");
    check(&core.handle(at(30), Event::Done(t.id, 10, Ok(None))), "Inspect(11, \"c1\")\napplied 8");
    check(&core.handle(at(30), Event::Inspected(11, "c1".into(), Ok(None))), "applied 8");
}

/// A view with one task that names the secret `s`, which the view has or has not.
fn view_with_secret(index: u64, has: bool) -> Arc<NodeView> {
    let mut t = task("t1");
    let secret = r#"[{"SecretID":"s","SecretName":"token","File":{"Name":"tok"}}]"#;
    std::sync::Arc::make_mut(&mut t.spec).container_spec.secrets = serde_json::from_str(secret).expect("a reference");
    let mut view = view(index, &[t], &[]);
    if has {
        let payload = Payload { data: "eA==".into(), templating: None };
        Arc::make_mut(&mut Arc::make_mut(&mut view).tasks).payloads.insert(PayloadId::Secret("s".into()), Arc::new(payload));
    }
    view
}

#[test]
fn a_task_waits_for_its_secrets_and_has_its_files_before_its_container() {
    let mut core = core();
    core.handle(at(0), Event::View(view_with_secret(1, false)));
    core.handle(at(0), Event::EngineBack);
    check(
        &core.handle(at(20), Event::Listed(1, Ok((vec![], vec![])))),
        "keep files of {t1}\nreport t1 accepted \"accepted\"\nreport t1 preparing \"preparing\"\n2: fetch web:1 for t1\napplied 1",
    );
    let waits = r#"report t1 preparing "preparing" err "waits for secret token: the managers have not sent it yet""#;
    check(&core.handle(at(20), Event::Done("t1".into(), 2, Ok(None))), &format!("{waits}\napplied 1"));
    check(&core.handle(at(21), Event::Tick), "applied 1");
    check(&core.handle(at(22), Event::View(view_with_secret(2, true))), "3: files of t1 from 1 payloads\napplied 2");
    let effects = core.handle(at(22), Event::Done("t1".into(), 3, Ok(None)));
    check(&effects, "4: create web.1.t1\napplied 2");
    let Some(Effect::Run(_, _, Job::Create(plan))) = effects.first() else { panic!("{effects:?}") };
    assert_eq!(plan.files[0].source.to_str(), Some("/run/skep/files/t1/0"));
    assert_eq!(plan.files[0].target, "/run/secrets/tok");
    core.handle(at(22), Event::Done("t1".into(), 4, Ok(Some("c1".into()))));
    // A restart of the agent finds the container, and knows no secret before the managers answer.
    let created = container("c1", "t1", ContainerState::Created);
    let restarted = |has: bool| {
        let mut core = self::core();
        core.handle(at(0), Event::View(view_with_secret(1, has)));
        core.handle(at(0), Event::EngineBack);
        text(&core.handle(at(20), Event::Listed(1, Ok((vec![created.clone()], Vec::new())))))
    };
    assert!(restarted(false).contains("err \"waits for secret token"), "{}", restarted(false));
    assert!(restarted(true).contains("2: files of t1 from 1 payloads"), "{}", restarted(true));
}

#[test]
fn files_are_removed_when_their_task_has_ended() {
    let mut core = core();
    core.handle(at(0), Event::View(view_with_secret(1, false)));
    core.handle(at(0), Event::EngineBack);
    let running = container("c1", "t1", ContainerState::Running);
    let effects = core.handle(at(20), Event::Listed(1, Ok((vec![running], Vec::new()))));
    assert!(text(&effects).starts_with("keep files of {t1}"), "{}", text(&effects));
    inspected(&mut core, 5, container("c1", "t1", ContainerState::Exited));
    let after = core.handle(at(30), Event::Tick);
    assert!(after.contains(&Effect::KeepFiles(std::collections::BTreeSet::new())), "{}", text(&after));
}

#[test]
fn a_secret_that_cannot_be_made_rejects_the_task() {
    let mut core = core();
    core.handle(at(0), Event::View(view_with_secret(1, true)));
    core.handle(at(0), Event::EngineBack);
    core.handle(at(20), Event::Listed(1, Ok((vec![], vec![]))));
    core.handle(at(20), Event::Done("t1".into(), 2, Ok(None)));
    let refused = EngineError::Refused("secret token cannot be made: unrecognized template type: x".into());
    let effects = core.handle(at(20), Event::Done("t1".into(), 3, Err(refused)));
    assert!(text(&effects).contains("rejected \"preparing\" err \"secret token cannot be made"), "{}", text(&effects));
}

#[test]
fn a_task_that_ends_with_0_is_complete() {
    let mut core = settled(&[task("t1")], &[container("c1", "t1", ContainerState::Running)]);
    check(
        &inspected(&mut core, 5, container("c1", "t1", ContainerState::Exited)),
        "report t1 complete \"finished\" container c1 pid 0 exit 0\napplied 1",
    );
}

#[test]
fn an_image_that_cannot_be_pulled_rejects_the_task_with_dockers_error() {
    let mut core = settled(&[task("t1")], &[]);
    check(
        &core.handle(at(20), Event::Done("t1".into(), 2, Err(EngineError::Refused("pull access denied".into())))),
        "LogPullFailed(t1, \"pull access denied\")
report t1 rejected \"preparing\" err \"No such image: web:1\" container  pid 0 exit 0\napplied 1",
    );
    // Not in the view: reported again.
    check(
        &core.handle(at(60), Event::Tick),
        "report t1 rejected \"preparing\" err \"No such image: web:1\" container  pid 0 exit 0
applied 1",
    );
}

#[test]
fn mounts_that_cannot_be_are_refused_before_anything_is_pulled() {
    let cases = [
        ("bind", "data", "/d", "invalid bind mount source, must be an absolute path: data"),
        ("bind", "./data", "/d", "invalid bind mount source, must be an absolute path: ./data"),
        ("volume", "/data", "/d", "invalid volume mount source, must not be an absolute path: /data"),
        ("volume", "data", "d", "invalid mount target, must be an absolute path: d"),
    ];
    for (kind, source, target, error) in cases {
        let mut t = task("t1");
        std::sync::Arc::make_mut(&mut t.spec).container_spec.mounts =
            vec![Mount { kind: kind.into(), source: source.into(), target: target.into(), ..Mount::default() }];
        let mut core = core();
        core.handle(at(0), Event::View(view(1, &[t], &[])));
        core.handle(at(0), Event::EngineBack);
        check(
            &core.handle(at(11), Event::Listed(1, Ok((Vec::new(), Vec::new())))),
            &format!(
                "report t1 accepted \"accepted\"
                 report t1 preparing \"preparing\"
                 report t1 rejected \"preparing\" err {error:?} container  pid 0 exit 0
                 applied 1"
            ),
        );
    }
}

#[test]
fn a_task_in_a_crash_loop_says_when_it_starts() {
    let mut t = task("t1");
    (t.desired_state, t.not_before, t.failures.count) = (TaskState::Ready, Some(at(60)), 5);
    let mut core = core();
    core.handle(at(0), Event::View(view(1, &[t], &[])));
    core.handle(at(0), Event::EngineBack);
    check(
        &core.handle(at(11), Event::Listed(1, Ok((vec![container("c1", "t1", ContainerState::Created)], Vec::new())))),
        "report t1 ready \"prepared\" err \"failed 5 times in a row: starts at 1970-01-01T00:01:00Z\" container c1 pid 0 exit 0\napplied 1",
    );
}

#[test]
fn a_container_that_does_not_start_fails_the_task() {
    let mut core = settled(&[task("t1")], &[container("c1", "t1", ContainerState::Created)]);
    core.handle(at(20), Event::Done("t1".into(), 2, Err(EngineError::Refused("exec: no such file".into()))));
    check(
        &inspected(&mut core, 3, container("c1", "t1", ContainerState::Created)),
        "report t1 failed \"starting\" err \"starting container failed: exec: no such file\" container c1 pid 0 exit 0\napplied 1",
    );
}

#[test]
fn a_restarted_daemon_adopts_running_containers() {
    let mut running = task("t1");
    running.status.state = TaskState::Running;
    let mut core = core();
    core.handle(at(0), Event::View(view(1, &[running], &[])));
    core.handle(at(0), Event::EngineBack);
    check(
        &core.handle(at(0), Event::Listed(1, Ok((vec![container("c1", "t1", ContainerState::Running)], vec![])))),
        "report t1 running \"started\" container c1 pid 77 exit 0\nwake 10\napplied 1",
    );
}

#[test]
fn a_task_whose_container_vanished_fails() {
    let mut core = settled(&[task("t1")], &[container("c1", "t1", ContainerState::Running)]);
    let effects = core.handle(at(20), Event::Inspected(9, "c1".into(), Ok(None)));
    assert!(text(&effects).contains("report t1 failed \"started\" err \"task: container vanished"), "{}", text(&effects));
    // So does one whose container vanished while the daemon did not run.
    let mut running = task("t1");
    running.status.state = TaskState::Running;
    let mut core = self::core();
    core.handle(at(0), Event::View(view(1, &[running], &[])));
    let effects = core.handle(at(0), Event::Listed(1, Ok((vec![], vec![]))));
    assert!(text(&effects).contains("report t1 failed"), "{}", text(&effects));
}

#[test]
fn a_health_check_decides_between_starting_running_and_failed() {
    // Whatever the exit code: one that ends politely has failed too.
    decided_by_health(143, "task: non-zero exit (143): dockerexec: unhealthy container");
    decided_by_health(0, "dockerexec: unhealthy container");
}

#[test]
fn a_task_that_never_was_healthy_had_not_started() {
    for code in [0, 7] {
        let mut core = settled(&[task("t1")], &[container("c1", "t1", ContainerState::Created)]);
        let mut c = container("c1", "t1", ContainerState::Running);
        c.health = Some(Health::Starting);
        core.handle(at(20), Event::Done("t1".into(), 2, Ok(None)));
        inspected(&mut core, 5, c.clone());
        c.health = Some(Health::Unhealthy);
        check(&inspected(&mut core, 6, c.clone()), "4: stop c1 Some(10s)\napplied 1");
        core.handle(at(20), Event::Done("t1".into(), 4, Ok(None)));
        (c.state, c.exit_code) = (ContainerState::Exited, code);
        let ended = text(&inspected(&mut core, 7, c));
        assert!(ended.starts_with("report t1 failed \"starting\" err "), "{ended}");
        assert!(ended.contains("dockerexec: unhealthy container"), "{ended}");
    }
}

fn decided_by_health(code: i64, why: &str) {
    let mut core = settled(&[task("t1")], &[container("c1", "t1", ContainerState::Created)]);
    let mut c = container("c1", "t1", ContainerState::Running);
    c.health = Some(Health::Starting);
    core.handle(at(20), Event::Done("t1".into(), 2, Ok(None)));
    check(&inspected(&mut core, 5, c.clone()), "report t1 starting \"starting\" container c1 pid 77 exit 0\napplied 1");
    c.health = Some(Health::Healthy);
    check(&inspected(&mut core, 6, c.clone()), "report t1 running \"started\" container c1 pid 77 exit 0\napplied 1");
    c.health = Some(Health::Unhealthy);
    check(&inspected(&mut core, 7, c.clone()), "4: stop c1 Some(10s)\napplied 1");
    core.handle(at(20), Event::Done("t1".into(), 4, Ok(None)));
    (c.state, c.exit_code) = (ContainerState::Exited, code);
    check(
        &inspected(&mut core, 8, c),
        &format!("report t1 failed \"started\" err \"{why}\" container c1 pid 77 exit {code}\napplied 1"),
    );
}

fn unhealthy(state: ContainerState) -> Container {
    Container { health: Some(Health::Unhealthy), exit_code: 143, ..container("c1", "t1", state) }
}

/// The core with a running task on a network, whose container is then seen to be unhealthy.
fn with_unhealthy_task() -> (Core, Task) {
    let t = on_network(task("t1"), "n1", "172.16.1.5/24");
    let mut core = core();
    core.handle(at(0), Event::View(view(1, std::slice::from_ref(&t), &[network("n1", 1)])));
    core.handle(at(0), Event::EngineBack);
    let running = Container { health: Some(Health::Healthy), ..container("c1", "t1", ContainerState::Running) };
    core.handle(at(20), Event::Listed(1, Ok((vec![running], vec![]))));
    let effects = inspected(&mut core, 5, unhealthy(ContainerState::Running));
    check(&effects, "report t1 running \"started\" unhealthy container c1 pid 77 exit 143\nwake 30\napplied 1");
    (core, t)
}

#[test]
fn an_unhealthy_container_is_stopped_when_the_leader_says_that_no_node_sends_to_it() {
    let (mut core, mut t) = with_unhealthy_task();
    check(&core.handle(at(22), Event::Tick), "wake 30\napplied 1");
    t.desired_state = TaskState::Shutdown;
    let stop = core.handle(at(23), Event::View(view(2, &[t], &[network("n1", 1)])));
    assert!(text(&stop).contains("stop c1"), "{}", text(&stop));
    let Some(Effect::Run(_, number, _)) = stop.iter().find(|e| matches!(e, Effect::Run(..))) else { panic!("{}", text(&stop)) };
    core.handle(at(24), Event::Done("t1".into(), *number, Ok(None)));
    let ended = inspected(&mut core, 90, unhealthy(ContainerState::Exited));
    assert!(text(&ended).contains("report t1 failed") && text(&ended).contains("unhealthy container"), "{}", text(&ended));
}

#[test]
fn a_container_that_fails_its_checks_while_it_is_stopped_has_not_failed() {
    let healthy = Container { health: Some(Health::Healthy), ..container("c1", "t1", ContainerState::Running) };
    let mut t = task("t1");
    t.status.state = TaskState::Running;
    let mut core = settled(std::slice::from_ref(&t), &[healthy]);
    t.desired_state = TaskState::Shutdown;
    let stop = core.handle(at(23), Event::View(view(2, std::slice::from_ref(&t), &[])));
    let Some(Effect::Run(_, number, _)) = stop.iter().find(|e| matches!(e, Effect::Run(..))) else { panic!("{}", text(&stop)) };
    // Its server listens no longer, and takes a while for what it has accepted.
    let during = inspected(&mut core, 80, unhealthy(ContainerState::Running));
    assert!(!text(&during).contains("unhealthy"), "{}", text(&during));
    core.handle(at(24), Event::Done("t1".into(), *number, Ok(None)));
    let ended = inspected(&mut core, 90, unhealthy(ContainerState::Exited));
    assert!(text(&ended).contains("report t1 shutdown \"shutdown\""), "{}", text(&ended));
    // A daemon that starts after the order for one that was unhealthy before knows it from the view.
    t.status.unhealthy = true;
    let mut core = settled(std::slice::from_ref(&t), &[unhealthy(ContainerState::Running)]);
    core.handle(at(24), Event::Done("t1".into(), 2, Ok(None)));
    let ended = inspected(&mut core, 90, unhealthy(ContainerState::Exited));
    assert!(text(&ended).contains("report t1 failed") && text(&ended).contains("unhealthy container"), "{}", text(&ended));
}

#[test]
fn an_unhealthy_container_is_stopped_after_a_bounded_time_without_a_leader() {
    let (mut core, _) = with_unhealthy_task();
    let stop = core.handle(at(30), Event::Tick);
    assert!(text(&stop).contains("stop c1"), "{}", text(&stop));
}

#[test]
fn an_order_to_stop_is_not_taken_back() {
    let mut t = task("t1");
    let mut core = settled(std::slice::from_ref(&t), &[container("c1", "t1", ContainerState::Running)]);
    t.desired_state = TaskState::Shutdown;
    let stop = core.handle(at(20), Event::View(view(2, std::slice::from_ref(&t), &[])));
    assert!(text(&stop).contains("stop c1"), "{}", text(&stop));
    let Some(Effect::Run(_, number, _)) = stop.iter().find(|e| matches!(e, Effect::Run(..))) else { panic!("{}", text(&stop)) };
    // A new leader does not know yet which nodes still send to the task, and holds its stop back.
    t.desired_state = TaskState::Running;
    core.handle(at(21), Event::View(view(3, &[t], &[])));
    core.handle(at(22), Event::Done("t1".into(), *number, Ok(None)));
    let ended = inspected(&mut core, 90, container("c1", "t1", ContainerState::Exited));
    assert!(text(&ended).contains("report t1 shutdown"), "{}", text(&ended));
}

#[test]
fn a_stop_ends_with_shutdown_whatever_the_exit_code() {
    let mut t = task("t1");
    let mut core = settled(std::slice::from_ref(&t), &[container("c1", "t1", ContainerState::Running)]);
    t.desired_state = TaskState::Shutdown;
    std::sync::Arc::make_mut(&mut t.spec).container_spec.stop_grace_period = Some(Duration::from_secs(3).into());
    check(&core.handle(at(20), Event::View(view(2, std::slice::from_ref(&t), &[]))), "2: stop c1 Some(3s)\napplied 2");
    core.handle(at(20), Event::Done(t.id.clone(), 2, Ok(None)));
    let mut c = container("c1", "t1", ContainerState::Exited);
    c.exit_code = 137;
    check(&inspected(&mut core, 3, c), "report t1 shutdown \"shutdown\" container c1 pid 0 exit 137\napplied 2");
    t.desired_state = TaskState::Remove;
    check(&core.handle(at(20), Event::View(view(3, &[t], &[]))), "4: remove c1\napplied 3");
}

#[test]
fn a_pull_is_cancelled_when_the_task_is_to_stop() {
    let mut t = task("t1");
    let mut core = settled(std::slice::from_ref(&t), &[]);
    t.desired_state = TaskState::Shutdown;
    check(&core.handle(at(20), Event::View(view(2, &[t], &[]))), "Cancel(t1, 2)\nreport t1 shutdown \"shutdown\"\napplied 2");
    // The answer arrives after the cancellation.
    check(&core.handle(at(20), Event::Done("t1".into(), 2, Ok(None))), "applied 2");
}

#[test]
fn a_delayed_start_waits_and_wakes() {
    let mut t = task("t1");
    t.not_before = Some(at(50));
    let mut core = core();
    core.handle(at(0), Event::View(view(1, &[t], &[])));
    let created = || vec![container("c1", "t1", ContainerState::Created)];
    check(
        &core.handle(at(20), Event::Listed(1, Ok((created(), vec![])))),
        "report t1 ready \"prepared\" container c1 pid 0 exit 0\nwake 50\napplied 1",
    );
    check(&core.handle(at(24), Event::Tick), "wake 50\napplied 1");
    let effects = core.handle(at(50), Event::Tick);
    assert!(text(&effects).contains("starting\" container c1 pid 0 exit 0\n1: start c1"), "{}", text(&effects));
}

#[test]
fn a_prepared_task_waits_for_its_desired_state() {
    let mut t = task("t1");
    t.desired_state = TaskState::Ready;
    let mut core = settled(std::slice::from_ref(&t), &[container("c1", "t1", ContainerState::Created)]);
    check(&core.handle(at(20), Event::View(view(2, std::slice::from_ref(&t), &[]))), "applied 2");
    t.desired_state = TaskState::Running;
    check(
        &core.handle(at(20), Event::View(view(3, &[t], &[]))),
        "report t1 starting \"starting\" container c1 pid 0 exit 0\n2: start c1\napplied 3",
    );
}

#[test]
fn containers_of_unknown_tasks_are_removed_after_the_grace_period_and_not_before_a_view() {
    let mut core = core();
    core.handle(at(0), Event::EngineBack);
    check(&core.handle(at(0), Event::Listed(1, Ok((vec![container("c9", "t9", ContainerState::Running)], vec![])))), "");
    check(&core.handle(at(100), Event::View(view(1, &[], &[]))), "wake 110\napplied 1");
    check(&core.handle(at(110), Event::Tick), "2: stop c9 None\napplied 1");
    core.handle(at(111), Event::Done("t9".into(), 2, Ok(None)));
    check(
        &core.handle(at(111), Event::Inspected(3, "c9".into(), Ok(Some(container("c9", "t9", ContainerState::Exited))))),
        "4: remove c9\napplied 1",
    );
}

#[test]
fn a_lost_engine_changes_nothing_and_is_logged_once() {
    let mut core = settled(&[task("t1")], &[container("c1", "t1", ContainerState::Running)]);
    check(&core.handle(at(20), Event::EngineLost("refused".into())), "LogEngineLost(\"refused\")");
    check(&core.handle(at(21), Event::EngineLost("refused".into())), "");
    check(&core.handle(at(22), Event::View(view(2, &[], &[]))), "");
    core.handle(at(30), Event::EngineBack);
    check(
        &core.handle(at(30), Event::Listed(2, Ok((vec![container("c1", "t1", ContainerState::Running)], vec![])))),
        "LogEngineBack\n3: stop c1 None\napplied 2",
    );
}

#[test]
fn there_is_one_list_at_a_time_and_what_was_asked_for_meanwhile_follows() {
    let mut core = core();
    core.handle(at(0), Event::View(view(1, &[], &[])));
    check(&core.handle(at(0), Event::EngineBack), "List(1)");
    for _ in 0..3 {
        check(&core.handle(at(15), Event::EngineBack), "");
    }
    check(&core.handle(at(16), Event::Listed(1, Ok((Vec::new(), Vec::new())))), "List(2)\napplied 1");
    check(&core.handle(at(17), Event::Listed(2, Ok((Vec::new(), Vec::new())))), "applied 1");
    check(&core.handle(at(30), Event::EngineBack), "List(3)\napplied 1");
}

#[test]
fn a_container_that_does_not_answer_keeps_its_task_and_is_stopped_on_order() {
    let mut core = settled(&[task("t1")], &[container("c1", "t1", ContainerState::Running)]);
    core.handle(at(20), Event::EngineBack);
    let unknown = container("c1", "t1", ContainerState::Unknown);
    let list = |number| Event::Listed(number, Ok((vec![unknown.clone()], Vec::new())));
    check(&core.handle(at(20), list(2)), "applied 1");
    let late = EngineError::TimedOut("no answer".to_owned());
    check(&core.handle(at(30), Event::Inspected(3, "c1".into(), Err(late))), "applied 1");
    let mut stop = task("t1");
    stop.desired_state = TaskState::Shutdown;
    let stopping = text(&core.handle(at(31), Event::View(view(2, &[stop], &[]))));
    assert!(stopping.contains("stop c1"), "{stopping}");
}

#[test]
fn retryable_failures_are_retried_with_growing_pauses() {
    let mut core = settled(&[task("t1")], &[]);
    let lost = || Err(EngineError::Unavailable { engine: "e".into(), reason: "r".into() });
    let effects = core.handle(at(20), Event::Done("t1".into(), 2, lost()));
    let Some(Effect::Wake(first)) = effects.iter().find(|e| matches!(e, Effect::Wake(_))) else { panic!("{}", text(&effects)) };
    assert!(text(&core.handle(*first, Event::Tick)).contains("3: fetch"));
    let effects = core.handle(*first, Event::Done("t1".into(), 3, lost()));
    let Some(Effect::Wake(second)) = effects.iter().find(|e| matches!(e, Effect::Wake(_))) else { panic!("{}", text(&effects)) };
    assert!(second.since(*first) > first.since(at(20)));
}

#[test]
fn a_late_inspection_does_not_replace_a_newer_one() {
    let mut core = settled(&[task("t1")], &[container("c1", "t1", ContainerState::Running)]);
    check(&core.handle(at(20), Event::Changed("c1".into())), "Inspect(2, \"c1\")\napplied 1");
    check(&core.handle(at(20), Event::Changed("c1".into())), "Inspect(3, \"c1\")\napplied 1");
    assert!(text(&inspected(&mut core, 3, container("c1", "t1", ContainerState::Exited))).contains("complete"));
    check(&inspected(&mut core, 2, container("c1", "t1", ContainerState::Running)), "applied 1");
}

#[test]
fn networks_are_removed_once_no_task_needs_them() {
    let t = on_network(task("t1"), "n1", "10.0.1.5/24");
    let local = |id: &str| LocalNetwork { id: format!("e-{id}"), name: format!("net-{id}"), network_id: NetworkId::from(id) };
    let mut core = core();
    core.handle(at(0), Event::View(view(1, std::slice::from_ref(&t), &[network("n1", 1)])));
    core.handle(at(0), Event::EngineBack);
    core.handle(at(0), Event::Listed(1, Ok((vec![], vec![local("n1"), local("n2")]))));
    check(&core.handle(at(20), Event::Tick), "report t1 preparing \"preparing\"\nRemoveNetwork(\"e-n2\")\napplied 1");
    let busy = Err(EngineError::Busy("has active endpoints".into()));
    let effects = core.handle(at(20), Event::NetworkRemoved("e-n2".into(), busy));
    assert!(text(&effects).contains("wake"), "{}", text(&effects));
    check(&core.handle(at(21), Event::Tick), "RemoveNetwork(\"e-n2\")\napplied 1");
    check(&core.handle(at(21), Event::NetworkRemoved("e-n2".into(), Ok(()))), "applied 1");
    // The task is removed before it ran: its fetch is cancelled, its network removed.
    check(&core.handle(at(30), Event::View(view(2, &[], &[]))), "Cancel(t1, 2)\nRemoveNetwork(\"e-n1\")\napplied 2");
    // It is assigned again while the network is being removed: it waits.
    core.handle(at(31), Event::View(view(3, std::slice::from_ref(&t), &[network("n1", 1)])));
    let effects = core.handle(at(31), Event::Done(t.id.clone(), 3, Ok(None)));
    check(&effects, "applied 3");
    check(&core.handle(at(31), Event::NetworkRemoved("e-n1".into(), Ok(()))), "4: connect net-n1\napplied 3");
}

#[test]
fn a_status_that_the_view_does_not_show_is_repeated() {
    let mut core = settled(&[task("t1")], &[container("c1", "t1", ContainerState::Running)]);
    let expected = "report t1 running \"started\" container c1 pid 77 exit 0\napplied 1";
    check(&core.handle(at(5), Event::Tick), &expected.replace("applied", "wake 10\napplied"));
    let mut shown = task("t1");
    shown.status.state = TaskState::Running;
    core.handle(at(6), Event::View(view(2, &[shown], &[])));
    check(&core.handle(at(60), Event::Tick), "applied 2");
}

/// A core whose task, restarted after ten seconds and once at most, has run and ended without a session.
fn ended_alone() -> Core {
    let mut t = task("t1");
    t.status.state = TaskState::Running;
    let policy = RestartPolicy { delay: Some(Duration::from_secs(10).into()), max_attempts: Some(1), ..RestartPolicy::default() };
    Arc::make_mut(&mut t.spec).restart_policy = Some(policy);
    let mut core = settled(&[t], &[container("c1", "t1", ContainerState::Running)]);
    core.handle(at(1), Event::Session(false));
    check(&inspected(&mut core, 2, failed("c1", "t1")), "wake 30\napplied 1");
    core
}

fn failed(id: &str, task: &str) -> Container {
    Container { exit_code: 3, ..container(id, task, ContainerState::Exited) }
}

const FAILED: &str = "report t1 failed \"started\" err \"task: non-zero exit (3)\" container c1 pid 0 exit 3\napplied 1";

#[test]
fn without_a_session_an_ended_container_is_started_again_as_the_policy_says_and_no_manager_hears_of_the_end() {
    let mut core = ended_alone();
    check(&core.handle(at(29), Event::Tick), "wake 30\napplied 1");
    check(&core.handle(at(30), Event::Tick), "LogLocalRestart(t1)\n2: start c1\napplied 1");
    // The leader is back in the middle of it: the task goes on, and its end is no one's to follow.
    check(&core.handle(at(30), Event::Session(true)), "applied 1");
    check(&core.handle(at(31), Event::Done("t1".into(), 2, Ok(None))), "Inspect(3, \"c1\")\napplied 1");
    let mut again = container("c1", "t1", ContainerState::Running);
    again.pid = 78;
    check(&inspected(&mut core, 3, again), "report t1 running \"started\" container c1 pid 78 exit 0\napplied 1");
    check(&inspected(&mut core, 4, failed("c1", "t1")), FAILED);
}

#[test]
fn an_end_that_a_manager_may_know_is_not_followed_by_the_node() {
    // A leader comes while the task waits for its delay.
    let mut core = ended_alone();
    check(&core.handle(at(25), Event::Session(true)), FAILED);
    core.handle(at(26), Event::Session(false));
    let later = text(&core.handle(at(90), Event::Tick));
    assert!(!later.contains("start c1"), "{later}");
    // Its attempts are used up.
    let mut core = ended_alone();
    core.handle(at(30), Event::Tick);
    core.handle(at(30), Event::Done("t1".into(), 2, Ok(None)));
    inspected(&mut core, 3, container("c1", "t1", ContainerState::Running));
    check(&inspected(&mut core, 4, failed("c1", "t1")), FAILED);
}

#[test]
fn an_unhealthy_task_that_a_manager_may_know_of_is_not_started_again_by_the_node() {
    let (mut core, _) = with_unhealthy_task();
    core.handle(at(23), Event::Session(false));
    let stop = core.handle(at(30), Event::Tick);
    let Some(Effect::Run(_, number, _)) = stop.iter().find(|e| matches!(e, Effect::Run(..))) else { panic!("{}", text(&stop)) };
    core.handle(at(31), Event::Done("t1".into(), *number, Ok(None)));
    let ended = inspected(&mut core, 90, unhealthy(ContainerState::Exited));
    assert!(text(&ended).contains("report t1 failed"), "{}", text(&ended));
}
