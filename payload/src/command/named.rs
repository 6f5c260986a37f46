//! Files of further partitions, as commands take them: `NAME=FILE`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use payload::Target;

/// A partition's name, and the file that holds it or shall hold it.
#[derive(Clone, Debug)]
pub(super) struct NamedFile {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl NamedFile {
    /// Reads `NAME=FILE`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (name, path) = text
            .split_once('=')
            .filter(|(name, path)| !name.is_empty() && !path.is_empty())
            .ok_or("give the name of the partition and a file, as oem=oem.img")?;
        match Target::of_name(name) {
            Some(Target::Named(_)) => Ok(Self {
                name: name.to_owned(),
                path: path.into(),
            }),
            Some(_) => Err(format!("{name} has an option of its own")),
            None => Err(format!("{name:?} is no name of a partition")),
        }
    }

    /// Refuses files of which two have one name; `option` is where they come from.
    pub(super) fn check_distinct(files: &[Self], option: &str) -> Result<()> {
        for (index, Self { name, .. }) in files.iter().enumerate() {
            if Self::find(&files[..index], name).is_some() {
                bail!("{option} {name}=... is given twice");
            }
        }
        Ok(())
    }

    /// The one of this name.
    pub(super) fn find<'a>(files: &'a [Self], name: &str) -> Option<&'a Self> {
        files.iter().find(|file| file.name == name)
    }

    /// The first name that is not among those of `others`.
    pub(super) fn without<'a>(files: &'a [Self], others: &[Self]) -> Option<&'a str> {
        let mut names = files.iter().map(|file| &*file.name);
        names.find(|name| Self::find(others, name).is_none())
    }
}
