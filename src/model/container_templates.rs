//! The placeholders of a container: expanded with dummy values when a service is written, with the real ones on the node. Errors
//! are Swarm's words. Pure.

use super::container_spec::ContainerSpec;
use super::id::NodeId;
use super::mount::Mount;
use super::node::NodeDescription;
use super::task::Task;
use super::template::{TemplateContext, expand};
use std::collections::BTreeMap;

impl TemplateContext {
    /// Of a task on a node, as the node's engine describes it.
    #[must_use]
    pub fn of(task: &Task, node_id: &NodeId, node: &NodeDescription) -> Self {
        Self {
            service_id: task.service_id.to_string(),
            service_name: task.service_name.clone(),
            service_labels: (*task.service_labels).clone(),
            node_id: node_id.to_string(),
            node_hostname: node.hostname.clone(),
            node_architecture: node.architecture.clone(),
            node_os: node.os.clone(),
            task_id: task.id.to_string(),
            task_name: task.container_name(),
            // A task of a global service has the node in place of a number.
            task_slot: if task.slot == 0 { node_id.to_string() } else { task.slot.to_string() },
        }
    }
}

impl ContainerSpec {
    /// The host name of its container; `None` without one, or if its placeholders cannot be replaced.
    #[must_use]
    pub fn hostname_in(&self, context: impl FnOnce() -> TemplateContext) -> Option<String> {
        match self.hostname.as_str() {
            "" => None,
            fixed if !fixed.contains("{{") => Some(fixed.to_owned()),
            template => expand(template, &context(), None).ok(),
        }
    }

    /// The spec with its placeholders replaced.
    ///
    /// # Errors
    /// The first that cannot be, for people.
    pub fn expanded(&self, context: &TemplateContext) -> Result<Self, String> {
        let mut spec = self.clone();
        for entry in &mut spec.env {
            // Names are no templates.
            if let Some((name, value)) = entry.split_once('=') {
                let value = expand(value, context, None)
                    .map_err(|error| format!("expanding env failed: expanding env {entry:?}: {error}"))?;
                *entry = format!("{name}={value}");
            }
        }
        spec.hostname = expand(&spec.hostname, context, None).map_err(|error| format!("expanding hostname failed: {error}"))?;
        for mount in &mut spec.mounts {
            expand_mount(mount, context).map_err(|error| format!("expanding mounts failed: {error}"))?;
        }
        Ok(spec)
    }
}

fn expand_mount(mount: &mut Mount, context: &TemplateContext) -> Result<(), String> {
    let one = |what: &str, text: &mut String| -> Result<(), String> {
        *text = expand(text, context, None).map_err(|error| format!("expanding {what} {text:?}: {error}"))?;
        Ok(())
    };
    let all = |what: &str, map: &mut BTreeMap<String, String>| map.values_mut().try_for_each(|text| one(what, text));
    one("mount source", &mut mount.source)?;
    one("mount target", &mut mount.target)?;
    let Some(volume) = &mut mount.volume_options else { return Ok(()) };
    all("volume label", &mut volume.labels)?;
    let Some(driver) = &mut volume.driver_config else { return Ok(()) };
    driver.options.values_mut().try_for_each(|value| {
        let mut text = value.expose().clone();
        one("volume driver option", &mut text)?;
        *value = text.into();
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> ContainerSpec {
        serde_json::from_value(value).expect("a spec")
    }

    #[test]
    fn values_are_expanded_where_swarm_does_it_and_nowhere_else() {
        let context = TemplateContext { task_slot: "3".into(), node_hostname: "n1".into(), ..TemplateContext::default() };
        let slot = "{{.Task.Slot}}";
        let options = |v: &str| json!({"Labels": {"l": v}, "DriverConfig": {"Options": {"o": v}}});
        let mount = |source: &str, v: &str| json!({"Type": "volume", "Source": source, "Target": format!("/{v}"), "VolumeOptions": options(v)});
        let posted =
            spec(json!({"Env": [format!("A={slot}={slot}"), format!("{slot}=x"), "B"], "Hostname": "{{.Node.Hostname}}-h",
            "Labels": {"l": slot}, "Args": [slot], "Dir": slot, "Mounts": [mount("v-{{.Task.Slot}}", slot)]}));
        let expected = spec(json!({"Env": ["A=3=3", format!("{slot}=x"), "B"], "Hostname": "n1-h",
            "Labels": {"l": slot}, "Args": [slot], "Dir": slot, "Mounts": [mount("v-3", "3")]}));
        assert_eq!(posted.expanded(&context), Ok(expected));
    }

    #[test]
    fn errors_name_the_field_in_swarms_words() {
        let go = "template: expansion:1:2: executing \"expansion\" at <.Foo>: can't evaluate field Foo in type *template.Context";
        for (value, error) in [
            (json!({"Env": ["A={{.Foo}}"]}), format!("expanding env failed: expanding env \"A={{{{.Foo}}}}\": {go}")),
            (json!({"Hostname": "{{.Foo}}"}), format!("expanding hostname failed: {go}")),
            (
                json!({"Mounts": [{"Source": "{{.Foo}}"}]}),
                format!("expanding mounts failed: expanding mount source \"{{{{.Foo}}}}\": {go}"),
            ),
        ] {
            assert_eq!(spec(value).expanded(&TemplateContext::default()), Err(error));
        }
    }
}
