//! What one watch has told, by instance, and whether it still counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// A watch that has been broken for longer knows nothing any more.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// Wakes who waits for something to be told. One for all stores of a binding.
#[derive(Clone)]
pub(crate) struct Changed(Arc<watch::Sender<u64>>);

impl Changed {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    pub(crate) fn tell(&self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Waits until `holds`, at most `within`. Answers whether it came to hold. Cancel-safe.
    pub(crate) async fn until(&self, within: Duration, holds: impl Fn() -> bool) -> bool {
        let mut told = self.0.subscribe();
        let deadline = Instant::now() + within;
        loop {
            told.mark_unchanged();
            if holds() {
                return true;
            }
            if !matches!(tokio::time::timeout_at(deadline, told.changed()).await, Ok(Ok(()))) {
                return holds();
            }
        }
    }
}

/// Objects of one kind, by the instance that they are of (`""`: of none) and their name.
pub(crate) struct Store<V> {
    inner: Mutex<Inner<V>>,
    changed: Changed,
}

struct Inner<V> {
    groups: HashMap<String, BTreeMap<String, Arc<V>>>,
    group_of: HashMap<String, String>,
    /// Everything up to this resource version is in here; `None` before the first list.
    seen: Option<u64>,
    /// Rises with each change.
    changes: u64,
    broken: Option<(Instant, String)>,
}

/// One object for a store.
pub(crate) struct Item<V> {
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) value: V,
}

impl<V> Store<V> {
    pub(crate) fn new(changed: Changed) -> Self {
        let inner = Inner {
            groups: HashMap::new(),
            group_of: HashMap::new(),
            seen: None,
            changes: 0,
            broken: None,
        };
        Self { inner: Mutex::new(inner), changed }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A whole list, as of `version`, instead of what was known.
    pub(crate) fn replace(&self, items: Vec<Item<V>>, version: u64) {
        let mut inner = self.lock();
        inner.groups.clear();
        inner.group_of.clear();
        for item in items {
            inner.put(item);
        }
        inner.seen = Some(version);
        inner.changes += 1;
        drop(inner);
        self.changed.tell();
    }

    pub(crate) fn put(&self, item: Item<V>, version: u64) {
        let mut inner = self.lock();
        inner.put(item);
        inner.advance(version);
        inner.changes += 1;
        drop(inner);
        self.changed.tell();
    }

    pub(crate) fn remove(&self, name: &str, version: u64) {
        let mut inner = self.lock();
        inner.remove(name);
        inner.advance(version);
        inner.changes += 1;
        drop(inner);
        self.changed.tell();
    }

    /// Nothing of this kind has changed up to `version`.
    pub(crate) fn advance(&self, version: u64) {
        self.lock().advance(version);
        self.changed.tell();
    }

    /// The watch is open: what changes will be told.
    pub(crate) fn opened(&self) {
        self.lock().broken = None;
        self.changed.tell();
    }

    /// The watch is broken, since now or since it was said first.
    pub(crate) fn broke(&self, reason: String) {
        let mut inner = self.lock();
        let since = inner.broken.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        inner.broken = Some((since, reason));
        drop(inner);
        self.changed.tell();
    }

    /// Whether this was listed, whatever came after.
    pub(crate) fn is_listed(&self) -> bool {
        self.lock().seen.is_some()
    }

    /// Why the watch has been broken, if it is.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.lock().broken.as_ref().map(|(_, reason)| reason.clone())
    }

    /// # Errors
    /// Why what is known does not count: never listed, or the watch has been broken for too long.
    pub(crate) fn counts(&self) -> Result<(), String> {
        self.counts_at(Instant::now())
    }

