//! Decisions about slots: which one boots, and how the attributes change.
//!
//! Pure: partitions in, changes out. [`Gpt::apply`](crate::Gpt::apply) puts the changes
//! into a table.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt;
use core::time::Duration;

use crate::{Attributes, GptError, Partition};

/// How long a boot selector waits, with the reason on the screen, before it boots a
/// [`Selection::LastResort`]: without it a machine whose slots are all bad would reset in
/// a storm.
pub const LAST_RESORT_DELAY: Duration = Duration::from_secs(10);

/// New attributes for one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The partition, counted from 1.
    pub number: u32,
    /// All of its attribute bits.
    pub attributes: Attributes,
}

/// What a boot selector should do. `Display` tells the reason in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection<'a> {
    /// Boot this slot, after the try in [`Selection::after_boot`] is on the medium.
    Slot(&'a Partition),
    /// No slot may boot; this one has the highest priority among them. Print the reason,
    /// wait [`LAST_RESORT_DELAY`], then boot it.
    LastResort(&'a Partition),
    /// No slot has a priority. Stop with a rescue message.
    Nothing,
}

/// Which of the slots boots next.
///
/// The rule of the CoreOS boot loader: the highest priority among the slots that have
/// tries left or were successful; priority 0 never; the first of equals. `slots` are in
/// the order of their numbers, as [`Gpt::slots`](crate::Gpt::slots) gives them.
pub fn select(slots: &[Partition]) -> Selection<'_> {
    let best = |eligible: fn(Attributes) -> bool| {
        slots
            .iter()
            .filter(|slot| eligible(slot.attributes))
            // `min_by_key` keeps the first of equals.
            .min_by_key(|slot| Reverse(slot.attributes.priority()))
    };
    match best(Attributes::bootable) {
        Some(slot) => Selection::Slot(slot),
        None => match best(|attributes| attributes.priority() > 0) {
            Some(slot) => Selection::LastResort(slot),
            None => Selection::Nothing,
        },
    }
}

impl<'a> Selection<'a> {
    /// The slot to boot, if any.
    pub fn slot(&self) -> Option<&'a Partition> {
        match self {
            Selection::Slot(slot) | Selection::LastResort(slot) => Some(slot),
            Selection::Nothing => None,
        }
    }

    /// The change that must be on the medium before the slot starts: one try less, even
    /// for a slot that was successful. `None` when there is no try to spend; then
    /// nothing needs to be written.
    pub fn after_boot(&self) -> Option<Change> {
        let slot = self.slot()?;
        let tries = slot.attributes.tries().checked_sub(1)?;
        Some(Change {
            number: slot.number,
            attributes: slot.attributes.with_tries(tries),
        })
    }
}

impl fmt::Display for Selection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selection::Slot(slot) => {
                let why = match slot.attributes.successful() {
                    true => "was successful",
                    false => "has tries left",
                };
                write!(
                    f,
                    "partition {} has the highest priority of those that may boot; it {why}",
                    slot.number
                )
            }
            Selection::LastResort(slot) => write!(
                f,
                "no slot has tries left or was successful; \
                 partition {} has the highest priority",
                slot.number
            ),
            Selection::Nothing => f.write_str("no slot has a priority above 0"),
        }
    }
}

/// Makes one slot the first to boot and renumbers the others below it, as `cgpt
/// prioritize` does.
///
/// Slots are grouped by priority; the `chosen` slot forms a new top group, together with
/// its former equals when `with_equals` is set. Groups are then numbered downwards from
/// `max` (by default from the number of groups, 15 at most), never below 1. Slots of
/// priority 0 stay there. Without a `chosen` slot the groups are only renumbered.
///
/// Priorities 2, 0, 0 with the first chosen become 1, 0, 0; then with the second chosen
/// 1, 2, 0; then with the first chosen 2, 1, 0.
///
/// Fails with [`GptError::NotASlot`] if `chosen` is none of `slots`.
pub fn prioritize(
    slots: &[Partition],
    chosen: Option<u32>,
    max: Option<u8>,
    with_equals: bool,
) -> Result<Vec<Change>, GptError> {
    let chosen = chosen.map(|number| find(slots, number)).transpose()?;
    // Sorts above every real priority.
    const TOP: u8 = u8::MAX;
    let group_of = |slot: &Partition| {
        let priority = slot.attributes.priority();
        match chosen {
            Some(chosen) if chosen.number == slot.number => TOP,
            Some(chosen) if with_equals && chosen.attributes.priority() == priority => TOP,
            _ => priority,
        }
    };
    let mut groups: BTreeMap<Reverse<u8>, Vec<&Partition>> = BTreeMap::new();
    for slot in slots {
        groups
            .entry(Reverse(group_of(slot)))
            .or_default()
            .push(slot);
    }
    groups.remove(&Reverse(0));

    let highest = match max {
        Some(max) if max > 0 => max.min(Attributes::MAX_PRIORITY),
        _ => u8::try_from(groups.len())
            .unwrap_or(u8::MAX)
            .min(Attributes::MAX_PRIORITY),
    };
    let priorities = (1..=highest).rev().chain(core::iter::repeat(1));
    Ok(groups
        .into_values()
        .zip(priorities)
        .flat_map(|(group, priority)| {
            group.into_iter().map(move |slot| Change {
                number: slot.number,
                attributes: slot.attributes.with_priority(priority),
            })
        })
        .collect())
}

