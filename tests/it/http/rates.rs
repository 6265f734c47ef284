//! Live rates of a route and the end of its certificate, as `skep http` shows them.

use super::*;
use skep::ingress::http::RouteRates;

#[tokio::test(flavor = "multi_thread")]
async fn rates_rise_with_the_requests_and_a_certificate_has_an_end() {
    let address = Ipv4Addr::new(127, 3, 0, 1);
    let port = free_port();
    task::serve(address, port);
    let labels = [("skep.http", "shop.test"), ("skep.http.port", &port.to_string())];
    let site = Site { certificate: Some(pem("shop.test")), ..Site::new(&labels, &[address]) };
    let ingress = Ingress::with("rates", vec![site]).await;
    let rates = async || ingress.status().await.routes[0].rates;
    eventually("a first reading", Duration::from_secs(10), || async {
        anyhow::ensure!(rates().await.window_ms > 0);
        Ok(())
    })
    .await
    .expect("read");
    assert_eq!(RouteRates { window_ms: 0, ..rates().await }, RouteRates::default(), "no request yet");
    ingress.curl(&["HTTP/a", "HTTP/b", "HTTP/c", "HTTP/cut"]);
    let seen = rates().await;
    assert_eq!((seen.requests, seen.errors), (4, 1));
    assert!(seen.p50_us > 0 && seen.p50_us <= seen.p99_us && seen.tenths_per_second() > 0, "{seen:?}");
    let status = ingress.status().await;
    assert_eq!(status.routes[0].certificate, "secret");
    assert!(status.routes[0].certificate_end.is_some_and(|end| end > Timestamp(0)), "{:?}", status.routes[0]);
}
