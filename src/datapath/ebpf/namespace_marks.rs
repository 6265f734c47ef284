//! The marks of namespaces whose socket calls are translated (map `NAMESPACES`): those of the entries of `MEMBERS`.

use super::load::{Loaded, chain};
use anyhow::Context as _;
use aya::maps::{Array, MapData};
use skep_ebpf::{NAMESPACE_MARKS, NetnsMembership, V4, namespace_mark};
use std::collections::BTreeSet;

impl Loaded {
    /// Sets the mark of a namespace that became a member.
    pub(super) fn mark_namespace(&mut self, member: &NetnsMembership) -> anyhow::Result<()> {
        self.marks()?.set(namespace_mark(member.cookie), 1, 0).map_err(|e| anyhow::anyhow!("map NAMESPACES: {}", chain(&e)))
    }

    /// Makes all marks those of the members. Returns how many were others.
    pub(super) fn mark_members(&mut self) -> anyhow::Result<usize> {
        let members = self.dump::<NetnsMembership, V4>("MEMBERS")?;
        let wanted: BTreeSet<u32> = members.keys().map(|member| namespace_mark(member.cookie)).collect();
        let (mut marks, mut changed) = (self.marks()?, 0);
        for mark in 0..NAMESPACE_MARKS {
            let value = u32::from(wanted.contains(&mark));
            if marks.get(&mark, 0)? != value {
                marks.set(mark, value, 0)?;
                changed += 1;
            }
        }
        Ok(changed)
    }

    fn marks(&mut self) -> anyhow::Result<Array<&mut MapData, u32>> {
        let map = self.ebpf.map_mut("NAMESPACES").context("the object has no map NAMESPACES")?;
        Ok(Array::try_from(map)?)
    }
}
