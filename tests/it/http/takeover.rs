//! Another process takes over, and the last one ends.

use super::super::load::{Load, Target};
use super::*;
use std::fs::File;

const ONE: Ipv4Addr = Ipv4Addr::new(127, 83, 0, 1);

/// Answers as the clients of [`Load`] expect.
fn serve_ok(address: Ipv4Addr, port: u16) {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = TcpListener::bind((address, port)).expect("a listener");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
                for line in lines.map_while(Result::ok) {
                    if line.is_empty() && stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nt1 ok").is_err() {
                        return;
                    }
                }
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_takes_over_loses_no_request_and_has_the_table() {
    let port = free_port();
    serve_ok(ONE, port);
    let mut ingress =
        Ingress::with("takeover", vec![Site::new(&[("skep.http", "test"), ("skep.http.port", &port.to_string())], &[ONE])]).await;
    let here = File::open("/proc/self/ns/net").expect("a namespace");
    let targets =
        |what: &str| (0..4).map(|number| Target::new(&here, ingress.plain(), format!("{what} {number}"))).collect::<Vec<_>>();
    let pause = Duration::from_millis(2);
    let loads = [Load::http(targets("new"), pause, false), Load::http(targets("kept"), pause, true)];
    let more = async |loads: &[Load; 2]| {
        let before: Vec<usize> = loads.iter().flat_map(Load::answers).collect();
        eventually("answers", Duration::from_secs(10), || async {
            let now = loads.iter().flat_map(Load::answers);
            anyhow::ensure!(now.zip(&before).all(|(now, before)| now > before + 30), "too few");
            Ok(())
        })
        .await
        .expect("every client is answered");
    };
    more(&loads).await;
    for _ in 0..2 {
        let next = serve(Path::new(SKEP), &ingress.dir.join("http.sock"));
        let mut last = std::mem::replace(&mut ingress.child, next);
        let pid = ingress.child.id();
        eventually("the next process to answer", Duration::from_secs(15), || async {
            let status: HttpStatus = ingress.control().get("/state").await?.json()?;
            anyhow::ensure!(status.pid == Some(pid) && status.listeners.len() == 4, "{status:?}");
            Ok(())
        })
        .await
        .expect("it took over");
        more(&loads).await;
        eventually("the last process to end", Duration::from_secs(10), || {
            let ended = last.try_wait();
            async move { ended?.map(drop).ok_or_else(|| anyhow::anyhow!("it runs")) }
        })
        .await
        .expect("it ends when its clients have left");
    }
    for load in loads {
        for tally in load.stop().await {
            assert!(tally.failed.is_empty(), "{tally}");
        }
    }
}

#[tokio::test]
async fn a_port_that_another_program_has_is_named_and_taken_once_it_is_free() {
    let ingress = Ingress::start("taken").await;
    let other = TcpListener::bind((Ipv4Addr::UNSPECIFIED, ingress.ports.plain)).expect("a listener");
    let status = ingress.set(vec![Site::new(&[("skep.http", "shop.test")], &[])]).await;
    let failed: Vec<_> = status.listeners.iter().filter(|listener| listener.error.is_some()).collect();
    assert_eq!(failed.len(), 1, "{status:?}");
    assert!(failed[0].error.as_ref().is_some_and(|error| error.contains("in use")), "{failed:?}");
    let answer = ingress.curl(&["HTTPS/"]);
    assert!(answer.starts_with("503"), "the others serve: {answer}");
    drop(other);
    eventually("the port", Duration::from_secs(10), || async {
        let answer = ingress.curl(&["-4", "HTTP/"]);
        anyhow::ensure!(answer.starts_with("503"), "{answer}");
        Ok(())
    })
    .await
    .expect("it is served");
}
