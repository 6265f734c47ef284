//! Why no connection to a manager came about, in sentences that say what to check. Pure.

use super::tls::{self, Distrust};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

/// Why the TCP connection failed, and what to check.
pub(super) fn tcp(error: &io::Error, to: SocketAddr) -> String {
    let (ip, port) = (to.ip(), to.port());
    match error.kind() {
        ErrorKind::ConnectionRefused => format!(
            "connection refused: no program listens on TCP {port} of that host, or a firewall rejects it; is it a manager, and does \
             its skep run?"
        ),
        ErrorKind::TimedOut => format!("no answer: {}", silent(port)),
        ErrorKind::HostUnreachable => format!(
            "no route to host: no host answers at {ip}, or a firewall on the way rejects TCP {port}; check the address, that the \
             host is up (`ping {ip}`), and its firewall"
        ),
        ErrorKind::NetworkUnreachable => format!(
            "network unreachable: this host has no route to {ip}; check the address, and this host's routes (`ip route get {ip}`)"
        ),
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => format!(
            "connection reset: a firewall or proxy on the way ends connections to TCP {port}, or the host is overloaded; check \
             that nothing between the hosts handles TCP {port}"
        ),
        ErrorKind::AddrNotAvailable => format!(
            "this host has no address from which it could reach {ip}; check that it has {} address (`ip address`)",
            if ip.is_ipv6() { "a global IPv6" } else { "an IPv4" }
        ),
        ErrorKind::PermissionDenied => format!(
            "not permitted: a firewall of this host forbids connections to {ip}, TCP {port}; allow it (`iptables -S OUTPUT`, \
             `nft list ruleset`)"
        ),
        // How the kernel answers for a link-local address without an interface.
        ErrorKind::InvalidInput => {
            format!("{ip} cannot be connected to from here; use an address of the manager that is no link-local one")
        }
        _ => format!("{}; check the address, and that TCP {port} is open between the hosts", text(error)),
    }
}

/// Why no answer came within the time for the join.
pub(super) fn no_answer(after: Duration, to: SocketAddr) -> String {
    format!("no answer within {} s: {}", after.as_secs_f32(), silent(to.port()))
}

fn silent(port: u16) -> String {
    format!("the host is down, the address is wrong, or TCP {port} is blocked on the way")
}

/// What the TLS handshake tells of the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum HandshakeFailure {
    /// Of another cluster than the token; with the token's digest, hex.
    ForeignCa(String),
    /// Its certificate cannot be trusted for another reason.
    Untrusted(String),
    /// It is no manager of skep, or the connection was lost.
    Broken(String),
}

/// Why the TLS handshake failed, and what to check.
pub(super) fn tls(error: &io::Error, to: SocketAddr) -> HandshakeFailure {
    let port = to.port();
    let other_program = |what: &str| {
        HandshakeFailure::Broken(format!(
            "it {what}: another program answers on TCP {port} of that host; check address and port, a manager's is 2377 unless its \
             --listen-addr has another"
        ))
    };
    match (tls::distrust(error), tls::tls_error(error)) {
        (Some(Distrust::ForeignCa(digest)), _) => HandshakeFailure::ForeignCa(digest.to_string()),
        (Some(distrust), _) => HandshakeFailure::Untrusted(distrust.to_string()),
        (None, Some(rustls::Error::InvalidCertificate(why))) => {
            HandshakeFailure::Untrusted(format!("{why}; compare the clocks of both machines"))
        }
        (None, Some(rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. })) => {
            other_program("does not speak TLS")
        }
        (None, Some(error)) => other_program(&format!("speaks TLS, but not skep's protocol ({error})")),
        (None, None) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
            HandshakeFailure::Broken(
                "it closed the connection at once: it is no skep manager, is shutting down, or has too many joins at a time; try \
                 again"
                    .to_owned(),
            )
        }
        (None, None) => HandshakeFailure::Broken(format!("the connection was lost ({}); {}", text(error), tcp(error, to))),
    }
}

/// A connection that was open has broken.
pub(super) fn lost(error: &io::Error) -> String {
    format!("the connection was lost ({}): the manager has stopped, or the network between the hosts; join again", text(error))
}

