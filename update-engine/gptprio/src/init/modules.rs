//! Modules of the kernel that come with the initramfs.
//!
//! `/modules/list` names files of that folder, one a line, in the order in which they
//! need each other. Lines that begin with `#` are comments.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::console;

const FOLDER: &str = "/modules";

/// Loads them all. What cannot be loaded is reported; perhaps the machine boots without.
pub(crate) fn load() {
    let list = match fs::read_to_string(Path::new(FOLDER).join("list")) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return console::print(&format!("cannot read {FOLDER}/list: {error}")),
    };
    let lines = list.lines().map(str::trim);
    for name in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Err(error) = load_one(&Path::new(FOLDER).join(name)) {
            console::print(&format!("cannot load the module {name}: {error}"));
        }
    }
}

fn load_one(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