/// After an install: `target` boots next, with so many tries (1–15; 0 counts as 1) to
/// become successful. The other slots keep their order below it and remain the way back.
///
/// With the usual two slots: target priority 2, tries 1, successful 0; the running slot
/// priority 1, tries 0, successful 1.
pub fn set_active(slots: &[Partition], target: u32, tries: u8) -> Result<Vec<Change>, GptError> {
    raise(slots, target, |attributes| {
        attributes.with_tries(tries.max(1)).with_successful(false)
    })
}

/// The running slot has proved healthy: it needs no tries any more and boots first.
pub fn mark_successful(slots: &[Partition], running: u32) -> Result<Vec<Change>, GptError> {
    raise(slots, running, |attributes| {
        attributes.with_tries(0).with_successful(true)
    })
}

/// The slot must not boot: priority 0, tries 0, not successful. Done before its content
/// is touched.
pub fn mark_unbootable(slots: &[Partition], number: u32) -> Result<Change, GptError> {
    let attributes = find(slots, number)?.attributes;
    Ok(Change {
        number,
        attributes: attributes
            .with_priority(0)
            .with_tries(0)
            .with_successful(false),
    })
}

/// Prioritizes one slot, and changes it in other ways too.
fn raise(
    slots: &[Partition],
    number: u32,
    change: impl Fn(Attributes) -> Attributes,
) -> Result<Vec<Change>, GptError> {
    let mut changes = prioritize(slots, Some(number), None, false)?;
    for raised in changes.iter_mut().filter(|raised| raised.number == number) {
        raised.attributes = change(raised.attributes);
    }
    Ok(changes)
}

