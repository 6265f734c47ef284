//! Parses the address flags of init and join (`--listen-addr`, `--advertise-addr`: an IP address or an interface, with or
//! without port; `--data-path-addr`: without). Pure: the host's own addresses are passed in.

use crate::datapath::interfaces::HostAddress;
use crate::model::mesh::DEFAULT_PORT;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The addresses that a node listens on and advertises.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ListenAddresses {
    /// TCP: joins.
    pub listen: SocketAddr,
    /// Address that other nodes reach this one at; `None`: the source address that the manager sees.
    pub advertise: Option<IpAddr>,
    /// Address that other nodes' tunnels reach this one at, if it is another one: traffic of containers then takes a network of its own.
    pub data_path: Option<IpAddr>,
    /// UDP port of the tunnel.
    pub data_path_port: u16,
    /// Interface of which `listen` has the address, if the user named one.
    pub listen_interface: Option<String>,
    /// Interface of which `advertise` is the address, if the user named one.
    pub advertise_interface: Option<String>,
    /// Interface of which `data_path` is the address, if the user named one.
    pub data_path_interface: Option<String>,
}

impl ListenAddresses {
    /// Gives the interfaces that the user named their addresses of now: a DHCP lease may have changed while the daemon did not
    /// run. Returns what cannot be resolved; that keeps its address.
    pub(super) fn resolve_again(&mut self, host: &[HostAddress]) -> Vec<String> {
        let mut problems = Vec::new();
        let mut current = |interface: &Option<String>| {
            let resolved = resolve(interface.as_deref()?, host);
            resolved.map_err(|problem| problems.push(problem)).ok()
        };
        if let Some(ip) = current(&self.listen_interface) {
            self.listen.set_ip(ip);
        }
        if let Some(ip) = current(&self.advertise_interface) {
            self.advertise = Some(ip);
        }
        if let Some(ip) = current(&self.data_path_interface) {
            self.data_path = Some(ip);
        }
        problems
    }

    /// Of a node whose tunnel has an address of its own and that was given none to advertise: this one, from which it reaches a manager. The
    /// tunnel's address would be taken for it otherwise.
    pub(super) fn advertised_at_least(self, seen: impl FnOnce() -> Option<IpAddr>) -> Self {
        let advertise = if self.data_path.is_some() { self.advertise.or_else(seen) } else { self.advertise };
        Self { advertise, ..self }
    }

    /// The advertised address, if the tunnel has another one.
    pub(super) fn advertised_apart(&self) -> Option<IpAddr> {
        self.advertise.filter(|_| self.data_path.is_some())
    }

    /// The tunnel's listening address.
    pub(super) fn tunnel(&self) -> SocketAddr {
        let own = self.data_path.filter(|_| !self.listen.ip().is_unspecified());
        SocketAddr::new(own.unwrap_or(self.listen.ip()), self.data_path_port)
    }
    /// The tunnel's endpoints; an unspecified address stands for the source address that the manager sees.
    pub(super) fn endpoints(&self) -> Vec<SocketAddr> {
        let address = self.data_path.or(self.advertise).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        vec![SocketAddr::new(address, self.data_path_port)]
    }
}

impl ListenAddresses {
    /// With another address for the tunnel: an IP address or an interface, or empty for the advertised one.
    ///
    /// # Errors
    /// For the user: an unknown interface, no address of this host.
    pub(super) fn with_data_path(mut self, text: &str, host: &[HostAddress]) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(self);
        }
        let ip = resolve(text, host)?;
        if !host.iter().any(|own| own.address == ip) && Some(ip) != self.advertise {
            return Err(format!("data path address {ip} is no address of this host"));
        }
        self.data_path_interface = interface_name(text);
        self.data_path = Some(ip).filter(|ip| Some(*ip) != self.advertise || self.data_path_interface.is_some());
        Ok(self)
    }
}

/// The addresses of a node that creates a cluster. Without an advertised address the host's only address is chosen: no
/// manager exists that could see it.
///
/// # Errors
/// For the user: an unknown interface, an address that cannot be advertised, several to choose from.
pub(super) fn for_init(
    listen: &str,
    advertise: &str,
    data_path_port: Option<u16>,
    host: &[HostAddress],
) -> Result<ListenAddresses, String> {
    let mut addresses = parse(listen, advertise, data_path_port, host)?;
    if addresses.advertise.is_none() {
        addresses.advertise = Some(choose(host)?);
    }
    Ok(addresses)
}

