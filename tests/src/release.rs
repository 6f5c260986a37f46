//! A new version of the system: image, kernel and the signed payload of both,
//! made with the `payload` command as a release machine would.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::omaha::Offer;
use crate::process::run;
use crate::programs::{program, system_tool};

const MAKE_LIMIT: Duration = Duration::from_secs(120);

/// What to release.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    /// Its version.
    pub version: &'static str,
    /// Bytes of the one file in the image, which is little larger.
    pub content_size: usize,
    /// Bytes of the kernel.
    pub kernel_size: usize,
    /// Fixture key that signs it, `ed25519` for example.
    pub key: &'static str,
    /// Its post-install program, a script.
    pub postinst: Option<&'a str>,
    /// Further options of `payload generate`.
    pub options: &'static [&'static str],
}

impl Default for Recipe<'_> {
    fn default() -> Self {
        Self {
            version: "2.0.0",
            content_size: 8 << 20,
            kernel_size: 100_000,
            key: "ed25519",
            postinst: None,
            options: &[],
        }
    }
}

/// A release.
#[derive(Debug)]
pub struct Release {
    /// Its version.
    pub version: String,
    /// The USR image.
    pub image: Vec<u8>,
    /// The kernel.
    pub kernel: Vec<u8>,
    /// The payload file's content.
    pub payload: Arc<Vec<u8>>,
}

impl Release {
    /// Makes the image, the kernel and their payload.
    ///
    /// # Errors
    ///
    /// The `payload` command fails.
    pub fn make(recipe: Recipe<'_>) -> Result<Self> {
        let folder = TempDir::new()?;
        let tree = folder.path().join("tree");
        fs::create_dir(&tree)?;
        if let Some(script) = recipe.postinst {
            fs::write(tree.join("postinst"), script)?;
            fs::set_permissions(tree.join("postinst"), fs::Permissions::from_mode(0o755))?;
        }
        let image = squashfs(&tree, &content(recipe.version, recipe.content_size))?;
        let kernel = content(&format!("kernel {}", recipe.version), recipe.kernel_size);
        let path = |name| folder.path().join(name);
        fs::write(path("usr.img"), &image)?;
        fs::write(path("vmlinuz"), &kernel)?;
        let mut generate = program("payload")?;
        generate
            .arg("generate")
            .arg("--new")
            .arg(path("usr.img"))
            .arg("--kernel")
            .arg(path("vmlinuz"))
            .arg("--private-key")
            .arg(private_key(recipe.key))
            .args(recipe.options)
            .arg("--out")
            .arg(path("payload"));
        run(&mut generate, MAKE_LIMIT)?
            .success()
            .context("payload generate")?;
        Ok(Self {
            version: recipe.version.to_owned(),
            image,
            kernel,
            payload: Arc::new(fs::read(path("payload"))?),
        })
    }

    /// The offer of this release, as file `name` below `codebase`.
    ///
    /// # Panics
    ///
    /// Never: a payload in memory has a length that fits.
    #[must_use]
    pub fn offer(&self, codebase: &str, name: &str) -> Offer {
        Offer {
            version: self.version.clone(),
            codebase: codebase.to_owned(),
            name: name.to_owned(),
            size: u64::try_from(self.payload.len()).expect("memory is smaller than 2^64 bytes"),
            sha256: STANDARD.encode(Sha256::digest(&*self.payload)),
        }
    }
}

/// A release that changes little of the one before, in all forms that a server may have
/// of it.
#[derive(Debug)]
pub struct SmallRelease {
    /// Its USR image.
    pub image: Vec<u8>,
    /// The full payload of format version 1.
    pub full_v1: Vec<u8>,
    /// The full payload of format version 2.
    pub full_v2: Vec<u8>,
    /// The delta from the image before, which has format version 2.
    pub delta: Vec<u8>,
}

impl SmallRelease {
    /// Where the bytes of the old image lie that the new one has elsewhere, unchanged.
    pub const MOVED: std::ops::Range<usize> = 4 << 20..7 << 20;

    /// Version `version` over the image `old`, of at least 8 MiB: of that a part is moved,
    /// a part changed in single bytes, the rest gone for something new.
    ///
    /// # Errors
    ///
    /// The `payload` command fails.
    ///
    /// # Panics
    ///
    /// `old` is too small.
    pub fn over(old: &[u8], version: &str, key: &str) -> Result<Self> {
        const MIB: usize = 1 << 20;
        let mut changed = old[..3 * MIB].to_vec();
        for byte in changed.iter_mut().step_by(50_021) {
            *byte ^= 0x40;
        }
        let new = content(&format!("new in {version}"), MIB);
        let file = [&old[Self::MOVED], &changed, &new].concat();

        let workshop = Workshop::new(old, &file, key)?;
        Ok(Self {
            full_v1: workshop.payload(&["--format", "v1"])?,
            full_v2: workshop.payload(&["--format", "v2"])?,
            delta: workshop.delta()?,
            image: workshop.image,
        })
    }
}

