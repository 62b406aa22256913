//! A shard's lease as a `coordination.k8s.io/v1` Lease.
//!
//! The API server compares `resourceVersion` and sets; that is all that is asked of it. The
//! version that the election counts is a number of our own in an annotation, because somebody
//! who touches a label makes a new `resourceVersion` and must not look like a holder that
//! renews. Nobody compares wall clocks: `renewTime` is for people.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease as KubeObject, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{PostParams, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt};
use larder_agent::{Lease, LeaseError};
use larder_model::kube::{ANNOTATION_RECORD, ANNOTATION_SEQUENCE, instance_name};
use larder_model::lease::LeaseRecord;
use larder_model::{InstanceId, Millis};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::said;

/// The trait's limit. An API server that needs longer is as good as silent.
const DEADLINE: Duration = Duration::from_millis(300);
/// A watch is opened anew this often; the API server's own limit is longer.
const WATCH_SECONDS: u32 = 280;
/// After a watch that could not be opened. The loop looks by itself each second.
const WATCH_RETRY: Duration = Duration::from_secs(1);

/// The lease of one instance.
pub struct KubeLease {
    api: Api<KubeObject>,
    name: String,
    ttl: Millis,
    /// The object as it was last seen, with its `resourceVersion`.
    seen: Option<Seen>,
    changes: watch::Receiver<u64>,
    watcher: JoinHandle<()>,
}

struct Seen {
    object: KubeObject,
    sequence: u64,
    record: Option<LeaseRecord>,
}

impl KubeLease {
    /// The lease in `namespace`. `ttl` is written for people; the election keeps the time.
    /// Must be called within a runtime.
    pub fn new(client: Client, namespace: &str, instance: &InstanceId, ttl: Millis) -> Self {
        let api: Api<KubeObject> = Api::namespaced(client, namespace);
        let name = instance_name(instance);
        let (told, changes) = watch::channel(0);
        let watcher = tokio::spawn(follow(api.clone(), name.clone(), told));
        Self { api, name, ttl, seen: None, changes, watcher }
    }

    async fn get(&mut self, doing: &'static str) -> Result<&Seen, LeaseError> {
        self.seen = None;
        let object = self.api.get(&self.name).await.map_err(|error| said(doing, &error))?;
        let seen = parse(object).map_err(|reason| LeaseError::Unreachable { doing, reason })?;
        Ok(self.seen.insert(seen))
    }

    /// Writes `record`, or the one that is there, provided that the version is `after`.
    async fn put(
        &mut self,
        after: Option<u64>,
        record: Option<&LeaseRecord>,
        doing: &'static str,
    ) -> Result<u64, LeaseError> {
        if self.seen.is_none() {
            self.get(doing).await?;
        }
        // The second try is for an object that somebody else has touched without writing a record.
        for _ in 0..2 {
            let Some(seen) = &self.seen else { break };
            if after != seen.record.is_some().then_some(seen.sequence) {
                return Err(LeaseError::Conflict);
            }
            let Some(record) = record.or(seen.record.as_ref()).cloned() else {
                return Err(LeaseError::Conflict);
            };
            let sequence = seen.sequence + 1;
            let mut object = seen.object.clone();
            fill(&mut object, &record, sequence, self.ttl, Timestamp::now());
            match self.api.replace(&self.name, &PostParams::default(), &object).await {
                Ok(object) => {
                    self.seen = Some(Seen { object, sequence, record: Some(record) });
                    return Ok(sequence);
                }
                Err(error) => match said(doing, &error) {
                    LeaseError::Conflict => {
                        self.get(doing).await?;
                    }
                    silent => {
                        // It may have had its effect, or have it yet.
                        self.seen = None;
                        return Err(silent);
                    }
                },
            }
        }
        Err(LeaseError::Conflict)
    }

    async fn put_in_time(
        &mut self,
        after: Option<u64>,
        record: Option<&LeaseRecord>,
        doing: &'static str,
    ) -> Result<u64, LeaseError> {
        match tokio::time::timeout(DEADLINE, self.put(after, record, doing)).await {
            Ok(result) => result,
            Err(_) => {
                self.seen = None;
                Err(late(doing))
            }
        }
    }
}

impl Drop for KubeLease {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

#[async_trait]
impl Lease for KubeLease {
    async fn read(&mut self) -> Result<Option<(u64, LeaseRecord)>, LeaseError> {
        const DOING: &str = "reading the lease";
        let seen = tokio::time::timeout(DEADLINE, self.get(DOING)).await;
        let seen = seen.map_err(|_| late(DOING))??;
        Ok(seen.record.clone().map(|record| (seen.sequence, record)))
    }

