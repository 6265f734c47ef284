//! Containers' network namespaces: prepares new ones for the eBPF datapath and reads their cookies, by which the socket hooks
//! recognise a container.

use crate::datapath::ebpf::{EbpfDatapath, IngressNetwork, ReturnPath, cookie, memberships};
use crate::datapath::{Sandbox, Sandboxes as _};
use skep_ebpf::{NetnsMembership, V4};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Pause before a failed preparation is tried again. An engine moves the interfaces into a namespace some 50 ms after the
/// container joined the network. (Current engines also call the network driver once they have, before the process starts;
/// 20.10 does not.)
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// Attempts at that pace; further ones are made at every pass of the loop.
const FAST_RETRIES: u32 = 200;

/// A namespace and what the network of published ports asks of it. When that changes it is prepared again: a container may come
/// before the view with which its network is that one.
type PreparedNamespace = (Sandbox, Option<ReturnPath>);

fn wanted(sandboxes: &[Sandbox], ingress: Option<&IngressNetwork>) -> BTreeSet<PreparedNamespace> {
    sandboxes.iter().map(|sandbox| (sandbox.clone(), ingress.and_then(|ingress| ingress.return_path(sandbox)))).collect()
}

#[derive(Clone, Copy)]
enum Preparation {
    Done,
    /// So many attempts failed.
    Failed(u32),
}

#[derive(Default)]
pub(super) struct Namespaces {
    preparations: BTreeMap<PreparedNamespace, Preparation>,
    /// Inode and cookie of each namespace, by path. The cookie never changes, but the path may get another namespace.
    cookies: BTreeMap<PathBuf, (u64, u64)>,
}

impl Namespaces {
    /// Prepares namespaces that are new. Returns after what time to call it again, if one failed.
    pub(super) async fn prepare(
        &mut self,
        ebpf: &EbpfDatapath,
        sandboxes: &[Sandbox],
        ingress: Option<&IngressNetwork>,
    ) -> Option<Duration> {
        let wanted = wanted(sandboxes, ingress);
        self.preparations.retain(|known, _| wanted.contains(known));
        let mut retry = None;
        for namespace in wanted {
            let sandbox = &namespace.0;
            let failures = match self.preparations.get(&namespace) {
                Some(Preparation::Done) => continue,
                Some(Preparation::Failed(failures)) => *failures,
                None => 0,
            };
            let preparation = match ebpf.enter(sandbox).await {
                Ok(()) => Preparation::Done,
                Err(error) => {
                    if failures < FAST_RETRIES {
                        retry = Some(RETRY_PAUSE);
                    } else if failures == FAST_RETRIES {
                        let error = format!("{error:#}");
                        tracing::warn!(address = %sandbox.address, error, "cannot prepare the container's namespace, tries again");
                    }
                    Preparation::Failed(failures.saturating_add(1))
                }
            };
            self.preparations.insert(namespace, preparation);
        }
        retry
    }

    /// Those of the namespaces that are prepared for what is asked of them now.
    pub(super) fn prepared(&self, sandboxes: &[Sandbox], ingress: Option<&IngressNetwork>) -> Vec<Sandbox> {
        let is_done = |namespace: &PreparedNamespace| matches!(self.preparations.get(namespace), Some(Preparation::Done));
        wanted(sandboxes, ingress).into_iter().filter(is_done).map(|(sandbox, _)| sandbox).collect()
    }

    /// Containers' addresses with the entries of their namespaces, as far as the namespaces can be opened.
    pub(super) fn members(&mut self, sandboxes: &[Sandbox]) -> Vec<(Ipv4Addr, [(NetnsMembership, V4); 2])> {
        self.cookies.retain(|path, _| sandboxes.iter().any(|sandbox| sandbox.path == *path));
        let mut members = Vec::new();
        for sandbox in sandboxes {
            if let Some(cookie) = self.cookie(&sandbox.path) {
                members.push((sandbox.address, memberships(sandbox, cookie)));
            }
        }
        members
    }

    fn cookie(&mut self, path: &Path) -> Option<u64> {
        let inode = std::fs::metadata(path).ok()?.ino();
        if let Some((_, cookie)) = self.cookies.get(path).filter(|(known, _)| *known == inode) {
            return Some(*cookie);
        }
        let cookie = cookie(path).ok()?;
        self.cookies.insert(path.to_owned(), (inode, cookie));
        Some(cookie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(address: [u8; 4]) -> Sandbox {
        let subnet = ipnet::Ipv4Net::new_assert(address.into(), 24);
        Sandbox { path: "/ns".into(), subnet, further: Vec::new(), gateway: [0, 0, 0, 0].into(), address: address.into() }
    }

    #[test]
    fn clients_are_not_sent_to_a_container_whose_answers_find_no_way_back() {
        let sandboxes = [sandbox([10, 0, 0, 7]), sandbox([10, 0, 0, 8]), sandbox([10, 0, 0, 9])];
        let ingress = IngressNetwork {
            subnet: "10.0.0.0/24".parse().unwrap(),
            mtu: 1380,
            mesh: crate::model::fixture::mesh(),
            datagrams: BTreeMap::new(),
        };
        let mut namespaces = Namespaces::default();
        let prepared = |sandbox: &Sandbox, ingress: Option<&IngressNetwork>| {
            (sandbox.clone(), ingress.and_then(|ingress| ingress.return_path(sandbox)))
        };
        namespaces.preparations.insert(prepared(&sandboxes[0], Some(&ingress)), Preparation::Done);
        namespaces.preparations.insert(prepared(&sandboxes[1], Some(&ingress)), Preparation::Failed(3));
        // Before the view had the network.
        namespaces.preparations.insert(prepared(&sandboxes[2], None), Preparation::Done);
        assert_eq!(namespaces.prepared(&sandboxes, Some(&ingress)), sandboxes[..1]);
    }

    #[test]
    fn a_namespace_is_prepared_again_when_the_ingress_network_is_another_one() {
        let sandboxes = [sandbox([10, 0, 0, 7]), sandbox([192, 168, 77, 5])];
        let old = IngressNetwork {
            subnet: "10.0.0.0/24".parse().unwrap(),
            mtu: 1380,
            mesh: crate::model::fixture::mesh(),
            datagrams: BTreeMap::new(),
        };
        let new = IngressNetwork { subnet: "192.168.77.0/24".parse().unwrap(), ..old.clone() };
        let smaller = IngressNetwork { mtu: 1300, ..new.clone() };
        let server = IngressNetwork { datagrams: [([192, 168, 77, 5].into(), [53].into())].into(), ..new.clone() };
        let changed = |from: Option<&IngressNetwork>, to| {
            let again: Vec<_> = wanted(&sandboxes, Some(to)).difference(&wanted(&sandboxes, from)).cloned().collect();
            again.into_iter().map(|(sandbox, _)| sandbox.address.octets()[0]).collect::<Vec<_>>()
        };
        assert_eq!(changed(None, &old), [10], "it came before the view with the network");
        assert_eq!(changed(Some(&old), &new), [10, 192], "the network was removed and made again");
        assert_eq!(changed(Some(&new), &smaller), [192], "a smaller MTU");
        assert_eq!(changed(Some(&new), &server), [192], "a published UDP port");
        assert_eq!(changed(Some(&new), &new), [0; 0]);
    }
}
