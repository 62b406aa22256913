//! List, then watch, for ever: keeps one store as the API server's words come.
//!
//! A watch that is silent proves nothing, so each one is short: the API server ends it after
//! half a minute, and one that has not ended a little later is a dead connection.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{ListParams, ObjectMeta, WatchEvent, WatchParams};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::error::{chain, with_next_move};
use crate::store::{Item, Store};

/// The API server ends a watch after this long, and it is resumed where it ended.
const LIFE: Duration = Duration::from_secs(30);
/// For an answer of the API server, and for the end of a watch that is due.
const DEADLINE: Duration = Duration::from_secs(8);
/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Objects in one answer to a list.
const PAGE: u32 = 500;

/// Says that something of a group has changed.
pub(crate) type News = Arc<dyn Fn(&str) + Send + Sync>;

/// What is watched, and what is kept of it.
pub(crate) struct Watch<K, V> {
    pub(crate) api: Api<K>,
    /// Of labels.
    pub(crate) selector: Option<String>,
    /// Of fields.
    pub(crate) fields: Option<&'static str>,
    /// What is kept, from what is told.
    pub(crate) keep: fn(K) -> V,
    /// What it is of.
    pub(crate) group: fn(&ObjectMeta) -> String,
    pub(crate) store: Arc<Store<V>>,
    pub(crate) news: News,
}

/// Why a watch did not go on.
enum Ended {
    /// As it shall: it is resumed.
    InTime,
    /// The API server has forgotten what came since: it has to list again.
    Expired,
    Failed(String),
}

impl<K, V> Watch<K, V>
where
    K: Resource<DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
    V: Send + Sync + 'static,
{
    /// Never ends; to be aborted.
    pub(crate) async fn run(self) {
        let mut version = None;
        let mut pause = PAUSE.0;
        loop {
            let begin = Instant::now();
            match Box::pin(self.round(&mut version)).await {
                Ended::InTime => {
                    // One that ends at once would be asked for in a hot loop.
                    if begin.elapsed() < Duration::from_secs(1) {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(PAUSE.1);
                    } else {
                        pause = PAUSE.0;
                    }
                }
                Ended::Expired => {
                    version = None;
                    tokio::time::sleep(PAUSE.0).await;
                }
                Ended::Failed(reason) => {
                    tracing::debug!(kind = %K::kind(&()), reason, "watch broken");
                    if begin.elapsed() > LIFE / 2 {
                        pause = PAUSE.0;
                    }
                    self.store.broke(reason);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    async fn round(&self, version: &mut Option<String>) -> Ended {
        let from = match version {
            Some(version) => version.clone(),
            None => match self.list().await {
                Ok(listed) => version.insert(listed).clone(),
                Err(ended) => return ended,
            },
        };
        let params = WatchParams {
            label_selector: self.selector.clone(),
            field_selector: self.fields.map(str::to_owned),
            timeout: u32::try_from(LIFE.as_secs()).ok(),
            bookmarks: true,
            send_initial_events: false,
        };
        let opening = tokio::time::timeout(DEADLINE, self.api.watch(&params, &from));
        let mut events = match opening.await {
            Ok(Ok(events)) => pin!(events),
            Ok(Err(error)) => return failed(&error),
            Err(_) => return Ended::Failed(silent("opening a watch")),
        };
        self.store.opened();
        let due = Instant::now() + LIFE + DEADLINE;
        loop {
            let event = match tokio::time::timeout_at(due, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error))) => return failed(&error),
                Ok(None) => return Ended::InTime,
                Err(_) => return Ended::Failed(silent("ending a watch")),
            };
            let told = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.told(object, false)
                }
                WatchEvent::Deleted(object) => self.told(object, true),
                WatchEvent::Bookmark(bookmark) => {
                    let text = bookmark.metadata.resource_version;
                    number(&text).map(|now| {
                        self.store.advance(now);
                        text
                    })
                }
                WatchEvent::Error(status) => {
                    return failed(&kube::Error::Api(status));
                }
            };
            match told {
                Ok(now) => *version = Some(now),
                Err(reason) => return Ended::Failed(reason),
            }
        }
    }

    /// Everything, page by page; it counts when all of it is there.
    async fn list(&self) -> Result<String, Ended> {
        let mut params = ListParams {
            label_selector: self.selector.clone(),
            field_selector: self.fields.map(str::to_owned),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        let mut items = Vec::new();
        loop {
            let page = tokio::time::timeout(DEADLINE, self.api.list(&params)).await;
            let page = match page {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => return Err(failed(&error)),
                Err(_) => return Err(Ended::Failed(silent("listing"))),
            };
            items.extend(page.items.into_iter().map(|object| self.item(object)));
            let more = page.metadata.continue_.filter(|token| !token.is_empty());
            if more.is_some() {
                params.continue_token = more;
                continue;
            }
            let text = page.metadata.resource_version.unwrap_or_default();
            let now = number(&text).map_err(Ended::Failed)?;
            let before = self.store.groups();
            self.store.replace(items, now);
            for group in before.union(&self.store.groups()) {
                (self.news)(group);
            }
            return Ok(text);
        }
    }

    fn told(&self, object: K, deleted: bool) -> Result<String, String> {
        let text = object.meta().resource_version.clone().unwrap_or_default();
        let now = number(&text)?;
        let item = self.item(object);
        let group = item.group.clone();
        if deleted {
            self.store.remove(&item.name, now);
        } else {
            self.store.put(item, now);
        }
        (self.news)(&group);
        Ok(text)
    }

    fn item(&self, mut object: K) -> Item<V> {
        let metadata = object.meta_mut();
        // Large, and of interest to nobody here.
        metadata.managed_fields = None;
        let group = (self.group)(metadata);
        let name = key(metadata.namespace.as_deref(), metadata.name.as_deref());
        Item { group, name, value: (self.keep)(object) }
    }
}

