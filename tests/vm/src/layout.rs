//! The disk of a machine: kernels in the EFI partition, version 1.0.0 in slot A,
//! nothing in slot B, and a root file system with the machine's own files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use system_tests::disk::{Disk, Layout, Slot};
use system_tests::process::run;
use system_tests::programs::system_tool;

use crate::chain::COMMAND_LINE;

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// Of the partitions.
pub const SIZES: Layout = Layout {
    efi: 96 * MIB,
    slot: 64 * MIB,
    root: 64 * MIB,
};

/// Where the kernels are in the EFI partition.
pub const KERNELS: &str = "flatcar";

const PASSWD: &str = "root:x:0:0:root:/root:/usr/bin/sh\n\
    messagebus:x:101:101::/nonexistent:/usr/sbin/nologin\n\
    systemd-network:x:998:998::/nonexistent:/usr/sbin/nologin\n\
    core:x:500:500::/home/core:/usr/bin/sh\n\
    nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\ntty:x:5:\nmessagebus:x:101:\nsystemd-network:x:998:\ncore:x:500:\nnogroup:x:65534:\n";
const SYSTEMD: &str = "[Manager]\nRuntimeWatchdogSec=30s\nRebootWatchdogSec=30s\n\
    DefaultTimeoutStopSec=10s\n";
const JOURNAL: &str = "[Journal]\nStorage=volatile\nForwardToConsole=yes\n\
    TTYPath=/dev/ttyS0\nMaxLevelConsole=info\n";
const UPDATE: &str = "FIRST_CHECK_DELAY=1d\nHEALTH_DELAY=5s\nHEALTH_DEADLINE=20s\n";
const HEALTH: &str = "#!/usr/bin/busybox sh\nexec /usr/lab/health\n";

/// What a new disk holds.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// USR image of slot A.
    pub usr: &'a Path,
    /// Kernel of slot A.
    pub kernel: &'a Path,
    /// Initial RAM disk of both slots. A Flatcar kernel carries its own, and an
    /// update brings it with the kernel; Debian's does not.
    pub initrd: &'a [u8],
    /// Root hash of slot A's image, in hexadecimal digits.
    pub usrhash: Option<&'a str>,
    /// The update server, as `SERVER=` has it.
    pub server: &'a str,
    /// The track that it follows.
    pub track: &'a str,
    /// Its id: 32 hexadecimal digits.
    pub machine_id: &'a str,
    /// Further files of the machine: path below the root without a slash, content.
    pub files: &'a [(&'a str, &'a str)],
    /// Further files of the EFI partition: path, file here.
    pub efi: &'a [(&'a str, &'a Path)],
}

/// Makes the disk at `path`, with help of files in `folder`.
///
/// # Errors
///
/// A tool fails or something does not fit.
pub fn create(path: &Path, folder: &Path, content: Content) -> Result<Disk> {
    let disk = Disk::create_with(path, SIZES)?;
    disk.write_slot(Slot::A, &fs::read(content.usr)?)?;
    let efi = folder.join("efi.img");
    make_efi(&efi, folder, content)?;
    place(&efi, path, Disk::EFI_START)?;
    let root = folder.join("root.img");
    make_root(&root, folder, content)?;
    place(&root, path, disk.root_start())?;
    let mut gptprio = system_tests::programs::program("gptprio")?;
    gptprio.arg("set").arg(path).args([
        "USR-B",
        "--priority",
        "0",
        "--tries",
        "0",
        "--successful",
        "0",
    ]);
    run(&mut gptprio, LIMIT)?.success()?;
    Ok(disk)
}

fn make_efi(image: &Path, folder: &Path, content: Content) -> Result<()> {
    fs::File::create(image)?.set_len(SIZES.efi)?;
    let mut mkfs = system_tool("mkfs.vfat");
    mkfs.args(["-n", "EFI-SYSTEM"]).arg(image);
    run(&mut mkfs, LIMIT)?.success().context("mkfs.vfat")?;
    let initrd = folder.join("initrd");
    fs::write(&initrd, content.initrd)?;
    let usrhash = folder.join("usrhash");
    let kernels = |name: &str| format!("{KERNELS}/{name}");
    let settings = folder.join("gptprio.conf");
    fs::write(&settings, format!("command-line = {COMMAND_LINE}\n"))?;
    let mut files = vec![
        ("gptprio/gptprio.conf".to_owned(), settings.as_path()),
        (kernels("vmlinuz-a"), content.kernel),
        (kernels("initrd-a"), initrd.as_path()),
        (kernels("initrd-b"), initrd.as_path()),
    ];
    if let Some(hash) = content.usrhash {
        fs::write(&usrhash, format!("{hash}\n"))?;
        files.push((kernels("usrhash-a"), &usrhash));
    }
    let further = content.efi.iter();
    files.extend(further.map(|(name, file)| ((*name).to_owned(), *file)));
    let mut folders: Vec<_> = files
        .iter()
        .flat_map(|(name, _)| Path::new(name).ancestors().skip(1))
        .filter(|folder| !folder.as_os_str().is_empty())
        .collect();
    folders.sort();
    folders.dedup();
    for folder in folders {
        let mut mmd = system_tool("mmd");
        mmd.arg("-i")
            .arg(image)
            .arg(format!("::/{}", folder.display()));
        run(&mut mmd, LIMIT)?.success().context("mmd")?;
    }
    for (name, file) in files {
        let mut mcopy = system_tool("mcopy");
        mcopy
            .arg("-i")
            .arg(image)
            .arg(file)
            .arg(format!("::/{name}"));
        run(&mut mcopy, LIMIT)?.success().context("mcopy")?;
    }
    Ok(())
}

fn make_root(image: &Path, folder: &Path, content: Content) -> Result<()> {
    let tree = folder.join("root");
    for name in [
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "boot",
        "usr",
        "root",
        "home/core",
        "var/lib",
        "var/log",
        "var/tmp",
    ] {
        fs::create_dir_all(tree.join(name))?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), tree.join(name))?;
    }
    symlink("../run", tree.join("var/run"))?;
    let conf = format!(
        "GROUP={}\nSERVER={}\nREBOOT_STRATEGY=off\n",
        content.track, content.server
    );
    let machine_id = format!("{}\n", content.machine_id);
    for (name, text) in [
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("etc/machine-id", &machine_id),
        ("etc/systemd/system.conf", SYSTEMD),
        ("etc/systemd/journald.conf", JOURNAL),
        ("etc/flatcar/update.conf", &conf),
        ("etc/update-engine/update.conf", UPDATE),
    ]
    .iter()
    .chain(content.files)
    {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&tree))?;
        fs::write(path, text)?;
    }
    crate::guest::write_program(&tree.join("etc/update-engine/health.d/10-lab"), HEALTH)?;
    fs::File::create(image)?.set_len(SIZES.root)?;
    let mut mke2fs = system_tool("mke2fs");
    mke2fs
        .args(["-q", "-t", "ext4", "-L", "ROOT", "-d"])
        .arg(&tree)
        .arg(image);
    run(&mut mke2fs, LIMIT)?.success().context("mke2fs")?;
    fs::remove_dir_all(tree)?;
    Ok(())
}

/// Writes the file `image` into the disk, from the byte `start`; holes stay holes.
fn place(image: &Path, disk: &Path, start: u64) -> Result<()> {
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", image.display()))
        .arg(format!("of={}", disk.display()))
        .args(["bs=1M", "conv=notrunc,sparse", "status=none"])
        .arg(format!("seek={}", start / MIB));
    run(&mut dd, LIMIT)?.success().context("dd")?;
    fs::remove_file(image)?;
    Ok(())
}
