//! The name under which a machine holds a place: what `/etc/machine-id` says.

use std::fmt;
use std::io;
use std::sync::Arc;

use gptprio::machine::Root;
use serde::{Deserialize, Serialize};

/// The longest name that is stored, in bytes. Machine ids have 32 characters;
/// FleetLock clients send 32 as well.
const MOST_BYTES: u64 = 1024;

/// Where it is.
const PATH: &str = "/etc/machine-id";

/// A holder's name: opaque, case-sensitive, any text, cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineId(Arc<str>);

/// `/etc/machine-id` gives no name. The text is the original's.
#[derive(Debug, thiserror::Error)]
#[error("Cannot read machine-id")]
pub struct NoMachineId(#[source] pub Option<std::io::Error>);

impl MachineId {
    /// Takes any text; the original does the same, the empty one included.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// Reads the machine's file: its content without white space at the ends.
    ///
    /// # Errors
    ///
    /// It is not there, cannot be read, is empty or is longer than 1 KiB.
    pub fn read(root: &Root) -> Result<Self, NoMachineId> {
        let text = root
            .read_text(PATH, MOST_BYTES)
            .map_err(|error| NoMachineId(Some(error)))?;
        let text = text.ok_or_else(|| NoMachineId(Some(io::ErrorKind::NotFound.into())))?;
        if text.is_empty() {
            return Err(NoMachineId(None));
        }
        Ok(Self::new(&text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for MachineId {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_goes_and_nothing_is_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path()).unwrap();
        assert!(MachineId::read(&root).unwrap_err().0.is_some());
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        let path = folder.path().join("etc/machine-id");
        std::fs::write(&path, " \n\t").unwrap();
        assert!(MachineId::read(&root).unwrap_err().0.is_none());
        std::fs::write(&path, "\n7c1d2f \n").unwrap();
        assert_eq!(MachineId::read(&root).unwrap().as_str(), "7c1d2f");
        // On the machine's own tree, whatever is on this one.
        std::fs::rename(&path, folder.path().join("id")).unwrap();
        std::os::unix::fs::symlink("/id", &path).unwrap();
        assert_eq!(MachineId::read(&root).unwrap().as_str(), "7c1d2f");
    }
}
