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