/// The addresses of a node that joins a cluster.
///
/// # Errors
/// For the user: an unknown interface, an address that cannot be advertised.
pub(super) fn for_join(listen: &str, advertise: &str, host: &[HostAddress]) -> Result<ListenAddresses, String> {
    parse(listen, advertise, None, host)
}

fn parse(listen: &str, advertise: &str, data_path_port: Option<u16>, host: &[HostAddress]) -> Result<ListenAddresses, String> {
    if listen.is_empty() {
        return Err("invalid ListenAddr \"\": invalid empty address".to_owned());
    }
    let (listen_host, port) = split(listen);
    let port = port.unwrap_or(DEFAULT_PORT);
    let listen = SocketAddr::new(resolve(listen_host, host)?, port);
    let listen_interface = interface_name(listen_host);
    let advertise_interface = if advertise.is_empty() { listen_interface.clone() } else { interface_name(split(advertise).0) };
    let advertised = if advertise.is_empty() {
        Some(listen.ip()).filter(|ip| !ip.is_unspecified())
    } else {
        let ip = resolve(split(advertise).0, host)?;
        if ip.is_unspecified() {
            return Err(
                "advertise address must be a non-zero IP address or network interface (with optional port number)".to_owned()
            );
        }
        Some(ip)
    };
    let data_path_port = data_path_port.unwrap_or(port);
    Ok(ListenAddresses {
        listen,
        advertise: advertised,
        data_path: None,
        data_path_port,
        listen_interface,
        advertise_interface,
        data_path_interface: None,
    })
}

/// Host (name or address) and port of a manager, as passed to join; the port is optional.
pub(super) fn remote(text: &str) -> (&str, u16) {
    let (host, port) = split(text);
    (host, port.unwrap_or(DEFAULT_PORT))
}

/// Splits `host:port`, `[v6]:port`, `host` or `v6`.
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

/// The text, if it is no address.
fn interface_name(text: &str) -> Option<String> {
    text.parse::<IpAddr>().is_err().then(|| text.to_owned())
}

fn resolve(text: &str, host: &[HostAddress]) -> Result<IpAddr, String> {
    if let Ok(ip) = text.parse() {
        return Ok(ip);
    }
    let addresses: Vec<IpAddr> = host.iter().filter(|a| a.interface == text).map(|a| a.address).collect();
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_ipv4);
    match (v4.as_slice(), v6.as_slice()) {
        ([one], _) | ([], [one]) => Ok(*one),
        ([], []) => Err(format!("{text:?} is neither an IP address nor an interface of this host with an address")),
        _ => Err(format!("interface {text} has more than one address: name the one to use")),
    }
}

