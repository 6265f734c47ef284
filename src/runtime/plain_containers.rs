//! Containers on networks of the swarm that are no task's: their names there. Pure.

use crate::model::AttachedContainer;
use crate::model::docker::LABEL_TASK_ID;
use bollard::models::ContainerInspectResponse;

/// Length of a short id.
const SHORT: usize = 12;

/// What the engine knows of a container on the network with this id; `None` if it is a task's.
pub fn described(found: ContainerInspectResponse, network: &str) -> Option<AttachedContainer> {
    let config = found.config.unwrap_or_default();
    if config.labels.is_some_and(|labels| labels.contains_key(LABEL_TASK_ID)) {
        return None;
    }
    let id = found.id.unwrap_or_default();
    let name = found.name.unwrap_or_default().trim_start_matches('/').to_owned();
    let endpoints = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let endpoint = endpoints.into_values().find(|endpoint| endpoint.network_id.as_deref() == Some(network)).unwrap_or_default();
    let given = [endpoint.aliases, endpoint.dns_names].into_iter().flatten().flatten();
    let own = [config.hostname, id.get(..SHORT).map(str::to_owned)].into_iter().flatten();
    let mut aliases: Vec<String> = given.chain(own).filter(|alias| !alias.is_empty() && *alias != name).collect();
    aliases.sort();
    aliases.dedup();
    Some(AttachedContainer { id, name, aliases, requested: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_container_has_its_name_its_aliases_there_its_host_name_and_its_short_id() {
        let id = "a7edfb20821dff973264bf81ac04443835080e2217c566cff09c6d9211a6e638";
        let container = |labels: serde_json::Value| {
            let networks = json!({
                "back": { "NetworkID": "n1", "Aliases": ["ali", "c1"], "DNSNames": ["c1", "ali", "a7edfb20821d"] },
                "other": { "NetworkID": "n2", "Aliases": ["elsewhere"] },
            });
            let config = json!({ "Hostname": "db", "Labels": labels });
            let found = json!({ "Id": id, "Name": "/c1", "Config": config, "NetworkSettings": { "Networks": networks } });
            serde_json::from_value::<ContainerInspectResponse>(found).unwrap()
        };
        let found = described(container(json!({})), "n1").unwrap();
        assert_eq!((found.id.as_str(), found.name.as_str()), (id, "c1"));
        assert_eq!(found.aliases, ["a7edfb20821d", "ali", "db"]);
        assert_eq!(described(container(json!({ LABEL_TASK_ID: "t1" })), "n1"), None);
    }
}
