//! The addresses of this host that other nodes get, so that they know whose datagrams they receive.

use crate::datapath::ebpf::is_engine_device;
use crate::datapath::interfaces::{self, HostAddress};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What is reported now; nothing if the kernel does not say.
pub(super) async fn reported() -> Vec<IpAddr> {
    match interfaces::host_addresses().await {
        Ok(all) => outside(&all),
        Err(error) => {
            tracing::debug!(error = format!("{error:#}"), "the host's addresses were not read");
            Vec::new()
        }
    }
}

/// Bridges of other programs that run containers or machines on one host, by the beginning of their names.
const BRIDGES: [&str; 5] = ["virbr", "lxdbr", "lxcbr", "podman", "cni"];

/// Those that machines outside may see, sorted. (Behind a bridge of the engine or of a program like it are containers only, on every host
/// with the same addresses; so are link-local addresses.)
fn outside(all: &[HostAddress]) -> Vec<IpAddr> {
    let is_bridge = |name: &str| is_engine_device(name) || BRIDGES.iter().any(|bridge| name.starts_with(bridge));
    let is_link_local = |address: IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let outside: BTreeSet<IpAddr> =
        all.iter().filter(|a| !is_bridge(&a.interface) && !is_link_local(a.address)).map(|a| a.address).collect();
    outside.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_bridges_and_links_are_left_out() {
        let all = [
            ("eth1", "2001:db8::1"),
            ("eth0", "192.0.2.1"),
            ("docker0", "172.17.0.1"),
            ("docker_gwbridge", "172.18.0.1"),
            ("virbr0", "192.168.122.1"),
            ("eth1", "fe80::1"),
            ("eth1", "169.254.7.7"),
        ];
        let all =
            all.map(|(interface, address)| HostAddress { interface: interface.to_owned(), address: address.parse().unwrap() });
        assert_eq!(outside(&all), ["192.0.2.1", "2001:db8::1"].map(|address| address.parse::<IpAddr>().unwrap()));
    }
}
