//! A server in the place of a task: it answers with what it was sent, as JSON in one line.

use serde_json::json;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

/// Serves at an address until the test ends. A path that ends in `/slow` is answered after a second, one in `/cut` not at
/// all; after an upgrade everything is sent back.
pub fn serve(address: Ipv4Addr, port: u16) {
    let listener = TcpListener::bind((address, port)).expect("a listener");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || while answer(&stream).is_some() {});
        }
    });
}

fn answer(mut stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|length| *length > 0)?;
    let (mut headers, mut length) = (serde_json::Map::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().ok()?;
        }
        headers.insert(name.to_ascii_lowercase(), json!(value));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let path = first.split(' ').nth(1)?;
    if path.ends_with("/cut") {
        return None;
    }
    if path.ends_with("/slow") {
        std::thread::sleep(Duration::from_secs(1));
    }
    if headers.contains_key("upgrade") {
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").ok()?;
        std::io::copy(&mut stream.try_clone().ok()?, &mut stream).ok()?;
        return None;
    }
    let at = stream.local_addr().ok()?.ip().to_string();
    let text = format!("{}\n", json!({ "at": at, "path": path, "headers": headers, "body": body.len() }));
    let head = format!("HTTP/1.1 200 OK\r\nServer: task\r\nContent-Length: {}\r\n\r\n", text.len());
    stream.write_all((head + &text).as_bytes()).ok()
}
