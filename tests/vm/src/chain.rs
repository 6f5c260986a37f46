//! What chooses the slot of a boot and starts its kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use system_tests::disk::{Disk, Slot};
use system_tests::process::run;
use system_tests::programs::system_tool;

use crate::layout::KERNELS;

const LIMIT: Duration = Duration::from_secs(60);

/// What every kernel of a machine is told: the console, to reset two seconds after a
/// panic, and to believe the second partition table when the first is broken.
pub const COMMAND_LINE: &str = "console=ttyS0 panic=2 gpt quiet loglevel=4 \
    systemd.show_status=0 systemd.log_level=notice";

/// A way to boot.
#[derive(Debug, Clone)]
pub enum Chain {
    /// This process runs `gptprio next` on the disk and gives QEMU the kernel: the
    /// quickest, with no boot code in the machine.
    Host,
    /// The stage-0 selector starts from a kernel in the firmware and jumps.
    StageZero {
        /// Its kernel.
        kernel: PathBuf,
        /// The initial RAM disk with the selector.
        initramfs: PathBuf,
    },
    /// UEFI firmware starts the selector from the EFI partition.
    Uefi {
        /// The firmware's code.
        code: PathBuf,
        /// Its variables, kept per machine.
        variables: PathBuf,
    },
}

/// Arguments of QEMU that make the machine start.
///
/// With [`Chain::Host`] this is the boot selection: it spends a try.
///
/// # Errors
///
/// No slot boots, or its kernel cannot be read.
pub fn arguments(chain: &Chain, disk: &Disk, folder: &Path) -> Result<Vec<String>> {
    let path = |path: &Path| path.display().to_string();
    let words = match chain {
        Chain::Host => {
            let slot = disk.boot()?;
            let [kernel, initrd, usrhash] =
                ["vmlinuz", "initrd", "usrhash"].map(|name| from_efi(disk, name, slot, folder));
            let mut line = format!("{COMMAND_LINE} usr=PARTUUID={}", slot.guid());
            if let Ok(usrhash) = usrhash {
                line += &format!(" usrhash={}", fs::read_to_string(usrhash)?.trim());
            }
            vec![
                // The next start is the next selection.
                "-no-reboot".into(),
                "-kernel".into(),
                path(&kernel.context("no kernel")?),
                "-initrd".into(),
                path(&initrd.context("no initrd")?),
                "-append".into(),
                line,
            ]
        }
        Chain::StageZero { kernel, initramfs } => vec![
            "-kernel".into(),
            path(kernel),
            "-initrd".into(),
            path(initramfs),
            "-append".into(),
            "console=ttyS0 panic=2 gpt quiet".into(),
        ],
        Chain::Uefi { code, variables } => {
            let own = folder.join("variables.fd");
            if !own.exists() {
                fs::copy(variables, &own)?;
            }
            vec![
                "-drive".into(),
                format!(
                    "if=pflash,format=raw,unit=0,readonly=on,file={}",
                    path(code)
                ),
                "-drive".into(),
                format!("if=pflash,format=raw,unit=1,file={}", path(&own)),
            ]
        }
    };
    Ok(words)
}

/// A copy in `folder` of the file `NAME-a` or `NAME-b` of the EFI partition.
fn from_efi(disk: &Disk, name: &str, slot: Slot, folder: &Path) -> Result<PathBuf> {
    let name = format!("{name}-{}", slot.letter().to_lowercase());
    let to = folder.join(&name);
    let mut mcopy = system_tool("mcopy");
    mcopy
        .args(["-n", "-o", "-i"])
        .arg(format!("{}@@{}", disk.path().display(), Disk::EFI_START))
        .arg(format!("::/{KERNELS}/{name}"))
        .arg(&to);
    run(&mut mcopy, LIMIT)?.success()?;
    Ok(to)
}
