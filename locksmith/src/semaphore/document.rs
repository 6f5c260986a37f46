//! The document that the original locksmith keeps:
//! `{"semaphore":1,"max":1,"holders":null}`, its rules, and its bytes.

use std::fmt::Write as _;

use serde_json::Value;

use crate::machine_id::MachineId;

/// Longest document that is read, in bytes: etcd takes no longer value by
/// default.
const MOST_BYTES: usize = 1_572_864;

/// Free places, all places, and who has one.
///
/// `semaphore` is `max` minus the number of holders unless somebody edited the
/// document by hand. Any numbers are possible; the original checks none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Document {
    /// Free places; negative when `max` was lowered below the holders.
    pub semaphore: i64,
    /// All places.
    pub max: i64,
    /// In the order in which they are stored; sorted by bytes unless edited by
    /// hand.
    pub holders: Vec<MachineId>,
    /// Whether `holders` is written as `null`, as the original does before the
    /// first lock, or as `[]`.
    null: bool,
}

/// Why a document cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the semaphore is no document of locksmith: {0}")]
pub struct BadDocument(String);

/// Why somebody cannot become a holder. The texts are the original's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockRefusal {
    /// No place is free.
    #[error("semaphore is at {0}")]
    Full(i64),
    /// It has a place already.
    #[error("holder exists")]
    Exists,
}

/// Who gives back a place must have one. The text is the original's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("holder does not exist")]
pub struct NotHolder;

/// What a group starts with: one place, free.
pub(super) static UNUSED: Document = Document {
    semaphore: 1,
    max: 1,
    holders: Vec::new(),
    null: true,
};

impl Default for Document {
    /// What a group starts with: one place, free.
    fn default() -> Self {
        UNUSED.clone()
    }
}

impl Document {
    /// A document whose numbers agree with `holders`.
    #[must_use]
    pub fn new(max: i64, holders: impl IntoIterator<Item = MachineId>) -> Self {
        let mut document = Self {
            semaphore: max,
            max,
            holders: holders.into_iter().collect(),
            null: false,
        };
        document.heal();
        document
    }

    /// Reads a document as Go's decoder would: members in any order and case,
    /// unknown ones ignored, missing ones zero.
    ///
    /// # Errors
    ///
    /// No JSON, no object, a number that is none or does not fit 64 bits, a
    /// holder that is no text, or more than 1.5 MiB.
    pub fn read(bytes: &[u8]) -> Result<Self, BadDocument> {
        let bad = |what: String| BadDocument(what);
        if bytes.len() > MOST_BYTES {
            return Err(bad(format!("it has {} bytes", bytes.len())));
        }
        let value: Value = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
        let Value::Object(members) = value else {
            return Err(bad("it is not a JSON object".into()));
        };
        let mut document = Self {
            semaphore: 0,
            max: 0,
            holders: Vec::new(),
            null: true,
        };
        for (name, value) in members {
            match (name.to_ascii_lowercase().as_str(), value) {
                (_, Value::Null) => {}
                ("semaphore", value) => document.semaphore = number("semaphore", &value)?,
                ("max", value) => document.max = number("max", &value)?,
                ("holders", Value::Array(holders)) => {
                    document.null = false;
                    document.holders = holders
                        .into_iter()
                        .map(|holder| match holder {
                            Value::String(id) => Ok(MachineId::new(&id)),
                            other => Err(bad(format!("the holder {other} is not a text"))),
                        })
                        .collect::<Result<_, _>>()?;
                }
                ("holders", other) => {
                    return Err(bad(format!("\"holders\" is {other}, not a list")));
                }
                _ => {}
            }
        }
        Ok(document)
    }

