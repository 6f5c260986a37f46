//! Kernels that are files of an operating system.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::string::ToString;
use std::vec::Vec;

use super::{Kernel, RootHash};

/// A file of a kernel cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct ReadKernelError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl Kernel {
    /// The kernel in a file, with what lies beside it. `initrd` and `hash_file` are where
    /// that would be; they need not exist.
    ///
    /// # Errors
    ///
    /// The kernel, or a file beside it that exists, cannot be read.
    pub fn read(
        path: &Path,
        initrd: Option<&Path>,
        hash_file: Option<&Path>,
    ) -> Result<Self, ReadKernelError> {
        let read = |path: &Path, limit| {
            read_start(path, limit).map_err(|source| ReadKernelError {
                path: path.into(),
                source,
            })
        };
        let (head, len) = read(path, RootHash::HEAD)?;
        let hash_file = hash_file.map(|file| match read(file, RootHash::MAX_FILE) {
            Ok((content, _)) => Ok(Some(content)),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        });
        Ok(Self {
            path: path.display().to_string(),
            initrd: initrd
                .filter(|initrd| initrd.exists())
                .map(|initrd| initrd.display().to_string()),
            head,
            len,
            hash_file: hash_file.transpose()?.flatten(),
        })
    }

    /// Whether `other` is the same kernel with the same initial RAM disk, byte for byte.
    ///
    /// # Errors
    ///
    /// A file cannot be read.
    pub fn is_same_as(&self, other: &Self) -> Result<bool, ReadKernelError> {
        if !is_same_file(self.path.as_ref(), other.path.as_ref())? {
            return Ok(false);
        }
        match (&self.initrd, &other.initrd) {
            (None, None) => Ok(true),
            (Some(own), Some(other)) => is_same_file(own.as_ref(), other.as_ref()),
            _ => Ok(false),
        }
    }
}

fn is_same_file(one: &Path, other: &Path) -> Result<bool, ReadKernelError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| ReadKernelError { path, source }
    };
    let open = |path: &Path| {
        let file = File::open(path).map_err(failed(path))?;
        Ok((BufReader::new(file), failed(path)))
    };
    let ((mut one, of_one), (mut other, of_other)) = (open(one)?, open(other)?);
    loop {
        let ours = one.fill_buf().map_err(of_one.clone())?;
        let theirs = other.fill_buf().map_err(of_other.clone())?;
        let length = ours.len().min(theirs.len());
        if ours[..length] != theirs[..length] {
            return Ok(false);
        }
        if length == 0 {
            return Ok(ours.is_empty() && theirs.is_empty());
        }
        one.consume(length);
        other.consume(length);
    }
}

/// The first bytes of a file, at most `limit`, and its length.
fn read_start(path: &Path, limit: usize) -> io::Result<(Vec<u8>, u64)> {
    let limit = u64::try_from(limit).map_err(io::Error::other)?;
    let mut start = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut start)?;
    Ok((start, fs::metadata(path)?.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn a_kernel_is_read_with_what_lies_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let [kernel, initrd, hash] =
            ["vmlinuz-a", "initrd-a", "usrhash-a"].map(|name| dir.path().join(name));
        let read = || Kernel::read(&kernel, Some(&initrd), Some(&hash));
        let error = read().unwrap_err();
        assert_eq!(error.path, kernel);

        fs::write(&kernel, vec![7; 5000]).unwrap();
        let alone = read().unwrap();
        assert_eq!(alone.head, vec![7; RootHash::HEAD]);
        assert_eq!(
            (alone.len, alone.initrd, alone.hash_file),
            (5000, None, None)
        );

        fs::write(&initrd, "").unwrap();
        fs::write(&hash, "x".repeat(1000)).unwrap();
        let beside = read().unwrap();
        assert_eq!(beside.initrd, Some(initrd.display().to_string()));
        assert_eq!(
            beside.hash_file.map(|content| content.len()),
            Some(RootHash::MAX_FILE)
        );
        assert_eq!(Kernel::read(&kernel, None, None).unwrap().hash_file, None);

        fs::remove_file(&hash).unwrap();
        fs::create_dir(&hash).unwrap();
        assert_eq!(read().unwrap_err().path, hash);
    }

    #[test]
    fn a_kernel_is_the_same_when_all_its_bytes_and_those_of_its_initrd_are() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = |name: &str, content: &[u8], initrd: Option<&[u8]>| {
            let [path, beside] =
                ["vmlinuz", "initrd"].map(|kind| dir.path().join(kind.to_string() + name));
            fs::write(&path, content).unwrap();
            if let Some(initrd) = initrd {
                fs::write(&beside, initrd).unwrap();
            }
            Kernel::read(&path, Some(&beside), None).unwrap()
        };
        let long = vec![7; 20_000];
        let mut changed = long.clone();
        changed[19_999] = 8;
        let own = kernel("-a", &long, Some(b"ram"));
        for (name, content, initrd, expected) in [
            ("-b", &long[..], Some(&b"ram"[..]), true),
            ("-c", &changed, Some(b"ram"), false),
            ("-d", &long[1..], Some(b"ram"), false),
            ("-e", &long, Some(b"RAM"), false),
            ("-f", &long, None, false),
        ] {
            let other = kernel(name, content, initrd);
            assert_eq!(own.is_same_as(&other).unwrap(), expected, "{name}");
            assert_eq!(other.is_same_as(&own).unwrap(), expected, "{name}");
        }
        fs::remove_file(dir.path().join("vmlinuz-b")).unwrap();
        let gone = Kernel {
            path: dir.path().join("vmlinuz-b").display().to_string(),
            ..own.clone()
        };
        assert!(own.is_same_as(&gone).is_err());
    }
}
