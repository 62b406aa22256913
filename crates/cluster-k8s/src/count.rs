//! Counts the requests that this process makes of an API server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::{Method, Request};
use kube::Client;
use kube::client::Body;
use tokio::time::Instant;

use crate::apply::Place;

const MINUTE: Duration = Duration::from_secs(60);

/// How often what was asked of an API server, since this binding was opened.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    by_kind: Mutex<BTreeMap<String, u64>>,
}

impl Requests {
    fn add(&self, kind: String) {
        let mut all = self.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry(kind).or_default() += 1;
    }

    /// By verb and resource, as in a Role: `watch pods`.
    pub(crate) fn by_kind(&self) -> BTreeMap<String, u64> {
        self.by_kind.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A client that counts what it sends. Retries below it are not seen.
pub(crate) fn counted(client: Client) -> (Client, Arc<Requests>) {
    let requests = Arc::new(Requests::default());
    let (counter, namespace) = (requests.clone(), client.default_namespace().to_owned());
    let service = tower::service_fn(move |request: Request<Body>| {
        counter.add(kind(request.method(), request.uri().path(), request.uri().query()));
        let client = client.clone();
        async move { client.send(request).await }
    });
    (Client::new(service, namespace), requests)
}

/// The verb and the resource of a request, as the API server's authorization names them.
fn kind(method: &Method, path: &str, query: Option<&str>) -> String {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    match parts.next() {
        // `/api/v1/…`, `/apis/GROUP/VERSION/…`
        Some("api") => drop(parts.next()),
        Some("apis") => drop(parts.nth(1)),
        _ => return format!("{} {path}", method.as_str().to_lowercase()),
    }
    let rest: Vec<&str> = parts.collect();
    let rest = match rest.as_slice() {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    };
    let (resource, named) = match rest {
        [resource] => ((*resource).to_owned(), false),
        [resource, _] => ((*resource).to_owned(), true),
        [resource, _, sub @ ..] => (format!("{resource}/{}", sub.join("/")), true),
        [] => (path.to_owned(), false),
    };
    let watches = query.is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
    let verb = match *method {
        Method::GET if watches => "watch",
        Method::GET if named => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => method.as_str(),
    };
    format!("{verb} {resource}")
}

/// Logs once a minute what the minute has cost; to be aborted.
pub(crate) async fn log(place: Arc<Place>) {
    let mut before = BTreeMap::new();
    let mut next = Instant::now() + MINUTE;
    loop {
        tokio::time::sleep_until(next).await;
        next += MINUTE;
        let now = place.requests.by_kind();
        let news: BTreeMap<&str, u64> = (now.iter())
            .map(|(kind, count)| (kind.as_str(), count - before.get(kind).copied().unwrap_or(0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let total: u64 = news.values().sum();
        tracing::debug!(cluster = place.options.name, total, ?news, "requests of the last minute");
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_named_as_rights_are() {
        let base = "/apis/apps/v1/namespaces/larder/statefulsets";
        let cases = [
            (Method::GET, base.to_owned(), Some("watch=true&x=1"), "watch statefulsets"),
            (Method::GET, base.to_owned(), Some("limit=1"), "list statefulsets"),
            (Method::PATCH, format!("{base}/n-1"), None, "patch statefulsets"),
            (Method::GET, "/api/v1/pods".to_owned(), None, "list pods"),
            (Method::GET, "/api/v1/nodes/w".to_owned(), None, "get nodes"),
            (
                Method::GET,
                "/api/v1/namespaces/larder/pods/n-1-0/portforward".to_owned(),
                Some("ports=7310"),
                "get pods/portforward",
            ),
            (Method::POST, "/api/v1/namespaces".to_owned(), None, "create namespaces"),
            (Method::GET, "/api/v1/namespaces/larder".to_owned(), None, "get namespaces"),
            (Method::GET, "/version".to_owned(), None, "get /version"),
        ];
        for (method, path, query, wanted) in cases {
            assert_eq!(kind(&method, &path, query), wanted, "{method} {path}");
        }
    }
}