    /// The bytes that the original would write.
    #[must_use]
    pub fn write(&self) -> String {
        let mut out = format!(
            "{{\"semaphore\":{},\"max\":{},\"holders\":",
            self.semaphore, self.max
        );
        if self.null && self.holders.is_empty() {
            out.push_str("null");
        } else {
            out.push('[');
            for (index, holder) in self.holders.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_go_string(&mut out, holder.as_str());
            }
            out.push(']');
        }
        out.push('}');
        out
    }

    /// Places that may be given away: never more than either the counter or the
    /// holders allow, so that a document edited by hand cannot let too many in.
    #[must_use]
    pub fn free(&self) -> i64 {
        let counted = i64::try_from(self.holders.len()).unwrap_or(i64::MAX);
        self.semaphore.min(self.max.saturating_sub(counted))
    }

    /// Whether it lets anybody in, now or when others leave. The original looks at
    /// the counter alone.
    #[must_use]
    pub fn gives_places(&self) -> bool {
        self.max > 0 || self.semaphore > 0
    }

    /// Whether nobody has changed it since it was made: the original makes one by
    /// looking.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.null && *self == UNUSED
    }

    /// Whether `id` has a place.
    #[must_use]
    pub fn holds(&self, id: &MachineId) -> bool {
        // Not a binary search: a list edited by hand may be unsorted.
        self.holders.contains(id)
    }

    /// Gives `id` a place. As in the original a full semaphore is reported
    /// before a holder that exists.
    ///
    /// # Errors
    ///
    /// No place is free, or `id` has one.
    pub fn lock(&mut self, id: &MachineId) -> Result<(), LockRefusal> {
        if self.free() <= 0 {
            return Err(LockRefusal::Full(self.free()));
        }
        if self.holds(id) {
            return Err(LockRefusal::Exists);
        }
        // Where it belongs, so that there is little to sort.
        let place = self.holders.partition_point(|holder| holder < id);
        self.holders.insert(place, id.clone());
        self.semaphore = self.semaphore.saturating_sub(1);
        self.sort();
        Ok(())
    }

    /// Takes the place of `id` back.
    ///
    /// # Errors
    ///
    /// It has none.
    pub fn unlock(&mut self, id: &MachineId) -> Result<(), NotHolder> {
        let before = self.holders.len();
        self.holders.retain(|holder| holder != id);
        if self.holders.len() == before {
            return Err(NotHolder);
        }
        self.semaphore = self.semaphore.saturating_add(1);
        self.sort();
        Ok(())
    }

    /// Changes the number of places; holders stay. Any number is taken, 0 or
    /// less stops all further locks.
    pub fn set_max(&mut self, max: i64) {
        let difference = self.max.saturating_sub(max);
        self.semaphore = self.semaphore.saturating_sub(difference);
        self.max = max;
    }

    /// Whether the holders are sorted and none is there twice.
    pub(super) fn is_in_order(&self) -> bool {
        self.holders.is_sorted_by(|a, b| a < b)
    }

    /// Sorts the holders, drops repeated ones and makes `semaphore` agree with
    /// them.
    pub fn heal(&mut self) {
        self.sort();
        let counted = i64::try_from(self.holders.len()).unwrap_or(i64::MAX);
        self.semaphore = self.max.saturating_sub(counted);
    }

    /// Whether [`Document::heal`] would change something.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let mut healed = self.clone();
        healed.heal();
        healed.semaphore == self.semaphore && healed.holders == self.holders
    }

    /// Sorts the holders and drops repeated ones; the numbers stay.
    pub(super) fn sort(&mut self) {
        self.null = false;
        self.holders.sort_unstable();
        self.holders.dedup();
    }
}

fn number(name: &str, value: &Value) -> Result<i64, BadDocument> {
    value.as_i64().ok_or_else(|| {
        BadDocument(format!(
            "{name:?} is {value}, not a whole number of 64 bits"
        ))
    })
}

/// Go's `encoding/json` escapes what could end a script element, and the two
/// line separators of Unicode.
fn write_go_string(out: &mut String, text: &str) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{0}'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(letter));
            }
            plain => out.push(plain),
        }
    }
    out.push('"');
}
