//! Work in network namespaces: round trips, connections, streams, datagrams; and how the sides of a comparison take turns.

use crate::report::median;
use skep::datapath::netns;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a round trip and of one write to a stream.
const SMALL: usize = 64;
const LARGE: usize = 128 << 10;

/// A network namespace.
#[derive(Clone)]
pub struct Place(Arc<File>);

impl Place {
    pub fn at(path: &str) -> Self {
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
    /// Serves until the process ends: TCP and UDP at `port`, and at the next one takes connections and drops them.
    pub fn serve(&self, port: u16) {
        let bind = |port| self.run(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        let (listener, dropper) = (bind(port), bind(port + 1));
        let datagrams = self.run(move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || drop(answer(stream)));
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

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut what = [0];
    stream.read_exact(&mut what)?;
    let mut buffer = vec![0; LARGE];
    match &what {
        b"e" => {
            stay_on(Some(1));
            loop {
                stream.read_exact(&mut buffer[..SMALL])?;
                stream.write_all(&buffer[..SMALL])?;
            }
        }
        b"u" => {
            let mut all = 0_u64;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return stream.write_all(&all.to_be_bytes()),
                    n => all += n as u64,
                }
            }
        }
        _ => loop {
            stream.write_all(&buffer)?;
        },
    }
}

/// Keeps the calling thread on one processor, or lets it go. Where the scheduler puts the two ends of a connection decides
/// more about a round trip than the mesh does.
fn stay_on(cpu: Option<usize>) {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = rustix::thread::CpuSet::new();
    match cpu {
        Some(cpu) => set.set(cpu % all),
        None => (0..all).for_each(|cpu| set.set(cpu)),
    }
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

/// One side of a comparison: works for a while, says how much it did and in what time.
pub type Side = Box<dyn FnMut(Duration) -> (f64, Duration)>;

/// Round trips over one connection.
pub fn trips(place: &Place, to: SocketAddr) -> Side {
    let mut stream = place.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
    stream.write_all(b"e").unwrap();
    Box::new(move |time| {
        stay_on(Some(0));
        let (start, mut count, mut buffer) = (Instant::now(), 0.0, [7; SMALL]);
        while start.elapsed() < time {
            stream.write_all(&buffer).unwrap();
            stream.read_exact(&mut buffer).unwrap();
            count += 1.0;
        }
        let took = start.elapsed();
        stay_on(None);
        (count, took)
    })
}

/// Round trips of datagrams.
pub fn datagrams(place: &Place, to: SocketAddr) -> Side {
    let socket = place.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
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

/// Datagrams to nobody in particular and back: each one sent and received with an address.
pub fn loose_datagrams(place: &Place) -> Side {
    let socket = place.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let own = socket.local_addr().unwrap();
    Box::new(move |time| {
        let (start, mut count, mut buffer) = (Instant::now(), 0.0, [7; SMALL]);
        while start.elapsed() < time {
            for _ in 0..64 {
                socket.send_to(&buffer, own).unwrap();
                socket.recv_from(&mut buffer).unwrap();
            }
            count += 64.0;
        }
        (count, start.elapsed())
    })
}

/// Connections: the time that `connect` takes. The next one is made when the server has dropped the last, so that its queue
/// never fills.
pub fn connections(place: &Place, to: SocketAddr) -> Side {
    let place = place.clone();
    Box::new(move |time| {
        place.run(|| {
            let (start, mut count, mut inside) = (Instant::now(), 0.0, Duration::ZERO);
            while start.elapsed() < time {
                let before = Instant::now();
                let mut stream = TcpStream::connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
                inside += before.elapsed();
                let _ = stream.read(&mut [0]);
                // No TIME_WAIT: thousands of these would change what is measured.
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                count += 1.0;
            }
            (count, inside)
        })
    })
}

/// A stream of bytes to the server.
pub fn upload(place: &Place, to: SocketAddr) -> Side {
    let place = place.clone();
    Box::new(move |time| {
        let mut stream = place.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
        let block = vec![7; LARGE];
        let start = Instant::now();
        stream.write_all(b"u").unwrap();
        while start.elapsed() < time {
            stream.write_all(&block).unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = [0; 8];
        stream.read_exact(&mut got).unwrap();
        (u64::from_be_bytes(got) as f64, start.elapsed())
    })
}

/// A stream of bytes from the server.
pub fn download(place: &Place, to: SocketAddr) -> Side {
    let place = place.clone();
    Box::new(move |time| {
        let mut stream = place.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
        let mut block = vec![7; LARGE];
        stream.write_all(b"d").unwrap();
        let (start, mut all) = (Instant::now(), 0.0);
        while start.elapsed() < time {
            all += stream.read(&mut block).unwrap() as f64;
        }
        (all, start.elapsed())
    })
}

/// Lets the sides take turns, forward and backward, many times a round. For each round and side: what it did per second, and
/// how that compares with the first side in the same turn; medians, because others work on the machine too.
pub fn rounds(slices: u32, slice: Duration, sides: &mut [Side]) -> Vec<Vec<(f64, f64)>> {
    let mut all = Vec::new();
    for _ in 0..3 {
        let mut done = vec![(Vec::new(), Vec::new()); sides.len()];
        for turn in 0..slices {
            let mut speeds = vec![0.0; sides.len()];
            for n in 0..sides.len() {
                let at = if turn % 2 == 0 { n } else { sides.len() - 1 - n };
                let (count, time) = sides[at](slice);
                speeds[at] = count / time.as_secs_f64();
            }
            for (at, speed) in speeds.iter().enumerate() {
                done[at].0.push(*speed);
                done[at].1.push(speed / speeds[0]);
            }
        }
        all.push(done.into_iter().map(|(speeds, ratios)| (median(&speeds), median(&ratios))).collect());
    }
    all
}
