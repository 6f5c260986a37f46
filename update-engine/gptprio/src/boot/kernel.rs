//! Where kernels are, and what can be told from the first bytes of one.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::RootHash;
use crate::Letter;

/// The kernel of a slot, as a selector has found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Where it is, for the reader of messages and for the selector itself.
    pub path: String,
    /// The initrd beside it, if there is one.
    pub initrd: Option<String>,
    /// Its first [`RootHash::HEAD`] bytes, or all if it has fewer.
    pub head: Vec<u8>,
    /// Its size in bytes.
    pub len: u64,
    /// Content of the file with the root hash beside it, if there is one.
    pub hash_file: Option<Vec<u8>>,
}

impl Kernel {
    /// The folders of the boot partition that hold kernels.
    const FAMILIES: [&str; 2] = ["coreos", "flatcar"];

    /// The folder of the boot partition with the kernels of this machine: `coreos` when
    /// there is one already, as for the updater, otherwise `flatcar`. A machine that
    /// became Flatcar by update still boots from the old one, and what lies in the
    /// other is stale.
    ///
    /// `exists` is asked for paths on the boot partition such as `coreos/vmlinuz-a`.
    ///
    /// # Errors
    ///
    /// The first of `exists`.
    pub fn family<E>(mut exists: impl FnMut(&str) -> Result<bool, E>) -> Result<&'static str, E> {
        let [old, new] = Self::FAMILIES;
        let mut has = |letter| exists(&KernelFiles::new(old, letter).kernel);
        Ok(match has(Letter::A)? || has(Letter::B)? {
            true => old,
            false => new,
        })
    }

    /// Refuses what is too short for what it says of itself. A loader looks at the
    /// header only, and the rest would be missed when nobody can go back any more.
    ///
    /// Other formats than that of x86 do not tell their size; the loader judges them.
    pub fn check_size(&self) -> Result<(), String> {
        if self.len == 0 {
            return Err(format!("{} is empty", self.path));
        }
        match self.x86_size() {
            Some(size) if self.len < size => Err(format!(
                "{} is cut short: it has {} bytes of {size}",
                self.path, self.len
            )),
            _ => Ok(()),
        }
    }

    /// Size by the header of the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst):
    /// sectors of set-up code behind the first one, then units of 16 bytes.
    fn x86_size(&self) -> Option<u64> {
        const SETUP_SECTORS: usize = 0x1f1;
        const UNITS: usize = 0x1f4;
        const SIGNATURE: usize = 0x202;
        if self.head.get(SIGNATURE..SIGNATURE + 4)? != b"HdrS" {
            return None;
        }
        let setup = match self.head.get(SETUP_SECTORS)? {
            0 => 4,
            &sectors => u64::from(sectors),
        };
        let units: [u8; 4] = self.head.get(UNITS..UNITS + 4)?.try_into().ok()?;
        // 256 sectors and 64 GiB at most.
        Some((setup + 1) * 512 + u64::from(u32::from_le_bytes(units)) * 16)
    }

    /// The root hash that came with the kernel, see [`RootHash::of_slot`].
    pub fn root_hash(&self) -> Result<Option<RootHash>, String> {
        RootHash::of_slot(&self.head, self.hash_file.as_deref())
    }
}

/// Paths on the boot partition, without a slash in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFiles {
    /// `flatcar/vmlinuz-a`
    pub kernel: String,
    /// `flatcar/initrd-a`
    pub initrd: String,
    /// `flatcar/usrhash-a`
    pub hash: String,
}

impl KernelFiles {
    /// The files of one slot in the folder `family`, see [`Kernel::family`].
    pub fn new(family: &str, letter: Letter) -> Self {
        let letter = letter.lower();
        Self {
            kernel: format!("{family}/vmlinuz-{letter}"),
            initrd: format!("{family}/initrd-{letter}"),
            hash: format!("{family}/usrhash-{letter}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::borrow::ToOwned;
    use alloc::vec;

    #[test]
    fn the_old_folder_is_used_when_it_holds_a_kernel_of_either_slot() {
        for (files, expected) in [
            (&[][..], "flatcar"),
            (&["flatcar/vmlinuz-a"], "flatcar"),
            (&["coreos/vmlinuz-b", "flatcar/vmlinuz-b"], "coreos"),
            (&["coreos/vmlinuz-a"], "coreos"),
            (&["coreos/initrd-a"], "flatcar"),
        ] {
            let family = Kernel::family(|path| Ok::<_, ()>(files.contains(&path)));
            assert_eq!(family, Ok(expected), "{files:?}");
        }
        assert_eq!(Kernel::family(|_| Err("unreadable")), Err("unreadable"));
    }

    #[test]
    fn a_kernel_that_is_cut_short_is_found() {
        let mut kernel = Kernel {
            path: "vmlinuz-a".to_owned(),
            initrd: None,
            head: vec![0; RootHash::HEAD],
            len: 0,
            hash_file: None,
        };
        kernel.head[0x1f1] = 3;
        kernel.head[0x1f4..0x1f8].copy_from_slice(&100_u32.to_le_bytes());
        kernel.head[0x202..0x206].copy_from_slice(b"HdrS");
        let size = 4 * 512 + 1600;
        for (len, good) in [
            (0, false),
            (1, false),
            (size - 1, false),
            (size, true),
            (size + 1, true),
        ] {
            kernel.len = len;
            assert_eq!(kernel.check_size().is_ok(), good, "{len}");
        }
        // Not this format.
        kernel.head[0x202] = 0;
        kernel.len = 1;
        assert!(kernel.check_size().is_ok());
    }
}
