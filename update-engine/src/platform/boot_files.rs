//! The files outside the slots that belong to one: kernel and PCR policy.

use std::io;
use std::path::{Path, PathBuf};

use super::Letter;
use crate::root::Root;

/// Where the kernel and the PCR policy of a slot are, as paths to open. Neither need exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// `/boot/flatcar/vmlinuz-a` or its like.
    pub kernel: PathBuf,
    /// `pcrs-a.zip` in the state folder.
    pub pcr_policy: PathBuf,
}

impl BootFiles {
    /// The files of the slot `letter`, the state folder being `state_dir`, a path on the machine.
    ///
    /// Kernels are in `/boot/coreos` if there is one already and in `/boot/flatcar` otherwise: a machine
    /// that became Flatcar by update still boots from the old folder, and a kernel in the other one
    /// would never be started.
    pub fn of(root: &Root, state_dir: &str, letter: Letter) -> io::Result<Self> {
        let kernel = |family: &str, letter: Letter| {
            root.path(format!("/boot/{family}/vmlinuz-{}", letter.lower()))
        };
        let is_coreos =
            kernel("coreos", Letter::A)?.exists() || kernel("coreos", Letter::B)?.exists();
        let family = if is_coreos { "coreos" } else { "flatcar" };
        let pcr_policy = Path::new(state_dir).join(format!("pcrs-{}.zip", letter.lower()));
        Ok(Self {
            kernel: kernel(family, letter)?,
            pcr_policy: root.path(pcr_policy)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn kernels_are_where_the_boot_loader_looks() {
        let table: [(&[&str], Letter, &str); 6] = [
            (&[], Letter::A, "boot/flatcar/vmlinuz-a"),
            (&[], Letter::B, "boot/flatcar/vmlinuz-b"),
            (
                &["boot/flatcar/vmlinuz-a"],
                Letter::B,
                "boot/flatcar/vmlinuz-b",
            ),
            (
                &["boot/coreos/vmlinuz-a"],
                Letter::B,
                "boot/coreos/vmlinuz-b",
            ),
            (
                &["boot/coreos/vmlinuz-b"],
                Letter::B,
                "boot/coreos/vmlinuz-b",
            ),
            (
                &["boot/coreos/grub.cfg"],
                Letter::A,
                "boot/flatcar/vmlinuz-a",
            ),
        ];
        for (present, letter, expected) in table {
            let dir = tempfile::tempdir().unwrap();
            for path in present {
                let path = dir.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            let root = Root::at(dir.path()).unwrap();
            let files = BootFiles::of(&root, "/var/lib/update_engine", letter).unwrap();
            assert!(files.kernel.ends_with(expected), "{present:?}: {files:?}");
            let policy = format!("var/lib/update_engine/pcrs-{}.zip", letter.lower());
            assert!(files.pcr_policy.ends_with(policy), "{files:?}");
        }
    }
}
