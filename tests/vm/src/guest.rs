//! What a machine runs: the initial RAM disk, which is the same for all versions,
//! and the USR image of one version.

use std::fs::{self, File, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use system_tests::process::run;
use system_tests::programs::{program, system_tool};
use system_tests::release::public_key;

use crate::debian::Debian;

/// The fixture key that signs all releases.
pub(crate) const KEY: &str = "ed25519";

const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: u64 = 4096;

/// Drivers that the initial RAM disk loads, with all that they depend on: the
/// watchdog, disk and network card, the file systems, dm-verity.
const MODULES: [&str; 9] = [
    "softdog",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "dm-verity",
    "squashfs",
];
/// Programs of Debian in the initial RAM disk.
const EARLY_PROGRAMS: [&str; 2] = ["sbin/veritysetup", "sbin/blkid"];

/// Our programs in the USR image, and where they are.
const PROGRAMS: [(&str, &str); 4] = [
    ("update_engine", "sbin"),
    ("update_engine_client", "bin"),
    ("gptprio", "bin"),
    ("locksmithd", "lib/locksmith"),
];
/// Units of systemd that run, by the target that wants them.
const UNITS: [(&str, &[&str]); 4] = [
    ("sysinit", &["systemd-journald.service"]),
    (
        "sockets",
        &[
            "dbus.socket",
            "systemd-journald-dev-log.socket",
            "systemd-journald.socket",
        ],
    ),
    (
        "multi-user",
        &[
            "dbus.service",
            "systemd-logind.service",
            "update-engine.service",
            "locksmithd.service",
            "lab-shell.service",
            "lab-ready.service",
        ],
    ),
    ("reboot", &["systemd-reboot.service"]),
];
const SHELL_UNIT: &str = "[Unit]
DefaultDependencies=no
[Service]
ExecStart=/usr/bin/busybox nc -ll -p 514 -e /usr/lab/shell
Restart=always
RestartSec=0
";
const READY_UNIT: &str = "[Unit]
After=update-engine.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lab/ready
";

/// How a version is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Its first program makes the kernel panic.
    Panics,
    /// Its first program never does anything.
    Hangs,
    /// Its first program ends.
    ExitsInit,
    /// It runs, but its health checks fail.
    Unhealthy,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Panics, Self::Hangs, Self::ExitsInit, Self::Unhealthy];

    /// The first program that the fault is made of.
    fn init(self) -> Option<&'static str> {
        match self {
            Self::Panics => Some("echo c >/proc/sysrq-trigger"),
            Self::Hangs => Some("while :; do busybox sleep 1000; done"),
            Self::ExitsInit => Some("exit 1"),
            Self::Unhealthy => None,
        }
    }
}

/// Builds images of versions out of one tree of programs.
#[derive(Debug)]
pub struct Workshop {
    debian: Debian,
    folder: PathBuf,
}

impl Workshop {
    /// A workshop in `folder`, which must not exist, with the programs as they are now.
    ///
    /// # Errors
    ///
    /// A program is missing or a file cannot be written.
    pub fn new(debian: &Debian, folder: &Path) -> Result<Self> {
        let workshop = Self {
            debian: debian.clone(),
            folder: folder.to_owned(),
        };
        fs::create_dir_all(folder)?;
        let usr = workshop.base();
        copy_tree(&debian.usr(), &usr)?;
        for (name, place) in PROGRAMS {
            let to = usr.join(place);
            fs::create_dir_all(&to)?;
            let mut strip = Command::new("strip");
            strip
                .arg("-o")
                .arg(to.join(name))
                .arg(program(name)?.get_program());
            run(&mut strip, LIMIT)?.success().context("strip")?;
        }
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let units = usr.join("lib/systemd/system");
        for (from, to) in [
            ("update-engine/dist/update-engine.service", &units),
            ("locksmith/dist/locksmithd.service", &units),
            (
                "update-engine/dist/com.coreos.update1.conf",
                &usr.join("share/dbus-1/system.d"),
            ),
        ] {
            fs::create_dir_all(to)?;
            let from = project.join(from);
            fs::copy(&from, to.join(from.file_name().unwrap_or_default()))
                .with_context(|| from.display().to_string())?;
        }
        workshop.choose_units(&units)?;
        let keys = usr.join("share/update_engine");
        fs::create_dir_all(&keys)?;
        fs::copy(public_key(KEY), keys.join("update-payload-key.pub.pem"))?;
        let lab = usr.join("lab");
        write_program(&lab.join("shell"), include_str!("../guest/shell"))?;
        write_program(&lab.join("ready"), include_str!("../guest/ready"))?;
        Ok(workshop)
    }

