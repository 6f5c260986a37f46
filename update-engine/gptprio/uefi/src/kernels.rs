//! Kernels from the partition of this program, started as programs of the firmware.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::time::Duration;

use gptprio::boot::{Kernel, KernelFiles, Machine, RootHash};
use gptprio::{Letter, Partition};
use uefi::boot::{self, LoadImageSource};
use uefi::proto::BootPolicy;
use uefi::proto::device_path::DevicePath;
use uefi::proto::device_path::build::{DevicePathBuilder, media};
use uefi::proto::loaded_image::LoadedImage;
use uefi::proto::media::file::{File, FileAttribute, FileInfo, FileMode};
use uefi::{CString16, Status};

use crate::console;
use crate::firmware::LoadedKernel;

/// The firmware that runs this program.
#[derive(Debug)]
pub(crate) struct Uefi;

impl Machine for Uefi {
    type Staged = LoadedKernel;
    type Started = Infallible;

    fn find_kernel(&mut self, _: &Partition, letter: Letter) -> Result<Kernel, String> {
        let Ok(family) = Kernel::family(|path| Ok::<_, Infallible>(exists(&absolute(path))));
        let files = KernelFiles::new(family, letter);
        let path = absolute(&files.kernel);
        let file =
            read_file(&path, RootHash::HEAD)?.ok_or_else(|| format!("there is no {path}"))?;
        let initrd = absolute(&files.initrd);
        let hash_file = read_file(&absolute(&files.hash), RootHash::MAX_FILE)?;
        Ok(Kernel {
            path,
            initrd: exists(&initrd).then_some(initrd),
            head: file.start,
            len: file.len,
            hash_file: hash_file.map(|file| file.start),
        })
    }

    fn stage(&mut self, kernel: &Kernel, command_line: &str) -> Result<LoadedKernel, String> {
        // The kernel's EFI stub reads the initrd by itself, from the partition that it
        // comes from.
        let line = match &kernel.initrd {
            Some(initrd) => format!("initrd={initrd} {command_line}"),
            None => command_line.into(),
        };
        let line = CString16::try_from(line.as_str())
            .map_err(|error| format!("the command line has letters beyond UCS-2: {error:?}"))?;
        load(&kernel.path)
            .and_then(|image| LoadedKernel::new(image, line))
            .map_err(|error| refusal(&kernel.path, &error))
    }

    fn start(&mut self, staged: LoadedKernel) -> Result<Infallible, String> {
        Err(match staged.start() {
            Ok(()) => "the kernel came back".into(),
            Err(error) => format!("the kernel came back: {}", error.status()),
        })
    }

    fn print(&mut self, line: &str) {
        console::print(line);
    }

    fn wait(&mut self, duration: Duration) {
        boot::stall(duration);
    }
}

/// Has the firmware load, and under Secure Boot verify, a file of this partition.
fn load(path: &str) -> uefi::Result<uefi::Handle> {
    let name = CString16::try_from(path).map_err(|_| Status::INVALID_PARAMETER)?;
    let own = boot::open_protocol_exclusive::<LoadedImage>(boot::image_handle())?;
    let partition = own.device().ok_or(Status::NOT_FOUND)?;
    drop(own);
    let partition = boot::open_protocol_exclusive::<DevicePath>(partition)?;

    let broken = |_| uefi::Error::from(Status::INVALID_PARAMETER);
    let mut buffer = Vec::new();
    let mut full = DevicePathBuilder::with_vec(&mut buffer);
    for node in partition.node_iter() {
        full = full.push(&node).map_err(broken)?;
    }
    let full = full
        .push(&media::FilePath { path_name: &name })
        .and_then(DevicePathBuilder::finalize)
        .map_err(broken)?;
    let source = LoadImageSource::FromDevicePath {
        device_path: full,
        boot_policy: BootPolicy::ExactMatch,
    };
    boot::load_image(boot::image_handle(), source)
}

/// Why the firmware does not take a kernel, for one who can change it.
fn refusal(path: &str, error: &uefi::Error) -> String {
    let why = match error.status() {
        Status::SECURITY_VIOLATION | Status::ACCESS_DENIED => {
            "it has no signature that the firmware trusts; sign it, or enrol its key"
        }
        Status::UNSUPPORTED | Status::LOAD_ERROR | Status::INVALID_PARAMETER => {
            "it is no kernel with an EFI stub, or it is broken"
        }
        _ => "the firmware does not load it",
    };
    format!("{path}: {why}: {}", error.status())
}

/// The start of a file.
pub(crate) struct Start {
    /// The first bytes.
    pub(crate) start: Vec<u8>,
    /// Bytes of the whole file.
    pub(crate) len: u64,
}

/// At most `limit` bytes of a file of this partition, `None` when there is none.
pub(crate) fn read_file(path: &str, limit: usize) -> Result<Option<Start>, String> {
    match read_start(path, limit) {
        Ok(start) => Ok(Some(start)),
        Err(error) if error.status() == Status::NOT_FOUND => Ok(None),
        Err(error) => Err(format!("cannot read {path}: {}", error.status())),
    }
}

fn read_start(path: &str, limit: usize) -> uefi::Result<Start> {
    let name = CString16::try_from(path).map_err(|_| Status::INVALID_PARAMETER)?;
    let mut volume = boot::get_image_file_system(boot::image_handle())?;
    let mut file = volume
        .open_volume()?
        .open(&name, FileMode::Read, FileAttribute::empty())?
        .into_regular_file()
        .ok_or(Status::UNSUPPORTED)?;
    let len = file.get_boxed_info::<FileInfo>()?.file_size();
    let mut start = vec![0; usize::try_from(len).map_or(limit, |len| len.min(limit))];
    let mut filled = 0;
    while let Some(rest) = start.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest)? {
            0 => break,
            count => filled = filled.saturating_add(count),
        }
    }
    start.truncate(filled);
    Ok(Start { start, len })
}

fn exists(path: &str) -> bool {
    matches!(read_file(path, 0), Ok(Some(_)))
}

/// A path on the boot partition as the firmware writes it.
fn absolute(path: &str) -> String {
    format!("\\{}", path.replace('/', "\\"))
}
