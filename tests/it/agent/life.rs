//! Tasks without networks: from image to removal, and their failures.

use super::fixture::{AgentFixture, ME, POLITE, STUBBORN, task, wanting};
use skep::model::task::{ContainerStatus, Healthcheck, Mount};
use skep::model::{NodeId, Task, TaskState};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_and_ends_as_in_swarm() {
    let mut agent = AgentFixture::new("life").await;
    let dir = agent.host.dir().join("shared");
    std::fs::create_dir_all(&dir).expect("a directory");
    let mut web = task(1, POLITE);
    {
        let spec = &mut web.spec.container_spec;
        spec.env = vec!["COLOUR=blue".to_owned()];
        spec.hostname = "beehive".to_owned();
        spec.user = "1000:1000".to_owned();
        spec.dir = "/www".to_owned();
        spec.labels.insert("colour".to_owned(), "blue".to_owned());
        spec.hosts = vec!["10.9.8.7 db".to_owned()];
        let mount = |kind: &str, source: String, target: &str| Mount {
            kind: kind.to_owned(),
            source,
            target: target.to_owned(),
            read_only: kind == "bind",
            ..Mount::default()
        };
        spec.mounts = vec![
            mount("volume", "honey".to_owned(), "/v"),
            mount("bind", dir.display().to_string(), "/b"),
            mount("bind", agent.host.engine_socket().display().to_string(), "/engine.sock"),
        ];
    }
    std::fs::write(dir.join("note"), "hello").expect("writes");
    // The socket that tasks get in place of the engine's.
    let _skep = skep::http::bind_unix(&agent.host.dir().join("skep.sock")).expect("binds");
    agent.want(std::slice::from_ref(&web));
    let running = agent.until(&web, TaskState::Running).await;
    assert_eq!((running.message.as_str(), running.err.as_str()), ("started", ""));
    let container = running.container.expect("a container");
    assert!(container.pid > 0 && container.container_id.len() == 64);
    let states: Vec<TaskState> = agent.seen.iter().map(|(_, state)| *state).collect();
    assert!(states.is_sorted(), "{states:?}");

    let name = web.container_name();
    let inspect = |format: &str| format!("--format={format}");
    let seen =
        agent.docker(&["inspect", &inspect("{{.Name}} {{json .Config.Labels}} {{.HostConfig.RestartPolicy.Name}}"), &name]).await;
    assert_eq!(
        seen.expect("exists"),
        format!(
            "/{name} {{\"colour\":\"blue\",\"com.docker.swarm.node.id\":\"{ME}\",\"com.docker.swarm.service.id\":\"{}\",\
             \"com.docker.swarm.service.name\":\"web\",\"com.docker.swarm.task\":\"\",\"com.docker.swarm.task.id\":\"{}\",\
             \"com.docker.swarm.task.name\":\"{name}\"}} no",
            web.service_id, web.id
        )
    );
    let out = agent.docker(&["exec", &name, "sh", "-c", "echo $COLOUR $(hostname) $(id -u 2>/dev/null) $(cat /b/note)"]).await;
    assert!(out.expect("runs").starts_with("blue beehive"));
    assert!(agent.exec(&web, "cat /etc/hosts").await.expect("runs").contains("10.9.8.7\tdb"));
    assert!(agent.exec(&web, "busybox touch /b/x").await.is_err(), "the bind mount is read-only");
    let mounts = agent.docker(&["inspect", &inspect("{{range .Mounts}}{{.Source}} {{end}}"), &name]).await.expect("exists");
    assert!(mounts.contains("skep.sock") && !mounts.contains("engine.sock"), "{mounts}");
    assert_eq!(agent.docker(&["volume", "ls", "-q"]).await.expect("lists"), "honey");

    // The daemon restarts: the container is untouched, the status reported again.
    agent.start_agent();
    assert_eq!(agent.until(&web, TaskState::Running).await.container.expect("a container"), container);

    agent.want(&[wanting(&web, TaskState::Shutdown)]);
    let shut = agent.until(&web, TaskState::Shutdown).await;
    assert_eq!(shut.message, "shutdown");
    assert_eq!(agent.docker(&["ps", "-aq"]).await.expect("lists").lines().count(), 1, "a finished task keeps its container");
    agent.want(&[]);
    agent.until_docker(&["ps", "-aq"], "").await;
    assert_eq!(agent.docker(&["volume", "ls", "-q"]).await.expect("lists"), "honey", "named volumes stay");
    agent.stop().await;
}

