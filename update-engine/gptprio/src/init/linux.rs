//! Kernels from mounted partitions, started by kexec.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use gptprio::boot::{Kernel, KernelFiles, Machine, ReadKernelError};
use gptprio::machine::Root;
use gptprio::{Letter, Partition};
use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};

use crate::console;
use crate::disks::Disk;
use crate::mounts::Mounted;

/// Where a slot is mounted when its kernel is not on the boot partition.
const SLOT: &str = "/slot";

/// The Linux that runs this program.
#[derive(Debug)]
pub(crate) struct Linux {
    disk: Disk,
    /// The boot partition, unless it cannot be mounted.
    boot: Option<Mounted>,
    slot: Option<Mounted>,
}

impl Linux {
    pub(crate) fn new(disk: Disk, boot: Option<Mounted>) -> Self {
        Self {
            disk,
            boot,
            slot: None,
        }
    }

    /// The kernel on the boot partition, if there is one for this slot.
    fn on_boot_partition(&self, letter: Letter) -> Result<Option<Kernel>, String> {
        let Some(boot) = &self.boot else {
            return Ok(None);
        };
        let Ok(family) =
            Kernel::family(|file| Ok::<_, Infallible>(boot.path().join(file).exists()));
        let files = KernelFiles::new(family, letter);
        let path = boot.path().join(&files.kernel);
        if !path.exists() {
            return Ok(None);
        }
        let initrd = boot.path().join(&files.initrd);
        let hash_file = boot.path().join(&files.hash);
        Kernel::read(&path, Some(&initrd), Some(&hash_file))
            .map(Some)
            .map_err(|error| in_words(&error))
    }

    /// The kernel in the slot itself.
    fn in_slot(&mut self, slot: &Partition) -> Result<Kernel, String> {
        self.slot = None;
        let mounted = Mounted::read_only(&self.disk.node_of(slot)?, SLOT)?;
        // Links in the slot mean files of the slot.
        let root = Root::at(mounted.path()).map_err(|error| error.to_string())?;
        let in_slot = |path: &str| root.path(path).map_err(|error| error.to_string());

        let mut candidates = vec!["/boot/vmlinuz".to_owned()];
        let versions = fs::read_dir(in_slot("/lib/modules")?).into_iter().flatten();
        let mut versions: Vec<_> = versions
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        // The newest first, as far as names tell.
        versions.sort_by(|one, other| other.cmp(one));
        candidates.extend(
            versions
                .iter()
                .map(|version| format!("/lib/modules/{version}/vmlinuz")),
        );
        for candidate in candidates {
            let path = in_slot(&candidate)?;
            if path.is_file() {
                self.slot = Some(mounted);
                return Kernel::read(&path, None, None).map_err(|error| in_words(&error));
            }
        }
        Err(
            "no kernel on the boot partition, and neither boot/vmlinuz nor \
             lib/modules/VERSION/vmlinuz in the slot"
                .to_owned(),
        )
    }
}

impl Machine for Linux {
    type Staged = Staged;
    type Started = Infallible;

    fn find_kernel(&mut self, slot: &Partition, letter: Letter) -> Result<Kernel, String> {
        match self.on_boot_partition(letter)? {
            Some(kernel) => Ok(kernel),
            None => self.in_slot(slot),
        }
    }

    fn stage(&mut self, kernel: &Kernel, command_line: &str) -> Result<Staged, String> {
        let open = |path: &String| {
            File::open(path).map_err(|error| format!("cannot open {path}: {error}"))
        };
        let image = open(&kernel.path)?;
        let initrd = kernel.initrd.as_ref().map(open).transpose()?;
        let command_line = CString::new(command_line).map_err(|error| error.to_string())?;
        kexec_file_load::load(
            image.as_fd(),
            initrd.as_ref().map(AsFd::as_fd),
            &command_line,
        )
        .map_err(|error| refusal(&kernel.path, &error))?;
        Ok(Staged)
    }

    fn start(&mut self, staged: Staged) -> Result<Self::Started, String> {
        self.slot = None;
        self.boot = None;
        nix::unistd::sync();
        let Err(error) = reboot(RebootMode::RB_KEXEC);
        drop(staged);
        Err(format!("the jump into the kernel failed: {error}"))
    }

    fn print(&mut self, line: &str) {
        console::print(line);
    }

    fn wait(&mut self, duration: Duration) {
        thread::sleep(duration);
    }
}

/// A kernel that the running one holds.
#[derive(Debug)]
pub(crate) struct Staged;

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = kexec_file_load::unload() {
            console::print(&format!("cannot take back the staged kernel: {error}"));
        }
    }
}

fn in_words(error: &ReadKernelError) -> String {
    format!("{error}: {}", error.source)
}

/// Why the running kernel does not take another, for one who can change it.
fn refusal(path: &str, error: &io::Error) -> String {
    let why = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSYS) => {
            "the kernel of this stage-0 has no kexec_file_load (CONFIG_KEXEC_FILE)"
        }
        Some(Errno::EPERM) => {
            "the kernel of this stage-0 does not allow it (kexec_load_disabled, or locked down)"
        }
        Some(Errno::EKEYREJECTED | Errno::ENOKEY | Errno::EBADMSG | Errno::ENODATA) => {
            "it has no signature that the kernel of this stage-0 trusts, and that is locked down"
        }
        Some(Errno::ENOEXEC) => "it is no kernel that the kernel of this stage-0 can start",
        Some(Errno::EINVAL) => "it is broken, or the command line is too long for it",
        _ => "the kernel of this stage-0 refuses it",
    };
    format!("{path}: {why}: {error}")
}
