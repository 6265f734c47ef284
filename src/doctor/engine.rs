//! The Docker Engine beside skep.

use super::facts::{DockerFacts, Facts};
use super::finding::Finding;

/// Bytes below which pulls soon fail.
const LITTLE: u64 = 2 << 30;

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    match &facts.engine {
        Ok(engine) => vec![mode(engine), space(engine)],
        Err(error) => vec![Finding::error("engine", error.clone(), "systemctl start docker; or set `engine` to its socket")],
    }
}

fn mode(engine: &DockerFacts) -> Finding {
    if engine.is_rootless {
        return Finding::error(
            "engine",
            format!("the engine at {} is rootless: skep cannot reach its containers' network namespaces", engine.url),
            "install the engine as a system service",
        );
    }
    if engine.swarm != "inactive" && !engine.swarm.is_empty() {
        return Finding::error(
            "engine",
            format!("the engine is in Docker's own swarm mode ({}), which holds 2377/tcp", engine.swarm),
            format!("docker -H {} swarm leave --force", engine.url),
        );
    }
    Finding::ok("engine", format!("Docker Engine {} at {}", engine.version, engine.url))
}

fn space(engine: &DockerFacts) -> Finding {
    match engine.free {
        Some(free @ ..LITTLE) => Finding::warning(
            "engine's disk",
            format!("{} MiB free: images may not be pulled", free >> 20),
            "docker system df; docker system prune",
        ),
        Some(free) => Finding::ok("engine's disk", format!("{} MiB free", free >> 20)),
        None => Finding::ok("engine's disk", "not visible from here"),
    }
}
