//! What a route changes in the heads of requests and answers.

use super::path;
use crate::model::http::{HttpEntry, HttpRedirect, HttpRoute};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};

/// A request on its way to a task.
///
/// # Errors
/// A header or path that cannot be set.
pub(super) fn request(request: &mut RequestHeader, route: &HttpRoute) -> Result<()> {
    if request.uri.authority().is_none() && request.raw_path().first() != Some(&b'/') && request.uri.path().starts_with('/') {
        // The absolute form has the host a second time.
        let uri = request.uri.clone();
        request.set_uri(uri);
    }
    // HTTP/2 may send each cookie on its own, HTTP/1 has one field for all.
    let cookies: Vec<&[u8]> = request.headers.get_all("cookie").into_iter().map(AsRef::<[u8]>::as_ref).collect();
    if cookies.len() > 1 {
        let joined = cookies.join(&b"; "[..]);
        request.insert_header("cookie", joined)?;
    }
    if route.strip {
        let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
        let stripped = path::stripped(path, &route.prefix);
        request.set_raw_path(stripped.as_bytes())?;
        request.insert_header("x-forwarded-prefix", route.prefix.as_str())?;
    }
    if !route.auth.is_empty() {
        request.remove_header("authorization");
    }
    for (name, value) in &route.request_headers {
        let value = value.expose();
        if value.is_empty() {
            request.remove_header(name.as_str());
        } else {
            request.insert_header(name.clone(), value.as_str())?;
        }
    }
    Ok(())
}

/// An answer on its way to the client, which is to stay with `task`.
///
/// # Errors
/// A header that cannot be set.
pub(super) fn answer(response: &mut ResponseHeader, route: &HttpRoute, task: Option<&str>) -> Result<()> {
    if !route.sticky.is_empty()
        && let Some(task) = task
    {
        let has_tls_alone = route.entry == HttpEntry::Tls || route.redirect == Some(HttpRedirect::Https);
        let secure = if has_tls_alone { "; Secure" } else { "" };
        response.append_header("set-cookie", format!("{}={task}; Path=/; HttpOnly; SameSite=Lax{secure}", route.sticky))?;
    }
    for (name, value) in &route.response_headers {
        if value.is_empty() {
            response.remove_header(name.as_str());
        } else {
            response.insert_header(name.clone(), value.as_str())?;
        }
    }
    Ok(())
}