    fn counts_at(&self, now: Instant) -> Result<(), String> {
        let inner = self.lock();
        match (&inner.broken, inner.seen) {
            (Some((_, reason)), None) => Err(reason.clone()),
            (None, None) => Err("not listed yet".to_owned()),
            // Without the time: it is recorded.
            (Some((since, reason)), Some(_)) if now - *since > GRACE => {
                Err(format!("its watch is broken: {reason}"))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn has_seen(&self, version: u64) -> bool {
        self.lock().seen.is_some_and(|seen| seen >= version)
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<V>> {
        let inner = self.lock();
        inner.groups.get(inner.group_of.get(name)?)?.get(name).cloned()
    }

    /// What is of `group`, by name.
    pub(crate) fn of(&self, group: &str) -> Vec<Arc<V>> {
        self.lock().groups.get(group).map(|all| all.values().cloned().collect()).unwrap_or_default()
    }

    /// The groups that have anything.
    pub(crate) fn groups(&self) -> BTreeSet<String> {
        self.lock().groups.keys().cloned().collect()
    }

    /// Everything, and the count of changes up to it.
    pub(crate) fn all(&self) -> (u64, Vec<Arc<V>>) {
        let inner = self.lock();
        (inner.changes, inner.groups.values().flat_map(BTreeMap::values).cloned().collect())
    }

    pub(crate) fn changes(&self) -> u64 {
        self.lock().changes
    }
}

impl<V> Inner<V> {
    fn put(&mut self, item: Item<V>) {
        // A label that somebody has changed moves it.
        if self.group_of.get(&item.name).is_some_and(|group| *group != item.group) {
            self.remove(&item.name);
        }
        self.group_of.insert(item.name.clone(), item.group.clone());
        self.groups.entry(item.group).or_default().insert(item.name, Arc::new(item.value));
    }

    fn remove(&mut self, name: &str) {
        let Some(group) = self.group_of.remove(name) else { return };
        if let Some(all) = self.groups.get_mut(&group) {
            all.remove(name);
            if all.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    fn advance(&mut self, version: u64) {
        self.seen = self.seen.map(|seen| seen.max(version));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(group: &str, name: &str, value: u32) -> Item<u32> {
        Item { group: group.to_owned(), name: name.to_owned(), value }
    }

    fn store() -> Store<u32> {
        Store::new(Changed::new())
    }

    #[test]
    fn what_was_never_listed_is_unknown_and_not_empty() {
        let store = store();
        assert!(store.counts().is_err());
        assert!(!store.has_seen(0));
        store.replace(Vec::new(), 7);
        assert!(store.counts().is_ok());
        assert!(store.has_seen(7) && !store.has_seen(8));
    }

    #[test]
    fn a_watch_that_stays_broken_makes_what_it_told_unknown() {
        let store = store();
        store.replace(vec![item("i-1", "a", 1)], 7);
        store.broke("reset".to_owned());
        assert!(store.counts().is_ok(), "a moment is no reason");
        store.broke("refused".to_owned());
        let later = Instant::now() + GRACE + Duration::from_secs(1);
        let said = store.counts_at(later).expect_err("unknown");
        assert!(said.contains("refused") && said.contains("broken"), "{said}");
        store.opened();
        assert!(store.counts_at(later).is_ok());
        assert_eq!(store.of("i-1"), [Arc::new(1)], "nothing was lost meanwhile");
    }

    #[test]
    fn an_object_is_in_the_group_that_its_label_says_last() {
        let store = store();
        store.replace(vec![item("i-1", "a", 1), item("i-1", "b", 2)], 1);
        store.put(item("i-2", "a", 3), 2);
        assert_eq!(store.of("i-1"), [Arc::new(2)]);
        assert_eq!(store.of("i-2"), [Arc::new(3)]);
        store.remove("b", 3);
        assert_eq!(store.groups(), BTreeSet::from(["i-2".to_owned()]));
        assert!(store.has_seen(3));
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_what_is_told() {
        let changed = Changed::new();
        let store = Arc::new(Store::new(changed.clone()));
        let writer = store.clone();
        let told = tokio::spawn(async move { writer.replace(vec![item("i", "a", 1)], 5) });
        let within = Duration::from_secs(5);
        assert!(changed.until(within, || store.has_seen(5)).await);
        told.await.expect("told");
        assert!(!changed.until(Duration::ZERO, || store.has_seen(6)).await);
    }
}