/// Where payloads of one image over another are made.
#[derive(Debug)]
pub struct Workshop {
    /// The new image.
    pub image: Vec<u8>,
    folder: TempDir,
    key: String,
}

impl Workshop {
    /// For an image that holds `file`, over `old`, signed by a fixture key.
    ///
    /// # Errors
    ///
    /// The image cannot be made.
    pub fn new(old: &[u8], file: &[u8], key: &str) -> Result<Self> {
        let image = squashfs(TempDir::new()?.path(), file)?;
        Self::of_images(old, image, key)
    }

    /// For the image `image` over `old`.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn of_images(old: &[u8], image: Vec<u8>, key: &str) -> Result<Self> {
        let folder = TempDir::new()?;
        fs::write(folder.path().join("old.img"), old)?;
        fs::write(folder.path().join("new.img"), &image)?;
        Ok(Self {
            image,
            folder,
            key: key.to_owned(),
        })
    }

    /// What changed, for machines that run the old image.
    ///
    /// # Errors
    ///
    /// The `payload` command fails.
    pub fn delta(&self) -> Result<Vec<u8>> {
        let old = self.folder.path().join("old.img");
        self.payload(&["--old", &old.to_string_lossy()])
    }

    fn payload(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let out = self.folder.path().join("payload");
        let mut generate = program("payload")?;
        generate
            .arg("generate")
            .args(arguments)
            .arg("--new")
            .arg(self.folder.path().join("new.img"))
            .arg("--private-key")
            .arg(private_key(&self.key))
            .arg("--out")
            .arg(&out);
        run(&mut generate, MAKE_LIMIT)?
            .success()
            .context("payload generate")?;
        Ok(fs::read(out)?)
    }
}

/// A file system that holds what is in the folder and a file of this content, as it is: not compressed,
/// so that the payload decides what becomes small. Real, because a machine that
/// runs as root looks into it for a post-install program.
fn squashfs(tree: &Path, content: &[u8]) -> Result<Vec<u8>> {
    let options = [
        "-noInodeCompression",
        "-noDataCompression",
        "-noFragmentCompression",
        "-noIdTableCompression",
    ];
    squashfs_with(tree, content, &options)
}

/// The same compressed with Zstandard, as real images are.
///
/// # Errors
///
/// `mksquashfs` fails.
pub fn compressed_squashfs(content: &[u8]) -> Result<Vec<u8>> {
    let options = ["-comp", "zstd", "-Xcompression-level", "15"];
    squashfs_with(TempDir::new()?.path(), content, &options)
}

fn squashfs_with(tree: &Path, content: &[u8], options: &[&str]) -> Result<Vec<u8>> {
    let folder = TempDir::new()?;
    let image = folder.path().join("tree.img");
    fs::write(tree.join("content"), content)?;
    let mut mksquashfs = system_tool("mksquashfs");
    mksquashfs
        .arg(tree)
        .arg(&image)
        .args(["-noappend", "-quiet", "-no-progress"])
        .args(options);
    run(&mut mksquashfs, MAKE_LIMIT)?
        .success()
        .context("mksquashfs")?;
    Ok(fs::read(image)?)
}

/// Public half of a fixture key.
#[must_use]
pub fn public_key(name: &str) -> PathBuf {
    fixtures().join(format!("keys/{name}.pub.pem"))
}

/// Private half of a fixture key.
#[must_use]
pub fn private_key(name: &str) -> PathBuf {
    fixtures().join(format!("keys/{name}_DO_NOT_USE.pem"))
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

/// `size` bytes that depend on `seed`: blocks of noise, which no compressor
/// shrinks, between blocks of text, which every one does. Operations of both
/// kinds come out of it.
#[must_use]
pub fn content(seed: &str, size: usize) -> Vec<u8> {
    const BLOCK: usize = 64 << 10;
    let mut content = Vec::with_capacity(size + BLOCK);
    for block in 0_u64.. {
        if content.len() >= size {
            break;
        }
        if block % 16 < 12 {
            let mut noise = Sha256::digest(format!("{seed} {block}"));
            for _ in 0..BLOCK / noise.len() {
                content.extend_from_slice(&noise);
                noise = Sha256::digest(noise);
            }
        } else {
            let line = format!("{seed}, block {block}\n");
            content.extend(line.bytes().cycle().take(BLOCK));
        }
    }
    content.truncate(size);
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_has_its_size_and_differs_by_seed_and_block() {
        let one = content("one", 300_000);
        assert_eq!(one.len(), 300_000);
        assert!(one != content("two", 300_000));
        assert!(one[..1000] != one[65_536..66_536]);
    }

    #[test]
    fn a_release_is_smaller_than_its_image() {
        let release = Release::make(Recipe::default()).unwrap();
        assert_eq!(release.payload[..4], *b"CrAU");
        assert!(release.payload.len() < release.image.len());
        let offer = release.offer("http://example.com/", "a.payload").to_xml();
        assert!(
            offer.contains("codebase=\"http://example.com/\""),
            "{offer}"
        );
    }
}