fn choose(host: &[HostAddress]) -> Result<IpAddr, String> {
    // The addresses of Docker's bridges are not reachable from other hosts.
    let candidates: Vec<&HostAddress> = host
        .iter()
        .filter(|a| a.address.is_ipv4() && !a.interface.starts_with("docker") && !a.interface.starts_with("br-"))
        .collect();
    match candidates.as_slice() {
        [one] => Ok(one.address),
        [] => {
            Err("could not choose an IP address to advertise: this host has none but loopback; set --advertise-addr".to_owned())
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
    fn addresses_ports_and_interfaces_are_parsed() {
        let parsed = |listen: &str, advertise: &str| for_join(listen, advertise, &host());
        let p = parsed("0.0.0.0:2377", "192.0.2.1").expect("both set");
        assert_eq!(
            (p.listen, p.advertise, p.data_path_port),
            ("0.0.0.0:2377".parse().expect("addr"), Some("192.0.2.1".parse().expect("ip")), 2377)
        );
        assert_eq!(parsed("eth0", "").expect("interface").advertise, Some("192.0.2.1".parse().expect("ip")));
        assert_eq!(parsed("0.0.0.0:9999", "eth0:2377").expect("port").listen.port(), 9999);
        assert_eq!(parsed("[::]:2377", "eth2").expect("v6").advertise, Some("2001:db8::1".parse().expect("ip")));
        assert_eq!(parsed("0.0.0.0", "").expect("left to the manager").advertise, None);
        assert!(parsed("0.0.0.0", "eth1").expect_err("two addresses").contains("more than one"));
        assert!(parsed("0.0.0.0", "eth9").expect_err("no such").contains("eth9"));
        assert!(parsed("0.0.0.0", "0.0.0.0").expect_err("zero").contains("non-zero"));
        assert!(parsed("", "").is_err());
    }

    #[test]
    fn the_tunnel_may_have_an_address_of_its_own() {
        let join = |listen: &str, data_path: &str| {
            for_join(listen, "192.0.2.1", &host()).and_then(|own| own.with_data_path(data_path, &host()))
        };
        let endpoints = |data_path: &str| join("0.0.0.0:2377", data_path).expect("known").endpoints()[0].to_string();
        assert_eq!(endpoints(""), "192.0.2.1:2377");
        assert_eq!(endpoints("192.0.2.1"), "192.0.2.1:2377");
        assert_eq!(endpoints("198.51.100.2"), "198.51.100.2:2377");
        assert_eq!(endpoints("eth2"), "[2001:db8::1]:2377");
        let narrow = join("192.0.2.1:2377", "198.51.100.2").expect("known");
        assert_eq!(
            (narrow.tunnel().to_string(), narrow.listen.ip().to_string()),
            ("198.51.100.2:2377".into(), "192.0.2.1".into())
        );
        assert_eq!(join("0.0.0.0", "198.51.100.2").expect("known").tunnel().ip(), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        assert!(join("0.0.0.0", "198.51.100.9").expect_err("another host's").contains("is no address of this host"));
        assert!(join("0.0.0.0", "eth9").expect_err("no such").contains("eth9"));
        let mut named = join("0.0.0.0", "eth2").expect("known");
        let moved = [HostAddress { interface: "eth2".to_owned(), address: "2001:db8::7".parse().expect("ip") }];
        named.resolve_again(&moved);
        assert_eq!(named.endpoints()[0].to_string(), "[2001:db8::7]:2377");
    }

    #[test]
    fn init_chooses_the_only_address_and_refuses_to_choose_between_several() {
        let one = &host()[..2];
        assert_eq!(for_init("0.0.0.0:2377", "", None, one).expect("one").advertise, Some("192.0.2.1".parse().expect("ip")));
        assert!(for_init("0.0.0.0:2377", "", None, &host()).expect_err("several").contains("multiple addresses"));
    }

    #[test]
    fn a_named_interface_is_resolved_again_and_an_address_stays() {
        let moved =
            |address: &str| [HostAddress { interface: "eth0".to_owned(), address: address.parse().expect("ip") }].to_vec();
        for (first, second) in [("10.1.2.3", "10.1.2.77"), ("172.16.0.9", "172.16.4.1"), ("192.168.0.2", "2001:db8::7")] {
            let second_ip: IpAddr = second.parse().expect("ip");
            let mut named = for_join("eth0:2377", "", &moved(first)).expect("named");
            assert_eq!(named.resolve_again(&moved(second)), Vec::<String>::new());
            assert_eq!((named.listen, named.advertise), (SocketAddr::new(second_ip, 2377), Some(second_ip)));

            let mut advertised = for_join("0.0.0.0", "eth0", &moved(first)).expect("named");
            advertised.resolve_again(&moved(second));
            assert_eq!((advertised.listen.ip(), advertised.advertise), (IpAddr::V4(Ipv4Addr::UNSPECIFIED), Some(second_ip)));

            let mut fixed = for_join(first, first, &moved(first)).expect("fixed");
            let before = fixed.clone();
            assert!(fixed.resolve_again(&moved(second)).is_empty() && fixed == before, "the user gave an address");

            // The interface has no address yet.
            let mut early = for_join("eth0", "", &moved(first)).expect("named");
            let before = early.clone();
            assert_eq!(early.resolve_again(&[]).len(), 2);
            assert_eq!(early, before);
        }
    }

    #[test]
    fn a_managers_port_is_optional() {
        assert_eq!(remote("192.0.2.1"), ("192.0.2.1", 2377));
        assert_eq!(remote("[2001:db8::1]:1"), ("2001:db8::1", 1));
        assert_eq!(remote("2001:db8::1"), ("2001:db8::1", 2377));
        assert_eq!(remote("manager.example:7"), ("manager.example", 7));
    }
}
