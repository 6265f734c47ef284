//! The PROXY protocol, versions 1 and 2: a header before everything else on a connection, with the client's address. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How a version 2 header begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of the longest version 1 header.
const MOST_V1: usize = 107;
/// Bytes after the fixed part of a version 2 header that are read; what follows the addresses there is passed over.
const MOST_V2: usize = 4096;

/// Client and where it connected to.
pub(super) type ConnectionEnds = (SocketAddr, SocketAddr);

/// What the first bytes of a connection are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ProxyHeader {
    /// More bytes are needed.
    Incomplete,
    Invalid,
    /// A header of this length. Without addresses the connection is the proxy's own.
    Complete {
        length: usize,
        ends: Option<ConnectionEnds>,
    },
}

/// Reads the header at the beginning of a connection.
pub(super) fn parse(bytes: &[u8]) -> ProxyHeader {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(is, must)| is == must);
    if begins(&SIGNATURE) {
        if bytes.len() < SIGNATURE.len() { ProxyHeader::Incomplete } else { parse_v2(bytes) }
    } else if begins(b"PROXY ") {
        parse_v1(bytes)
    } else {
        ProxyHeader::Invalid
    }
}

fn parse_v1(bytes: &[u8]) -> ProxyHeader {
    let Some(end) = bytes.windows(2).take(MOST_V1 - 1).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < MOST_V1 { ProxyHeader::Incomplete } else { ProxyHeader::Invalid };
    };
    let length = end + 2;
    let Ok(line) = std::str::from_utf8(&bytes[..end]) else { return ProxyHeader::Invalid };
    let words: Vec<&str> = line.split(' ').collect();
    let ends = match words[..] {
        ["PROXY", "UNKNOWN", ..] => return ProxyHeader::Complete { length, ends: None },
        ["PROXY", "TCP4", from, to, from_port, to_port] => {
            let ip = |text: &str| text.parse::<Ipv4Addr>().map(IpAddr::V4).ok();
            ip(from).zip(ip(to)).zip(port(from_port).zip(port(to_port)))
        }
        ["PROXY", "TCP6", from, to, from_port, to_port] => {
            let ip = |text: &str| text.parse::<Ipv6Addr>().map(IpAddr::V6).ok();
            ip(from).zip(ip(to)).zip(port(from_port).zip(port(to_port)))
        }
        _ => None,
    };
    ends.map_or(ProxyHeader::Invalid, |((from, to), (from_port, to_port))| ProxyHeader::Complete {
        length,
        ends: Some(((from, from_port).into(), (to, to_port).into())),
    })
}

fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn parse_v2(bytes: &[u8]) -> ProxyHeader {
    let Some((fixed, rest)) = bytes.split_at_checked(16) else { return ProxyHeader::Incomplete };
    let body = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if fixed[12] >> 4 != 2 || body > MOST_V2 {
        return ProxyHeader::Invalid;
    }
    let Some(body_bytes) = rest.get(..body) else { return ProxyHeader::Incomplete };
    let number = |at: usize| u16::from_be_bytes([body_bytes[at], body_bytes[at + 1]]);
    let ends = match (fixed[12] & 15, fixed[13]) {
        // LOCAL: a health check of the proxy itself; or a family of addresses that is none.
        (0, _) | (1, 0x00) => None,
        (1, 0x11) if body >= 12 => {
            let ip = |at: usize| <[u8; 4]>::try_from(&body_bytes[at..at + 4]).map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from);
            Some(((ip(0), number(8)).into(), (ip(4), number(10)).into()))
        }
        (1, 0x21) if body >= 36 => {
            let ip = |at: usize| <[u8; 16]>::try_from(&body_bytes[at..at + 16]).map_or(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from);
            Some(((ip(0), number(32)).into(), (ip(16), number(34)).into()))
        }
        _ => return ProxyHeader::Invalid,
    };
    ProxyHeader::Complete { length: 16 + body, ends }
}

/// The header for a client and where it connected to, of version 1 or 2.
pub(super) fn write(version: u8, (from, to): ConnectionEnds) -> Vec<u8> {
    let (from_ip, to_ip) = match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (IpAddr::V4(from), IpAddr::V4(to)),
        (from, to) => (mapped(from).into(), mapped(to).into()),
    };
    if version == 1 {
        let family = if from_ip.is_ipv4() { 4 } else { 6 };
        return format!("PROXY TCP{family} {from_ip} {to_ip} {} {}\r\n", from.port(), to.port()).into_bytes();
    }
    let mut out = SIGNATURE.to_vec();
    let (family, length) = if from_ip.is_ipv4() { (0x11, 12_u16) } else { (0x21, 36) };
    out.extend([0x21, family]);
    out.extend(length.to_be_bytes());
    for ip in [from_ip, to_ip] {
        match ip {
            IpAddr::V4(ip) => out.extend(ip.octets()),
            IpAddr::V6(ip) => out.extend(ip.octets()),
        }
    }
    out.extend(from.port().to_be_bytes());
    out.extend(to.port().to_be_bytes());
    out
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(from: &str, to: &str) -> ConnectionEnds {
        (from.parse().unwrap(), to.parse().unwrap())
    }

    #[test]
    fn what_is_written_is_read_and_a_part_is_incomplete() {
        for (from, to) in [
            ("192.0.2.1:1000", "198.51.100.2:443"),
            ("[2001:db8::1]:65535", "[2001:db8::2]:1"),
            ("192.0.2.1:7", "[2001:db8::2]:80"),
        ] {
            let given = ends(from, to);
            for version in [1, 2] {
                let mut bytes = write(version, given);
                let length = bytes.len();
                for part in 0..length {
                    assert_eq!(parse(&bytes[..part]), ProxyHeader::Incomplete, "{version} {part}");
                }
                bytes.extend(b"GET / HTTP/1.1\r\n");
                let ProxyHeader::Complete { length: read, ends: Some(found) } = parse(&bytes) else { panic!("{version} {from}") };
                let plain = |(a, b): ConnectionEnds| (a.ip().to_canonical(), a.port(), b.ip().to_canonical(), b.port());
                assert_eq!((read, plain(found)), (length, plain(given)));
            }
        }
    }

    #[test]
    fn others_are_refused() {
        let v2 = |rest: &[u8]| [&SIGNATURE[..], rest].concat();
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(120));
        for bytes in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::2 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(),
            long.into_bytes(),
            v2(&[0x11, 0x11, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            v2(&[0x21, 0x11, 0, 4, 0, 0, 0, 0]),
            v2(&[0x21, 0x11, 0xff, 0xff]),
            v2(&[0x22, 0x11, 0, 0]),
        ] {
            assert_eq!(parse(&bytes), ProxyHeader::Invalid, "{:?}", String::from_utf8_lossy(&bytes));
        }
        for (bytes, length) in
            [(b"PROXY UNKNOWN\r\n".to_vec(), 15), (b"PROXY UNKNOWN ::1 ::1 1 2\r\n".to_vec(), 27), (v2(&[0x20, 0, 0, 1, 9]), 17)]
        {
            assert_eq!(parse(&bytes), ProxyHeader::Complete { length, ends: None });
        }
    }
}
