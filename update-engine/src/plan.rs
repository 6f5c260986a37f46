//! An offer and a disk become a plan that leaves no choice open.

use std::time::Duration;

use payload::Trust;

use crate::config::Settings;
use crate::omaha::UpdateOffer;
use crate::platform::{KernelFiles, Slots};
use crate::policy::Circumstances;

/// Everything that an installation needs to know. Made by [`make`] alone.
#[derive(Debug, Clone)]
pub struct InstallPlan {
    /// What the server offered.
    pub offer: UpdateOffer,
    /// The one URL that this attempt uses.
    pub url: String,
    /// The running slot and the one to write.
    pub slots: Slots,
    /// Kernel, root hash and PCR policy files of the slots, and further partitions.
    pub files: KernelFiles,
    /// Whom the payload must be signed by.
    pub trust: Trust,
    /// What the release is held against once its signed manifest is there.
    pub circumstances: Circumstances,
    /// Where a PCR policy is posted, if anywhere.
    pub pcr_policy_server: Option<String>,
    /// How long the new image's post-install program may take.
    pub postinst_timeout: Duration,
}

/// Makes the plan. `url_index` is taken modulo the number of URLs.
pub fn make(
    offer: &UpdateOffer,
    url_index: usize,
    slots: Slots,
    files: KernelFiles,
    trust: Trust,
    circumstances: Circumstances,
    settings: &Settings,
) -> InstallPlan {
    InstallPlan {
        url: offer.urls[url_index % offer.urls.len()].clone(),
        offer: offer.clone(),
        slots,
        files,
        trust,
        circumstances,
        pcr_policy_server: settings.pcr_policy_server.clone(),
        postinst_timeout: settings.postinst_timeout,
    }
}

#[cfg(test)]
impl InstallPlan {
    /// A plan that nothing runs.
    pub(crate) fn for_tests(version: &str, size: u64) -> Self {
        use crate::platform::{Letter, Slot};
        let slot = |letter: &str, number| Slot {
            letter: letter.parse::<Letter>().unwrap(),
            number,
            unique_guid: gptprio::USR_TYPE,
            start: 0,
            size: 1 << 20,
            disk: "disk.img".into(),
            node: None,
        };
        let offer = UpdateOffer {
            version: version.to_owned(),
            urls: vec!["http://host/payload".to_owned()],
            size,
            sha256: [0; 32],
            is_delta: false,
            disable_backoff: true,
            max_failures_per_url: 10,
        };
        let slots = Slots {
            disk: "disk.img".into(),
            slot_type: gptprio::USR_TYPE,
            source: slot("A", 3),
            target: slot("B", 4),
        };
        let files = KernelFiles {
            source_kernel: "vmlinuz-a".into(),
            target_kernel: "vmlinuz-b".into(),
            target_root_hash: "usrhash-b".into(),
            target_pcr_policy: "pcrs-b.zip".into(),
            boot_is_unmounted: false,
            partitions: Vec::new(),
        };
        make(
            &offer,
            0,
            slots,
            files,
            Trust::allow_unsigned(Vec::new()),
            Circumstances::default(),
            &Settings::default(),
        )
    }
}
