//! Tasks that fail get no requests for a while: found by their answers, and by checks.

use super::*;
use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::atomic::AtomicBool;

const GOOD: Ipv4Addr = Ipv4Addr::new(127, 88, 0, 1);
const BAD: Ipv4Addr = Ipv4Addr::new(127, 88, 0, 2);

/// A task that answers 200 while it is well, and 503 otherwise.
fn serve(address: Ipv4Addr, port: u16) -> (Arc<AtomicBool>, Arc<AtomicU32>) {
    let (well, asked) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicU32>::default());
    let (is_well, count) = (well.clone(), asked.clone());
    let listener = TcpListener::bind((address, port)).expect("a listener");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (is_well, count) = (is_well.clone(), count.clone());
            std::thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
                let mut first = String::new();
                for line in lines.map_while(Result::ok) {
                    if first.is_empty() {
                        first.clone_from(&line);
                    }
                    if !line.is_empty() {
                        continue;
                    }
                    if !first.contains("/healthz") {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    first.clear();
                    let status = if is_well.load(Ordering::Relaxed) { "200 OK" } else { "503 Service Unavailable" };
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{address}", address.to_string().len());
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (well, asked)
}

fn site(port: u16, more: &[(&str, &str)]) -> Site {
    let port = port.to_string();
    let labels = [("skep.http", "shop.test"), ("skep.http.port", port.as_str())];
    Site::new(&labels.iter().chain(more).copied().collect::<Vec<_>>(), &[GOOD, BAD])
}

/// The statuses of so many requests.
fn statuses(ingress: &Ingress, count: usize) -> Vec<String> {
    let url = format!("HTTP/[1-{count}]");
    let out = ingress.curl(&["-o", "/dev/null", "-w", "%{http_code} ", &url]);
    out.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_answers_fail_is_left_out_and_never_all_are() {
    let port = free_port();
    let (good, _) = serve(GOOD, port);
    let (well, asked) = serve(BAD, port);
    let ingress = Ingress::with("outlier", vec![site(port, &[])]).await;
    assert!(statuses(&ingress, 10).iter().all(|status| status == "200") && asked.load(Ordering::Relaxed) == 5);
    well.store(false, Ordering::Relaxed);
    let failed = statuses(&ingress, 40).iter().filter(|status| *status == "503").count();
    assert_eq!(failed, 5, "then it is left out");
    let status = ingress.status().await;
    assert_eq!(status.routes[0].left_out, [format!("task{BAD}")]);
    assert!(statuses(&ingress, 10).iter().all(|status| status == "200"));
    // The other one fails too: both are asked.
    good.store(false, Ordering::Relaxed);
    let before = asked.load(Ordering::Relaxed);
    assert!(statuses(&ingress, 20).iter().all(|status| status == "503"));
    assert!(asked.load(Ordering::Relaxed) > before && ingress.status().await.routes[0].left_out.is_empty());
    // It is asked again after its time, and stays.
    good.store(true, Ordering::Relaxed);
    well.store(true, Ordering::Relaxed);
    let before = asked.load(Ordering::Relaxed);
    eventually("it is asked again", Duration::from_secs(20), || async {
        anyhow::ensure!(statuses(&ingress, 4).iter().all(|status| status == "200"), "failed");
        anyhow::ensure!(asked.load(Ordering::Relaxed) > before + 4, "not yet");
        Ok(())
    })
    .await
    .expect("asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_checks_fail_gets_no_request_at_all() {
    let port = free_port();
    serve(GOOD, port);
    let (well, asked) = serve(BAD, port);
    let check = [("skep.http.check.path", "/healthz"), ("skep.http.check.interval", "100ms"), ("skep.http.check.timeout", "1s")];
    let ingress = Ingress::with("checks", vec![site(port, &check)]).await;
    let left_out = async |expected: usize| {
        eventually("the checks", Duration::from_secs(10), || async {
            let now = ingress.status().await.routes[0].left_out.len();
            anyhow::ensure!(now == expected, "{now}");
            Ok(())
        })
        .await
        .expect("found");
    };
    well.store(false, Ordering::Relaxed);
    left_out(1).await;
    let before = asked.load(Ordering::Relaxed);
    assert!(statuses(&ingress, 20).iter().all(|status| status == "200"), "no client sees it");
    assert_eq!(asked.load(Ordering::Relaxed), before);
    well.store(true, Ordering::Relaxed);
    left_out(0).await;
    assert!(statuses(&ingress, 10).iter().all(|status| status == "200"));
    assert_eq!(asked.load(Ordering::Relaxed), before + 5, "it is asked again");
}
