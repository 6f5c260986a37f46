//! The shape of protobuf messages, checked on their raw bytes before they are decoded.
//!
//! Two bytes of a hostile manifest can make the decoder allocate two hundred, and
//! a field given twice is read differently by different readers. This walk over
//! the bytes counts what repeats, refuses what is given twice and allocates
//! nothing. What the fields mean is the business of [`crate::manifest`].

use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::error::PayloadError;
use crate::header::Format;

/// Refuses a manifest with more operations or extents than allowed, or with a
/// field that is given twice.
///
/// # Errors
/// [`PayloadError::Manifest`] with the path of the field.
pub(crate) fn check_manifest(
    format: Format,
    manifest: &[u8],
    operations: usize,
    extents: usize,
) -> Result<(), PayloadError> {
    let mut left = Left {
        operations,
        extents,
    };
    let fields = match format {
        Format::V1 => MANIFEST,
        Format::V2 => MANIFEST_V2,
    };
    walk(manifest, fields, &mut left).map_err(|fault| PayloadError::Manifest {
        place: fault.place.unwrap_or_else(|| "protobuf".to_owned()),
        reason: fault.reason,
    })
}

/// Refuses a signature message that gives a field twice or holds too many entries.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn check_signatures(message: &[u8]) -> Result<(), String> {
    let mut left = Left {
        operations: 0,
        extents: 0,
    };
    walk(message, SIGNATURES, &mut left).map_err(|fault| match fault.place {
        Some(place) => format!("{place}: {}", fault.reason),
        None => fault.reason,
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
    /// Strings, or messages that nobody looks into.
    ManyPlain(Counted),
    /// Meant something in another version of the format.
    Retired,
}

#[derive(Clone, Copy)]
enum Counted {
    Operation,
    Extent,
    Procedure,
    Partition,
    Encoder,
    Signature,
}

/// How many more messages of each sort may come.
struct Left {
    operations: usize,
    extents: usize,
}

/// What is wrong, and the path of the field when it is inside of one.
struct Fault {
    place: Option<String>,
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

const fn many_plain(tag: u32, name: &'static str, counted: Counted) -> Field {
    Field {
        tag,
        name,
        kind: Kind::ManyPlain(counted),
    }
}

const fn retired(tag: u32, name: &'static str) -> Field {
    Field {
        tag,
        name,
        kind: Kind::Retired,
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
const OPERATION_V2: &[Field] = &[
    single(1, "type"),
    single(2, "data_offset"),
    single(3, "data_length"),
    many(4, "src_extents", EXTENT, Counted::Extent),
    single(5, "src_length"),
    many(6, "dst_extents", EXTENT, Counted::Extent),
    single(7, "dst_length"),
    single(8, "data_sha256_hash"),
    single(9, "src_sha256_hash"),
    single(200, "dst_skip"),
];
const PARTITION: &[Field] = &[
    single(1, "partition_name"),
    single(2, "run_postinstall"),
    single(3, "postinstall_path"),
    single(4, "filesystem_type"),
    many_plain(5, "new_partition_signature", Counted::Signature),
    message(6, "old_partition_info", INFO),
    message(7, "new_partition_info", INFO),
    many(8, "operations", OPERATION_V2, Counted::Operation),
    single(9, "postinstall_optional"),
    message(10, "hash_tree_data_extent", EXTENT),
    message(11, "hash_tree_extent", EXTENT),
    single(12, "hash_tree_algorithm"),
    single(13, "hash_tree_salt"),
    message(14, "fec_data_extent", EXTENT),
    message(15, "fec_extent", EXTENT),
    single(16, "fec_roots"),
    single(17, "version"),
    // One for each operation that copies, so they share the operations' ceiling.
    many_plain(18, "merge_operations", Counted::Operation),
    single(19, "estimate_cow_size"),
    single(20, "estimate_op_count_max"),
];
const RELEASE: &[Field] = &[
    single(1, "app_id"),
    single(2, "board"),
    single(3, "version"),
    single(4, "min_source_version"),
    single(5, "security_epoch"),
    single(6, "created"),
    single(7, "expires"),
    single(8, "verity_root_hash"),
];
const MANIFEST_V2: &[Field] = &[
    retired(1, "partition_operations"),
    retired(2, "noop_operations"),
    single(3, "block_size"),
    single(4, "signatures_offset"),
    single(5, "signatures_size"),
    retired(8, "old_partition_info"),
    retired(9, "new_partition_info"),
    retired(10, "procedures"),
    single(12, "minor_version"),
    many(13, "partitions", PARTITION, Counted::Partition),
    single(14, "max_timestamp"),
    single(15, "dynamic_partition_metadata"),
    single(16, "partial_update"),
    many_plain(17, "apex_info", Counted::Partition),
    single(18, "security_patch_level"),
    message(200, "release", RELEASE),
    many_plain(201, "encoders", Counted::Encoder),
];
const SIGNATURE: &[Field] = &[
    single(1, "version"),
    single(2, "data"),
    single(3, "unpadded_signature_size"),
];
const SIGNATURES: &[Field] = &[many(1, "signatures", SIGNATURE, Counted::Signature)];

/// Fields of the message that has most of them.
const MOST_FIELDS: usize = PARTITION.len();

fn walk(mut bytes: &[u8], fields: &'static [Field], left: &mut Left) -> Result<(), Fault> {
    let mut seen = [0_usize; MOST_FIELDS];
    while bytes.has_remaining() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(malformed)?;
        let known = fields
            .iter()
            .zip(&mut seen)
            .find(|(field, _)| field.tag == tag);
        let Some((field, seen)) = known else {
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).map_err(malformed)?;
            continue;
        };
        let number = *seen;
        *seen += 1;
        match field.kind {
            Kind::Single | Kind::SingleMessage(_) if number > 0 => {
                return Err(fault("given twice").inside(field.name));
            }
            Kind::Retired => {
                return Err(fault("belongs to version 1 of the format").inside(field.name));
            }
            Kind::ManyPlain(counted) => {
                left.take(counted, number)
                    .and_then(|()| {
                        skip_field(wire_type, tag, &mut bytes, DecodeContext::default())
                            .map_err(malformed)
                    })
                    .map_err(|fault| fault.inside(&format!("{}[{number}]", field.name)))?;
            }
            Kind::Single => {
                skip_field(wire_type, tag, &mut bytes, DecodeContext::default())
                    .map_err(|error| malformed(error).inside(field.name))?;
            }
            Kind::SingleMessage(inner) => {
                walk_nested(&mut bytes, wire_type, inner, left)
                    .map_err(|fault| fault.inside(field.name))?;
            }
            Kind::Many(inner, counted) => {
                left.take(counted, number)
                    .and_then(|()| walk_nested(&mut bytes, wire_type, inner, left))
                    .map_err(|fault| fault.inside(&format!("{}[{number}]", field.name)))?;
            }
        }
    }
    Ok(())
}

fn walk_nested(
    bytes: &mut &[u8],
    wire_type: WireType,
    fields: &'static [Field],
    left: &mut Left,
) -> Result<(), Fault> {
    if wire_type != WireType::LengthDelimited {
        return Err(fault("not a message"));
    }
    let length = decode_varint(bytes).map_err(malformed)?;
    let (inner, rest) = usize::try_from(length)
        .ok()
        .and_then(|length| bytes.split_at_checked(length))
        .ok_or_else(|| fault("longer than what holds it"))?;
    *bytes = rest;
    walk(inner, fields, left)
}

/// Most encoders that a manifest may name.
pub(crate) const MOST_ENCODERS: usize = 64;

impl Left {
    /// Most procedures and partitions in a manifest, and most entries in a signature
    /// message. Payloads of this family of systems hold two or three.
    const FEW: usize = 64;

    fn take(&mut self, counted: Counted, number: usize) -> Result<(), Fault> {
        let (left, reason) = match counted {
            Counted::Operation => (&mut self.operations, "too many operations"),
            Counted::Extent => (&mut self.extents, "too many extents"),
            Counted::Procedure if number >= Self::FEW => return Err(fault("too many procedures")),
            Counted::Signature if number >= Self::FEW => return Err(fault("too many signatures")),
            Counted::Partition if number >= Self::FEW => return Err(fault("too many partitions")),
            Counted::Encoder if number >= MOST_ENCODERS => return Err(fault("too many encoders")),
            Counted::Procedure | Counted::Partition | Counted::Encoder | Counted::Signature => {
                return Ok(());
            }
        };
        *left = left.checked_sub(1).ok_or_else(|| fault(reason))?;
        Ok(())
    }
}

impl Fault {
    fn inside(self, outer: &str) -> Self {
        let place = match self.place {
            Some(inner) => format!("{outer}.{inner}"),
            None => outer.to_owned(),
        };
        Self {
            place: Some(place),
            ..self
        }
    }
}

fn fault(reason: &str) -> Fault {
    Fault {
        place: None,
        reason: reason.to_owned(),
    }
}

// By value, so that it can be passed to `map_err` by name.
#[allow(clippy::needless_pass_by_value)]
fn malformed(error: prost::DecodeError) -> Fault {
    fault(&error.to_string())
}
