//! Work in network namespaces: round trips, connections, streams, datagrams; and how the sides of a comparison alternate.

use crate::report::median;
use skep::datapath::netns;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a round trip.
const SMALL: usize = 64;
/// Bytes of one write to a stream.
const LARGE: usize = 128 << 10;

/// A network namespace.
#[derive(Clone)]
pub struct Namespace(Arc<File>);

impl Namespace {
    pub fn open(path: &str) -> Self {
        Self(Arc::new(File::open(path).unwrap_or_else(|e| panic!("{path}: {e}"))))
    }
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        netns::run(self.0.as_fd(), f).unwrap()
    }
    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = self.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(3)))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(stream)
    }
    /// Serves until the process exits: TCP and UDP on `port`; on the next port accepts connections and closes them.
    pub fn serve(&self, port: u16) {
        let bind = |port| self.run(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        let (listener, dropper) = (bind(port), bind(port + 1));
        let datagrams = self.run(move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || drop(serve_stream(stream)));
            }
        });
        std::thread::spawn(move || dropper.incoming().for_each(drop));
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, peer)) = datagrams.recv_from(&mut buffer) {
                let _ = datagrams.send_to(&buffer[..length], peer);
            }
        });
    }
}

fn serve_stream(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut mode = [0];
    stream.read_exact(&mut mode)?;
    let mut buffer = vec![0; LARGE];
    match &mode {
        b"e" => {
            pin_to(Some(1));
            loop {
                stream.read_exact(&mut buffer[..SMALL])?;
                stream.write_all(&buffer[..SMALL])?;
            }
        }
        b"u" => {
            let mut received = 0_u64;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return stream.write_all(&received.to_be_bytes()),
                    n => received += n as u64,
                }
            }
        }
        _ => loop {
            stream.write_all(&buffer)?;
        },
    }
}

/// Pins the calling thread to a processor, or removes the pinning. Where the scheduler runs the two ends of a connection
/// affects a round trip more than the mesh does.
fn pin_to(cpu: Option<usize>) {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = rustix::thread::CpuSet::new();
    match cpu {
        Some(cpu) => set.set(cpu % all),
        None => (0..all).for_each(|cpu| set.set(cpu)),
    }
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

/// One side of a comparison: works for about the time that it is called with; returns how much it did, and the time it took.
pub type Side = Box<dyn FnMut(Duration) -> (f64, Duration)>;

/// Round trips over one connection.
pub fn trips(namespace: &Namespace, to: SocketAddr) -> Side {
    let mut stream = namespace.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
    stream.write_all(b"e").unwrap();
    Box::new(move |time| {
        pin_to(Some(0));
        let (start, mut count, mut buffer) = (Instant::now(), 0.0, [7; SMALL]);
        while start.elapsed() < time {
            stream.write_all(&buffer).unwrap();
            stream.read_exact(&mut buffer).unwrap();
            count += 1.0;
        }
        let took = start.elapsed();
        pin_to(None);
        (count, took)
    })
}

/// Round trips of datagrams.
pub fn datagrams(namespace: &Namespace, to: SocketAddr) -> Side {
    let socket = namespace.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    Box::new(move |time| {
        let (start, mut count, mut buffer) = (Instant::now(), 0.0, [7; SMALL]);
        while start.elapsed() < time {
            socket.send(&buffer).unwrap();
            count += f64::from(u8::from(socket.recv(&mut buffer).is_ok()));
        }
        (count, start.elapsed())
    })
}

/// Datagrams from a socket to itself over loopback: each one sent and received with an address.
pub fn loopback_datagrams(namespace: &Namespace) -> Side {
    let socket = namespace.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let address = socket.local_addr().unwrap();
    Box::new(move |time| {
        let (start, mut count, mut buffer) = (Instant::now(), 0.0, [7; SMALL]);
        while start.elapsed() < time {
            for _ in 0..64 {
                socket.send_to(&buffer, address).unwrap();
                socket.recv_from(&mut buffer).unwrap();
            }
            count += 64.0;
        }
        (count, start.elapsed())
    })
}

/// Connections: the time that `connect` takes. The next one is opened after the server has closed the last, so that its
/// backlog never fills.
pub fn connections(namespace: &Namespace, to: SocketAddr) -> Side {
    let namespace = namespace.clone();
    Box::new(move |time| {
        namespace.run(|| {
            let (start, mut count, mut inside) = (Instant::now(), 0.0, Duration::ZERO);
            while start.elapsed() < time {
                let before = Instant::now();
                let mut stream = TcpStream::connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
                inside += before.elapsed();
                let _ = stream.read(&mut [0]);
                // Avoids TIME_WAIT: thousands of such sockets would change what is measured.
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                count += 1.0;
            }
            (count, inside)
        })
    })
}

/// A stream of bytes to the server.
pub fn upload(namespace: &Namespace, to: SocketAddr) -> Side {
    let namespace = namespace.clone();
    Box::new(move |time| {
        let mut stream = namespace.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
        let block = vec![7; LARGE];
        let start = Instant::now();
        stream.write_all(b"u").unwrap();
        while start.elapsed() < time {
            stream.write_all(&block).unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = [0; 8];
        stream.read_exact(&mut received).unwrap();
        (u64::from_be_bytes(received) as f64, start.elapsed())
    })
}

/// A stream of bytes from the server.
pub fn download(namespace: &Namespace, to: SocketAddr) -> Side {
    let namespace = namespace.clone();
    Box::new(move |time| {
        let mut stream = namespace.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
        let mut block = vec![7; LARGE];
        stream.write_all(b"d").unwrap();
        let (start, mut received) = (Instant::now(), 0.0);
        while start.elapsed() < time {
            received += stream.read(&mut block).unwrap() as f64;
        }
        (received, start.elapsed())
    })
}

/// Runs the sides alternately, forward and backward, `slices` times a round, three rounds. For each round and side: work per
/// second, and its ratio to the first side in the same turn; medians, because other processes use the machine too.
pub fn rounds(slices: u32, slice: Duration, sides: &mut [Side]) -> Vec<Vec<(f64, f64)>> {
    let mut all = Vec::new();
    for _ in 0..3 {
        let mut done = vec![(Vec::new(), Vec::new()); sides.len()];
        for turn in 0..slices {
            let mut speeds = vec![0.0; sides.len()];
            for n in 0..sides.len() {
                let side = if turn % 2 == 0 { n } else { sides.len() - 1 - n };
                let (count, time) = sides[side](slice);
                speeds[side] = count / time.as_secs_f64();
            }
            for (side, speed) in speeds.iter().enumerate() {
                done[side].0.push(*speed);
                done[side].1.push(speed / speeds[0]);
            }
        }
        all.push(done.into_iter().map(|(speeds, ratios)| (median(&speeds), median(&ratios))).collect());
    }
    all
}
