//! Which slots go where: pure arithmetic on who holds what.

use std::collections::BTreeMap;

use larder_model::{ByteSize, SLOT_COUNT, SlotSet, even_slots};

/// Slots that one shard gives to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotMove {
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) slots: SlotSet,
}

/// As many slots for each of `shards` shards as for any other, to one.
pub(crate) fn even_counts(shards: u32) -> Vec<u32> {
    (0..shards).map(|shard| u32::from(even_slots(shard, shards).len())).collect()
}

/// Shards whose data differ by less than this are as good as even: servers need some memory of
/// their own.
const EVEN_ENOUGH: ByteSize = ByteSize::mib(32);

/// How many slots each shard should have for all to hold the same of data, taking a shard's data to
/// be spread evenly over its slots. `held`: slots and bytes of each shard.
pub(crate) fn counts_by_bytes(held: &[(u32, ByteSize)]) -> Vec<u32> {
    let shards = u32::try_from(held.len()).unwrap_or(1).max(1);
    let bytes = || held.iter().map(|(_, bytes)| bytes.bytes());
    let (least, most) = (bytes().min().unwrap_or(0), bytes().max().unwrap_or(0));
    let slots: u32 = held.iter().map(|(slots, _)| slots).sum();
    if most - least < EVEN_ENOUGH.bytes() || slots != u32::from(SLOT_COUNT) {
        return even_counts(shards);
    }
    let share = bytes().sum::<u64>() as f64 / f64::from(shards);
    // Who has more than the share keeps as many of its slots as hold the share.
    let mut counts: Vec<u32> = (held.iter())
        .map(|(slots, bytes)| {
            let keeps = share / bytes.bytes().max(1) as f64;
            if keeps < 1.0 { (f64::from(*slots) * keeps).round().max(1.0) as u32 } else { *slots }
        })
        .collect();
    // What they give up goes to the others, by what each of them lacks.
    let freed = slots - counts.iter().sum::<u32>();
    let lacks: Vec<f64> = bytes().map(|bytes| (share - bytes as f64).max(0.0)).collect();
    let all: f64 = lacks.iter().sum::<f64>().max(1.0);
    let mut left = freed;
    for (count, lack) in counts.iter_mut().zip(&lacks) {
        let gets = ((f64::from(freed) * lack / all).floor() as u32).min(left);
        *count += gets;
        left -= gets;
    }
    let neediest =
        lacks.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(at, _)| at);
    counts[neediest] += left;
    counts
}

/// The fewest slots that have to move for every shard to have as many as `wanted` says; a shard
/// that is not in it is to have none. Slots go in runs, lowest shard first, so that what is planned
/// again while some have arrived is the rest of the same.
pub(crate) fn moves(held: &BTreeMap<u32, SlotSet>, wanted: &BTreeMap<u32, u32>) -> Vec<SlotMove> {
    let wanted_of = |shard: &u32| wanted.get(shard).copied().unwrap_or(0);
    let mut lacking: Vec<(u32, u32)> = wanted
        .keys()
        .map(|shard| {
            (*shard, wanted_of(shard).saturating_sub(held.get(shard).map_or(0, SlotSet::count)))
        })
        .filter(|(_, lacks)| *lacks > 0)
        .collect();
    let mut moves = Vec::new();
    for (from, slots) in held {
        let mut spare = slots.first(slots.count().saturating_sub(wanted_of(from)));
        while let Some((to, lacks)) = lacking.first_mut()
            && !spare.is_empty()
        {
            let slots = spare.first(*lacks);
            spare = spare.difference(&slots);
            *lacks -= slots.count();
            moves.push(SlotMove { from: *from, to: *to, slots });
            if *lacks == 0 {
                lacking.remove(0);
            }
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use larder_model::SlotRange;
    use proptest::prelude::*;

    use super::*;

    fn evenly(shards: u32) -> BTreeMap<u32, SlotSet> {
        (0..shards)
            .map(|shard| (shard, [even_slots(shard, shards)].into_iter().collect()))
            .collect()
    }

    fn done(held: &mut BTreeMap<u32, SlotSet>, moves: &[SlotMove]) {
        for step in moves {
            let from = held.get_mut(&step.from).expect("a source");
            assert_eq!(from.intersection(&step.slots), step.slots, "it gives only what it has");
            *from = from.difference(&step.slots);
            let to = held.entry(step.to).or_default();
            step.slots.ranges().iter().for_each(|range: &SlotRange| to.insert(*range));
        }
    }

    fn by_shard(counts: &[u32]) -> BTreeMap<u32, u32> {
        (0..).zip(counts.iter().copied()).collect()
    }

    #[test]
    fn three_shards_become_six_with_half_of_the_slots_moved_and_three_again() {
        let mut held = evenly(3);
        let out = moves(&held, &by_shard(&even_counts(6)));
        assert_eq!(out.iter().map(|step| step.slots.count()).sum::<u32>(), 8_192);
        assert!(out.iter().all(|step| step.from < 3 && step.to >= 3), "{out:?}");
        done(&mut held, &out);
        let back = moves(&held, &by_shard(&even_counts(3)));
        assert!(back.iter().all(|step| step.from >= 3 && step.to < 3), "{back:?}");
        done(&mut held, &back);
        assert!(held.range(3..).all(|(_, slots)| slots.is_empty()));
        assert!(moves(&held, &by_shard(&even_counts(3))).is_empty());
    }

    #[test]
    fn a_shard_with_most_of_the_data_gives_slots_and_no_shard_is_left_without() {
        let counts = counts_by_bytes(&[
            (5461, ByteSize::gib(9)),
            (5461, ByteSize::gib(1)),
            (5462, ByteSize::gib(2)),
        ]);
        assert_eq!(counts.iter().sum::<u32>(), u32::from(SLOT_COUNT));
        assert!((2400..2450).contains(&counts[0]), "{counts:?}");
        assert!(counts[1] > counts[2], "{counts:?}");
        let alike = counts_by_bytes(&[(10_000, ByteSize::mib(3)), (6_384, ByteSize::mib(9))]);
        assert_eq!(alike, even_counts(2), "servers alone take that much");
    }

    proptest! {
        #[test]
        fn moves_are_the_fewest_and_end_where_they_should(
            owners in prop::collection::vec(0..5_u32, 64),
            parts in prop::collection::vec(0..100_u32, 1..6),
        ) {
            let mut held: BTreeMap<u32, SlotSet> = BTreeMap::new();
            for (block, owner) in (0_u16..).zip(owners) {
                let range = SlotRange::new(block * 256, block * 256 + 255).expect("a range");
                held.entry(owner).or_default().insert(range);
            }
            let total: u32 = parts.iter().sum::<u32>().max(1);
            let mut counts: Vec<u32> = parts.iter().map(|p| p * u32::from(SLOT_COUNT) / total).collect();
            let short = u32::from(SLOT_COUNT) - counts.iter().sum::<u32>();
            counts[0] += short;
            let wanted = by_shard(&counts);
            let planned = moves(&held, &wanted);
            let moved: u32 = planned.iter().map(|step| step.slots.count()).sum();
            let needed: u32 = wanted.iter()
                .map(|(shard, count)| count.saturating_sub(held.get(shard).map_or(0, SlotSet::count)))
                .sum();
            prop_assert_eq!(moved, needed);
            done(&mut held, &planned);
            for (shard, slots) in &held {
                prop_assert_eq!(slots.count(), wanted.get(shard).copied().unwrap_or(0));
            }
        }
    }
}