    async fn write(&mut self, after: Option<u64>, record: &LeaseRecord) -> Result<u64, LeaseError> {
        self.put_in_time(after, Some(record), "writing the lease").await
    }

    async fn renew(&mut self, after: u64) -> Result<u64, LeaseError> {
        self.put_in_time(Some(after), None, "renewing the lease").await
    }

    async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The follower never ends by itself; if it did, the loop's own timer looks.
            std::future::pending::<()>().await;
        }
    }
}

fn late(doing: &'static str) -> LeaseError {
    LeaseError::Unreachable { doing, reason: format!("no end within {} ms", DEADLINE.as_millis()) }
}

fn parse(object: KubeObject) -> Result<Seen, String> {
    let annotations = object.annotations();
    let record = match annotations.get(ANNOTATION_RECORD) {
        None => None,
        Some(text) => {
            Some(serde_json::from_str(text).map_err(|e| format!("{ANNOTATION_RECORD}: {e}"))?)
        }
    };
    let sequence = match annotations.get(ANNOTATION_SEQUENCE) {
        None => 0,
        Some(text) => text.parse().map_err(|e| format!("{ANNOTATION_SEQUENCE}: {e}"))?,
    };
    Ok(Seen { sequence, record, object })
}

/// The object after one write. What others have put on it stays.
fn fill(object: &mut KubeObject, record: &LeaseRecord, sequence: u64, ttl: Millis, now: Timestamp) {
    let text = serde_json::to_string(record).expect("a record is plain data");
    let annotations = object.annotations_mut();
    annotations.insert(ANNOTATION_RECORD.to_owned(), text);
    annotations.insert(ANNOTATION_SEQUENCE.to_owned(), sequence.to_string());
    let old = object.spec.take().unwrap_or_default();
    let epoch = i32::try_from(record.epoch).unwrap_or(i32::MAX);
    let same_epoch = old.lease_transitions == Some(epoch);
    let holder = record.holder.as_ref().map(|holder| holder.node.to_string());
    object.spec = Some(LeaseSpec {
        acquire_time: if same_epoch { old.acquire_time } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        // The API server refuses an empty holder; none is said by leaving it out.
        holder_identity: holder,
        lease_duration_seconds: Some(i32::try_from(ttl.0.div_ceil(1000)).unwrap_or(i32::MAX)),
        lease_transitions: Some(epoch),
        ..LeaseSpec::default()
    });
}

