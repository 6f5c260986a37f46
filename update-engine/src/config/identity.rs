//! Who this machine is for the update server.

use super::Settings;
use crate::root::Root;

/// A machine id, a boot id or the like is one short line.
const LINE_LIMIT: u64 = 4096;

/// What an Omaha request says about the machine. A part that the machine does not have is empty, as
/// in the original.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Product GUID in braces.
    pub app_id: String,
    /// Running version.
    pub version: String,
    /// Update channel.
    pub track: String,
    /// Board, for example `amd64-usr`.
    pub board: String,
    /// Vendor image.
    pub oem: String,
    /// Version of the vendor image.
    pub oem_version: String,
    /// Content of `/etc/machine-id`.
    pub machine_id: String,
    /// Name for people.
    pub machine_alias: String,
    /// The kernel's boot id in braces.
    pub boot_id: String,
    /// Machine hardware name as of `uname -m`.
    pub arch: String,
}

impl Identity {
    /// The identity of the machine at `root` with these settings.
    ///
    /// A part that cannot be read is logged and left empty: a machine must be able to update even
    /// with a broken machine id.
    pub fn load(root: &Root, settings: &Settings) -> Self {
        let boot_id = line(root, "/proc/sys/kernel/random/boot_id");
        Self {
            app_id: settings.app_id.clone(),
            version: settings.version.clone(),
            track: settings.group.clone(),
            board: settings.board.clone(),
            oem: settings.oem.clone(),
            oem_version: settings.oem_version.clone(),
            machine_id: line(root, "/etc/machine-id"),
            machine_alias: settings.machine_alias.clone(),
            boot_id: if boot_id.is_empty() {
                boot_id
            } else {
                format!("{{{boot_id}}}")
            },
            arch: nix::sys::utsname::uname()
                .map(|system| system.machine().to_string_lossy().into_owned())
                .unwrap_or_default(),
        }
    }
}

fn line(root: &Root, path: &str) -> String {
    match root.read_text(path, LINE_LIMIT) {
        Ok(text) => text.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(path, %error, "cannot read a part of this machine's identity, it is sent empty");
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loaded;
    use std::fs;

    #[test]
    fn identity_is_read_from_the_tree_and_absent_parts_are_empty() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path()).unwrap();
        let load = || Identity::load(&root, &Loaded::read(&root).unwrap().settings);
        let bare = load();
        assert_eq!(bare.machine_id, "");
        assert_eq!(bare.boot_id, "", "no braces around nothing");
        assert_eq!(bare.track, "stable");
        assert_eq!(bare.app_id, "{e96281a6-d1af-4bde-9a0a-97b76e56dc57}");
        assert!(!bare.arch.is_empty());

        for (path, content) in [
            ("etc/machine-id", "0123456789abcdef\n"),
            (
                "proc/sys/kernel/random/boot_id",
                "11111111-2222-4333-8444-555555555555\n",
            ),
            ("etc/oem-release", "ID=qemu\nVERSION_ID=\n"),
            ("usr/share/oem/oem-release", "ID=other\nVERSION_ID=7\n"),
            (
                "usr/share/flatcar/release",
                "FLATCAR_RELEASE_VERSION=1.2.3\nFLATCAR_RELEASE_BOARD=amd64-usr\n",
            ),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let full = load();
        assert_eq!(full.machine_id, "0123456789abcdef");
        assert_eq!(full.boot_id, "{11111111-2222-4333-8444-555555555555}");
        assert_eq!(
            (full.oem.as_str(), full.oem_version.as_str()),
            ("qemu", ""),
            "the first file wins, even empty"
        );
        assert_eq!(
            (full.version.as_str(), full.board.as_str()),
            ("1.2.3", "amd64-usr")
        );
    }
}
