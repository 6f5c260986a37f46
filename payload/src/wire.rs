//! The protobuf messages of a CrAU version 1 payload, as they stand on the wire.
//!
//! Field numbers are those of ChromeOS `update_metadata.proto` (package
//! `chromeos_update_engine`, proto2). These structs are private to the codec:
//! prost enforces neither `required` nor known enum values, so everything else in
//! this crate works on the validated types of [`crate::manifest`].
//!
//! A hostile manifest can make prost allocate eighty times its own size, and a
//! field given twice is read differently by different readers. So
//! [`check_shape`] walks the raw bytes first and allocates nothing.

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::error::PayloadError;

/// A run of blocks. `start_block == u64::MAX` marks a sparse hole.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Extent {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) start_block: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) num_blocks: Option<u64>,
}

/// Size in bytes and raw SHA-256 of a whole partition or file.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct InstallInfo {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) size: Option<u64>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(crate) hash: Option<Vec<u8>>,
}

/// One step. Type: 0 REPLACE, 1 REPLACE_BZ, 2 MOVE, 3 BSDIFF.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct InstallOperation {
    #[prost(int32, optional, tag = "1")]
    pub(crate) kind: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    pub(crate) data_offset: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub(crate) data_length: Option<u32>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) src_extents: Vec<Extent>,
    #[prost(uint64, optional, tag = "5")]
    pub(crate) src_length: Option<u64>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) dst_extents: Vec<Extent>,
    #[prost(uint64, optional, tag = "7")]
    pub(crate) dst_length: Option<u64>,
    #[prost(bytes = "vec", optional, tag = "8")]
    pub(crate) data_sha256_hash: Option<Vec<u8>>,
}

/// Operations on something beside the partition. Type: 0 KERNEL, 1 PCR_POLICY.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct InstallProcedure {
    #[prost(int32, optional, tag = "1")]
    pub(crate) kind: Option<i32>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) operations: Vec<InstallOperation>,
    #[prost(message, optional, tag = "3")]
    pub(crate) old_info: Option<InstallInfo>,
    #[prost(message, optional, tag = "4")]
    pub(crate) new_info: Option<InstallInfo>,
}

/// The manifest that follows the 20-byte header.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeltaArchiveManifest {
    #[prost(message, repeated, tag = "1")]
    pub(crate) partition_operations: Vec<InstallOperation>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) noop_operations: Vec<InstallOperation>,
    #[prost(uint32, optional, tag = "3", default = "4096")]
    pub(crate) block_size: Option<u32>,
    #[prost(uint64, optional, tag = "4")]
    pub(crate) signatures_offset: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    pub(crate) signatures_size: Option<u64>,
    #[prost(message, optional, tag = "8")]
    pub(crate) old_partition_info: Option<InstallInfo>,
    #[prost(message, optional, tag = "9")]
    pub(crate) new_partition_info: Option<InstallInfo>,
    #[prost(message, repeated, tag = "10")]
    pub(crate) procedures: Vec<InstallProcedure>,
}

/// One signature. Version 2: RSA PKCS#1 v1.5 with SHA-256; version 3: Ed25519.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Signature {
    #[prost(uint32, optional, tag = "1")]
    pub(crate) version: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(crate) data: Option<Vec<u8>>,
}

/// The message at `signatures_offset`, last in the file.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Signatures {
    #[prost(message, repeated, tag = "1")]
    pub(crate) signatures: Vec<Signature>,
}

/// Refuses a manifest with more operations or extents than allowed, or with a
/// field that is given twice.
///
/// # Errors
/// [`PayloadError::Manifest`] with the path of the field.
pub(crate) fn check_shape(
    manifest: &[u8],
    operations: usize,
    extents: usize,
) -> Result<(), PayloadError> {
    let mut left = Left {
        operations,
        extents,
    };
    walk(manifest, MANIFEST, &mut left).map_err(|fault| PayloadError::Manifest {
        place: if fault.place.is_empty() {
            "protobuf".to_owned()
        } else {
            fault.place
        },
        reason: fault.reason,
    })
}

/// Refuses a signature message that gives a field twice or holds too many entries.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn check_signatures_shape(message: &[u8]) -> Result<(), String> {
    let mut left = Left {
        operations: 0,
        extents: 0,
    };
    walk(message, SIGNATURES, &mut left).map_err(|fault| {
        if fault.place.is_empty() {
            fault.reason
        } else {
            format!("{}: {}", fault.place, fault.reason)
        }
    })
}

/// A field of a message, as far as its shape matters.
struct Field {
    tag: u32,
    name: &'static str,
    kind: Kind,
}

