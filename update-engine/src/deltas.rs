//! Whether this machine still wants deltas to the version on offer: pure bookkeeping
//! over what went wrong with them. A delta is only ever a shortcut, so whatever is wrong
//! with one, a full payload is asked for.

use payload::PayloadError;

use crate::error::UpdateError;

/// Failures of deltas to one version after which a full payload is asked for.
const MOST_FAILURES: i64 = 2;

/// What is remembered about deltas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeltaHistory {
    /// The version that they brought; another one starts over.
    pub version: String,
    /// How often they failed (`delta-update-failures`).
    pub failures: i64,
}

/// What a failure says of the delta that was being installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaFailure {
    /// It can never bring this machine to the new version.
    Hopeless,
    /// It may have been the delta or something else, such as the network.
    Counted,
}

impl DeltaHistory {
    /// The history that applies to an offer of `version`.
    #[must_use]
    pub fn for_version(self, version: &str) -> Self {
        if self.version == version {
            self
        } else {
            Self {
                version: version.to_owned(),
                failures: 0,
            }
        }
    }

    /// Notes a failure.
    pub fn failed(&mut self, failure: DeltaFailure) {
        self.failures = match failure {
            DeltaFailure::Hopeless => self.failures.max(MOST_FAILURES),
            DeltaFailure::Counted => self.failures.saturating_add(1),
        };
    }

    /// Whether the server may offer another one (`delta_okay`).
    #[must_use]
    pub fn takes_deltas(&self) -> bool {
        self.failures < MOST_FAILURES
    }
}

/// What the failure of an installation says of deltas; `None` when it says nothing.
/// `is_delta` is what the offer announced.
#[must_use]
pub fn judge(is_delta: bool, error: &UpdateError) -> Option<DeltaFailure> {
    match error {
        // Decisions, not failures: a full payload meets the same.
        UpdateError::Cancelled
        | UpdateError::Locked(_)
        | UpdateError::Ignored { .. }
        | UpdateError::Deferred { .. }
        | UpdateError::Backoff { .. }
        | UpdateError::ReleaseRefused { .. }
        | UpdateError::PartitionUnmapped { .. }
        | UpdateError::BootUnmounted
        | UpdateError::NoRoom { .. } => None,
        // Full payloads do not know these, whatever the offer says.
        UpdateError::SourceMismatch { .. }
        | UpdateError::EncodersMissing { .. }
        | UpdateError::Payload(
            PayloadError::SourceMismatch { .. }
            | PayloadError::SourceMissing { .. }
            | PayloadError::OperationSourceMismatch { .. }
            | PayloadError::OperationSourceMissing { .. }
            | PayloadError::EncoderMissing { .. },
        ) => Some(DeltaFailure::Hopeless),
        _ if !is_delta => None,
        // Its data was good, for the hash is checked first: what was made of it is not.
        // A full payload does not read the running slot either, should that fail.
        UpdateError::ReadBack { .. }
        | UpdateError::Payload(
            PayloadError::OperationFailed { .. }
            | PayloadError::TargetMismatch { .. }
            | PayloadError::RootHashMismatch { .. }
            | PayloadError::Read { .. },
        ) => Some(DeltaFailure::Hopeless),
        _ => Some(DeltaFailure::Counted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Artefact, TransportError};
    use DeltaFailure::{Counted, Hopeless};

    #[test]
    fn two_failures_or_a_hopeless_one_ask_for_a_full_payload_until_another_version_comes() {
        let after = |failures: &[DeltaFailure]| {
            let mut history = DeltaHistory::default().for_version("2.0.0");
            for failure in failures {
                history.failed(*failure);
            }
            history
        };
        for (failures, takes) in [
            (&[][..], true),
            (&[Counted], true),
            (&[Counted, Counted], false),
            (&[Hopeless], false),
            (&[Counted, Hopeless, Counted], false),
        ] {
            let history = after(failures);
            assert_eq!(history.takes_deltas(), takes, "{failures:?}");
            let same = history.clone().for_version("2.0.0");
            assert_eq!(same.takes_deltas(), takes, "{failures:?}");
            assert!(history.for_version("3.0.0").takes_deltas());
        }
    }

    #[test]
    fn what_a_failure_says_of_deltas() {
        let transfer = || UpdateError::Transfer {
            url: "u".to_owned(),
            offset: 0,
            source: TransportError::Status(500),
        };
        let source = || PayloadError::OperationSourceMismatch {
            index: 0,
            offset: 0,
            length: 1,
        };
        let failed = || PayloadError::OperationFailed {
            index: 0,
            kind: "DELTA",
            source: "bad".into(),
        };
        let read_back = || UpdateError::ReadBack {
            object: Artefact::Image,
            place: "p".to_owned(),
            expected: "e".to_owned(),
            actual: "a".to_owned(),
        };
        let missing = || UpdateError::EncodersMissing {
            names: "zstd/1".to_owned(),
        };
        let refused = || UpdateError::ReleaseRefused {
            reason: "expired".to_owned(),
            facts: Box::default(),
        };
        type Make<'a> = &'a dyn Fn() -> UpdateError;
        let table: [(Make<'_>, _, _); 8] = [
            (&|| source().into(), Some(Hopeless), Some(Hopeless)),
            (&missing, Some(Hopeless), Some(Hopeless)),
            (&|| failed().into(), Some(Hopeless), None),
            (&read_back, Some(Hopeless), None),
            (&transfer, Some(Counted), None),
            (
                &|| PayloadError::PayloadHashMismatch.into(),
                Some(Counted),
                None,
            ),
            (&refused, None, None),
            (&|| UpdateError::Cancelled, None, None),
        ];
        for (make, of_delta, of_full) in table {
            let error = make();
            assert_eq!(judge(true, &error), of_delta, "{error}");
            assert_eq!(judge(false, &error), of_full, "{error}");
        }
    }
}