    /// The initial RAM disk.
    ///
    /// # Errors
    ///
    /// A file of it is missing.
    pub fn initrd(&self) -> Result<Vec<u8>> {
        let tree = self.folder.join("initrd");
        for name in [
            "bin", "dev", "lib", "lib64", "modules", "proc", "run", "sys", "sysroot", "usr/sbin",
        ] {
            fs::create_dir_all(tree.join(name))?;
        }
        write_program(&tree.join("init"), include_str!("../guest/initrd-init"))?;
        fs::copy(
            self.debian.usr().join("bin/busybox"),
            tree.join("bin/busybox"),
        )?;
        for name in EARLY_PROGRAMS {
            fs::copy(self.debian.usr().join(name), tree.join("usr").join(name))?;
            for library in self.debian.libraries_of(name)? {
                let name = library.file_name().unwrap_or_default();
                let is_loader = name.to_string_lossy().starts_with("ld-linux");
                let folder = if is_loader { "lib64" } else { "lib" };
                fs::copy(&library, tree.join(folder).join(name))?;
            }
        }
        let mut modules = Vec::new();
        for name in MODULES {
            self.debian.module_with_dependencies(name, &mut modules)?;
        }
        let names: Vec<_> = modules.iter().map(|(name, _)| name.as_str()).collect();
        fs::write(tree.join("modules/list"), names.join("\n"))?;
        for (name, path) in &modules {
            fs::copy(path, tree.join(format!("modules/{name}.ko")))?;
        }
        let archive = self.folder.join("initrd.cpio");
        let mut cpio = Command::new("sh");
        cpio.args(["-c", "find . | cpio --quiet -o -H newc -R 0:0 -O \"$0\""])
            .arg(&archive)
            .current_dir(&tree);
        run(&mut cpio, LIMIT)?.success().context("cpio")?;
        Ok(fs::read(archive)?)
    }

    /// Writes the USR image of `version` to `image`; its length is a number of whole
    /// blocks.
    ///
    /// # Errors
    ///
    /// `mksquashfs` fails.
    pub fn usr_image(&self, version: &str, fault: Option<Fault>, image: &Path) -> Result<()> {
        let tree = image.with_extension("tree");
        let mut copy = Command::new("cp");
        // Links instead of copies: what differs is written anew below.
        copy.arg("-al").arg(self.base()).arg(&tree);
        run(&mut copy, LIMIT)?.success()?;
        let flatcar = tree.join("share/flatcar");
        fs::create_dir_all(&flatcar)?;
        fs::write(
            flatcar.join("release"),
            format!("FLATCAR_RELEASE_VERSION={version}\nFLATCAR_RELEASE_BOARD=amd64-usr\n"),
        )?;
        fs::write(
            tree.join("lib/os-release"),
            format!("ID=flatcar\nNAME=Lab\nVERSION={version}\n"),
        )?;
        if let Some(init) = fault.and_then(Fault::init) {
            write_program(
                &tree.join("lab/init"),
                &format!(
                    "#!/usr/bin/busybox sh\necho 'lab: this version fails' >/dev/console\n{init}\n"
                ),
            )?;
        }
        let health = match fault {
            Some(Fault::Unhealthy) => "exit 1",
            _ => "exit 0",
        };
        write_program(
            &tree.join("lab/health"),
            &format!("#!/usr/bin/busybox sh\n{health}\n"),
        )?;
        let mut mksquashfs = system_tool("mksquashfs");
        mksquashfs
            .arg(&tree)
            .arg(image)
            .args(["-noappend", "-quiet", "-no-progress", "-all-root"])
            .args(["-comp", "zstd", "-Xcompression-level", "3"]);
        run(&mut mksquashfs, LIMIT)?
            .success()
            .context("mksquashfs")?;
        fs::remove_dir_all(&tree)?;
        let mut file = File::options().write(true).open(image)?;
        let length = file.seek(SeekFrom::End(0))?;
        file.set_len(length.next_multiple_of(BLOCK))?;
        file.flush()?;
        Ok(())
    }

    fn base(&self) -> PathBuf {
        self.folder.join("usr")
    }

    /// Nothing of what Debian would start, for a quick boot, but [`UNITS`].
    fn choose_units(&self, units: &Path) -> Result<()> {
        for entry in fs::read_dir(units)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().ends_with(".wants") {
                fs::remove_dir_all(entry.path())?;
            }
        }
        fs::write(units.join("lab-shell.service"), SHELL_UNIT)?;
        fs::write(units.join("lab-ready.service"), READY_UNIT)?;
        for (target, wanted) in UNITS {
            let wants = units.join(format!("{target}.target.wants"));
            fs::create_dir(&wants)?;
            for unit in wanted {
                symlink(format!("../{unit}"), wants.join(unit))?;
            }
        }
        let default = units.join("default.target");
        if default.symlink_metadata().is_ok() {
            fs::remove_file(&default)?;
        }
        symlink("multi-user.target", default)?;
        Ok(())
    }
}

/// Copies a folder with all that is in it.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(from).arg(to);
    run(&mut copy, LIMIT)?.success()?;
    Ok(())
}

/// A new file, so that nobody's hard link to it changes.
pub(crate) fn write_program(path: &Path, text: &str) -> Result<()> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))?;
    Ok(())
}
