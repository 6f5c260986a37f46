//! Files and block devices behind the trait.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gptprio::testing::{FakeDisk, Layout};
use gptprio::{Access, BlockDevice, FileDevice, Gpt};
use tempfile::TempDir;

#[test]
fn bytes_come_back_from_cache_and_medium_at_any_place() {
    let (_dir, path) = file(&vec![0; 3 << 20]);
    let device = FileDevice::open(&path, Access::ReadWrite).unwrap();
    let content: Vec<u8> = (0..3 << 20)
        .map(|index: u32| u8::try_from((index.wrapping_mul(0x9e37_79b9)) >> 24).unwrap())
        .collect();
    device.write_at(0, &content).unwrap();
    device.sync().unwrap();
    for (offset, length) in [
        (0, 512),
        (1, 1),
        (4095, 2),
        (511, 8193),
        ((3 << 20) - 1, 1),
        ((3 << 20) - 5000, 5000),
        (777, (2 << 20) + 3),
        (0, 3 << 20),
        (100, 0),
    ] {
        let mut cached = vec![0; length];
        let mut medium = vec![0; length];
        let place = u64::try_from(offset).unwrap();
        device.read_at(place, &mut cached).unwrap();
        device.read_medium_at(place, &mut medium).unwrap();
        assert!(cached == content[offset..offset + length], "{offset}");
        assert!(medium == cached, "{offset}");
    }
}

#[test]
fn the_end_of_a_file_of_odd_length_is_read_from_the_medium_too() {
    let (_dir, path) = file(&[7; 5000]);
    let device = FileDevice::open(&path, Access::ReadOnly).unwrap();
    let mut buf = [0; 1000];
    device.read_medium_at(4000, &mut buf).unwrap();
    assert_eq!(buf, [7; 1000]);
}

#[test]
fn nothing_is_read_or_written_beyond_the_end() {
    let (_dir, path) = file(&[0; 4096]);
    let device = FileDevice::open(&path, Access::ReadWrite).unwrap();
    assert_eq!(device.len(), 4096);
    for offset in [4096, 4000, u64::MAX] {
        let mut buf = [0; 200];
        assert!(device.read_at(offset, &mut buf).is_err());
        assert!(device.read_medium_at(offset, &mut buf).is_err());
        assert!(device.write_at(offset, &buf).is_err());
        assert!(device.discard(offset, 200).is_err());
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 4096);
}

#[test]
fn a_discarded_range_of_a_file_loses_its_content_and_nothing_else() {
    let (_dir, path) = file(&[7; 64 << 10]);
    let device = FileDevice::open(&path, Access::ReadWrite).unwrap();
    // The parts of sectors at both ends stay.
    device.discard(4096 + 1, 32 << 10).unwrap();
    let content = fs::read(&path).unwrap();
    assert_eq!(content.len(), 64 << 10);
    assert!(content[..4096 + 512].iter().all(|&byte| byte == 7));
    assert!(content[4096 + (32 << 10)..].iter().all(|&byte| byte == 7));
}

#[test]
fn a_second_writer_is_refused_and_a_reader_is_not() {
    let (_dir, path) = file(&[0; 4096]);
    let writer = FileDevice::open(&path, Access::ReadWrite).unwrap();
    let error = FileDevice::open_within(&path, Access::ReadWrite, Duration::ZERO).unwrap_err();
    assert_eq!(error.to_string(), "cannot open the device");
    let cause = error.cause().to_string();
    assert_eq!(cause, "another program is writing to it");
    FileDevice::open_within(&path, Access::ReadOnly, Duration::ZERO).unwrap();
    drop(writer);
    FileDevice::open_within(&path, Access::ReadWrite, Duration::ZERO).unwrap();
}

#[test]
fn a_device_for_reading_cannot_be_written() {
    let (_dir, path) = file(&[0; 4096]);
    let device = FileDevice::open(&path, Access::ReadOnly).unwrap();
    let error = device.write_at(0, &[1; 512]).unwrap_err();
    assert_eq!(error.to_string(), "cannot write 512 bytes at offset 0");
    assert!(device.discard(0, 512).is_err());
}

#[test]
fn directories_pipes_and_missing_files_are_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    for path in [dir.path(), &pipe, &dir.path().join("missing")] {
        for access in [Access::ReadOnly, Access::ReadWrite] {
            assert!(FileDevice::open(path, access).is_err());
        }
    }
}

#[test]
fn the_sector_size_of_an_image_is_that_of_its_table() {
    for sector_size in [512, 4096] {
        let size = usize::try_from(sector_size).unwrap();
        let healthy = image(sector_size);
        let last = healthy.len() - size;
        // Either copy alone tells; so do signatures of broken copies.
        for damage in [&[][..], &[size], &[last], &[size + 40, last + 40]] {
            let mut bytes = healthy.clone();
            for &place in damage {
                bytes[place] ^= 0xff;
            }
            let (_dir, path) = file(&bytes);
            let device = FileDevice::open(&path, Access::ReadOnly).unwrap();
            assert_eq!(device.sector_size(), sector_size, "{damage:?}");
            assert_eq!(Gpt::read(&device).is_ok(), damage.len() < 2);
        }
    }
    let (_dir, path) = file(&[0; 10_000]);
    let device = FileDevice::open(&path, Access::ReadOnly).unwrap();
    assert_eq!(device.sector_size(), 512, "nothing tells");
}

#[test]
fn a_block_device_has_the_sector_size_that_the_kernel_tells() {
    for sector_size in [512, 4096] {
        let (_dir, path) = file(&vec![0; 1 << 20]);
        let Some(device) = LoopDevice::over(&path, sector_size) else {
            println!("skipped: no loop device with {sector_size}-byte sectors; run as root");
            return;
        };
        let device = FileDevice::open(&device.0, Access::ReadWrite).unwrap();
        assert_eq!(device.sector_size(), sector_size);
        assert_eq!(device.len(), 1 << 20);
        device.write_at(100, &[9; 5000]).unwrap();
        device.sync().unwrap();
        let mut buf = [0; 5000];
        device.read_medium_at(100, &mut buf).unwrap();
        assert_eq!(buf, [9; 5000]);
        device.discard(8192, 8192).unwrap();
        device.read_medium_at((1 << 20) - 1, &mut buf[..1]).unwrap();
    }
}

fn file(content: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    fs::write(&path, content).unwrap();
    (dir, path)
}

fn image(sector_size: u32) -> Vec<u8> {
    let layout = Layout::two_slots();
    let disk = FakeDisk::new(sector_size, layout.disk_len(sector_size));
    layout.write_to(&disk);
    disk.to_bytes()
}

struct LoopDevice(PathBuf);

impl LoopDevice {
    /// `None` where the kernel or the rights for it are missing.
    fn over(image: &Path, sector_size: u32) -> Option<LoopDevice> {
        let output = losetup()
            .args(["--find", "--show", "--sector-size"])
            .arg(sector_size.to_string())
            .arg(image)
            .output()
            .ok()?;
        let device = String::from_utf8(output.stdout).ok()?;
        output
            .status
            .success()
            .then(|| LoopDevice(PathBuf::from(device.trim())))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = losetup().arg("-d").arg(&self.0).status();
    }
}

/// A tool for administrators, which is not on everybody's path.
fn losetup() -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("losetup");
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}
