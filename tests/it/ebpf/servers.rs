//! Servers of the test's own inside containers, and those who talk to them. Over TCP a line asks: `who` (answered by the
//! server's name and the client as the server sees it), `down N` and `up N` (so many bytes that nobody mixes up); a datagram
//! is answered by name, client and itself.

use super::spot::Spot;
use anyhow::{Context as _, ensure};
use socket2::{Domain, Socket, Type};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, OnceLock};

/// What datagrams that a server shall remember begin with.
pub const MARK: &[u8] = b"MARK";

type Heard = Vec<(SocketAddr, Vec<u8>)>;

/// Every datagram that began with [`MARK`], with its sender.
pub struct Server {
    heard: Arc<Mutex<Heard>>,
}

impl Server {
    pub fn heard(&self) -> Heard {
        self.heard.lock().expect("no panic").clone()
    }
}

/// What a server said of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub who: String,
    pub peer: SocketAddr,
}

/// Serves both protocols on a port of a namespace until the test's process ends; on the wildcard of IPv6 also those of IPv4.
pub fn serve(spot: &Spot, port: u16, any: IpAddr) -> Server {
    let address = SocketAddr::new(any, port);
    let make = |kind| {
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        Ok::<_, io::Error>(socket)
    };
    let both = spot.inside(|| {
        let listener = make(Type::STREAM)?;
        listener.listen(64)?;
        Ok((TcpListener::from(listener), UdpSocket::from(make(Type::DGRAM)?)))
    });
    let (listener, datagrams) = both.unwrap_or_else(|e| panic!("{address} in a container of {}: {e}", spot.name));
    let name = spot.name.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let name = name.clone();
            std::thread::spawn(move || talk(&name, stream));
        }
    });
    let (name, heard) = (spot.name.clone(), Arc::<Mutex<Heard>>::default());
    let ear = Arc::clone(&heard);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        loop {
            // A client that is gone makes an error here.
            let Ok((length, from)) = datagrams.recv_from(&mut buffer) else { continue };
            let word = &buffer[..length];
            if word.starts_with(MARK) {
                ear.lock().expect("no panic").push((canonical(from), word.to_vec()));
            }
            let mut said = format!("{name} {} ", canonical(from)).into_bytes();
            said.extend(word);
            let _ = datagrams.send_to(&said, from);
        }
    });
    Server { heard }
}

fn talk(name: &str, mut stream: TcpStream) -> io::Result<()> {
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

/// One form of an address, however the socket that saw it was made.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Bytes without order, as many as no buffer of the way has.
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
pub struct Talk {
    stream: BufReader<TcpStream>,
}

impl Talk {
    pub fn open(spot: &Spot, to: SocketAddr) -> anyhow::Result<Self> {
        Self::from(spot, None, to)
    }

    pub fn from(spot: &Spot, from: Option<SocketAddr>, to: SocketAddr) -> anyhow::Result<Self> {
        let stream = spot.tcp(from, to).with_context(|| format!("{} -> {to}: connect", spot.name))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The client's own address.
    pub fn own(&self) -> SocketAddr {
        self.stream.get_ref().local_addr().expect("connected")
    }

    pub fn peer(&self) -> SocketAddr {
        self.stream.get_ref().peer_addr().expect("connected")
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the server hung up");
        Ok(line.trim().to_owned())
    }

    pub fn who(&mut self) -> anyhow::Result<Seen> {
        // A refused one has no peer (any more).
        let stream = self.stream.get_ref();
        let (own, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let said = self.stream.get_mut().write_all(b"who\n").map_err(anyhow::Error::from).and_then(|()| self.line());
        seen(&said.with_context(|| format!("{own} -> {peer}: who"))?)
    }

    pub fn down(&mut self, bytes: usize) -> anyhow::Result<()> {
        writeln!(self.stream.get_mut(), "down {bytes}")?;
        receive(&mut self.stream, bytes)
    }

    pub fn up(&mut self, bytes: usize) -> anyhow::Result<()> {
        writeln!(self.stream.get_mut(), "up {bytes}")?;
        send(self.stream.get_mut(), bytes)?;
        let said = self.line()?;
        ensure!(said == "right", "{said}");
        Ok(())
    }
}

fn seen(text: &str) -> anyhow::Result<Seen> {
    let (who, peer) = text.split_once(' ').with_context(|| format!("not an answer: {text:?}"))?;
    Ok(Seen { who: who.to_owned(), peer: peer.parse()? })
}

/// One datagram and its answer: what the server saw. The socket is a connected one.
pub fn say(socket: &UdpSocket, word: &[u8]) -> anyhow::Result<Seen> {
    socket.send(word)?;
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer)?;
    answer(&buffer[..length], word)
}

/// Takes an answer apart and compares what was heard.
pub fn answer(answer: &[u8], word: &[u8]) -> anyhow::Result<Seen> {
    let mut blanks = (0..answer.len()).filter(|at| answer[*at] == b' ');
    let end = blanks.nth(1).with_context(|| format!("not an answer: {:?}", String::from_utf8_lossy(answer)))?;
    ensure!(&answer[end + 1..] == word, "{} bytes came back otherwise", word.len());
    seen(std::str::from_utf8(&answer[..end])?)
}

/// One datagram from a new socket: what the server saw, and the client's own address.
pub fn ask_udp(spot: &Spot, to: SocketAddr, word: &[u8]) -> anyhow::Result<(Seen, SocketAddr)> {
    let socket = spot.udp(None, to)?;
    let seen = say(&socket, word).with_context(|| format!("{} -> {to}: {} bytes by UDP", spot.name, word.len()))?;
    Ok((seen, socket.local_addr()?))
}
