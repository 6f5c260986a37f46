//! Files of further partitions, as commands take them: `NAME=FILE`.

use std::path::PathBuf;

/// A partition's name, and the file that holds it or shall hold it.
#[derive(Clone, Debug)]
pub(super) struct NamedFile {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl NamedFile {
    /// Reads `NAME=FILE`. Which names there may be is for the manifest to say.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok(Self {
                name: name.to_owned(),
                path: path.into(),
            }),
            _ => Err("give the name of the partition and a file, as oem=oem.img".to_owned()),
        }
    }

    /// The one of this name; of two the first.
    pub(super) fn find<'a>(files: &'a [Self], name: &str) -> Option<&'a Self> {
        files.iter().find(|file| file.name == name)
    }

    /// The first name that is not among those of `others`.
    pub(super) fn without<'a>(files: &'a [Self], others: &[Self]) -> Option<&'a str> {
        let mut names = files.iter().map(|file| &*file.name);
        names.find(|name| Self::find(others, name).is_none())
    }
}
