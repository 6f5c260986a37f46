//! Names of the keys of one group, below its prefix.
//!
//! ```text
//! semaphore                              the original's document
//! v1/policy                              how many, budget, paused
//! v1/halt                                present: nobody may take a place
//! v1/failures                            what the budget was spent on
//! v1/holder/<id>                         who holds a place and how far it is
//! v1/deadline/<id>                       gone: the holder is late
//! v1/queue/<rank>/<ticket>/<id>          who waits, in the order of the keys
//! v1/member/<id>                         machines that take part
//! v1/history/<id>                        the last outcomes of a machine
//! ```
//!
//! `<id>` is escaped as in a URL query, `<rank>` has three digits (the lower goes
//! first), `<ticket>` sixteen hexadecimal ones.

use std::cmp::Ordering;

use crate::group::{escape, unescape};
use crate::machine_id::MachineId;

/// One key of a group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The places: [`super::Document`].
    Document,
    /// [`super::Policy`].
    Policy,
    /// [`super::Halt`].
    Halt,
    /// [`super::Failures`].
    Failures,
    /// [`super::Holder`].
    Holder(MachineId),
    /// Empty, under a lease.
    Deadline(MachineId),
    /// [`super::Ticket`], under a lease.
    Ticket(TicketKey),
    /// Empty, under a lease.
    Member(MachineId),
    /// List of [`super::Outcome`].
    History(MachineId),
}

/// Place in the queue: keys sort in the order in which they are served.
///
/// The ticket is the revision of the snapshot that its owner had read before it
/// queued. Revisions never go back and reads are linearizable, so whoever began
/// to queue after another one had finished comes after it: first come, first
/// served, without a counter that everybody would fight for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TicketKey {
    /// 0 to 999; lower is served first.
    pub rank: u16,
    /// Revision at which its owner looked.
    pub ticket: u64,
    /// Who waits.
    pub id: MachineId,
}

// By name, as the store has them: escaping changes the order of some ids.
impl Ord for TicketKey {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.rank, self.ticket)
            .cmp(&(other.rank, other.ticket))
            .then_with(|| escaped_order(&self.id).cmp(escaped_order(&other.id)))
    }
}

impl PartialOrd for TicketKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Key {
    /// Prefix of all holder records.
    pub const HOLDERS: &'static str = "v1/holder/";
    /// Prefix of all deadlines.
    pub const DEADLINES: &'static str = "v1/deadline/";
    /// Prefix of the queue.
    pub const QUEUE: &'static str = "v1/queue/";
    /// Prefix of all members.
    pub const MEMBERS: &'static str = "v1/member/";
    /// Prefix of all histories.
    pub const HISTORIES: &'static str = "v1/history/";

    /// The name below the group's prefix.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Document => "semaphore".to_owned(),
            Self::Policy => "v1/policy".to_owned(),
            Self::Halt => "v1/halt".to_owned(),
            Self::Failures => "v1/failures".to_owned(),
            Self::Holder(id) => format!("{}{}", Self::HOLDERS, escape(id.as_str())),
            Self::Deadline(id) => format!("{}{}", Self::DEADLINES, escape(id.as_str())),
            Self::Ticket(TicketKey { rank, ticket, id }) => {
                format!(
                    "{}{rank:03}/{ticket:016x}/{}",
                    Self::QUEUE,
                    escape(id.as_str())
                )
            }
            Self::Member(id) => format!("{}{}", Self::MEMBERS, escape(id.as_str())),
            Self::History(id) => format!("{}{}", Self::HISTORIES, escape(id.as_str())),
        }
    }

    /// The key with this name; `None` for a name that is none of ours.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let id = |escaped: &str| unescape(escaped).map(|id| MachineId::new(&id));
        Some(match name {
            "semaphore" => Self::Document,
            "v1/policy" => Self::Policy,
            "v1/halt" => Self::Halt,
            "v1/failures" => Self::Failures,
            _ => {
                if let Some(rest) = name.strip_prefix(Self::HOLDERS) {
                    Self::Holder(id(rest)?)
                } else if let Some(rest) = name.strip_prefix(Self::DEADLINES) {
                    Self::Deadline(id(rest)?)
                } else if let Some(rest) = name.strip_prefix(Self::MEMBERS) {
                    Self::Member(id(rest)?)
                } else if let Some(rest) = name.strip_prefix(Self::HISTORIES) {
                    Self::History(id(rest)?)
                } else {
                    let mut parts = name.strip_prefix(Self::QUEUE)?.splitn(3, '/');
                    Self::Ticket(TicketKey {
                        rank: parts.next()?.parse().ok()?,
                        ticket: u64::from_str_radix(parts.next()?, 16).ok()?,
                        id: id(parts.next()?)?,
                    })
                }
            }
        })
    }
}

/// Compares as [`escape`]'s output does: the codes of two bytes differ, and none
/// begins another.
fn escaped_order(id: &MachineId) -> impl Iterator<Item = (u8, u8)> {
    id.as_str().bytes().map(|byte| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => (byte, 0),
        b' ' => (b'+', 0),
        _ => (b'%', byte),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_tickets_sort_by_name_as_they_are_served() {
        let ticket = |rank, ticket, id: &str| {
            Key::Ticket(TicketKey {
                rank,
                ticket,
                id: id.into(),
            })
        };
        let mut tickets = [
            ticket(100, 9, "b"),
            ticket(100, 10, "a"),
            ticket(100, 9, "a/%"),
            ticket(100, 9, "é"),
            ticket(99, 500, "z"),
        ];
        tickets.sort();
        assert!(tickets.is_sorted_by_key(Key::name), "{tickets:?}");
        let others = [
            Key::Document,
            Key::Policy,
            Key::Halt,
            Key::Failures,
            Key::Holder("a b/c".into()),
            Key::Deadline("".into()),
            Key::Member("é".into()),
            Key::History("x".into()),
        ];
        for key in tickets.iter().chain(&others) {
            assert_eq!(Key::parse(&key.name()).as_ref(), Some(key));
        }
        for name in [
            "",
            "v1/",
            "v1/queue/1/x/a",
            "v1/holder/%",
            "v2/halt",
            "Semaphore",
        ] {
            assert_eq!(Key::parse(name), None, "{name}");
        }
    }
}
