//! What is kept between restarts about payloads that were installed or refused. Knows
//! keys and forms of the values; what follows from them is decided elsewhere.

use gptprio::Guid;
use serde::{Deserialize, Serialize};

use super::World;
use crate::config::Settings;
use crate::deltas::DeltaHistory;
use crate::error::UpdateError;
use crate::install::{Proof, hex};
use crate::platform::{Slot, Slots};
use crate::policy::ReleaseFacts;
use crate::prefs::{DELTA_UPDATE_FAILURES, Key, StoreError};

/// The version whose deltas the original's key counts the failures of.
const DELTA_VERSION: Key = Key::new("delta-update-version");
/// The last payload that its own signed facts ruled out.
const REFUSED_RELEASE: Key = Key::new("refused-release");
/// The highest security epoch that was installed.
const SECURITY_EPOCH: Key = Key::new("security-epoch");
/// The security epoch of the release that was about to be made active, and its slot: the
/// unique GUID of the partition, the epoch.
const PENDING_SECURITY_EPOCH: Key = Key::new("pending-security-epoch");
/// What was installed into which slot: lines of slot, SHA-256 of the image, version.
const INSTALLED_IMAGES: Key = Key::new("installed-images");
/// Two slots, and some room for disks that came and went.
const MOST_IMAGES: usize = 8;

/// A payload with the facts that ruled it out.
#[derive(Debug, Serialize, Deserialize)]
struct RefusedRelease {
    payload_sha256: String,
    facts: ReleaseFacts,
}

impl World {
    /// How deltas fared. What cannot be read is nothing, since this can only cost a
    /// download.
    pub(super) fn delta_history(&self) -> DeltaHistory {
        DeltaHistory {
            version: self.read(DELTA_VERSION).ok().flatten().unwrap_or_default(),
            failures: self.integer(DELTA_UPDATE_FAILURES),
        }
    }

    pub(super) fn keep_delta_history(&self, history: &DeltaHistory) -> Result<(), UpdateError> {
        let before = self.delta_history();
        if *history == before {
            return Ok(());
        }
        // The count never stands beside a version that it is not of, whatever is lost.
        if history.version != before.version {
            self.keep(DELTA_UPDATE_FAILURES, "0")?;
            self.keep(DELTA_VERSION, &history.version)?;
        }
        self.keep(DELTA_UPDATE_FAILURES, &history.failures.to_string())
    }

    /// The facts of this payload, if it was the last one that they ruled out.
    pub(super) fn refused_release(&self, payload_sha256: &[u8; 32]) -> Option<ReleaseFacts> {
        let text = self.read(REFUSED_RELEASE).ok().flatten()?;
        let refused: RefusedRelease = serde_json::from_str(&text).ok()?;
        (refused.payload_sha256 == hex(payload_sha256)).then_some(refused.facts)
    }

    pub(super) fn keep_refused_release(
        &self,
        payload_sha256: &[u8; 32],
        facts: &ReleaseFacts,
    ) -> Result<(), UpdateError> {
        let refused = RefusedRelease {
            payload_sha256: hex(payload_sha256),
            facts: facts.clone(),
        };
        let text = serde_json::to_string(&refused).map_err(|error| UpdateError::State {
            what: "a refused release",
            source: Box::new(error),
        })?;
        self.keep(REFUSED_RELEASE, &text)
    }

    /// The highest security epoch that was installed here, 0 for none.
    ///
    /// # Errors
    /// It cannot be read: to go on would take it for 0, and old releases for good.
    pub(super) fn security_epoch(&self) -> Result<u64, UpdateError> {
        let Some(text) = self.read(SECURITY_EPOCH)? else {
            return Ok(0);
        };
        text.trim()
            .parse()
            .map_err(|error: std::num::ParseIntError| UpdateError::State {
                what: "the security epoch",
                source: Box::new(error),
            })
    }

