//! `com.coreos.update1.Details`: the reason of a failure, bytes, slots, and a
//! way to stop an install. Kept apart from the original's interface so that
//! nothing there changes; a policy can open it for reading alone.

#![expect(
    clippy::needless_pass_by_value,
    reason = "zbus hands message headers over by value"
)]

use serde::{Deserialize, Serialize};
use tracing::info;
use zbus::message::Header;
use zbus::{Type, as_variant, interface};

use super::{Engine, MethodError};
use crate::status::{Command, Details, Outcome};

/// [`Details`] on the wire: `a{sv}` with the keys of the fields in kebab case,
/// absent when unknown.
///
/// Read tolerantly: a key may be missing, and one that this version does not
/// know is skipped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, Type)]
#[zbus(signature = "a{sv}")]
#[serde(rename_all = "kebab-case", default)]
pub struct DetailsDict {
    #[serde(with = "as_variant::optional", skip_serializing_if = "Option::is_none")]
    last_outcome: Option<String>,
    #[serde(with = "as_variant::optional", skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
    #[serde(with = "as_variant::optional", skip_serializing_if = "Option::is_none")]
    last_error_code: Option<u32>,
    #[serde(with = "as_variant::optional", skip_serializing_if = "Option::is_none")]
    last_attempt_time: Option<i64>,
    #[serde(with = "as_variant::optional", skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(with = "as_variant::optional", skip_serializing_if = "Option::is_none")]
    bytes_done: Option<u64>,
    #[serde(with = "as_variant::optional", skip_serializing_if = "Option::is_none")]
    bytes_total: Option<u64>,
    #[serde(with = "as_variant::optional", skip_serializing_if = "Option::is_none")]
    bytes_resumed: Option<u64>,
    #[serde(with = "as_variant::optional", skip_serializing_if = "Option::is_none")]
    current_version: Option<String>,
    #[serde(with = "as_variant::optional", skip_serializing_if = "Option::is_none")]
    current_slot: Option<String>,
    #[serde(with = "as_variant::optional", skip_serializing_if = "Option::is_none")]
    target_slot: Option<String>,
    #[serde(with = "as_variant::optional", skip_serializing_if = "Option::is_none")]
    attempts: Option<u64>,
}

impl From<Details> for DetailsDict {
    fn from(details: Details) -> Self {
        Self {
            last_outcome: Some(details.last_outcome.as_str().to_owned()),
            last_error: details.last_error,
            last_error_code: details.last_error_code,
            last_attempt_time: details.last_attempt_time,
            reason: details.reason,
            bytes_done: details.bytes_done,
            bytes_total: details.bytes_total,
            bytes_resumed: details.bytes_resumed,
            current_version: details.current_version,
            current_slot: details.current_slot,
            target_slot: details.target_slot,
            attempts: Some(details.attempts),
        }
    }
}

impl From<DetailsDict> for Details {
    /// An outcome that this version does not know reads as
    /// [`Outcome::None`].
    fn from(dict: DetailsDict) -> Self {
        Self {
            last_outcome: dict
                .last_outcome
                .and_then(|word| Outcome::from_bus(&word))
                .unwrap_or_default(),
            last_error: dict.last_error,
            last_error_code: dict.last_error_code,
            last_attempt_time: dict.last_attempt_time,
            reason: dict.reason,
            bytes_done: dict.bytes_done,
            bytes_total: dict.bytes_total,
            bytes_resumed: dict.bytes_resumed,
            current_version: dict.current_version,
            current_slot: dict.current_slot,
            target_slot: dict.target_slot,
            attempts: dict.attempts.unwrap_or_default(),
        }
    }
}

pub(super) struct DetailsInterface {
    engine: Engine,
}

impl DetailsInterface {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

#[interface(name = "com.coreos.update1.Details", introspection_docs = false)]
impl DetailsInterface {
    #[zbus(out_args("details"))]
    fn get_details(&self) -> Result<DetailsDict, MethodError> {
        Ok(self.engine.snapshot()?.details.into())
    }

    fn cancel(&self, #[zbus(header)] header: Header<'_>) -> Result<(), MethodError> {
        let sender = header.sender().map(ToString::to_string);
        info!(sender, "cancellation asked for");
        self.engine.command(Command::Cancel)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use zbus::Variant;
    use zbus::wire::serialized::Context;
    use zbus::wire::{LE, to_bytes};

    fn full() -> Details {
        Details {
            last_outcome: Outcome::Failed,
            last_error: Some("download cut".into()),
            last_error_code: Some(9),
            last_attempt_time: Some(1_700_000_000),
            reason: Some("paused".into()),
            bytes_done: Some(1),
            bytes_total: Some(2),
            bytes_resumed: Some(3),
            current_version: Some("1.0.0".into()),
            current_slot: Some("A".into()),
            target_slot: Some("B".into()),
            attempts: 7,
        }
    }

    fn keys(details: Details) -> Vec<(String, String)> {
        let bytes = to_bytes(Context::new(LE, 0), &DetailsDict::from(details)).unwrap();
        let (dict, _): (HashMap<String, Variant<'_>>, _) = bytes.deserialize().unwrap();
        let mut keys: Vec<_> = dict
            .into_iter()
            .map(|(key, value)| (key, value.value_signature().to_string()))
            .collect();
        keys.sort();
        keys
    }

    #[test]
    fn every_key_has_its_published_name_and_type() {
        let expected = [
            ("attempts", "t"),
            ("bytes-done", "t"),
            ("bytes-resumed", "t"),
            ("bytes-total", "t"),
            ("current-slot", "s"),
            ("current-version", "s"),
            ("last-attempt-time", "x"),
            ("last-error", "s"),
            ("last-error-code", "u"),
            ("last-outcome", "s"),
            ("reason", "s"),
            ("target-slot", "s"),
        ];
        assert_eq!(
            keys(full()),
            expected.map(|(k, t)| (k.to_owned(), t.to_owned()))
        );
    }

    #[test]
    fn unknown_values_are_absent() {
        let keys: Vec<_> = keys(Details::default()).into_iter().map(|k| k.0).collect();
        assert_eq!(keys, ["attempts", "last-outcome"]);
    }

    #[test]
    fn details_survive_the_wire() {
        for details in [Details::default(), full()] {
            let dict = DetailsDict::from(details.clone());
            let bytes = to_bytes(Context::new(LE, 0), &dict).unwrap();
            let (back, _): (DetailsDict, _) = bytes.deserialize().unwrap();
            assert_eq!(Details::from(back), details);
        }
    }

    #[test]
    fn newer_keys_and_outcomes_do_not_disturb() {
        let newer: HashMap<&str, Variant<'_>> = [
            ("attempts", Variant::from(3_u64)),
            ("last-outcome", Variant::from("postponed-by-moon")),
            ("slots", Variant::from(vec!["A", "B", "C"])),
        ]
        .into();
        let bytes = to_bytes(Context::new(LE, 0), &newer).unwrap();
        let (dict, _): (DetailsDict, _) = bytes.deserialize().unwrap();
        assert_eq!(
            Details::from(dict),
            Details {
                attempts: 3,
                ..Details::default()
            }
        );
    }
}