fn image(slot: u64, image: &str) -> Task {
    let mut task = task(slot, POLITE);
    image.clone_into(&mut task.spec.container_spec.image);
    task
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_reported_with_the_engines_error() {
    let mut agent = AgentFixture::new("wrong").await;
    let fails = task(1, "exit 3");
    let ends = task(2, "exit 0");
    let absent = image(3, "no.such.registry.invalid/nothing:1");
    let mut no_command = task(4, "");
    no_command.spec.container_spec.command = vec!["/no/such/program".to_owned()];
    let mut no_source = task(5, POLITE);
    no_source.spec.container_spec.mounts =
        vec![Mount { kind: "bind".to_owned(), source: "/no/such/place".to_owned(), target: "/b".to_owned(), ..Mount::default() }];
    let stubborn = task(6, STUBBORN);
    let mut sick = task(7, POLITE);
    sick.spec.container_spec.healthcheck = Some(Healthcheck {
        test: vec!["CMD-SHELL".to_owned(), "test -e /tmp/well".to_owned()],
        interval: Some(Duration::from_millis(200).into()),
        timeout: Some(Duration::from_secs(5).into()),
        start_period: None,
        start_interval: None,
        retries: Some(10),
    });
    let vanishing = task(8, POLITE);
    let all = [fails, ends, absent, no_command, no_source, stubborn, sick, vanishing];
    agent.want(&all);
    let [fails, ends, absent, no_command, no_source, stubborn, sick, vanishing] = &all;
    let failed = agent.until(fails, TaskState::Failed).await;
    assert_eq!((failed.message.as_str(), failed.err.as_str()), ("started", "task: non-zero exit (3)"));
    assert_eq!(failed.container.expect("a container").exit_code, 3);
    assert_eq!(agent.until(ends, TaskState::Complete).await.message, "finished");
    let rejected = agent.until(absent, TaskState::Rejected).await;
    assert_eq!(
        (rejected.message.as_str(), rejected.err.as_str()),
        ("preparing", "No such image: no.such.registry.invalid/nothing:1")
    );
    assert_eq!(rejected.container, Some(ContainerStatus::default()), "clients read it of every task that ended");
    let unstarted = agent.until(no_command, TaskState::Failed).await;
    assert!(unstarted.err.contains("starting container failed") && unstarted.err.contains("/no/such/program"), "{unstarted:?}");
    let unmade = agent.until(no_source, TaskState::Rejected).await;
    assert!(unmade.err.contains("bind source path does not exist: /no/such/place"), "{unmade:?}");

    // Healthy first, then not.
    agent.until(sick, TaskState::Starting).await;
    skep::lab::eventually("a file in the container", Duration::from_secs(10), || async {
        agent.exec(sick, "busybox touch /tmp/well").await.map(drop)
    })
    .await
    .expect("runs");
    agent.until(sick, TaskState::Running).await;
    agent.exec(sick, "busybox rm /tmp/well").await.expect("runs");
    let unhealthy = agent.until(sick, TaskState::Failed).await;
    assert!(unhealthy.err.contains("unhealthy container"), "{unhealthy:?}");

    agent.until(vanishing, TaskState::Running).await;
    agent.docker(&["rm", "-f", &vanishing.container_name()]).await.expect("removes");
    // Killed, then removed: either may be observed.
    let error = agent.until(vanishing, TaskState::Failed).await.err;
    assert!(error.contains("vanished") || error.contains("137"), "{error}");

    // The grace period, then SIGKILL.
    agent.until(stubborn, TaskState::Running).await;
    let mut stop = wanting(stubborn, TaskState::Shutdown);
    stop.spec.container_spec.stop_grace_period = Some(Duration::from_secs(1).into());
    let before = tokio::time::Instant::now();
    agent.want(&[stop]);
    assert_eq!(agent.until(stubborn, TaskState::Shutdown).await.container.expect("a container").exit_code, 137);
    let took = before.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(8)).contains(&took), "{took:?}");
    agent
        .until_docker(
            &["ps", "-aq", "--filter", "status=exited"],
            &agent.docker(&["ps", "-aq", "--no-trunc=false"]).await.expect("lists"),
        )
        .await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_starts_late_and_restarts() {
    let mut agent = AgentFixture::without_engine("late").await;
    let one = task(1, POLITE);
    agent.want(std::slice::from_ref(&one));
    let error = agent.engine.describe().await.expect_err("absent");
    assert!(error.is_retryable() && error.to_string().contains("does not answer"), "{error}");
    // The image may be loaded after the first task is tried, which is then rejected; a second task runs.
    agent.start_engine().await;
    let two = task(2, POLITE);
    agent.want(std::slice::from_ref(&two));
    agent.until(&two, TaskState::Running).await;
    let host = agent.engine.describe().await.expect("answers");
    assert_eq!((host.hostname.as_str(), host.os.as_str()), ("one", "linux"));
    assert!(host.nano_cpus >= 1_000_000_000 && host.memory_bytes > 0 && !host.engine_version.is_empty());
    assert!(host.plugins.contains(&("Network".to_owned(), "overlay".to_owned())));
    assert!(["x86_64", "aarch64"].contains(&host.architecture.as_str()), "{}", host.architecture);

    // Without live-restore a stopped engine ends its containers; the agent reports it once the engine answers.
    agent.host.stop_engine().await.expect("stops");
    let three = task(3, POLITE);
    agent.want(&[two.clone(), three.clone()]);
    agent.restart_engine().await;
    agent.until(&three, TaskState::Running).await;
    agent.until_final(&two).await;

    // Leaving, while a task may still be starting.
    agent.want(&[]);
    agent.until_docker(&["ps", "-aq"], "").await;
    agent.want(std::slice::from_ref(&three));
    skep::agent::remove_all(&NodeId::from(ME), &*agent.engine, &agent.host.dir().join("files")).await.expect("removes");
    agent.stop().await;
}
