//! Parses the address flags of init and join (`--listen-addr`, `--advertise-addr`: an IP address or an interface, with or
//! without port; `--data-path-addr`: without). Pure: the host's own addresses are passed in.

use crate::datapath::interfaces::HostAddress;
use crate::model::mesh::DEFAULT_PORT;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What the flags take, in the words of a real swarm.
const LISTEN: &str = "listen address must be an IP address or network interface (with optional port number)";
const ADVERTISE: &str = "advertise address must be a non-zero IP address or network interface (with optional port number)";
const DATA_PATH: &str = "data path address must be a non-zero IP address or network interface (without a port number)";

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
    /// Interface that had `advertise` when it was last looked for; `None` for an address that is not the host's own (before a NAT).
    pub advertise_on: Option<String>,
    /// Interface of which `data_path` is the address, if the user named one.
    pub data_path_interface: Option<String>,
}

impl ListenAddresses {
    /// Gives the interfaces that the user named their addresses of now: a DHCP lease may have changed while the daemon did not
    /// run. So with an advertised address that the host had, given or chosen, and has no more: the only one of the same interface
    /// takes its place, or other nodes would look for this one where it is not. Returns what cannot be resolved; that keeps its address.
    pub(super) fn resolve_again(&mut self, host: &[HostAddress]) -> Vec<String> {
        let mut problems = Vec::new();
        let mut current = |interface: &Option<String>| {
            let interface = interface.as_deref()?;
            let resolved = resolve(interface, host);
            resolved.map_err(|unresolved| problems.push(unresolved.of(interface))).ok()
        };
        if let Some(ip) = current(&self.listen_interface) {
            self.listen.set_ip(ip);
        }
        if let Some(ip) = current(&self.advertise_interface) {
            self.advertise = Some(ip);
        } else if self.advertise_interface.is_none()
            && let Some(gone) = self.gone(host)
            && let Some(ip) = current(&self.advertise_on)
        {
            self.advertise = Some(ip);
            if self.listen.ip() == gone {
                self.listen.set_ip(ip);
            }
        }
        if let Some(ip) = current(&self.data_path_interface) {
            self.data_path = Some(ip);
        }
        self.note_interface(host);
        problems
    }

    /// The advertised address, if the host had it and has it no more.
    fn gone(&self, host: &[HostAddress]) -> Option<IpAddr> {
        let had = self.advertise_interface.is_some() || self.advertise_on.is_some();
        self.advertise.filter(|ip| had && !host.iter().any(|own| own.address == *ip))
    }

    /// Why other nodes do not find this one at its advertised address, and what helps.
    pub(super) fn astray(&self, host: &[HostAddress]) -> Option<String> {
        let gone = self.gone(host)?;
        let interface = self.advertise_interface.as_deref().or(self.advertise_on.as_deref())?;
        Some(match resolve(interface, host) {
            Ok(now) => format!(
                "this node advertises {gone}, and its interface {interface} has {now} now: `systemctl restart skep` makes it advertise that one"
            ),
            Err(_) => format!(
                "this node advertises {gone}, which is no address of this host any more, and its interface {interface} has no single other \
                 one: give it one address (`ip address add … dev {interface}`), and restart skep if it is another one"
            ),
        })
    }

