//! The HTTP client under the ACME library: a time limit per request, and the status and `Retry-After` of the last answer, which
//! the library drops.

use super::new_account::NewAccountRequest;
use crate::http::{HttpsClient, Request};
use crate::sync::lock;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longest `Retry-After` that is followed.
pub(super) const MOST_RETRY_AFTER: Duration = Duration::from_hours(7 * 24);

/// What the authority answered last.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LastAnswer {
    /// 0: there was none.
    pub status: u16,
    pub retry_after: Option<Duration>,
}

/// The client. A clone shares what was answered last.
#[derive(Clone)]
pub(super) struct AcmeHttp {
    https: HttpsClient,
    last: Arc<Mutex<LastAnswer>>,
    /// What the library's requests for an account say.
    new_account: Option<Arc<NewAccountRequest>>,
}

impl AcmeHttp {
    pub fn new(https: HttpsClient) -> Self {
        Self { https, last: Arc::default(), new_account: None }
    }
    /// For a new account alone: every request with content becomes this one.
    pub fn registering(self, request: NewAccountRequest) -> Self {
        Self { new_account: Some(Arc::new(request)), ..self }
    }
    pub fn last(&self) -> LastAnswer {
        *lock(&self.last)
    }
}

impl HttpClient for AcmeHttp {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            *lock(&client.last) = LastAnswer::default();
            let (head, body) = request.into_parts();
            let mut body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            if let Some(new_account) = client.new_account.as_ref().filter(|_| !body.is_empty()) {
                body = new_account.amended(&body).map_err(|error| Error::Other(error.into()))?;
            }
            let response = client.https.send(Request::from_parts(head, body)).await;
            let response = response.map_err(|error| Error::Other(Box::new(error)))?;
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            let retry_after = header("retry-after").and_then(|value| retry_after(value, header("date")));
            *lock(&client.last) = LastAnswer { status: response.status().as_u16(), retry_after };
            Ok(BytesResponse::from(response.map(Full::new)))
        })
    }
}

/// Seconds, or a date, which is counted from the answer's own date.
fn retry_after(value: &str, date: Option<&str>) -> Option<Duration> {
    let value = value.trim();
    let wait = if let Ok(seconds) = value.parse() {
        Duration::from_secs(seconds)
    } else {
        let read = |text: &str| time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc2822).ok();
        Duration::try_from(read(&value.replace("GMT", "+0000"))? - read(&date?.replace("GMT", "+0000"))?).unwrap_or_default()
    };
    Some(wait.min(MOST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let date = Some("Sun, 29 Nov 2026 22:00:00 GMT");
        for (value, expected) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 29 Nov 2026 22:01:30 GMT", Some(90)),
            ("Sun, 29 Nov 2026 21:00:00 GMT", Some(0)),
            ("999999999", Some(7 * 24 * 3600)),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value, date), expected.map(Duration::from_secs), "{value}");
        }
    }
}
