//! Kernel and userland of the machines: packages of the Debian that this runs on,
//! unpacked, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use system_tests::process::run;

const LIMIT: Duration = Duration::from_secs(300);

/// What the machines run beside our own programs: systemd with logind, the message
/// bus, the tools for dm-verity, a shell.
const PACKAGES: [&str; 47] = [
    "busybox-static",
    "cryptsetup-bin",
    "dbus",
    "dbus-daemon",
    "dbus-system-bus-common",
    "dmsetup",
    "libacl1",
    "libapparmor1",
    "libargon2-1",
    "libaudit1",
    "libblkid1",
    "libbz2-1.0",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcrypt1",
    "libcryptsetup12",
    "libdbus-1-3",
    "libdevmapper1.02.1",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libgcrypt20",
    "libgpg-error0",
    "libip4tc2",
    "libjson-c5",
    "libkmod2",
    "liblz4-1",
    "liblzma5",
    "libmount1",
    "libp11-kit0",
    "libpam0g",
    "libpcre2-8-0",
    "libpopt0",
    "libseccomp2",
    "libselinux1",
    "libssl3",
    "libsystemd-shared",
    "libsystemd0",
    "libtinfo6",
    "libudev1",
    "libuuid1",
    "libzstd1",
    "mount",
    "systemd",
    "util-linux",
    "zlib1g",
];
/// Its dependency is the package of the newest kernel.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What nobody on a lab machine reads.
const UNREAD: [&str; 11] = [
    "share/doc",
    "share/man",
    "share/locale",
    "share/info",
    "share/lintian",
    "share/bash-completion",
    "share/zsh",
    "share/polkit-1",
    "lib/x86_64-linux-gnu/gconv",
    "lib/systemd/catalog",
    "lib/systemd/system-generators",
];

/// Unpacked packages.
#[derive(Debug, Clone)]
pub struct Debian {
    folder: PathBuf,
}

impl Debian {
    /// The packages, downloaded by the first call and kept beside what cargo builds.
    ///
    /// # Errors
    ///
    /// `apt-get` or `dpkg-deb` fails.
    pub fn unpacked() -> Result<Self> {
        let folder = &target_folder().join("vm/debian");
        let debian = Self {
            folder: folder.clone(),
        };
        // The folder gets its name when it is whole.
        if !folder.exists() {
            let unfinished = folder.with_extension("new");
            if unfinished.exists() {
                fs::remove_dir_all(&unfinished)?;
            }
            fs::create_dir_all(&unfinished)?;
            download(&unfinished)?;
            fs::rename(&unfinished, folder)?;
        }
        Ok(debian)
    }

    /// The kernel image.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn kernel(&self) -> Result<PathBuf> {
        only(&self.folder.join("kernel/boot"), "vmlinuz-")
    }

    /// Adds the kernel module `name` to `modules` (name, file), behind all that it
    /// depends on, unless it is there.
    ///
    /// # Errors
    ///
    /// There is no such module.
    pub fn module_with_dependencies(
        &self,
        name: &str,
        modules: &mut Vec<(String, PathBuf)>,
    ) -> Result<()> {
        if modules.iter().any(|(known, _)| known == name) {
            return Ok(());
        }
        let path = self.module(name)?;
        for dependency in dependencies(&fs::read(&path)?) {
            self.module_with_dependencies(&dependency, modules)?;
        }
        modules.push((name.to_owned(), path));
        Ok(())
    }

    fn module(&self, name: &str) -> Result<PathBuf> {
        let modules = only(&self.folder.join("kernel/lib/modules"), "")?;
        let mut find = Command::new("find");
        // A module's name has "_" where its file's name may have "-".
        find.arg(modules)
            .args(["-name", &format!("{}.ko", name.replace(['-', '_'], "[-_]"))]);
        let found = run(&mut find, LIMIT)?.success()?;
        ensure!(!found.trim().is_empty(), "the kernel has no module {name}");
        Ok(found.trim().into())
    }

    /// What becomes `/usr`.
    #[must_use]
    pub fn usr(&self) -> PathBuf {
        self.folder.join("root/usr")
    }

    /// The shared libraries that the program `path`, relative to [`Debian::usr`], loads.
    ///
    /// # Errors
    ///
    /// One of them is in none of the packages.
    pub fn libraries_of(&self, path: &str) -> Result<Vec<PathBuf>> {
        let mut ldd = Command::new("ldd");
        ldd.arg(self.usr().join(path))
            .env("LD_LIBRARY_PATH", self.usr().join("lib/x86_64-linux-gnu"));
        let mut libraries = Vec::new();
        for line in run(&mut ldd, LIMIT)?.success()?.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            let path = match words[..] {
                [_, "=>", "not", ..] => anyhow::bail!("{path}: {line}"),
                [_, "=>", found, ..] => found,
                [loader, _] if loader.starts_with('/') => loader,
                _ => continue,
            };
            libraries.push(path.into());
        }
        Ok(libraries)
    }
}

/// Where cargo builds.
pub(crate) fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    )
}

/// The names behind `depends=` in a module's file.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(place) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[place + KEY.len()..].split(|byte| *byte == 0).next();
    String::from_utf8_lossy(value.unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn download(folder: &Path) -> Result<()> {
    let kernel = kernel_package()?;
    let packages = folder.join("packages");
    fs::create_dir(&packages)?;
    let mut apt = Command::new("apt-get");
    apt.args(["download", "--quiet", "--quiet"])
        .args(["--option", "APT::Sandbox::User=root"])
        .arg(&kernel)
        .args(PACKAGES)
        .current_dir(&packages);
    run(&mut apt, LIMIT)?
        .success()
        .context("cannot download Debian's packages; is `apt-get update` needed?")?;
    let (root, apart) = (folder.join("root"), folder.join("kernel"));
    for package in fs::read_dir(&packages)? {
        let package = package?.path();
        let is_kernel = package.to_string_lossy().contains("/linux-image-");
        let mut unpack = Command::new("dpkg-deb");
        unpack
            .arg("--extract")
            .arg(&package)
            .arg(if is_kernel { &apart } else { &root });
        run(&mut unpack, LIMIT)?.success()?;
    }
    fs::remove_dir_all(&packages)?;
    // These packages still install for a system whose /bin is no part of /usr.
    for name in ["bin", "sbin", "lib", "lib64"] {
        if root.join(name).exists() {
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(root.join(name)).arg(root.join("usr"));
            run(&mut copy, LIMIT)?.success()?;
            fs::remove_dir_all(root.join(name))?;
        }
    }
    for name in UNREAD {
        let path = root.join("usr").join(name);
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

fn kernel_package() -> Result<String> {
    let mut apt = Command::new("apt-cache");
    apt.args(["depends", KERNEL]);
    let depends = run(&mut apt, LIMIT)?.success()?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .with_context(|| format!("{KERNEL} depends on no kernel: {depends}"))?;
    Ok(format!("linux-image-{package}"))
}

/// The one entry of a folder whose name begins with `prefix`.
fn only(folder: &Path, prefix: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    anyhow::bail!("{} has no {prefix}…", folder.display())
}