enum Kind {
    Single,
    SingleMessage(&'static [Field]),
    Many(&'static [Field], Counted),
}

#[derive(Clone, Copy)]
enum Counted {
    Operation,
    Extent,
    Procedure,
    Signature,
}

/// How many more messages of each sort may come.
struct Left {
    operations: usize,
    extents: usize,
}

struct Fault {
    place: String,
    reason: String,
}

const fn single(tag: u32, name: &'static str) -> Field {
    Field {
        tag,
        name,
        kind: Kind::Single,
    }
}

const fn message(tag: u32, name: &'static str, fields: &'static [Field]) -> Field {
    Field {
        tag,
        name,
        kind: Kind::SingleMessage(fields),
    }
}

const fn many(tag: u32, name: &'static str, fields: &'static [Field], counted: Counted) -> Field {
    Field {
        tag,
        name,
        kind: Kind::Many(fields, counted),
    }
}

const EXTENT: &[Field] = &[single(1, "start_block"), single(2, "num_blocks")];
const INFO: &[Field] = &[single(1, "size"), single(2, "hash")];
const OPERATION: &[Field] = &[
    single(1, "type"),
    single(2, "data_offset"),
    single(3, "data_length"),
    many(4, "src_extents", EXTENT, Counted::Extent),
    single(5, "src_length"),
    many(6, "dst_extents", EXTENT, Counted::Extent),
    single(7, "dst_length"),
    single(8, "data_sha256_hash"),
];
const PROCEDURE: &[Field] = &[
    single(1, "type"),
    many(2, "operations", OPERATION, Counted::Operation),
    message(3, "old_info", INFO),
    message(4, "new_info", INFO),
];
const MANIFEST: &[Field] = &[
    many(1, "partition_operations", OPERATION, Counted::Operation),
    many(2, "noop_operations", OPERATION, Counted::Operation),
    single(3, "block_size"),
    single(4, "signatures_offset"),
    single(5, "signatures_size"),
    message(8, "old_partition_info", INFO),
    message(9, "new_partition_info", INFO),
    many(10, "procedures", PROCEDURE, Counted::Procedure),
];
const SIGNATURE: &[Field] = &[single(1, "version"), single(2, "data")];
const SIGNATURES: &[Field] = &[many(1, "signatures", SIGNATURE, Counted::Signature)];

/// Most procedures in a manifest and most entries in a signature message.
/// Payloads in use hold at most two of either.
const FEW: usize = 64;

fn walk(mut bytes: &[u8], fields: &'static [Field], left: &mut Left) -> Result<(), Fault> {
    let mut seen = [0_usize; 16];
    while bytes.has_remaining() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(malformed)?;
        let Some(position) = fields.iter().position(|field| field.tag == tag) else {
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).map_err(malformed)?;
            continue;
        };
        let field = &fields[position];
        let number = seen[position];
        seen[position] += 1;
        match field.kind {
            Kind::Single | Kind::SingleMessage(_) if number > 0 => {
                return Err(at(field.name.to_owned(), "given twice"));
            }
            Kind::Single => {
                skip_field(wire_type, tag, &mut bytes, DecodeContext::default())
                    .map_err(malformed)?;
            }
            Kind::SingleMessage(inner) => {
                nested(&mut bytes, wire_type, inner, left)
                    .map_err(|fault| inside(field.name.to_owned(), &fault))?;
            }
            Kind::Many(inner, counted) => {
                let name = indexed(field.name, number);
                left.take(counted, number)
                    .map_err(|reason| at(name(), reason))?;
                nested(&mut bytes, wire_type, inner, left)
                    .map_err(|fault| inside(name(), &fault))?;
            }
        }
    }
    Ok(())
}

fn nested(
    bytes: &mut &[u8],
    wire_type: WireType,
    fields: &'static [Field],
    left: &mut Left,
) -> Result<(), Fault> {
    if wire_type != WireType::LengthDelimited {
        return Err(at(String::new(), "not a message"));
    }
    let length = decode_varint(bytes).map_err(malformed)?;
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= bytes.len());
    let Some(length) = length else {
        return Err(at(String::new(), "longer than what holds it"));
    };
    let (inner, rest) = bytes.split_at(length);
    *bytes = rest;
    walk(inner, fields, left)
}

impl Left {
    fn take(&mut self, counted: Counted, number: usize) -> Result<(), &'static str> {
        let (left, reason) = match counted {
            Counted::Operation => (&mut self.operations, "too many operations"),
            Counted::Extent => (&mut self.extents, "too many extents"),
            Counted::Procedure if number >= FEW => return Err("too many procedures"),
            Counted::Signature if number >= FEW => return Err("too many signatures"),
            Counted::Procedure | Counted::Signature => return Ok(()),
        };
        *left = left.checked_sub(1).ok_or(reason)?;
        Ok(())
    }
}

/// The place of entry `number`, written out only when it is needed.
fn indexed(name: &'static str, number: usize) -> impl Fn() -> String {
    move || format!("{name}[{number}]")
}

fn at(place: String, reason: &str) -> Fault {
    Fault {
        place,
        reason: reason.to_owned(),
    }
}

fn inside(outer: String, fault: &Fault) -> Fault {
    let place = if fault.place.is_empty() {
        outer
    } else {
        format!("{outer}.{}", fault.place)
    };
    Fault {
        place,
        reason: fault.reason.clone(),
    }
}

// Takes the error by value so that it can be passed to `map_err` by name.
#[allow(clippy::needless_pass_by_value)]
fn malformed(error: prost::DecodeError) -> Fault {
    at(String::new(), &error.to_string())
}
