//! Servers of the tests inside containers, and their clients. Over TCP a line is a request: `who` (answered by the server's
//! name and the client's address as the server sees it), `down N` and `up N` (N bytes of known content); a datagram is answered
//! by name, client address and its payload.

use super::namespace::Namespace;
use anyhow::{Context as _, ensure};
use socket2::{Domain, Socket, Type};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, OnceLock};

/// Prefix of datagrams that a server records.
pub const MARK: &[u8] = b"MARK";

type Datagrams = Vec<(SocketAddr, Vec<u8>)>;

/// Every datagram that began with [`MARK`], with its sender.
pub struct Server {
    received: Arc<Mutex<Datagrams>>,
}

impl Server {
    pub fn received(&self) -> Datagrams {
        self.received.lock().expect("no panic").clone()
    }
}

/// A server's answer: its name, and the client's address as it sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub server: String,
    pub client: SocketAddr,
}

/// Serves both protocols on a port of a namespace until the test's process ends; on the wildcard of IPv6 also those of IPv4.
pub fn serve(namespace: &Namespace, port: u16, any: IpAddr) -> Server {
    let address = SocketAddr::new(any, port);
    let make = |kind| {
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        Ok::<_, io::Error>(socket)
    };
    let both = namespace.inside(|| {
        let listener = make(Type::STREAM)?;
        listener.listen(64)?;
        Ok((TcpListener::from(listener), UdpSocket::from(make(Type::DGRAM)?)))
    });
    let (listener, datagrams) = both.unwrap_or_else(|e| panic!("{address} in a container of {}: {e}", namespace.name));
    let name = namespace.name.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let name = name.clone();
            std::thread::spawn(move || answer_requests(&name, stream));
        }
    });
    let (name, received) = (namespace.name.clone(), Arc::<Mutex<Datagrams>>::default());
    let record = Arc::clone(&received);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        loop {
            // An ICMP error of a client that has closed its socket.
            let Ok((length, from)) = datagrams.recv_from(&mut buffer) else { continue };
            let payload = &buffer[..length];
            if payload.starts_with(MARK) {
                record.lock().expect("no panic").push((canonical(from), payload.to_vec()));
            }
            let mut answer = format!("{name} {} ", canonical(from)).into_bytes();
            answer.extend(payload);
            let _ = datagrams.send_to(&answer, from);
        }
    });
    Server { received }
}

fn answer_requests(name: &str, mut stream: TcpStream) -> io::Result<()> {
    let peer = canonical(stream.peer_addr()?);
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        match (words.next(), words.next().and_then(|n| n.parse().ok())) {
            (Some("who"), _) => writeln!(stream, "{name} {peer}")?,
            (Some("down"), Some(bytes)) => send(&mut stream, bytes)?,
            (Some("up"), Some(bytes)) => match receive(&mut reader, bytes) {
                Ok(()) => writeln!(stream, "right")?,
                Err(error) => writeln!(stream, "{error:#}")?,
            },
            _ => return Ok(()),
        }
    }
}

/// IPv4-mapped addresses as IPv4, so that sockets of both families report the same.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Pseudo-random bytes, in a number that is no multiple of any buffer's size on the path: lost or swapped blocks show.
fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        (0..262_139).map(|_| next()).collect()
    })
}

fn send(to: &mut impl Write, mut bytes: usize) -> io::Result<()> {
    while bytes > 0 {
        let part = &noise()[..bytes.min(noise().len())];
        to.write_all(part)?;
        bytes -= part.len();
    }
    to.flush()
}

fn receive(from: &mut impl Read, bytes: usize) -> anyhow::Result<()> {
    let mut buffer = vec![0; noise().len()];
    let mut done = 0;
    while done < bytes {
        let part = noise().len().min(bytes - done);
        from.read_exact(&mut buffer[..part]).with_context(|| format!("after {done} of {bytes} bytes"))?;
        ensure!(buffer[..part] == noise()[..part], "wrong bytes after {done} of {bytes}");
        done += part;
    }
    Ok(())
}

/// A client's connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(namespace: &Namespace, to: SocketAddr) -> anyhow::Result<Self> {
        Self::from(namespace, None, to)
    }

    pub fn from(namespace: &Namespace, from: Option<SocketAddr>, to: SocketAddr) -> anyhow::Result<Self> {
        let stream = namespace.tcp(from, to).with_context(|| format!("{} -> {to}: connect", namespace.name))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The client's own address.
    pub fn local_addr(&self) -> SocketAddr {
        self.stream.get_ref().local_addr().expect("connected")
    }

    pub fn peer_addr(&self) -> SocketAddr {
        self.stream.get_ref().peer_addr().expect("connected")
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the server hung up");
        Ok(line.trim().to_owned())
    }

    pub fn identify(&mut self) -> anyhow::Result<Answer> {
        // A connection that was reset has no peer.
        let stream = self.stream.get_ref();
        let (own, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let answer = self.stream.get_mut().write_all(b"who\n").map_err(anyhow::Error::from).and_then(|()| self.line());
        parse_server_and_client(&answer.with_context(|| format!("{own} -> {peer}: who"))?)
    }

    pub fn download(&mut self, bytes: usize) -> anyhow::Result<()> {
        writeln!(self.stream.get_mut(), "down {bytes}")?;
        receive(&mut self.stream, bytes)
    }

    pub fn upload(&mut self, bytes: usize) -> anyhow::Result<()> {
        writeln!(self.stream.get_mut(), "up {bytes}")?;
        send(self.stream.get_mut(), bytes)?;
        let result = self.line()?;
        ensure!(result == "right", "{result}");
        Ok(())
    }
}

fn parse_server_and_client(text: &str) -> anyhow::Result<Answer> {
    let (server, client) = text.split_once(' ').with_context(|| format!("not an answer: {text:?}"))?;
    Ok(Answer { server: server.to_owned(), client: client.parse()? })
}

/// Sends a datagram on a connected socket and receives its answer.
pub fn exchange(socket: &UdpSocket, payload: &[u8]) -> anyhow::Result<Answer> {
    socket.send(payload)?;
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer)?;
    parse_answer(&buffer[..length], payload)
}

/// Parses the answer to a datagram; an error if it does not return the payload.
pub fn parse_answer(answer: &[u8], payload: &[u8]) -> anyhow::Result<Answer> {
    let mut blanks = (0..answer.len()).filter(|at| answer[*at] == b' ');
    let end = blanks.nth(1).with_context(|| format!("not an answer: {:?}", String::from_utf8_lossy(answer)))?;
    ensure!(&answer[end + 1..] == payload, "the answer to {} bytes has other content", payload.len());
    parse_server_and_client(std::str::from_utf8(&answer[..end])?)
}

/// As [`exchange`], on a new socket; also returns the client's address.
pub fn exchange_once(namespace: &Namespace, to: SocketAddr, payload: &[u8]) -> anyhow::Result<(Answer, SocketAddr)> {
    let socket = namespace.udp(None, to)?;
    let seen =
        exchange(&socket, payload).with_context(|| format!("{} -> {to}: {} bytes by UDP", namespace.name, payload.len()))?;
    Ok((seen, socket.local_addr()?))
}