    /// A release of this epoch, if it has one, may boot from now on.
    ///
    /// # Errors
    /// It cannot be kept: once it boots, older releases could follow it.
    pub(super) fn raise_security_epoch(&self, epoch: Option<u64>) -> Result<(), UpdateError> {
        match epoch {
            Some(epoch) if epoch > self.security_epoch()? => {
                self.keep(SECURITY_EPOCH, &epoch.to_string())
            }
            _ => Ok(()),
        }
    }

    /// A release of this epoch is in `target`, and may be made active there by its own
    /// post-install program. It counts when that is finished or when the slot runs: a
    /// release that took nothing over must not rule out others.
    ///
    /// # Errors
    /// It cannot be kept.
    pub(super) fn announce_security_epoch(
        &self,
        slots: &Slots,
        epoch: Option<u64>,
    ) -> Result<(), UpdateError> {
        self.settle_security_epoch(&slots.source)?;
        match epoch {
            Some(epoch) => {
                let slot = slots.target.unique_guid;
                self.keep(PENDING_SECURITY_EPOCH, &format!("{slot} {epoch}"))
            }
            None => self.withdraw_security_epoch(),
        }
    }

    /// What was announced does not boot, or has been raised.
    pub(super) fn withdraw_security_epoch(&self) -> Result<(), UpdateError> {
        self.prefs
            .remove(PENDING_SECURITY_EPOCH)
            .map_err(Self::state_error)
    }

    /// Raises what was announced for the slot that runs: power was cut, or the daemon
    /// killed, between the switch and the end of the installation.
    ///
    /// # Errors
    /// It cannot be read or kept: older releases could follow.
    fn settle_security_epoch(&self, running: &Slot) -> Result<(), UpdateError> {
        match self.pending_security_epoch()? {
            Some((slot, epoch)) if slot == running.unique_guid => {
                self.raise_security_epoch(Some(epoch))?;
                self.withdraw_security_epoch()
            }
            _ => Ok(()),
        }
    }

    /// As [`World::settle_security_epoch`], looking at the disk only when there is
    /// something to settle.
    ///
    /// # Errors
    /// As of that, and when the running slot cannot be found.
    pub(super) fn settle_security_epoch_of_running(
        &self,
        settings: &Settings,
    ) -> Result<(), UpdateError> {
        if self.pending_security_epoch()?.is_none() {
            return Ok(());
        }
        self.settle_security_epoch(&self.discover_running(settings)?.source)
    }

    fn pending_security_epoch(&self) -> Result<Option<(Guid, u64)>, UpdateError> {
        let Some(text) = self.read(PENDING_SECURITY_EPOCH)? else {
            return Ok(None);
        };
        let pending = text
            .trim()
            .split_once(' ')
            .and_then(|(slot, epoch)| Some((slot.parse().ok()?, epoch.parse().ok()?)));
        match pending {
            Some(pending) => Ok(Some(pending)),
            None => Err(Self::state_error(StoreError::Garbage {
                key: PENDING_SECURITY_EPOCH,
                expected: "a slot and its security epoch",
            })),
        }
    }

    /// An image was installed into `slot`.
    pub(super) fn keep_installed(&self, slot: &Slot, proof: &Proof) -> Result<(), UpdateError> {
        let images = with_image(
            &self.installed_images(),
            &slot.unique_guid.to_string(),
            &proof.image_sha256(),
            proof.version(),
        );
        self.keep(INSTALLED_IMAGES, &images)
    }

    /// SHA-256 of the image that `version` was installed into `slot` with, in lower-case
    /// hex. Nothing is read of the slot for it.
    pub(super) fn installed_image(&self, slot: &Slot, version: &str) -> Option<String> {
        image_of(
            &self.installed_images(),
            &slot.unique_guid.to_string(),
            version,
        )
    }

    fn installed_images(&self) -> String {
        self.read(INSTALLED_IMAGES)
            .ok()
            .flatten()
            .unwrap_or_default()
    }
}

fn with_image(images: &str, slot: &str, sha256: &[u8; 32], version: &str) -> String {
    let mut lines: Vec<String> = images
        .lines()
        .filter(|line| line.split(' ').next() != Some(slot))
        .map(str::to_owned)
        .collect();
    lines.push(format!("{slot} {} {version}", hex(sha256)));
    let surplus = lines.len().saturating_sub(MOST_IMAGES);
    lines.drain(..surplus);
    lines.join("\n")
}

