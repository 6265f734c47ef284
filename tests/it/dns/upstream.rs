//! A fake resolver outside the cluster. How it answers depends on the first label of the name.

use super::*;
use hickory_proto::rr::{Record, rdata};
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Its answer to names whose first label is not listed in [`replies`].
pub const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

pub struct Upstream {
    pub address: Ipv4Addr,
    pub seen: Arc<Mutex<Vec<Message>>>,
    /// Queries that it has not answered (names that begin with `silent`).
    pub silent: Arc<AtomicUsize>,
    _loops: JoinSet<()>,
}

impl Upstream {
    pub async fn start(address: Ipv4Addr) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let silent = Arc::new(AtomicUsize::new(0));
        let udp = UdpSocket::bind((address, 53)).await.unwrap();
        let tcp = TcpListener::bind((address, 53)).await.unwrap();
        let mut loops = JoinSet::new();
        let (s, quiet) = (Arc::clone(&seen), Arc::clone(&silent));
        loops.spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let Ok((length, from)) = udp.recv_from(&mut buffer).await else { continue };
                let message = Message::from_vec(&buffer[..length]).unwrap();
                s.lock().unwrap().push(message.clone());
                if name(&message).starts_with("silent") {
                    quiet.fetch_add(1, Ordering::Relaxed);
                }
                for reply in replies(&message, true) {
                    let _ = udp.send_to(&reply, from).await;
                }
            }
        });
        let s = Arc::clone(&seen);
        loops.spawn(async move {
            loop {
                let Ok((mut stream, _)) = tcp.accept().await else { continue };
                let Some(bytes) = receive_tcp(&mut stream).await else { continue };
                let message = Message::from_vec(&bytes).unwrap();
                s.lock().unwrap().push(message.clone());
                for reply in replies(&message, false) {
                    send_tcp(&mut stream, &reply).await;
                }
            }
        });
        Self { address, seen, silent, _loops: loops }
    }
    pub fn names(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(name).collect()
    }
}

fn name(message: &Message) -> String {
    message.queries[0].name().to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

fn replies(query: &Message, udp: bool) -> Vec<Vec<u8>> {
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.add_query(query.queries[0].clone());
    reply.edns.clone_from(&query.edns);
    let record = |address: Ipv4Addr| Record::from_rdata(query.queries[0].name().clone(), 60, RData::A(rdata::A(address)));
    match name(query).split('.').next().unwrap() {
        "broken" => reply.metadata.response_code = ResponseCode::ServFail,
        "unknown" => reply.metadata.response_code = ResponseCode::NXDomain,
        "big" | "stubborn" if udp => reply.metadata.truncation = true,
        "silent" | "stubborn" => return Vec::new(),
        "big" => reply.answers = (0..100).map(|n| record(Ipv4Addr::new(198, 51, 100, n))).collect(),
        "forged" => {
            // A wrong id, another question, an unparsable packet, a query, and only then the true answer.
            let forged = Ipv4Addr::new(203, 0, 113, 66);
            let mut wrong_id = reply.clone();
            wrong_id.metadata.id ^= 1;
            wrong_id.add_answer(record(forged));
            let mut other = reply.clone();
            other.queries[0].name = Name::from_ascii("other.test.").unwrap();
            other.add_answer(record(forged));
            reply.add_answer(record(ANSWER));
            let packets = [wrong_id.to_vec().unwrap(), other.to_vec().unwrap(), vec![0; 5], query.to_vec().unwrap()];
            return packets.into_iter().chain([reply.to_vec().unwrap()]).collect();
        }
        _ => {
            reply.add_answer(record(ANSWER));
        }
    }
    vec![reply.to_vec().unwrap()]
}