/// An error of the system without its number, which tells a user nothing.
fn text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error ").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_a_connection_says_what_to_check_and_has_no_number_of_the_system() {
        let (v4, v6) = ("192.168.9.7:2377", "[2001:db8::7]:2400");
        // ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, ECONNRESET, ECONNABORTED, EADDRNOTAVAIL, EPERM, EACCES, EINVAL,
        // EMFILE, EPROTO.
        for (number, address, words) in [
            (111, v4, ["connection refused", "TCP 2377", "does its skep run"]),
            (110, v4, ["no answer", "the address is wrong", "TCP 2377 is blocked"]),
            (113, v4, ["no route to host", "TCP 2377", "`ping 192.168.9.7`"]),
            (113, v6, ["no route to host", "TCP 2400", "`ping 2001:db8::7`"]),
            (101, v6, ["network unreachable", "this host has no route", "`ip route get 2001:db8::7`"]),
            (104, v4, ["connection reset", "firewall", "TCP 2377"]),
            (103, v4, ["connection reset", "firewall", "TCP 2377"]),
            (99, v6, ["no address", "a global IPv6 address", "`ip address`"]),
            (99, v4, ["no address", "an IPv4 address", "`ip address`"]),
            (1, v4, ["not permitted", "a firewall of this host", "TCP 2377"]),
            (13, v6, ["not permitted", "a firewall of this host", "TCP 2400"]),
            (22, v6, ["2001:db8::7", "link-local", "use an address"]),
            (24, v4, ["Too many open files", "check the address", "TCP 2377"]),
            (71, v4, ["Protocol error", "check the address", "TCP 2377"]),
        ] {
            let text = tcp(&io::Error::from_raw_os_error(number), address.parse().unwrap());
            for word in words {
                assert!(text.contains(word), "{number}: {word} is not in: {text}");
            }
            assert!(!text.contains("os error"), "{number}: {text}");
        }
        let text = no_answer(Duration::from_millis(1500), v4.parse().unwrap());
        assert!(text.starts_with("no answer within 1.5 s: ") && text.contains("TCP 2377"), "{text}");
        let text = lost(&io::Error::from_raw_os_error(104));
        assert_eq!(
            text,
            "the connection was lost (Connection reset by peer): the manager has stopped, or the network between the hosts; join again"
        );
    }

    #[test]
    fn each_error_of_a_handshake_says_what_answers_there() {
        use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};
        let address: SocketAddr = "172.16.0.5:443".parse().unwrap();
        let failure = |error: io::Error| match tls(&error, address) {
            HandshakeFailure::Broken(text) | HandshakeFailure::Untrusted(text) => text,
            HandshakeFailure::ForeignCa(digest) => panic!("no digest was compared: {digest}"),
        };
        let wrapped = |error: Error| io::Error::new(ErrorKind::InvalidData, error);
        let lost = io::Error::from_raw_os_error;
        for (error, words) in [
            (
                wrapped(Error::InvalidMessage(InvalidMessage::InvalidContentType)),
                ["does not speak TLS", "another program", "TCP 443"],
            ),
            (
                wrapped(Error::AlertReceived(AlertDescription::ProtocolVersion)),
                ["speaks TLS, but not", "another program", "TCP 443"],
            ),
            (wrapped(Error::NoApplicationProtocol), ["speaks TLS, but not", "another program", "2377"]),
            (wrapped(Error::InvalidCertificate(CertificateError::NotValidYet)), ["clocks", "both machines", ""]),
            (io::Error::from(ErrorKind::UnexpectedEof), ["closed the connection", "no skep manager", "try again"]),
            (lost(104), ["closed the connection", "no skep manager", "try again"]),
            (lost(32), ["closed the connection", "no skep manager", "try again"]),
            (lost(113), ["lost", "no route to host", "`ping 172.16.0.5`"]),
            (lost(110), ["lost", "no answer", "TCP 443"]),
        ] {
            let text = failure(error);
            for word in words {
                assert!(text.contains(word), "{word} is not in: {text}");
            }
            assert!(!text.contains("os error"), "{text}");
        }
    }
}
