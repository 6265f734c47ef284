//! The objects that the eBPF datapath does not serve because the kernel did not take a part of them. Only data.

use crate::datapath::ebpf::{Hook, port_name};
use skep_ebpf::{Port, V4, convert};
use std::collections::BTreeMap;

/// Objects that the eBPF datapath does not serve on this node, each with the reason.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LeftObjects {
    pub ports: BTreeMap<Port, String>,
    /// Names resolve to the tasks instead.
    pub vips: BTreeMap<V4, String>,
    pub hooks: BTreeMap<Hook, String>,
    /// Entries of a container or device, by the name of their step: it is served without them.
    pub entries: BTreeMap<String, String>,
}

impl LeftObjects {
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.vips.is_empty() && self.hooks.is_empty() && self.entries.is_empty()
    }

    /// Adds others. Returns whether one of them was not left yet.
    pub fn merge(&mut self, more: Self) -> bool {
        fn add<K: Ord>(all: &mut BTreeMap<K, String>, more: BTreeMap<K, String>) -> bool {
            let before = all.len();
            all.extend(more);
            all.len() > before
        }
        let grew = [
            add(&mut self.ports, more.ports),
            add(&mut self.vips, more.vips),
            add(&mut self.hooks, more.hooks),
            add(&mut self.entries, more.entries),
        ];
        grew.contains(&true)
    }

    /// All of them by name.
    pub fn by_name(&self) -> BTreeMap<String, String> {
        let ports = self.ports.iter().map(|(port, why)| (format!("port {}", port_name(port)), why.clone()));
        let vips = self.vips.iter().map(|(vip, why)| (format!("vip {}", convert::to_v4(*vip)), why.clone()));
        let hooks = self.hooks.iter().map(|(hook, why)| (format!("hook {}", hook.program()), why.clone()));
        let entries = self.entries.iter().map(|(name, why)| (name.clone(), why.clone()));
        ports.chain(vips).chain(hooks).chain(entries).collect()
    }
}
