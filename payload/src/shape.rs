//! The shape of protobuf messages, checked on their raw bytes before they are decoded.
//!
//! Two bytes of a hostile manifest can make the decoder allocate two hundred, and
//! a field given twice is read differently by different readers. This walk over
//! the bytes counts what repeats, refuses what is given twice and allocates
//! nothing. What the fields mean is the business of [`crate::manifest`].

use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::error::PayloadError;

/// Refuses a manifest with more operations or extents than allowed, or with a
/// field that is given twice.
///
/// # Errors
/// [`PayloadError::Manifest`] with the path of the field.
pub(crate) fn check_manifest(
    manifest: &[u8],
    operations: usize,
    extents: usize,
) -> Result<(), PayloadError> {
    let mut left = Left {
        operations,
        extents,
    };
    walk(manifest, MANIFEST, &mut left).map_err(|fault| PayloadError::Manifest {
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

fn walk(mut bytes: &[u8], fields: &'static [Field], left: &mut Left) -> Result<(), Fault> {
    let mut seen = [0_usize; 16];
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

impl Left {
    /// Most procedures in a manifest and most entries in a signature message.
    /// Payloads in use hold at most two of either.
    const FEW: usize = 64;

    fn take(&mut self, counted: Counted, number: usize) -> Result<(), Fault> {
        let (left, reason) = match counted {
            Counted::Operation => (&mut self.operations, "too many operations"),
            Counted::Extent => (&mut self.extents, "too many extents"),
            Counted::Procedure if number >= Self::FEW => return Err(fault("too many procedures")),
            Counted::Signature if number >= Self::FEW => return Err(fault("too many signatures")),
            Counted::Procedure | Counted::Signature => return Ok(()),
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
