//! What the user says of addresses (`--listen-addr`, `--advertise-addr`: an IP, an interface, with or without port) as
//! addresses. Pure: the host's own addresses are passed in.

use crate::datapath::interfaces::HostAddress;
use crate::model::mesh::DEFAULT_PORT;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where a node listens and is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// TCP: join and certificates.
    pub listen: SocketAddr,
    /// What others reach this node at; `None`: whatever the manager sees.
    pub advertise: Option<IpAddr>,
    /// UDP port of the tunnel.
    pub data_path_port: u16,
}

impl Place {
    /// Where the tunnel listens.
    pub(super) fn tunnel(&self) -> SocketAddr {
        SocketAddr::new(self.listen.ip(), self.data_path_port)
    }
    /// Where the tunnel may be reached; an unspecified address means: where the manager sees it.
    pub(super) fn endpoints(&self) -> Vec<SocketAddr> {
        vec![SocketAddr::new(self.advertise.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), self.data_path_port)]
    }
}

/// Reads the two flags. `must_advertise`: there is nobody who could see the address from outside (init).
///
/// # Errors
/// For the user: an interface that is not there, an address that cannot be advertised, several to choose from.
pub(super) fn place(
    listen: &str,
    advertise: &str,
    data_path_port: Option<u16>,
    must_advertise: bool,
    host: &[HostAddress],
) -> Result<Place, String> {
    if listen.is_empty() {
        return Err("invalid ListenAddr \"\": invalid empty address".to_owned());
    }
    let (listen_host, port) = split(listen);
    let port = port.unwrap_or(DEFAULT_PORT);
    let listen = SocketAddr::new(resolve(listen_host, host)?, port);
    let advertised = if advertise.is_empty() {
        if !listen.ip().is_unspecified() {
            Some(listen.ip())
        } else if must_advertise {
            Some(choose(host)?)
        } else {
            None
        }
    } else {
        let ip = resolve(split(advertise).0, host)?;
        if ip.is_unspecified() {
            return Err(
                "advertise address must be a non-zero IP address or network interface (with optional port number)".to_owned()
            );
        }
        Some(ip)
    };
    Ok(Place { listen, advertise: advertised, data_path_port: data_path_port.unwrap_or(port) })
}

/// A manager's host (name or address) and port as given to join: the port may be left out.
pub(super) fn remote(text: &str) -> (&str, u16) {
    let (host, port) = split(text);
    (host, port.unwrap_or(DEFAULT_PORT))
}

/// `host:port`, `[v6]:port`, `host`, `v6`.
fn split(text: &str) -> (&str, Option<u16>) {
    if text.parse::<IpAddr>().is_ok() {
        return (text, None);
    }
    match text.rsplit_once(':') {
        Some((host, port)) => match port.parse() {
            Ok(port) => (host.trim_start_matches('[').trim_end_matches(']'), Some(port)),
            Err(_) => (text, None),
        },
        None => (text.trim_start_matches('[').trim_end_matches(']'), None),
    }
}

fn resolve(text: &str, host: &[HostAddress]) -> Result<IpAddr, String> {
    if let Ok(ip) = text.parse() {
        return Ok(ip);
    }
    let of: Vec<IpAddr> = host.iter().filter(|a| a.interface == text).map(|a| a.address).collect();
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = of.into_iter().partition(IpAddr::is_ipv4);
    match (v4.as_slice(), v6.as_slice()) {
        ([one], _) | ([], [one]) => Ok(*one),
        ([], []) => Err(format!("{text:?} is neither an IP address nor an interface of this host with an address")),
        _ => Err(format!("interface {text} has more than one address: give the one to use")),
    }
}

fn choose(host: &[HostAddress]) -> Result<IpAddr, String> {
    // Docker's own bridges are nobody's way in.
    let candidates: Vec<&HostAddress> = host
        .iter()
        .filter(|a| a.address.is_ipv4() && !a.interface.starts_with("docker") && !a.interface.starts_with("br-"))
        .collect();
    match candidates.as_slice() {
        [one] => Ok(one.address),
        [] => {
            Err("could not choose an IP address to advertise: this host has none but loopback; give --advertise-addr".to_owned())
        }
        [one, two, ..] => Err(format!(
            "could not choose an IP address to advertise since this system has multiple addresses on different interfaces ({} on {} and {} on {}) - specify one with --advertise-addr",
            one.address, one.interface, two.address, two.interface
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Vec<HostAddress> {
        [
            ("eth0", "192.0.2.1"),
            ("docker0", "172.17.0.1"),
            ("eth1", "198.51.100.1"),
            ("eth1", "198.51.100.2"),
            ("eth2", "2001:db8::1"),
        ]
        .map(|(interface, address)| HostAddress { interface: interface.to_owned(), address: address.parse().expect("ip") })
        .to_vec()
    }

    #[test]
    fn addresses_ports_and_interfaces_are_understood() {
        let of = |listen: &str, advertise: &str| place(listen, advertise, None, false, &host());
        let p = of("0.0.0.0:2377", "192.0.2.1").expect("both given");
        assert_eq!(
            (p.listen, p.advertise, p.data_path_port),
            ("0.0.0.0:2377".parse().expect("addr"), Some("192.0.2.1".parse().expect("ip")), 2377)
        );
        assert_eq!(of("eth0", "").expect("interface").advertise, Some("192.0.2.1".parse().expect("ip")));
        assert_eq!(of("0.0.0.0:9999", "eth0:2377").expect("port").listen.port(), 9999);
        assert_eq!(of("[::]:2377", "eth2").expect("v6").advertise, Some("2001:db8::1".parse().expect("ip")));
        assert_eq!(of("0.0.0.0", "").expect("left to the manager").advertise, None);
        assert!(of("0.0.0.0", "eth1").expect_err("two addresses").contains("more than one"));
        assert!(of("0.0.0.0", "eth9").expect_err("no such").contains("eth9"));
        assert!(of("0.0.0.0", "0.0.0.0").expect_err("zero").contains("non-zero"));
        assert!(of("", "").is_err());
    }

    #[test]
    fn init_chooses_the_only_address_and_says_when_there_are_several() {
        let one = &host()[..2];
        assert_eq!(place("0.0.0.0:2377", "", None, true, one).expect("one").advertise, Some("192.0.2.1".parse().expect("ip")));
        assert!(place("0.0.0.0:2377", "", None, true, &host()).expect_err("several").contains("multiple addresses"));
    }

    #[test]
    fn a_managers_port_may_be_left_out() {
        assert_eq!(remote("192.0.2.1"), ("192.0.2.1", 2377));
        assert_eq!(remote("[2001:db8::1]:1"), ("2001:db8::1", 1));
        assert_eq!(remote("2001:db8::1"), ("2001:db8::1", 2377));
        assert_eq!(remote("manager.example:7"), ("manager.example", 7));
    }
}
