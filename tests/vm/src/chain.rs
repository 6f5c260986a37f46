//! What chooses the slot of a boot and starts its kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use system_tests::disk::{Disk, Slot};
use system_tests::process::run;
use system_tests::programs::{program, system_tool};

use crate::debian::{Debian, target_folder};
use crate::layout::KERNELS;

const LIMIT: Duration = Duration::from_secs(60);
const BUILD_LIMIT: Duration = Duration::from_secs(900);
/// UEFI firmware of Debian's package `ovmf`, and its empty variables.
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// What every kernel of a machine is told: the console, to reset two seconds after a
/// panic, to believe the second partition table when the first is broken, and that an
/// emulated processor has no leaks to guard against, which would cost time.
pub const COMMAND_LINE: &str = "console=ttyS0 panic=2 gpt quiet loglevel=4 mitigations=off \
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
        /// The selector.
        program: PathBuf,
    },
}

impl Chain {
    /// The stage-0 selector as it is now, with Debian's kernel; its archive is written to
    /// `folder`.
    ///
    /// # Errors
    ///
    /// It cannot be built.
    pub fn stage_zero(debian: &Debian, folder: &Path) -> Result<Self> {
        let host = "x86_64-unknown-linux-gnu";
        let mut build = cargo(host);
        build
            .args([
                "-p",
                "gptprio",
                "--no-default-features",
                "--features",
                "init",
            ])
            .args(["--bin", "gptprio-init"])
            .env("RUSTFLAGS", "-C target-feature=+crt-static");
        run(&mut build, BUILD_LIMIT)?.success()?;
        let initramfs = folder.join("initramfs.cpio");
        let mut pack = program("gptprio")?;
        pack.arg("initramfs")
            .arg(&initramfs)
            .arg("--init")
            .arg(built(host, "gptprio-init"));
        let mut modules = Vec::new();
        for name in ["virtio_pci", "virtio_blk", "nls_cp437", "nls_ascii", "vfat"] {
            debian.module_with_dependencies(name, &mut modules)?;
        }
        for (_, module) in &modules {
            pack.arg("--module").arg(module);
        }
        run(&mut pack, LIMIT)?.success()?;
        Ok(Self::StageZero {
            kernel: debian.kernel()?,
            initramfs,
        })
    }

    /// The UEFI selector as it is now; `None` where Rust's target for it or the firmware
    /// is not installed.
    ///
    /// # Errors
    ///
    /// It cannot be built.
    pub fn uefi() -> Result<Option<Self>> {
        let target = "x86_64-unknown-uefi";
        let mut libraries = Command::new("rustc");
        libraries.args(["--print", "target-libdir", "--target", target]);
        let libraries = run(&mut libraries, LIMIT)?.success()?;
        if !Path::new(libraries.trim()).exists() || !Path::new(FIRMWARE).exists() {
            return Ok(None);
        }
        let mut build = cargo(target);
        build.args(["-p", "gptprio-uefi"]);
        run(&mut build, BUILD_LIMIT)?.success()?;
        Ok(Some(Self::Uefi {
            program: built(target, "gptprio-uefi.efi"),
        }))
    }
}

fn cargo(target: &str) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--profile", "dist", "--target", target]);
    build
}

fn built(target: &str, name: &str) -> PathBuf {
    target_folder().join(target).join("dist").join(name)
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
            "console=ttyS0 panic=2 gpt quiet mitigations=off".into(),
        ],
        Chain::Uefi { .. } => {
            let own = folder.join("variables.fd");
            if !own.exists() {
                fs::copy(VARIABLES, &own)?;
            }
            vec![
                "-drive".into(),
                format!("if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}"),
                "-drive".into(),
                format!("if=pflash,format=raw,unit=1,file={}", path(&own)),
            ]
        }
    };
    Ok(words)
}

/// What the boot partition holds for a slot: kernel, initial RAM disk and root hash.
///
/// # Errors
///
/// One of them is missing.
pub fn boot_files(disk: &Disk, slot: Slot, folder: &Path) -> Result<[Vec<u8>; 3]> {
    let read = |name| Ok::<_, anyhow::Error>(fs::read(from_efi(disk, name, slot, folder)?)?);
    Ok([read("vmlinuz")?, read("initrd")?, read("usrhash")?])
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