/// Tells of every new record. Renewals are not told: they change nothing that the loop would
/// not see by itself.
async fn follow(api: Api<KubeObject>, name: String, told: watch::Sender<u64>) {
    let params =
        WatchParams::default().fields(&format!("metadata.name={name}")).timeout(WATCH_SECONDS);
    let mut known: Option<String> = None;
    loop {
        let began = Instant::now();
        let watched = match api.watch(&params, "0").await {
            Ok(events) => {
                let mut events = events.boxed();
                loop {
                    match events.try_next().await {
                        Ok(Some(WatchEvent::Added(o) | WatchEvent::Modified(o))) => {
                            let record = o.annotations().get(ANNOTATION_RECORD).cloned();
                            if record != known {
                                known = record;
                                told.send_modify(|count| *count += 1);
                            }
                        }
                        Ok(Some(WatchEvent::Deleted(_))) => {
                            known = None;
                            told.send_modify(|count| *count += 1);
                        }
                        Ok(Some(WatchEvent::Bookmark(_))) => {}
                        Ok(Some(WatchEvent::Error(status))) => break Err(status.message.clone()),
                        Ok(None) => break Ok(()),
                        Err(error) => break Err(error.to_string()),
                    }
                }
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = &watched {
            tracing::debug!(error, "lease not watched");
        }
        // A watch that ends at once, well or badly, is not begun anew in a hot loop.
        if watched.is_err() || began.elapsed() < WATCH_RETRY {
            tokio::time::sleep(WATCH_RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::NodeId;
    use larder_model::lease::LeaseHolder;

    use crate::fake::Fake;

    fn record(epoch: u64) -> LeaseRecord {
        LeaseRecord {
            epoch,
            holder: Some(LeaseHolder {
                node: NodeId::new("n-1").expect("valid"),
                run_id: "r".to_owned(),
            }),
            previous: None,
            failovers: Vec::new(),
        }
    }

    #[test]
    fn a_fresh_object_has_no_record() {
        let seen = parse(KubeObject::default()).expect("parsed");
        assert!(seen.record.is_none() && seen.sequence == 0);
    }

    #[test]
    fn what_was_written_is_read_and_others_labels_stay() {
        let mut object = KubeObject::default();
        object.labels_mut().insert("team".to_owned(), "blue".to_owned());
        let now = Timestamp::UNIX_EPOCH;
        fill(&mut object, &record(7), 42, Millis(4000), now);
        assert_eq!(object.labels().get("team").map(String::as_str), Some("blue"));
        let spec = object.spec.clone().expect("spec");
        assert_eq!(spec.holder_identity.as_deref(), Some("n-1"));
        assert_eq!((spec.lease_transitions, spec.lease_duration_seconds), (Some(7), Some(4)));
        let seen = parse(object).expect("parsed");
        assert_eq!((seen.sequence, seen.record), (42, Some(record(7))));
    }

    #[test]
    fn a_renewal_keeps_the_time_of_taking() {
        let mut object = KubeObject::default();
        let (first, later) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(9).expect("time"));
        fill(&mut object, &record(7), 1, Millis(4000), first);
        fill(&mut object, &record(7), 2, Millis(4000), later);
        let spec = object.spec.clone().expect("spec");
        assert_eq!(spec.acquire_time, Some(MicroTime(first)));
        assert_eq!(spec.renew_time, Some(MicroTime(later)));
        fill(&mut object, &record(8), 3, Millis(4000), later);
        assert_eq!(object.spec.expect("spec").acquire_time, Some(MicroTime(later)));
    }

    const PATH: &str = "leases/i-1";

    fn lease(fake: &Fake) -> KubeLease {
        let instance = InstanceId::new("i-1").expect("valid");
        KubeLease::new(fake.client(), "larder", &instance, Millis(4000))
    }

    /// An API server with an empty lease. The follower's watch is not answered.
    fn fake() -> Fake {
        let fake = Fake::default();
        fake.fails("GET larder/leases", 0);
        fake.put(PATH, serde_json::json!({ "spec": {} }));
        fake
    }

    fn label(object: &mut serde_json::Value) {
        object["metadata"]["labels"]["team"] = "blue".into();
        crate::fake::touch(object);
    }

    #[tokio::test]
    async fn a_label_that_somebody_sets_meanwhile_costs_no_lease() {
        let fake = fake();
        let mut lease = lease(&fake);
        let version = lease.write(None, &record(7)).await.expect("written");
        fake.meddles(|all| label(all.get_mut(PATH).expect("there")));
        let renewed = lease.renew(version).await.expect("the second try");
        assert_eq!(renewed, version + 1);
        assert_eq!(fake.get(PATH)["metadata"]["labels"]["team"], "blue", "and it stays");
        let read = lease.read().await.expect("read").expect("a record");
        assert_eq!(read, (renewed, record(7)));
    }

    #[tokio::test]
    async fn a_record_that_somebody_writes_meanwhile_wins() {
        let fake = fake();
        let (mut one, mut two) = (lease(&fake), lease(&fake));
        let version = one.write(None, &record(7)).await.expect("written");
        two.write(Some(version), &record(8)).await.expect("written");
        for _ in 0..2 {
            assert!(matches!(one.renew(version).await, Err(LeaseError::Conflict)));
        }
        assert!(matches!(one.write(None, &record(9)).await, Err(LeaseError::Conflict)));
        let (_, there) = one.read().await.expect("read").expect("a record");
        assert_eq!(there, record(8));
    }

    #[tokio::test]
    async fn after_silence_the_lease_is_looked_at_before_it_is_written() {
        for code in [500, 0] {
            let fake = fake();
            let mut lease = lease(&fake);
            let version = lease.write(None, &record(7)).await.expect("written");
            fake.fails("PUT", code);
            assert!(matches!(lease.renew(version).await, Err(LeaseError::Unreachable { .. })));
            let wrote = |asked: &String| asked.ends_with(PATH);
            fake.asked();
            lease.renew(version).await.expect("renewed");
            let asked: Vec<_> = fake.asked().into_iter().filter(wrote).collect();
            assert_eq!(asked, ["GET leases/i-1", "PUT leases/i-1"]);
        }
    }

    #[tokio::test]
    async fn a_lease_that_was_deleted_is_out_of_reach_and_made_anew_begins_from_nothing() {
        let fake = fake();
        let mut lease = lease(&fake);
        let version = lease.write(None, &record(7)).await.expect("written");
        fake.delete(PATH);
        assert!(matches!(lease.read().await, Err(LeaseError::Unreachable { .. })));
        assert!(lease.renew(version).await.is_err());
        fake.put(PATH, serde_json::json!({ "spec": {} }));
        assert!(lease.read().await.expect("read").is_none());
        assert!(matches!(lease.renew(version).await, Err(LeaseError::Conflict)));
        lease.write(None, &record(8)).await.expect("written");
    }
}
