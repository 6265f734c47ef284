//! Tasks without networks: from image to removal, and what can go wrong on the way.

use super::rig::{ME, POLITE, Rig, STUBBORN, task, wanting};
use skep::model::task::{Healthcheck, Mount};
use skep::model::{NodeId, Task, TaskState};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_task_lives_and_ends_as_swarm_would_have_it() {
    let mut rig = Rig::new("life").await;
    let dir = rig.host.dir().join("shared");
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
        };
        spec.mounts = vec![
            mount("volume", "honey".to_owned(), "/v"),
            mount("bind", dir.display().to_string(), "/b"),
            mount("bind", rig.host.engine_socket().display().to_string(), "/engine.sock"),
        ];
    }
    std::fs::write(dir.join("note"), "hello").expect("writes");
    // The socket that tasks get in place of the engine's.
    let _skep = skep::http::bind_unix(&rig.host.dir().join("skep.sock")).expect("binds");
    rig.want(std::slice::from_ref(&web));
    let running = rig.until(&web, TaskState::Running).await;
    assert_eq!((running.message.as_str(), running.err.as_str()), ("started", ""));
    let container = running.container.expect("a container");
    assert!(container.pid > 0 && container.container_id.len() == 64);
    let states: Vec<TaskState> = rig.seen.iter().map(|(_, state)| *state).collect();
    assert!(states.is_sorted(), "{states:?}");

    let name = web.container_name();
    let inspect = |format: &str| format!("--format={format}");
    let seen =
        rig.docker(&["inspect", &inspect("{{.Name}} {{json .Config.Labels}} {{.HostConfig.RestartPolicy.Name}}"), &name]).await;
    assert_eq!(
        seen.expect("is there"),
        format!(
            "/{name} {{\"colour\":\"blue\",\"com.docker.swarm.node.id\":\"{ME}\",\"com.docker.swarm.service.id\":\"{}\",\
             \"com.docker.swarm.service.name\":\"web\",\"com.docker.swarm.task\":\"\",\"com.docker.swarm.task.id\":\"{}\",\
             \"com.docker.swarm.task.name\":\"{name}\"}} no",
            web.service_id, web.id
        )
    );
    let out = rig.docker(&["exec", &name, "sh", "-c", "echo $COLOUR $(hostname) $(id -u 2>/dev/null) $(cat /b/note)"]).await;
    assert!(out.expect("runs").starts_with("blue beehive"));
    assert!(rig.exec(&web, "cat /etc/hosts").await.expect("runs").contains("10.9.8.7\tdb"));
    assert!(rig.exec(&web, "busybox touch /b/x").await.is_err(), "the bind mount is read-only");
    let mounts = rig.docker(&["inspect", &inspect("{{range .Mounts}}{{.Source}} {{end}}"), &name]).await.expect("is there");
    assert!(mounts.contains("skep.sock") && !mounts.contains("engine.sock"), "{mounts}");
    assert_eq!(rig.docker(&["volume", "ls", "-q"]).await.expect("lists"), "honey");

    // The daemon restarts: nothing happens to the container, the status is told again.
    rig.start_agent();
    assert_eq!(rig.until(&web, TaskState::Running).await.container.expect("a container"), container);

    rig.want(&[wanting(&web, TaskState::Shutdown)]);
    let shut = rig.until(&web, TaskState::Shutdown).await;
    assert_eq!(shut.message, "shutdown");
    assert_eq!(rig.docker(&["ps", "-aq"]).await.expect("lists").lines().count(), 1, "a finished task keeps its container");
    rig.want(&[]);
    rig.until_docker(&["ps", "-aq"], "").await;
    assert_eq!(rig.docker(&["volume", "ls", "-q"]).await.expect("lists"), "honey", "named volumes stay");
    rig.stop().await;
}

