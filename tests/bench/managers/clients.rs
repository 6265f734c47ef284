//! Clients that write one after the other: over the Docker API, and to etcd by gRPC.

use super::cluster::{Clusters, System};
use crate::process::cpu;
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use skep::datapath::netns;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpStream, UnixStream};

/// Clients on one connection to etcd, as in its own documentation of benchmarks.
const PER_CONNECTION: usize = 10;
/// Bytes of a value.
const VALUE: usize = 64;

/// Where writes are sent to.
#[derive(Clone)]
pub enum Target {
    /// A Docker API.
    Api(PathBuf),
    /// From inside its own network namespace.
    Etcd { namespace: String, address: SocketAddr },
}

/// Clients of a system.
pub struct Load {
    pub system: System,
    pub target: Target,
    pub clients: usize,
}

pub struct Measured {
    /// Writes per second.
    pub rate: f64,
    /// Microseconds of the members' processor time per write.
    pub cpu: f64,
    /// Of a write, milliseconds.
    pub p50: f64,
    pub p99: f64,
}

impl Load {
    pub async fn run(self, clusters: &Clusters, warm_up: Duration, slice: Duration) -> Measured {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let mut tasks = Vec::new();
        let mut connection = None;
        for client in 0..self.clients {
            if client % PER_CONNECTION == 0
                && let Target::Etcd { .. } = &self.target
            {
                connection = Some(Grpc::connect(&self.target).await.unwrap());
            }
            let writer = Writer::new(self.target.clone(), connection.clone(), client);
            tasks.push(tokio::spawn(write_on(writer, stop.clone(), counts.clone())));
        }
        tokio::time::sleep(warm_up).await;
        let pids = clusters.pids(self.system);
        let used = || pids.iter().map(|pid| cpu(*pid)).sum::<f64>();
        let (before, begin) = (used(), Instant::now());
        counts.store(true, Ordering::Relaxed);
        tokio::time::sleep(slice).await;
        counts.store(false, Ordering::Relaxed);
        let (spent, time) = (used() - before, begin.elapsed());
        stop.store(true, Ordering::Relaxed);
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await.unwrap());
        }
        times.sort_unstable();
        let at = |percent: usize| {
            times
                .get((times.len() * percent / 100).min(times.len().saturating_sub(1)))
                .map_or(f64::NAN, |t| t.as_secs_f64() * 1e3)
        };
        let writes = times.len() as f64;
        Measured { rate: writes / time.as_secs_f64(), cpu: spent * 1e6 / writes, p50: at(50), p99: at(99) }
    }
}

/// Times of the writes that ended while they were counted.
async fn write_on(mut writer: Writer, stop: Arc<AtomicBool>, counts: Arc<AtomicBool>) -> Vec<Duration> {
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        writer.write().await.unwrap();
        if counts.load(Ordering::Relaxed) {
            times.push(begin.elapsed());
        }
    }
    // What it created is removed.
    writer.finish().await;
    times
}

/// One client.
pub struct Writer {
    target: Target,
    name: String,
    /// Of the config that is to be removed next.
    created: Option<String>,
    number: usize,
    http: Option<SendRequest<Full<Bytes>>>,
    grpc: Option<Grpc>,
}

impl Writer {
    pub fn new(target: Target, grpc: Option<Grpc>, client: usize) -> Self {
        let name = format!("c{client:05}-{:08x}", rand::random::<u32>());
        Self { target, name, created: None, number: 0, http: None, grpc }
    }

    /// One write.
    ///
    /// # Errors
    /// It was refused, or the connection was lost.
    pub async fn write(&mut self) -> anyhow::Result<()> {
        self.number += 1;
        if let Target::Etcd { .. } = self.target {
            let grpc = match &mut self.grpc {
                Some(grpc) => grpc,
                none => none.insert(Grpc::connect(&self.target).await?),
            };
            return grpc.put(&self.name, self.number).await;
        }
        if let Some(id) = self.created.take() {
            self.request("DELETE", &format!("/configs/{id}"), Bytes::new()).await?;
            return Ok(());
        }
        let data = "eHh4".repeat(VALUE / 3);
        let body = json!({ "Name": format!("{}-{}", self.name, self.number), "Data": data }).to_string();
        let reply = self.request("POST", "/configs/create", body.into()).await?;
        let reply: Value = serde_json::from_slice(&reply)?;
        self.created = reply["ID"].as_str().map(str::to_owned);
        Ok(())
    }

    async fn finish(mut self) {
        if self.created.is_some() {
            let _ = self.write().await;
        }
    }

    /// On the connection of before, as long as the server keeps it.
    async fn request(&mut self, method: &str, target: &str, body: Bytes) -> anyhow::Result<Bytes> {
        let Target::Api(path) = &self.target else { anyhow::bail!("no API") };
        let mut kept = self.http.take();
        if let Some(http) = &mut kept
            && http.ready().await.is_err()
        {
            kept = None;
        }
        let mut http = if let Some(http) = kept {
            http
        } else {
            let stream = UnixStream::connect(path).await?;
            let (http, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            http
        };
        let request = hyper::Request::builder()
            .method(method)
            .uri(target)
            .header("Host", "localhost")
            .header("Content-Type", "application/json");
        let reply = http.send_request(request.body(Full::new(body))?).await?;
        let (status, closes) = (reply.status(), reply.headers().get("connection").is_some_and(|value| value == "close"));
        let body = reply.into_body().collect().await?.to_bytes();
        anyhow::ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
        if !closes {
            self.http = Some(http);
        }
        Ok(body)
    }
}

/// A connection to etcd. Clones share it.
#[derive(Clone)]
pub struct Grpc {
    sender: h2::client::SendRequest<Bytes>,
    address: SocketAddr,
}

impl Grpc {
    async fn connect(target: &Target) -> anyhow::Result<Self> {
        let Target::Etcd { namespace, address } = target.clone() else { anyhow::bail!("not etcd") };
        let stream = tokio::task::spawn_blocking(move || {
            let namespace = std::fs::File::open(namespace)?;
            netns::run(namespace.as_fd(), || std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2)))?
                .map_err(anyhow::Error::from)
        });
        let stream = stream.await??;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::handshake(TcpStream::from_std(stream)?).await?;
        tokio::spawn(connection);
        Ok(Self { sender, address })
    }

    async fn put(&mut self, key: &str, number: usize) -> anyhow::Result<()> {
        let mut message = BytesMut::new();
        for (field, bytes) in [(1, key.as_bytes()), (2, format!("{number:0>VALUE$}").as_bytes())] {
            message.put_u8(field << 3 | 2);
            message.put_u8(bytes.len() as u8);
            message.put_slice(bytes);
        }
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(message.len() as u32);
        body.put(message);
        let request = hyper::Request::builder()
            .method("POST")
            .uri(format!("http://{}/etcdserverpb.KV/Put", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut sender = self.sender.clone().ready().await?;
        let (reply, mut send) = sender.send_request(request, false)?;
        send.send_data(body.freeze(), true)?;
        let mut reply = reply.await?;
        let refused = |fields: &hyper::HeaderMap| fields.get("grpc-status").is_some_and(|status| status != "0");
        anyhow::ensure!(!refused(reply.headers()), "{:?}", reply.headers());
        let body = reply.body_mut();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            let _ = body.flow_control().release_capacity(chunk.len());
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        anyhow::ensure!(!refused(&trailers) && trailers.contains_key("grpc-status"), "{trailers:?}");
        Ok(())
    }
}
