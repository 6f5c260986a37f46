//! Which slot is A and which is B.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use crate::{Guid, Partition};

/// Name of a slot: A for USR-A, B for USR-B. Kernel and PCR policy files carry it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Letter(char);

impl Letter {
    /// Slot A.
    pub const A: Self = Self('A');
    /// Slot B.
    pub const B: Self = Self('B');

    /// The letter as in file names: `a` in `vmlinuz-a`.
    pub fn lower(self) -> char {
        self.0.to_ascii_lowercase()
    }

    /// The letter `index` places after A.
    fn nth(index: u8) -> Option<Self> {
        (index < 26).then(|| Self(char::from(b'A' + index)))
    }

    /// What the partition says about itself.
    fn of(partition: &Partition) -> Option<Self> {
        Self::of_guid(partition.unique_guid).or_else(|| Self::of_label(&partition.name))
    }

    /// The identities that every CoreOS and Flatcar disk has. The boot loader goes by them alone
    /// when it chooses the kernel.
    fn of_guid(guid: Guid) -> Option<Self> {
        match guid {
            USR_A => Some(Self::A),
            USR_B => Some(Self::B),
            _ => None,
        }
    }

    /// The end of a label such as `USR-A`.
    fn of_label(label: &str) -> Option<Self> {
        let (_, suffix) = label.rsplit_once('-')?;
        match suffix.as_bytes() {
            [letter @ b'A'..=b'Z'] => Some(Self(char::from(*letter))),
            _ => None,
        }
    }
}

/// 7130c94a-213a-4e5a-8e26-6cce9662f132
const USR_A: Guid = Guid::from_fields(
    0x7130_c94a,
    0x213a,
    0x4e5a,
    [0x8e, 0x26, 0x6c, 0xce, 0x96, 0x62, 0xf1, 0x32],
);
/// e03dd35c-7c2d-4a47-b3fe-27f15780a57c
const USR_B: Guid = Guid::from_fields(
    0xe03d_d35c,
    0x7c2d,
    0x4a47,
    [0xb3, 0xfe, 0x27, 0xf1, 0x57, 0x80, 0xa5, 0x7c],
);

/// The letter of every slot, by partition number.
///
/// Each slot is asked for its identity, then for its label. Those that say nothing get the free
/// letters in order of their numbers. An error, in words, when two slots say the same or one
/// contradicts itself: the boot loader and the programs of an image go by different ones of these
/// signs, so that a contradiction would end with the kernel of one slot and the system of another.
pub fn letters(slots: &[Partition]) -> Result<BTreeMap<u32, Letter>, String> {
    let mut owners: BTreeMap<Letter, u32> = BTreeMap::new();
    for slot in slots {
        let Some(letter) = Letter::of(slot) else {
            continue;
        };
        if let Some(label) = Letter::of_label(&slot.name).filter(|&label| label != letter) {
            return Err(format!(
                "partition {} is slot {letter} by its GUID {} and slot {label} by its label '{}'",
                slot.number, slot.unique_guid, slot.name
            ));
        }
        if let Some(other) = owners.insert(letter, slot.number) {
            return Err(format!(
                "partitions {other} and {} are both slot {letter}",
                slot.number
            ));
        }
    }
    let mut letters: BTreeMap<u32, Letter> = owners
        .iter()
        .map(|(&letter, &number)| (number, letter))
        .collect();
    let mut free = (0..26)
        .filter_map(Letter::nth)
        .filter(|letter| !owners.contains_key(letter));
    for slot in slots {
        if let Entry::Vacant(unnamed) = letters.entry(slot.number) {
            unnamed.insert(free.next().ok_or("there are more than 26 slots")?);
        }
    }
    Ok(letters)
}

impl fmt::Display for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The text is no single letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a slot letter such as A or B")]
pub struct ParseLetterError;

impl FromStr for Letter {
    type Err = ParseLetterError;

    fn from_str(text: &str) -> Result<Self, ParseLetterError> {
        match text.as_bytes() {
            [letter] if letter.is_ascii_alphabetic() => {
                Ok(Self(char::from(letter.to_ascii_uppercase())))
            }
            _ => Err(ParseLetterError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attributes, USR_TYPE};
    use alloc::borrow::ToOwned;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    fn slot(number: u32, name: &str, unique_guid: &str) -> Partition {
        Partition {
            number,
            type_guid: USR_TYPE,
            unique_guid: unique_guid.parse().unwrap(),
            first_lba: 0,
            last_lba: 0,
            attributes: Attributes::default(),
            name: name.to_owned(),
        }
    }

    const A: &str = "7130C94A-213A-4E5A-8E26-6CCE9662F132";
    const B: &str = "E03DD35C-7C2D-4A47-B3FE-27F15780A57C";
    const OTHER: &str = "11111111-2222-4333-8444-555555555555";

    /// Number, label and GUID of each slot, and the letters or the reason of a refusal.
    type Row<'a> = (&'a [(u32, &'a str, &'a str)], &'a str);

    #[test]
    fn letters_come_from_identity_label_then_order() {
        let table: [Row<'_>; 10] = [
            (&[(3, "USR-A", A), (4, "USR-B", B)], "3A 4B"),
            (&[(3, "", B), (4, "", A)], "3B 4A"),
            (&[(3, "USR-B", OTHER), (4, "USR-A", OTHER)], "3B 4A"),
            (&[(3, "usr", OTHER), (4, "usr", OTHER)], "3A 4B"),
            (&[(3, "usr", OTHER), (4, "USR-A", OTHER)], "3B 4A"),
            (
                &[(2, "", OTHER), (7, "", OTHER), (9, "", OTHER)],
                "2A 7B 9C",
            ),
            (&[(3, "USR-A1", OTHER), (4, "USR-a", OTHER)], "3A 4B"),
            (
                &[(3, "USR-A", OTHER), (4, "ROOT-A", OTHER)],
                "partitions 3 and 4 are both slot A",
            ),
            (
                &[(3, "USR-A", OTHER), (4, "", A)],
                "partitions 3 and 4 are both slot A",
            ),
            (
                &[(3, "USR-B", A), (4, "USR-A", B)],
                "partition 3 is slot A by its GUID 7130c94a-213a-4e5a-8e26-6cce9662f132 \
                 and slot B by its label 'USR-B'",
            ),
        ];
        for (slots, expected) in table {
            let slots: Vec<_> = slots
                .iter()
                .map(|&(number, name, guid)| slot(number, name, guid))
                .collect();
            let found = match letters(&slots) {
                Err(reason) => reason,
                Ok(letters) => {
                    let words: Vec<_> = letters
                        .iter()
                        .map(|(number, letter)| format!("{number}{letter}"))
                        .collect();
                    words.join(" ")
                }
            };
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn more_slots_than_letters_are_refused() {
        let slots: Vec<_> = (1..=27).map(|number| slot(number, "", OTHER)).collect();
        assert!(letters(&slots).is_err());
        assert!(letters(&slots[1..]).is_ok());
    }

    #[test]
    fn a_letter_is_typed_in_either_case() {
        assert_eq!("b".parse(), Ok(Letter::B));
        for text in ["", "AB", "3", "é"] {
            assert_eq!(text.parse::<Letter>(), Err(ParseLetterError), "{text}");
        }
        assert_eq!(
            (Letter::B.to_string().as_str(), Letter::B.lower()),
            ("B", 'b')
        );
    }
}