    /// Notes the interface that has the advertised address.
    fn note_interface(&mut self, host: &[HostAddress]) {
        let has = |own: &&HostAddress| Some(own.address) == self.advertise;
        if let Some(own) = host.iter().find(has) {
            self.advertise_on = Some(own.interface.clone());
        }
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
        let ip = resolve(text, host).map_err(|unresolved| unresolved.or(DATA_PATH))?;
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
        addresses.note_interface(host);
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
    let listen_ip = resolve(listen_host, host).map_err(|unresolved| unresolved.or(LISTEN))?;
    let listen = SocketAddr::new(listen_ip, port);
    let listen_interface = interface_name(listen_host);
    let advertise_interface = if advertise.is_empty() { listen_interface.clone() } else { interface_name(split(advertise).0) };
    let advertised = if advertise.is_empty() {
        Some(listen.ip()).filter(|ip| !ip.is_unspecified())
    } else {
        let ip = resolve(split(advertise).0, host).map_err(|unresolved| unresolved.or(ADVERTISE))?;
        if ip.is_unspecified() {
            return Err(ADVERTISE.to_owned());
        }
        Some(ip)
    };
    let data_path_port = data_path_port.unwrap_or(port);
    let mut addresses = ListenAddresses {
        listen,
        advertise: advertised,
        data_path: None,
        data_path_port,
        listen_interface,
        advertise_interface,
        advertise_on: None,
        data_path_interface: None,
    };
    addresses.note_interface(host);
    Ok(addresses)
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

/// Why a text stands for no single address of the host.
#[derive(PartialEq, Eq, Debug)]
enum Unresolved {
    /// It is neither an address nor an interface that has one.
    Unknown,
    /// The interface has several, of one family: the words of a real swarm.
    Several(String),
}

impl Unresolved {
    /// For the user who gave it; `unknown` says what the flag takes.
    fn or(self, unknown: &str) -> String {
        match self {
            Self::Unknown => unknown.to_owned(),
            Self::Several(text) => text,
        }
    }
    /// For the log, of an interface that the user named before.
    fn of(self, interface: &str) -> String {
        self.or(&format!("{interface:?} is no interface of this host with an address"))
    }
}

fn resolve(text: &str, host: &[HostAddress]) -> Result<IpAddr, Unresolved> {
    if let Ok(ip) = text.parse() {
        return Ok(ip);
    }
    let addresses: Vec<IpAddr> = host.iter().filter(|a| a.interface == text).map(|a| a.address).collect();
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_ipv4);
    let several = |family: &str, one: IpAddr, two: IpAddr| {
        Err(Unresolved::Several(format!("interface {text} has more than one {family} address ({one} and {two})")))
    };
    match (v4.as_slice(), v6.as_slice()) {
        ([one], _) | ([], [one]) => Ok(*one),
        ([one, two, ..], _) => several("IPv4", *one, *two),
        ([], [one, two, ..]) => several("IPv6", *one, *two),
        ([], []) => Err(Unresolved::Unknown),
    }
}

/// The only address of the host: of its IPv4 ones, or of its IPv6 ones if it has no other. The CLI adds to a refusal that
/// `--advertise-addr` helps.
fn choose(host: &[HostAddress]) -> Result<IpAddr, String> {
    // The addresses of Docker's bridges are not reachable from other hosts.
    let candidates = host.iter().filter(|a| !a.interface.starts_with("docker") && !a.interface.starts_with("br-"));
    let (v4, v6): (Vec<&HostAddress>, Vec<&HostAddress>) = candidates.partition(|a| a.address.is_ipv4());
    let candidates = if v4.is_empty() { v6 } else { v4 };
    match candidates.as_slice() {
        [one] => Ok(one.address),
        [] => Err("could not find the system's IP address".to_owned()),
        [one, two, ..] => {
            let apart = if one.interface == two.interface {
                format!("interface {} ({} and {})", one.interface, one.address, two.address)
            } else {
                format!("different interfaces ({} on {} and {} on {})", one.address, one.interface, two.address, two.interface)
            };
            Err(format!("could not choose an IP address to advertise since this system has multiple addresses on {apart}"))
        }
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
        assert_eq!(parsed("eth9", "").expect_err("no such"), LISTEN);
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
        assert_eq!(join("0.0.0.0", "eth9").expect_err("no such"), DATA_PATH);
        let mut named = join("0.0.0.0", "eth2").expect("known");
        let moved = [HostAddress { interface: "eth2".to_owned(), address: "2001:db8::7".parse().expect("ip") }];
        named.resolve_again(&moved);
        assert_eq!(named.endpoints()[0].to_string(), "[2001:db8::7]:2377");
    }

    /// Hosts of `addresses.txt`.
    fn named_host(name: &str) -> Vec<HostAddress> {
        let addresses: &[(&str, &str)] = match name {
            "one" => &[("eth0", "192.0.2.1"), ("docker0", "172.17.0.1"), ("br-1a2b", "172.18.0.1")],
            "two" => &[("eth0", "192.0.2.1"), ("eth0", "192.0.2.2")],
            "apart" => &[("eth0", "192.0.2.1"), ("v0", "192.0.2.2")],
            "six" => &[("eth0", "2001:db8::1"), ("eth0", "2001:db8::2")],
            "mixed" => &[("eth0", "192.0.2.9"), ("eth0", "2001:db8::1"), ("eth0", "2001:db8::2")],
            other => panic!("no host is {other}"),
        };
        let address = |&(interface, address): &(&str, &str)| HostAddress {
            interface: interface.to_owned(),
            address: address.parse().expect("ip"),
        };
        addresses.iter().map(address).collect()
    }

    #[test]
    fn addresses_are_refused_in_the_words_of_a_real_swarm_or_unlike_it_for_a_reason() {
        let table = include_str!("../../tests/it/api/words/addresses.txt");
        let mut wrong = Vec::new();
        for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (request, said) = line.split_once(" => ").expect(line);
            let [host, verb, listen, advertise] = request.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let host = named_host(host);
            // A and B are the last two addresses of the host.
            let [a, b] = [host.len().saturating_sub(2), host.len() - 1].map(|at| host[at].address.to_string());
            let with_addresses = |text: &str| {
                let words = text.split_inclusive([' ', '(', ')', ':']);
                words
                    .map(|word| match word.strip_prefix(['A', 'B']) {
                        Some(rest) if rest.is_empty() || rest.starts_with([' ', ')', ':']) => {
                            format!("{}{rest}", if word.starts_with('A') { &a } else { &b })
                        }
                        _ => word.to_owned(),
                    })
                    .collect::<String>()
            };
            let (real, ours) = said.split_once(" ~> ").map_or((said, said), |(real, ours)| (real, ours));
            let ours = if real == ours { real } else { ours.rsplit_once(" # ").expect("a reason").0 };
            let advertise = advertise.trim_start_matches('-');
            let addresses = match verb {
                "init" => for_init(&with_addresses(listen), advertise, None, &host),
                "join" => for_join(&with_addresses(listen), advertise, &host),
                other => panic!("nothing is {other}"),
            };
            let is = addresses.map_or_else(|refusal| format!("400 {refusal}"), |_| "200".to_owned());
            if is != with_addresses(ours) || (real == ours && said.contains(" ~> ")) {
                wrong.push(format!("{line}\n    is {is}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn init_chooses_the_only_address_and_refuses_to_choose_between_several() {
        let one = &host()[..2];
        assert_eq!(for_init("0.0.0.0:2377", "", None, one).expect("one").advertise, Some("192.0.2.1".parse().expect("ip")));
        assert!(for_init("0.0.0.0:2377", "", None, &host()).expect_err("several").contains("multiple addresses"));
        let no_other = &host()[4..];
        assert_eq!(
            for_init("0.0.0.0:2377", "", None, no_other).expect("IPv6").advertise,
            Some("2001:db8::1".parse().expect("ip"))
        );
        let bridge = &host()[1..2];
        assert!(for_init("0.0.0.0:2377", "", None, bridge).expect_err("none").contains("could not find"));
    }

    #[test]
    fn an_advertised_address_follows_its_interface_however_it_was_given() {
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

            // Given as an address, or chosen at an init.
            let mut fixed = for_join(first, first, &moved(first)).expect("fixed");
            let why = fixed.astray(&moved(second)).expect("another address");
            assert!(why.contains(first) && why.contains(second) && why.contains("restart skep"), "{why}");
            assert!(fixed.resolve_again(&moved(second)).is_empty() && fixed.astray(&moved(second)).is_none());
            assert_eq!((fixed.listen.ip(), fixed.advertise), (second_ip, Some(second_ip)));
            let mut chosen = for_init("0.0.0.0", "", None, &moved(first)).expect("chosen");
            assert!(chosen.resolve_again(&moved(second)).is_empty());
            assert_eq!((chosen.listen.ip(), chosen.advertise), (IpAddr::V4(Ipv4Addr::UNSPECIFIED), Some(second_ip)));
            // Back again: it is still followed.
            assert!(chosen.resolve_again(&moved(first)).is_empty());
            assert_eq!(chosen.advertise, Some(first.parse().expect("ip")));
            // Several to choose from, or none: it stays, and says so.
            let two = [&moved(second)[..], &moved("198.51.100.77")[..], &moved("198.51.100.78")[..]].concat();
            for unclear in [&two[..], &[]] {
                let before = chosen.clone();
                let problems = chosen.resolve_again(unclear);
                assert_eq!((problems.len(), &chosen), (1, &before), "{problems:?} {unclear:?}");
                assert!(chosen.astray(unclear).expect("gone").contains("no single other one"));
            }
            // An address of a NAT was never the host's own.
            let mut outside = for_join("0.0.0.0", "203.0.113.9", &moved(first)).expect("taken");
            let before = outside.clone();
            assert!(
                outside.resolve_again(&moved(second)).is_empty() && outside == before && outside.astray(&moved(second)).is_none()
            );

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