/// The version must be the one that was installed: somebody may have written the slot
/// by other means since.
fn image_of(images: &str, slot: &str, version: &str) -> Option<String> {
    images.lines().find_map(|line| {
        let mut words = line.splitn(3, ' ');
        let (of, sha256, installed) = (words.next()?, words.next()?, words.next()?);
        (of == slot && installed == version && !version.is_empty()).then(|| sha256.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_security_epoch_only_rises_and_one_that_is_unreadable_is_an_error() {
        let world = crate::engine::testing::world();
        for (epoch, kept) in [(None, 0), (Some(2), 2), (Some(1), 2), (None, 2)] {
            world.raise_security_epoch(epoch).unwrap();
            assert_eq!(world.security_epoch().unwrap(), kept);
        }
        world.keep(SECURITY_EPOCH, "many").unwrap();
        world.raise_security_epoch(Some(3)).unwrap_err();
    }

    /// The two slots take turns.
    #[test]
    fn an_announced_security_epoch_counts_once_its_slot_runs() {
        use crate::plan::InstallPlan;
        let world = crate::engine::testing::world();
        let mut to_b = InstallPlan::for_tests("2.0.0", 1).slots;
        let guid = "e03dd35c-7c2d-4a47-b3fe-27f15780a57c";
        to_b.target.unique_guid = guid.parse().unwrap();
        let mut to_a = to_b.clone();
        std::mem::swap(&mut to_a.source, &mut to_a.target);
        let epoch = || world.security_epoch().unwrap();

        world.announce_security_epoch(&to_b, Some(3)).unwrap();
        world.settle_security_epoch(&to_b.source).unwrap();
        assert_eq!(epoch(), 0, "the old slot runs");
        // B runs, and nobody noticed before the next update.
        world.announce_security_epoch(&to_a, Some(5)).unwrap();
        assert_eq!(epoch(), 3);
        world.settle_security_epoch(&to_a.source).unwrap();
        assert_eq!(epoch(), 3);
        // A release without an epoch in the place of that.
        world.announce_security_epoch(&to_a, None).unwrap();
        world.settle_security_epoch(&to_a.target).unwrap();
        assert_eq!(epoch(), 3);

        world.announce_security_epoch(&to_a, Some(4)).unwrap();
        world.withdraw_security_epoch().unwrap();
        world.settle_security_epoch(&to_a.target).unwrap();
        assert_eq!(epoch(), 3);
        world.keep(PENDING_SECURITY_EPOCH, "many").unwrap();
        world.settle_security_epoch(&to_a.target).unwrap_err();
    }

    #[test]
    fn an_image_is_known_by_slot_and_version() {
        let images = with_image("", "slot-a", &[1; 32], "1.0.0");
        let images = with_image(&images, "slot-b", &[2; 32], "2.0.0+nightly 5");
        let of = |slot, version| image_of(&images, slot, version);
        assert_eq!(of("slot-a", "1.0.0"), Some("01".repeat(32)));
        assert_eq!(of("slot-b", "2.0.0+nightly 5"), Some("02".repeat(32)));
        for (slot, version) in [("slot-a", "1.0.1"), ("slot-a", ""), ("slot-c", "1.0.0")] {
            assert_eq!(of(slot, version), None, "{slot} {version}");
        }
        let images = with_image(&images, "slot-a", &[3; 32], "3.0.0");
        assert_eq!(image_of(&images, "slot-a", "1.0.0"), None);
        assert_eq!(images.lines().count(), 2);
        assert_eq!(image_of("no image", "no", "image"), None);
    }

    #[test]
    fn images_of_disks_that_are_gone_do_not_pile_up() {
        let images = (0..20).fold(String::new(), |images, disk| {
            with_image(&images, &format!("slot-{disk}"), &[0; 32], "1.0.0")
        });
        assert_eq!(images.lines().count(), MOST_IMAGES);
        assert!(image_of(&images, "slot-19", "1.0.0").is_some());
    }
}
