//! How much memory reading takes. Alone in its process, since it is the process
//! that is measured.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::fs;

use payload::{Event, Limits, PayloadStream, Trust};
use sha2::{Digest, Sha256};

/// Most bytes that this process ever held, from the kernel's own account.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        * 1024
}

fn varint(mut value: usize, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    to.push(u8::try_from(value).unwrap());
}

fn field(tag: usize, bytes: &[u8], to: &mut Vec<u8>) {
    varint(tag << 3 | 2, to);
    varint(bytes.len(), to);
    to.extend_from_slice(bytes);
}

fn header(version: u64, manifest: &[u8]) -> Vec<u8> {
    let length = u64::try_from(manifest.len()).unwrap();
    let mut header = [b"CrAU", &version.to_be_bytes()[..], &length.to_be_bytes()].concat();
    if version == 2 {
        header.extend_from_slice(&[0; 4]);
    }
    header
}

/// `count` operations with a mebibyte of data each, and the image's description.
fn streamed_manifest(version: u64, count: usize, data: &[u8]) -> Vec<u8> {
    let (of_operations, of_info) = if version == 1 { (1, 9) } else { (8, 7) };
    let hash = Sha256::digest(data);
    let mut manifest = Vec::new();
    for index in 0..count {
        let mut operation = vec![0x08, 0x00, 0x10];
        varint(index * data.len(), &mut operation);
        operation.push(0x18);
        varint(data.len(), &mut operation);
        field(6, &[0x08, 0x00, 0x10, 0x80, 0x02], &mut operation);
        field(8, &hash, &mut operation);
        field(of_operations, &operation, &mut manifest);
    }
    let mut info = vec![0x08, 0x80, 0x80, 0x40];
    field(2, &[0; 32], &mut info);
    field(of_info, &info, &mut manifest);
    if version == 1 {
        return manifest;
    }
    field(1, b"usr", &mut manifest);
    let mut partitions = Vec::new();
    field(13, &manifest, &mut partitions);
    partitions
}

#[test]
fn memory_is_bounded_by_one_operation_and_by_the_ceilings() {
    const MIB: usize = 1 << 20;
    let data = vec![0xa5; MIB];
    for version in [1, 2] {
        let before = peak();
        let manifest = streamed_manifest(version, 300, &data);
        let anyone = Trust::allow_unsigned(vec![]);
        let mut stream = PayloadStream::new(Limits::default(), &anyone);
        stream.push(&header(version, &manifest));
        stream.push(&manifest);
        let mut operations = 0;
        for _ in 0..300 {
            for chunk in data.chunks(65_536) {
                stream.push(chunk);
                while let Some(event) = stream.next_event().unwrap() {
                    operations += usize::from(matches!(event, Event::Operation(_)));
                }
            }
        }
        assert_eq!(operations, 300);
        let streamed = peak() - before;
        println!(
            "streaming 300 MiB of operations in version {version} took {} KiB",
            streamed / 1024
        );
        assert!(streamed < 12 * MIB);
    }

    // Two bytes each that say "an operation" or "an extent": what decodes largest.
    let before = peak();
    let of_partition = |entry: [u8; 2]| {
        let mut manifest = Vec::new();
        field(13, &entry.repeat(4 * MIB), &mut manifest);
        manifest
    };
    for (version, name, entry) in [
        (1, "operations", vec![0x0a, 0x00]),
        (1, "extents", {
            let mut operation = vec![0x08, 0x00];
            (0..4 * MIB).for_each(|_| operation.extend_from_slice(&[0x32, 0x00]));
            let mut manifest = Vec::new();
            field(1, &operation, &mut manifest);
            manifest
        }),
        (2, "partitions", vec![0x6a, 0x00]),
        (2, "operations", of_partition([0x42, 0x00])),
        (2, "signatures", of_partition([0x2a, 0x00])),
    ] {
        let manifest = entry.repeat(8 * MIB / entry.len().min(8 * MIB));
        let anyone = Trust::allow_unsigned(vec![]);
        let mut stream = PayloadStream::new(Limits::default(), &anyone);
        stream.push(&header(version, &manifest));
        for chunk in manifest.chunks(65_536) {
            stream.push(chunk);
        }
        let error = stream.next_event().unwrap_err().to_string();
        assert!(error.ends_with(&format!("too many {name}")), "{error}");
    }
    let refused = peak() - before;
    println!(
        "refusing 8 MiB of empty entries took {} KiB",
        refused / 1024
    );
    assert!(refused < 80 * MIB);
}