/// What a store calls an object.
pub(crate) fn key(namespace: Option<&str>, name: Option<&str>) -> String {
    format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}

/// Resource versions are numbers that rise, as of Kubernetes 1.35 by promise and before in fact.
fn number(version: &str) -> Result<u64, String> {
    version
        .parse()
        .map_err(|_| format!("the API server's resource version `{version}` is not a number"))
}

fn silent(doing: &str) -> String {
    format!("{doing}: no answer within {} s", DEADLINE.as_secs())
}

fn failed(error: &kube::Error) -> Ended {
    match error {
        kube::Error::Api(status) if status.code == 410 => Ended::Expired,
        kube::Error::Api(status) => {
            let text = format!("the API server answers {}: {}", status.code, status.message);
            Ended::Failed(with_next_move(status.code, text))
        }
        other => Ended::Failed(chain(other)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use hyper::{Request, Response, StatusCode};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Client;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::store::Changed;

    /// What an API server answers, one request after the other; the last answer again and again.
    type Answers = Vec<(u16, Vec<Value>)>;

    struct Watched {
        store: Arc<Store<ConfigMap>>,
        changed: Changed,
        /// Of the requests so far.
        queries: Arc<Mutex<Vec<String>>>,
        news: Arc<Mutex<Vec<String>>>,
        task: JoinHandle<()>,
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    impl Watched {
        fn over(answers: Answers) -> Self {
            let queries = Arc::new(Mutex::new(Vec::new()));
            let asked = queries.clone();
            let server = tower::service_fn(move |request: Request<Body>| {
                let mut asked = asked.lock().expect("no panic");
                let (status, lines) = &answers[asked.len().min(answers.len() - 1)];
                asked.push(request.uri().query().unwrap_or_default().to_owned());
                let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
                let mut response = Response::new(Body::from(text.into_bytes()));
                *response.status_mut() = StatusCode::from_u16(*status).expect("a status");
                std::future::ready(Ok::<_, std::io::Error>(response))
            });
            let changed = Changed::new();
            let store = Arc::new(Store::new(changed.clone()));
            let news = Arc::new(Mutex::new(Vec::new()));
            let heard = news.clone();
            let watch = Watch {
                api: Api::namespaced(Client::new(server, "larder"), "larder"),
                selector: None,
                fields: None,
                keep: |object: ConfigMap| object,
                group: |metadata: &ObjectMeta| {
                    metadata.labels.clone().unwrap_or_default().remove("of").unwrap_or_default()
                },
                store: store.clone(),
                news: Arc::new(move |group: &str| {
                    heard.lock().expect("no panic").push(group.to_owned());
                }),
            };
            Self { store, changed, queries, news, task: tokio::spawn(watch.run()) }
        }

        async fn comes_to(&self, holds: impl Fn(&Store<ConfigMap>) -> bool) -> bool {
            self.changed.until(Duration::from_secs(20), || holds(&self.store)).await
        }
    }

    fn object(name: &str, of: &str, version: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": name, "namespace": "larder", "resourceVersion": version,
                "labels": { "of": of },
            },
        })
    }

    fn list(items: Vec<Value>, version: &str) -> (u16, Vec<Value>) {
        let list = json!({
            "apiVersion": "v1", "kind": "ConfigMapList",
            "metadata": { "resourceVersion": version }, "items": items,
        });
        (200, vec![list])
    }

    fn refusal(code: u16) -> (u16, Vec<Value>) {
        let status = json!({
            "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
            "reason": "Busy", "message": "not now",
        });
        (code, vec![status])
    }

    fn event(kind: &str, object: Value) -> Value {
        json!({ "type": kind, "object": object })
    }

    #[tokio::test]
    async fn events_bring_the_store_up_to_date_and_wake_who_they_are_of() {
        let events = vec![
            event("ADDED", object("b", "i-2", "11")),
            event("MODIFIED", object("a", "i-1", "12")),
            event("DELETED", object("b", "i-2", "13")),
            event("BOOKMARK", object("", "", "20")),
        ];
        let watched = Watched::over(vec![list(vec![object("a", "i-1", "5")], "10"), (200, events)]);
        assert!(watched.comes_to(|store| store.has_seen(20)).await);
        assert!(watched.store.counts().is_ok());
        assert_eq!(watched.store.groups().into_iter().collect::<Vec<_>>(), ["i-1"]);
        let news = watched.news.lock().expect("no panic").clone();
        assert_eq!(news[..4], ["i-1", "i-2", "i-1", "i-2"]);
        // It goes on where it has ended.
        assert!(watched.comes_to(|_| watched.queries.lock().expect("no panic").len() > 2).await);
        let queries = watched.queries.lock().expect("no panic").clone();
        assert!(queries[1].contains("resourceVersion=10"), "{queries:?}");
        assert!(queries[2].contains("resourceVersion=20"), "{queries:?}");
    }

    #[tokio::test]
    async fn a_busy_api_server_is_unknown_and_not_empty() {
        for code in [401, 403, 429, 500] {
            let watched = Watched::over(vec![refusal(code)]);
            assert!(watched.comes_to(|store| store.trouble().is_some()).await);
            let said = watched.store.counts().expect_err("unknown");
            assert!(said.contains(&code.to_string()) && said.contains("not now"), "{said}");
        }
    }

    #[tokio::test]
    async fn what_was_told_stays_while_a_watch_is_refused_and_is_asked_for_less_and_less_often() {
        let known = list(vec![object("a", "i-1", "5")], "10");
        let watched = Watched::over(vec![known, refusal(429)]);
        assert!(watched.comes_to(|store| store.trouble().is_some()).await);
        assert!(watched.store.counts().is_ok(), "for a moment");
        assert_eq!(watched.store.of("i-1").len(), 1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let asked = watched.queries.lock().expect("no panic").len();
        assert!((2..=5).contains(&asked), "asked {asked} times in a second");
    }

    #[tokio::test]
    async fn an_api_server_that_has_forgotten_is_listed_anew() {
        let watched = Watched::over(vec![
            list(vec![object("a", "i-1", "5")], "10"),
            (200, vec![event("ERROR", refusal(410).1[0].clone())]),
            list(vec![object("b", "i-2", "30")], "31"),
            (200, vec![event("BOOKMARK", object("", "", "40"))]),
        ]);
        assert!(watched.comes_to(|store| store.has_seen(40)).await);
        assert_eq!(watched.store.groups().into_iter().collect::<Vec<_>>(), ["i-2"]);
        let news = watched.news.lock().expect("no panic").clone();
        assert!(news.contains(&"i-2".to_owned()));
        assert_eq!(news.iter().filter(|of| *of == "i-1").count(), 2, "also of its end");
    }

    #[tokio::test]
    async fn versions_that_cannot_be_compared_are_trouble() {
        let watched = Watched::over(vec![list(Vec::new(), "abc")]);
        assert!(watched.comes_to(|store| store.trouble().is_some()).await);
        assert!(watched.store.counts().expect_err("unknown").contains("abc"));
    }
}