fn image(slot: u64, image: &str) -> Task {
    let mut task = task(slot, POLITE);
    image.clone_into(&mut task.spec.container_spec.image);
    task
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_said_in_the_engines_words() {
    let mut rig = Rig::new("wrong").await;
    let fails = task(1, "exit 3");
    let ends = task(2, "exit 0");
    let absent = image(3, "no.such.registry.invalid/nothing:1");
    let mut no_command = task(4, "");
    no_command.spec.container_spec.command = vec!["/no/such/program".to_owned()];
    let mut no_source = task(5, POLITE);
    no_source.spec.container_spec.mounts =
        vec![Mount { kind: "bind".to_owned(), source: "/no/such/place".to_owned(), target: "/b".to_owned(), read_only: false }];
    let stubborn = task(6, STUBBORN);
    let mut sick = task(7, POLITE);
    sick.spec.container_spec.healthcheck = Some(Healthcheck {
        test: vec!["CMD-SHELL".to_owned(), "test -e /tmp/well".to_owned()],
        interval: Some(Duration::from_millis(200).into()),
        timeout: Some(Duration::from_secs(5).into()),
        start_period: None,
        retries: Some(10),
    });
    let vanishing = task(8, POLITE);
    let all = [fails, ends, absent, no_command, no_source, stubborn, sick, vanishing];
    rig.want(&all);
    let [fails, ends, absent, no_command, no_source, stubborn, sick, vanishing] = &all;
    let failed = rig.until(fails, TaskState::Failed).await;
    assert_eq!((failed.message.as_str(), failed.err.as_str()), ("started", "task: non-zero exit (3)"));
    assert_eq!(failed.container.expect("a container").exit_code, 3);
    assert_eq!(rig.until(ends, TaskState::Complete).await.message, "finished");
    let rejected = rig.until(absent, TaskState::Rejected).await;
    assert!(rejected.err.contains("no.such.registry.invalid") && rejected.message == "preparing", "{rejected:?}");
    let unstarted = rig.until(no_command, TaskState::Failed).await;
    assert!(unstarted.err.contains("starting container failed") && unstarted.err.contains("/no/such/program"), "{unstarted:?}");
    let unmade = rig.until(no_source, TaskState::Rejected).await;
    assert!(unmade.err.contains("bind source path does not exist: /no/such/place"), "{unmade:?}");

    // Healthy first, then not.
    rig.until(sick, TaskState::Starting).await;
    skep::lab::eventually("a file in the container", Duration::from_secs(10), || async {
        rig.exec(sick, "busybox touch /tmp/well").await.map(drop)
    })
    .await
    .expect("runs");
    rig.until(sick, TaskState::Running).await;
    rig.exec(sick, "busybox rm /tmp/well").await.expect("runs");
    let unhealthy = rig.until(sick, TaskState::Failed).await;
    assert!(unhealthy.err.contains("unhealthy container"), "{unhealthy:?}");

    rig.until(vanishing, TaskState::Running).await;
    rig.docker(&["rm", "-f", &vanishing.container_name()]).await.expect("removes");
    // Killed first, then gone: whichever was seen.
    let gone = rig.until(vanishing, TaskState::Failed).await.err;
    assert!(gone.contains("vanished") || gone.contains("137"), "{gone}");

    // The grace, then force.
    rig.until(stubborn, TaskState::Running).await;
    let mut stop = wanting(stubborn, TaskState::Shutdown);
    stop.spec.container_spec.stop_grace_period = Some(Duration::from_secs(1).into());
    let before = tokio::time::Instant::now();
    rig.want(&[stop]);
    assert_eq!(rig.until(stubborn, TaskState::Shutdown).await.container.expect("a container").exit_code, 137);
    let took = before.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(8)).contains(&took), "{took:?}");
    rig.until_docker(
        &["ps", "-aq", "--filter", "status=exited"],
        &rig.docker(&["ps", "-aq", "--no-trunc=false"]).await.expect("lists"),
    )
    .await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_comes_late_goes_and_comes_back() {
    let mut rig = Rig::without_engine("late").await;
    let one = task(1, POLITE);
    rig.want(std::slice::from_ref(&one));
    let error = rig.engine.describe().await.expect_err("absent");
    assert!(error.is_retryable() && error.to_string().contains("does not answer"), "{error}");
    // Its image is not there yet: whichever is first, the task is refused or runs; a second one runs.
    rig.start_engine().await;
    let two = task(2, POLITE);
    rig.want(std::slice::from_ref(&two));
    rig.until(&two, TaskState::Running).await;
    let said = rig.engine.describe().await.expect("answers");
    assert_eq!((said.hostname.as_str(), said.os.as_str()), ("one", "linux"));
    assert!(said.nano_cpus >= 1_000_000_000 && said.memory_bytes > 0 && !said.engine_version.is_empty());
    assert!(said.plugins.contains(&("Network".to_owned(), "overlay".to_owned())));
    assert!(["x86_64", "aarch64"].contains(&said.architecture.as_str()), "{}", said.architecture);

    // Without live-restore a stopped engine ends its containers; the agent says so once it can see it.
    rig.host.stop_engine().await.expect("stops");
    let three = task(3, POLITE);
    rig.want(&[two.clone(), three.clone()]);
    rig.restart_engine().await;
    rig.until(&three, TaskState::Running).await;
    rig.until_over(&two).await;

    // Leaving, with a task that may still be on its way.
    rig.want(&[]);
    rig.until_docker(&["ps", "-aq"], "").await;
    rig.want(std::slice::from_ref(&three));
    skep::agent::remove_all(&NodeId::from(ME), &*rig.engine).await.expect("removes");
    rig.stop().await;
}