fn find(slots: &[Partition], number: u32) -> Result<&Partition, GptError> {
    slots
        .iter()
        .find(|slot| slot.number == number)
        .ok_or(GptError::NotASlot { number })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Guid, USR_TYPE};
    use alloc::string::{String, ToString};
    use alloc::vec;

    /// Slots 3, 4, … with (priority, tries, successful).
    fn slots(table: &[(u8, u8, u8)]) -> Vec<Partition> {
        (3..)
            .zip(table)
            .map(|(number, &(priority, tries, successful))| Partition {
                number,
                type_guid: USR_TYPE,
                unique_guid: Guid::NIL,
                first_lba: 0,
                last_lba: 0,
                attributes: Attributes::default()
                    .with_priority(priority)
                    .with_tries(tries)
                    .with_successful(successful == 1),
                name: String::new(),
            })
            .collect()
    }

    fn applied(slots: &[Partition], changes: &[Change]) -> Vec<(u8, u8, u8)> {
        slots
            .iter()
            .map(|slot| {
                let attributes = changes
                    .iter()
                    .find(|change| change.number == slot.number)
                    .map_or(slot.attributes, |change| change.attributes);
                (
                    attributes.priority(),
                    attributes.tries(),
                    u8::from(attributes.successful()),
                )
            })
            .collect()
    }

    #[test]
    fn the_bootable_slot_of_highest_priority_is_selected() {
        let none: &[(u8, u8, u8)] = &[];
        for (table, eligible, last_resort) in [
            (none, None, None),
            // Freshly installed; updated; first boot failed; marked successful.
            (&[(1, 0, 1), (0, 0, 0)], Some(3), None),
            (&[(1, 0, 1), (2, 1, 0)], Some(4), None),
            (&[(1, 0, 1), (2, 0, 0)], Some(3), None),
            (&[(1, 0, 1), (2, 0, 1)], Some(4), None),
            // Priority 0 never boots.
            (&[(0, 15, 1), (1, 0, 1)], Some(4), None),
            (&[(0, 15, 1), (0, 15, 1)], None, None),
            // Ties go to the lower number.
            (&[(2, 1, 0), (2, 0, 1)], Some(3), None),
            (&[(2, 0, 0), (2, 0, 1), (2, 1, 1)], Some(4), None),
            // Tries count as much as success.
            (&[(15, 1, 0), (14, 15, 1)], Some(3), None),
            // None may boot: the highest priority as a last resort.
            (&[(1, 0, 0), (2, 0, 0)], None, Some(4)),
            (&[(2, 0, 0), (2, 0, 0)], None, Some(3)),
            (&[(0, 3, 1), (1, 0, 0)], None, Some(4)),
        ] {
            let slots = slots(table);
            let selection = select(&slots);
            let (chosen, resort) = match &selection {
                Selection::Slot(slot) => (Some(slot.number), None),
                Selection::LastResort(slot) => (None, Some(slot.number)),
                Selection::Nothing => (None, None),
            };
            assert_eq!((chosen, resort), (eligible, last_resort), "{table:?}");
        }
    }

    #[test]
    fn a_boot_spends_a_try_even_of_a_successful_slot() {
        for (slot, tries_left) in [
            ((1, 3, 0), Some(2)),
            ((1, 1, 0), Some(0)),
            ((1, 3, 1), Some(2)),
            ((1, 0, 1), None),
            ((1, 0, 0), None),
        ] {
            let slots = slots(&[slot]);
            let change = select(&slots).after_boot();
            assert_eq!(change.map(|change| change.attributes.tries()), tries_left);
            if let Some(change) = change {
                let (priority, _, successful) = slot;
                let tries = change.attributes.tries();
                assert_eq!(applied(&slots, &[change]), [(priority, tries, successful)]);
            }
        }
    }

    #[test]
    fn the_selection_tells_its_reason() {
        for (table, reason) in [
            ([(1, 0, 1), (0, 0, 0)], "partition 3"),
            ([(1, 0, 1), (0, 0, 0)], "it was successful"),
            ([(1, 0, 1), (2, 1, 0)], "it has tries left"),
            ([(1, 0, 0), (2, 0, 0)], "no slot has tries left"),
            ([(0, 1, 1), (0, 0, 0)], "no slot has a priority above 0"),
        ] {
            let text = select(&slots(&table)).to_string();
            assert!(text.contains(reason), "{text}");
        }
    }

    #[test]
    fn prioritize_follows_the_examples_of_cgpt() {
        let mut slots = slots(&[(2, 0, 0), (0, 0, 0), (0, 0, 0)]);
        for (chosen, expected) in [(3, [1, 0, 0]), (4, [1, 2, 0]), (3, [2, 1, 0])] {
            let changes = prioritize(&slots, Some(chosen), None, false).unwrap();
            let priorities: Vec<u8> = applied(&slots, &changes)
                .into_iter()
                .map(|(priority, ..)| priority)
                .collect();
            assert_eq!(priorities, expected, "{chosen}");
            for (slot, priority) in slots.iter_mut().zip(priorities) {
                slot.attributes = slot.attributes.with_priority(priority);
            }
        }
    }

    #[test]
    fn prioritize_numbers_groups_downwards_and_never_below_one() {
        for (before, chosen, max, with_equals, after) in [
            // Nobody chosen: gaps are closed, zero stays.
            (vec![9, 0, 9, 4], None, None, false, vec![2, 0, 2, 1]),
            (vec![9, 0, 9, 4], None, Some(15), false, vec![15, 0, 15, 14]),
            // One of equals is raised alone, or with its equals.
            (vec![2, 2, 1], Some(4), None, false, vec![2, 3, 1]),
            (vec![1, 1, 2], Some(4), None, true, vec![2, 2, 1]),
            (vec![0, 0, 3], Some(3), None, true, vec![2, 2, 1]),
            (vec![0, 0, 3], Some(3), None, false, vec![2, 0, 1]),
            // Not enough numbers for all groups.
            (vec![3, 2, 1], Some(5), Some(2), false, vec![1, 1, 2]),
            (vec![3, 2, 1], Some(5), Some(1), false, vec![1, 1, 1]),
            (vec![0, 0], None, None, false, vec![0, 0]),
        ] {
            let table: Vec<_> = before.iter().map(|&priority| (priority, 7, 1)).collect();
            let slots = slots(&table);
            let changes = prioritize(&slots, chosen, max, with_equals).unwrap();
            let expected: Vec<_> = after.iter().map(|&priority| (priority, 7, 1)).collect();
            assert_eq!(applied(&slots, &changes), expected, "{before:?} {chosen:?}");
        }
    }

    #[test]
    fn more_groups_than_priorities_share_the_lowest() {
        let table: Vec<_> = (0..16).map(|priority| (priority, 0, 0)).collect();
        let slots = slots(&table);
        let changes = prioritize(&slots, Some(3), None, false).unwrap();
        let after = applied(&slots, &changes);
        assert_eq!(after[0].0, 15);
        assert_eq!((after[1].0, after[2].0, after[15].0), (1, 1, 14));
    }

    #[test]
    fn the_life_of_two_slots_is_that_of_the_original() {
        // Each step: what happens, and (A, B) after it.
        let mut slots = slots(&[(1, 0, 1), (0, 0, 0)]);
        type Step = (
            &'static str,
            fn(&[Partition]) -> Vec<Change>,
            [(u8, u8, u8); 2],
        );
        let steps: [Step; 8] = [
            (
                "install into B begins",
                |slots| vec![mark_unbootable(slots, 4).unwrap()],
                [(1, 0, 1), (0, 0, 0)],
            ),
            (
                "install is done",
                |slots| set_active(slots, 4, 1).unwrap(),
                [(1, 0, 1), (2, 1, 0)],
            ),
            (
                "boot selector",
                |slots| select(slots).after_boot().into_iter().collect(),
                [(1, 0, 1), (2, 0, 0)],
            ),
            (
                "B is healthy",
                |slots| mark_successful(slots, 4).unwrap(),
                [(1, 0, 1), (2, 0, 1)],
            ),
            (
                "install into A begins",
                |slots| vec![mark_unbootable(slots, 3).unwrap()],
                [(0, 0, 0), (2, 0, 1)],
            ),
            (
                "install is done",
                |slots| set_active(slots, 3, 1).unwrap(),
                [(2, 1, 0), (1, 0, 1)],
            ),
            (
                "boot selector, and the boot fails",
                |slots| select(slots).after_boot().into_iter().collect(),
                [(2, 0, 0), (1, 0, 1)],
            ),
            (
                "boot selector falls back to B, which is healthy",
                |slots| {
                    assert_eq!(select(slots).slot().map(|slot| slot.number), Some(4));
                    mark_successful(slots, 4).unwrap()
                },
                [(1, 0, 0), (2, 0, 1)],
            ),
        ];
        for (what, step, expected) in steps {
            let changes = step(&slots);
            assert_eq!(applied(&slots, &changes), expected, "{what}");
            for change in changes {
                let slot = slots.iter_mut().find(|slot| slot.number == change.number);
                slot.unwrap().attributes = change.attributes;
            }
        }
    }

    #[test]
    fn an_active_slot_always_has_a_try() {
        for (wanted, tries) in [(0, 1), (1, 1), (6, 6), (15, 15), (200, 15)] {
            let slots = slots(&[(1, 0, 1), (0, 0, 0)]);
            let changes = set_active(&slots, 4, wanted).unwrap();
            assert_eq!(applied(&slots, &changes), [(1, 0, 1), (2, tries, 0)]);
        }
    }

    #[test]
    fn other_bits_of_all_slots_are_kept() {
        let mut slots = slots(&[(1, 0, 1), (0, 0, 0)]);
        for slot in &mut slots {
            slot.attributes = Attributes::from_raw(slot.attributes.raw() | 0x9000_0000_0000_0007);
        }
        let other_bits = |changes: Vec<Change>| {
            changes
                .into_iter()
                .all(|change| change.attributes.raw() & !(0x1ff << 48) == 0x9000_0000_0000_0007)
        };
        assert!(other_bits(set_active(&slots, 4, 1).unwrap()));
        assert!(other_bits(mark_successful(&slots, 3).unwrap()));
        assert!(other_bits(vec![mark_unbootable(&slots, 3).unwrap()]));
    }

    #[test]
    fn a_partition_that_is_no_slot_is_refused() {
        let slots = slots(&[(1, 0, 1), (0, 0, 0)]);
        for refused in [
            prioritize(&slots, Some(9), None, false).err(),
            set_active(&slots, 9, 1).err(),
            mark_successful(&slots, 9).err(),
            mark_unbootable(&slots, 9).err(),
        ] {
            assert!(matches!(refused, Some(GptError::NotASlot { number: 9 })));
        }
    }
}
