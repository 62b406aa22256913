//! Own writes that the watches have not told of yet: an observation must not be older than they are.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kube::api::ObjectMeta;
use larder_model::kube::LABEL_INSTANCE;

/// Writes of each instance, by kind and name; a later one takes the former one's place.
#[derive(Default)]
pub(crate) struct Writes {
    of: Mutex<HashMap<String, OfInstance>>,
}

/// By kind and name.
type OfInstance = HashMap<(&'static str, String), Write>;

/// What has to be told for the write to be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Everything up to this resource version.
    Version(u64),
    /// Everything up to this resource version, and that the object with this UID is gone or on its
    /// way out.
    Gone { uid: String, version: u64 },
}

impl Writes {
    /// The API server has answered that the object is as it was written, or was so already.
    pub(crate) fn made(&self, kind: &'static str, object: &ObjectMeta) {
        if let Some(version) = version_of(object) {
            self.note(kind, object, Write::Version(version));
        }
    }

    /// The API server was told to delete it, as it was seen to be before that.
    pub(crate) fn deleted(&self, kind: &'static str, object: &ObjectMeta) {
        if let (Some(uid), Some(version)) = (object.uid.clone(), version_of(object)) {
            self.note(kind, object, Write::Gone { uid, version });
        }
    }

    fn note(&self, kind: &'static str, object: &ObjectMeta, write: Write) {
        let instance = object.labels.as_ref().and_then(|labels| labels.get(LABEL_INSTANCE));
        let (Some(instance), Some(name)) = (instance, object.name.clone()) else { return };
        self.lock().entry(instance.clone()).or_default().insert((kind, name), write);
    }

    /// Whether everything that was written of `instance` is `seen`; what is, is forgotten.
    pub(crate) fn are_seen(
        &self,
        instance: &str,
        seen: impl Fn(&'static str, &str, &Write) -> bool,
    ) -> bool {
        let mut of = self.lock();
        let Some(writes) = of.get_mut(instance) else { return true };
        writes.retain(|(kind, name), write| !seen(kind, name, write));
        let all = writes.is_empty();
        if all {
            of.remove(instance);
        }
        all
    }

    /// As [`Writes::are_seen`], for all instances.
    pub(crate) fn are_all_seen(&self, seen: impl Fn(&'static str, &str, &Write) -> bool) -> bool {
        let mut of = self.lock();
        of.retain(|_, writes| {
            writes.retain(|(kind, name), write| !seen(kind, name, write));
            !writes.is_empty()
        });
        of.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, OfInstance>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without a number no watch ever counts, and nothing is read from memory.
fn version_of(object: &ObjectMeta) -> Option<u64> {
    object.resource_version.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn object(name: &str, version: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(format!("uid-{name}")),
            resource_version: Some(version.to_owned()),
            labels: Some(BTreeMap::from([(LABEL_INSTANCE.to_owned(), "i-1".to_owned())])),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn an_instance_is_seen_when_its_last_write_is() {
        let writes = Writes::default();
        let up_to = |seen: u64| {
            writes.are_seen("i-1", |_, _, write| matches!(write, Write::Version(v) if *v <= seen))
        };
        assert!(up_to(0), "nothing was written");
        writes.made("Service", &object("a", "5"));
        writes.made("Service", &object("a", "9"));
        writes.made("Secret", &object("b", "7"));
        assert!(!up_to(8));
        assert!(writes.are_seen("i-2", |_, _, _| false), "another instance waits for nothing");
        assert!(!writes.are_all_seen(|kind, _, _| kind == "Secret"));
        assert!(up_to(9));
        assert!(up_to(0), "what was seen is forgotten");
        assert!(writes.are_all_seen(|_, _, _| false));
    }

    #[test]
    fn a_deletion_takes_the_place_of_what_was_made() {
        let writes = Writes::default();
        writes.made("Service", &object("a", "5"));
        writes.deleted("Service", &object("a", "5"));
        assert!(!writes.are_seen("i-1", |_, _, write| matches!(write, Write::Version(_))));
        let gone = Write::Gone { uid: "uid-a".to_owned(), version: 5 };
        assert!(writes.are_seen("i-1", |kind, name, write| {
            kind == "Service" && name == "a" && *write == gone
        }));
    }
}
