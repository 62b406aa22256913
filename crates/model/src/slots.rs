//! Hash slots of the Redis Cluster protocol: 16384 of them, held in ranges.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Number of hash slots (Redis Cluster specification, "Key distribution model").
pub const SLOT_COUNT: u16 = 16_384;

/// An inclusive range of slots, `first <= last < 16384`. Text form: `0-5460` or `7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SlotRange {
    pub first: u16,
    pub last: u16,
}

impl SlotRange {
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last && last < SLOT_COUNT).then_some(Self { first, last })
    }

    pub fn len(self) -> u16 {
        self.last - self.first + 1
    }

    /// Always false: a range holds at least one slot.
    pub fn is_empty(self) -> bool {
        false
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl From<SlotRange> for String {
    fn from(range: SlotRange) -> Self {
        range.to_string()
    }
}

impl TryFrom<String> for SlotRange {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for SlotRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = first.parse().ok().zip(last.parse().ok());
        range
            .and_then(|(first, last)| Self::new(first, last))
            .ok_or_else(|| format!("`{text}` is not a slot range"))
    }
}

/// A set of slots as sorted ranges that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotSet(Vec<SlotRange>);

impl SlotSet {
    pub fn ranges(&self) -> &[SlotRange] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many slots the set holds.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|r| u32::from(r.len())).sum()
    }

    pub fn contains(&self, slot: u16) -> bool {
        self.0.iter().any(|r| r.first <= slot && slot <= r.last)
    }

    /// The set with `range` added; neighbours are merged.
    pub fn insert(&mut self, range: SlotRange) {
        self.0.push(range);
        self.0.sort_unstable();
        let mut merged: Vec<SlotRange> = Vec::with_capacity(self.0.len());
        for range in self.0.drain(..) {
            match merged.last_mut() {
                Some(last) if range.first <= last.last.saturating_add(1) => {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        self.0 = merged;
    }

    /// Slots that are in `self` and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut taken = other.0.iter().copied().peekable();
        for range in &self.0 {
            let mut first = range.first;
            while let Some(cut) = taken.peek().copied().filter(|cut| cut.first <= range.last) {
                if cut.first > first {
                    left.push(SlotRange { first, last: cut.first - 1 });
                }
                first = first.max(cut.last.saturating_add(1));
                if cut.last > range.last {
                    break;
                }
                taken.next();
            }
            if first <= range.last {
                left.push(SlotRange { first, last: range.last });
            }
        }
        Self(left)
    }

    /// Slots that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.difference(&self.difference(other))
    }

    /// The first `count` slots of the set, or all it has.
    #[must_use]
    pub fn first(&self, count: u32) -> Self {
        let mut left = count;
        let mut taken = Vec::new();
        for range in &self.0 {
            let len = left.min(u32::from(range.len()));
            if len > 0 {
                // Not longer than the range itself, so it fits.
                let last = range.first + (len as u16) - 1;
                taken.push(SlotRange { first: range.first, last });
            }
            left -= len;
        }
        Self(taken)
    }

    /// Every slot of the set, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().flat_map(|range| range.first..=range.last)
    }

    /// Every slot there is.
    pub fn full() -> Self {
        Self(vec![SlotRange { first: 0, last: SLOT_COUNT - 1 }])
    }
}

impl FromIterator<SlotRange> for SlotSet {
    fn from_iter<I: IntoIterator<Item = SlotRange>>(ranges: I) -> Self {
        let mut set = Self::default();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

/// Single slots.
impl FromIterator<u16> for SlotSet {
    fn from_iter<I: IntoIterator<Item = u16>>(slots: I) -> Self {
        slots.into_iter().filter_map(|slot| SlotRange::new(slot, slot)).collect()
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

/// The slots of shard `index` when `shards` shards share all slots evenly (as `redis-cli
/// --cluster create` does: sizes differ by at most one).
///
/// # Panics
/// When `index >= shards`.
pub fn even_slots(index: u32, shards: u32) -> SlotRange {
    assert!(index < shards, "shard {index} of {shards}");
    let total = u32::from(SLOT_COUNT);
    let first = index * total / shards;
    let last = (index + 1) * total / shards - 1;
    SlotRange { first: first as u16, last: last as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn even_slots_cover_everything_once() {
        for shards in 1..=20 {
            let set: SlotSet = (0..shards).map(|i| even_slots(i, shards)).collect();
            assert_eq!(set, SlotSet::full());
            let total: u32 = (0..shards).map(|i| u32::from(even_slots(i, shards).len())).sum();
            assert_eq!(total, u32::from(SLOT_COUNT));
        }
    }

    proptest! {
        #[test]
        fn sets_behave_like_sets(ranges in prop::collection::vec((0..SLOT_COUNT, 0..64_u16), 0..12)) {
            let mut set = SlotSet::default();
            let mut plain = std::collections::BTreeSet::new();
            for (first, len) in ranges {
                let last = (first + len).min(SLOT_COUNT - 1);
                set.insert(SlotRange { first, last });
                plain.extend(first..=last);
            }
            prop_assert_eq!(set.count() as usize, plain.len());
            prop_assert!(plain.iter().all(|s| set.contains(*s)));
            let rest = SlotSet::full().difference(&set);
            prop_assert_eq!(rest.count() + set.count(), u32::from(SLOT_COUNT));
        }

        #[test]
        fn what_two_sets_share_and_what_they_do_not(
            a in prop::collection::btree_set(0..200_u16, 0..60),
            b in prop::collection::btree_set(0..200_u16, 0..60),
            count in 0..80_u32,
        ) {
            let set = |slots: &std::collections::BTreeSet<u16>| -> SlotSet {
                slots.iter().filter_map(|slot| SlotRange::new(*slot, *slot)).collect()
            };
            let (in_a, in_b) = (set(&a), set(&b));
            prop_assert_eq!(in_a.difference(&in_b), set(&a.difference(&b).copied().collect()));
            prop_assert_eq!(in_a.intersection(&in_b), set(&a.intersection(&b).copied().collect()));
            prop_assert_eq!(in_a.first(count), set(&a.iter().copied().take(count as usize).collect()));
            prop_assert!(in_a.iter().eq(a.iter().copied()));
        }
    }
}
