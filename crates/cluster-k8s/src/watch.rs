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
use crate::store::{Item, Store, Told};

/// The API server ends a watch after this long, and it is resumed where it ended.
const LIFE: Duration = Duration::from_secs(30);
/// For an answer of the API server, and for the end of a watch that is due.
const DEADLINE: Duration = Duration::from_secs(8);
/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A watch that was resumed after a break has told by then what came meanwhile.
const SETTLED: Duration = Duration::from_secs(1);
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
    /// `forgotten`: the API server does not know any more what came since, and it has to list again.
    Badly { reason: String, forgotten: bool },
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
                Ended::Badly { reason, forgotten } => {
                    tracing::debug!(kind = %K::kind(&()), reason, forgotten, "watch broken");
                    if begin.elapsed() > LIFE / 2 {
                        pause = PAUSE.0;
                    }
                    if forgotten {
                        version = None;
                        self.store.missed(reason);
                    } else {
                        self.store.broke(reason);
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    async fn round(&self, version: &mut Option<String>) -> Ended {
        // Nothing counts any more: what has come meanwhile may be too much to be told one by one.
        if self.store.counts().is_err() {
            *version = None;
        }
        let from = match version {
            Some(version) => version.clone(),
            None => match self.list().await {
                Ok(listed) => {
                    self.store.mended();
                    version.insert(listed).clone()
                }
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
            Err(_) => return broken(silent("opening a watch")),
        };
        let opened = Instant::now();
        let due = opened + LIFE + DEADLINE;
        // An open watch is no proof: what was missed comes first, and it may end at once.
        let mut settles = self.store.is_broken().then(|| opened + SETTLED);
        loop {
            let until = settles.unwrap_or(due);
            let event = tokio::time::timeout_at(until, events.next()).await;
            // Its end is no proof of life either.
            let ends = matches!(event, Ok(None | Some(Err(_) | Ok(WatchEvent::Error(_)))));
            if settles.is_some_and(|at| Instant::now() >= at) && !ends {
                self.store.mended();
                settles = None;
            }
            let event = match event {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error))) => return failed(&error),
                Ok(None) => return Ended::InTime,
                Err(_) if until < due => continue,
                Err(_) => return broken(silent("ending a watch")),
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
                Err(reason) => return broken(reason),
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
                Err(_) => return Err(broken(silent("listing"))),
            };
            items.extend(page.items.into_iter().map(|object| self.item(object)));
            let more = page.metadata.continue_.filter(|token| !token.is_empty());
            if more.is_some() {
                params.continue_token = more;
                continue;
            }
            let text = page.metadata.resource_version.unwrap_or_default();
            let now = number(&text).map_err(broken)?;
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

fn broken(reason: String) -> Ended {
    Ended::Badly { reason, forgotten: false }
}

fn failed(error: &kube::Error) -> Ended {
    match error {
        kube::Error::Api(status) => {
            let text = format!("the API server answers {}: {}", status.code, status.message);
            Ended::Badly {
                reason: with_next_move(status.code, text),
                forgotten: status.code == 410,
            }
        }
        other => broken(chain(other)),
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
    use crate::store::{Changed, GRACE};

    /// What an API server answers, one request after the other; the last answer again and again.
    type Answers = Vec<(u16, Vec<Value>)>;

    /// One request, and whether what was known counted then.
    #[derive(Clone, Debug)]
    struct Asked {
        query: String,
        counted: bool,
    }

    type TestWatch = Watch<ConfigMap, ConfigMap>;

    /// A watch of an API server that answers so.
    fn watch_over(answers: Answers) -> (TestWatch, Arc<Mutex<Vec<Asked>>>) {
        let store = Arc::new(Store::new(Changed::new()));
        let all = Arc::new(Mutex::new(Vec::new()));
        let (known, asked) = (store.clone(), all.clone());
        let server = tower::service_fn(move |request: Request<Body>| {
            let mut asked = asked.lock().expect("no panic");
            let (status, lines) = &answers[asked.len().min(answers.len() - 1)];
            let query = request.uri().query().unwrap_or_default().to_owned();
            asked.push(Asked { query, counted: known.counts().is_ok() });
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let mut response = Response::new(Body::from(text.into_bytes()));
            *response.status_mut() = StatusCode::from_u16(*status).expect("a status");
            std::future::ready(Ok::<_, std::io::Error>(response))
        });
        let watch = Watch {
            api: Api::namespaced(Client::new(server, "larder"), "larder"),
            selector: None,
            fields: None,
            keep: |object: ConfigMap| object,
            group: |metadata: &ObjectMeta| {
                metadata.labels.clone().unwrap_or_default().remove("of").unwrap_or_default()
            },
            store,
            news: Arc::new(|_: &str| {}),
        };
        (watch, all)
    }

    /// One that runs.
    struct Watched {
        store: Arc<Store<ConfigMap>>,
        asked: Arc<Mutex<Vec<Asked>>>,
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
            let (mut watch, asked) = watch_over(answers);
            let news = Arc::new(Mutex::new(Vec::new()));
            let heard = news.clone();
            watch.news = Arc::new(move |group: &str| {
                heard.lock().expect("no panic").push(group.to_owned());
            });
            Self { store: watch.store.clone(), asked, news, task: tokio::spawn(watch.run()) }
        }

        fn queries(&self) -> Vec<String> {
            self.asked.lock().expect("no panic").iter().map(|asked| asked.query.clone()).collect()
        }

        async fn comes_to(&self, holds: impl Fn(&Store<ConfigMap>) -> bool) -> bool {
            self.store.changed().until(Duration::from_secs(20), || holds(&self.store)).await
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

    fn known(name: &str, of: &str, version: &str) -> ConfigMap {
        serde_json::from_value(object(name, of, version)).expect("a ConfigMap")
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
        assert!(watched.comes_to(|_| watched.queries().len() > 2).await);
        let queries = watched.queries();
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
        assert!(watched.comes_to(|store| store.is_broken()).await);
        assert!(watched.store.counts().is_ok(), "for a moment");
        assert_eq!(watched.store.of("i-1").len(), 1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let asked = watched.queries().len();
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
        let forgotten = |store: &Store<_>| store.has_seen(0) && store.counts().is_err();
        assert!(watched.comes_to(forgotten).await, "what it knew counts no longer");
        assert!(watched.comes_to(|store| store.has_seen(40)).await);
        assert!(watched.store.counts().is_ok());
        assert_eq!(watched.store.groups().into_iter().collect::<Vec<_>>(), ["i-2"]);
        let news = watched.news.lock().expect("no panic").clone();
        assert!(news.contains(&"i-2".to_owned()));
        assert_eq!(news.iter().filter(|of| *of == "i-1").count(), 2, "also of its end");
    }

    #[tokio::test]
    async fn an_api_server_that_forgets_each_time_is_listed_less_and_less_often() {
        let forgets = || (200, vec![event("ERROR", refusal(410).1[0].clone())]);
        let known = || list(vec![object("a", "i-1", "5")], "10");
        let mut answers: Answers = (0..20).flat_map(|_| [known(), forgets()]).collect();
        answers.push(known());
        let watched = Watched::over(answers);
        assert!(watched.comes_to(|store| store.has_seen(0)).await);
        // The time in which it may not ask often.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let asked = watched.queries().len();
        assert!(asked <= 8, "asked {asked} times in a second");
        assert!(watched.comes_to(|_| watched.queries().len() >= 3).await, "it goes on asking");
    }

    #[tokio::test]
    async fn after_a_long_break_nothing_counts_before_it_is_listed_anew() {
        let (watch, asked) = watch_over(vec![
            list(vec![object("b", "i-2", "30")], "31"),
            (200, vec![event("BOOKMARK", object("", "", "40"))]),
        ]);
        watch.store.replace(vec![watch.item(known("a", "i-1", "5"))], 10);
        watch.store.broke_at(Instant::now() - GRACE - Duration::from_secs(1), "reset".to_owned());
        assert!(watch.store.counts().is_err());
        let mut version = Some("10".to_owned());
        assert!(matches!(watch.round(&mut version).await, Ended::InTime));
        let asked = asked.lock().expect("no panic").clone();
        assert!(asked[0].query.contains("limit="), "{asked:?}");
        assert!(!asked[0].counted && asked[1].counted, "{asked:?}");
        assert_eq!(watch.store.groups().into_iter().collect::<Vec<_>>(), ["i-2"]);
    }

    #[tokio::test]
    async fn a_watch_that_opens_and_fails_each_time_is_broken_all_the_while() {
        let (watch, _) =
            watch_over(vec![(200, vec![event("ERROR", refusal(500).1[0].clone())]); 3]);
        watch.store.replace(vec![watch.item(known("a", "i-1", "5"))], 10);
        let began = Instant::now();
        let mut version = Some("10".to_owned());
        for _ in 0..3 {
            let Ended::Badly { reason, .. } = watch.round(&mut version).await else {
                panic!("it fails")
            };
            watch.store.broke(reason);
        }
        assert!(watch.store.counts().is_ok(), "for a moment");
        let over = began + GRACE + Duration::from_millis(500);
        assert!(watch.store.counts_at(over).is_err(), "each opening has made it whole");
        assert_eq!(version.as_deref(), Some("10"), "a short break costs no list");
    }

    #[tokio::test]
    async fn versions_that_cannot_be_compared_are_trouble() {
        let watched = Watched::over(vec![list(Vec::new(), "abc")]);
        assert!(watched.comes_to(|store| store.trouble().is_some()).await);
        assert!(watched.store.counts().expect_err("unknown").contains("abc"));
    }
}
