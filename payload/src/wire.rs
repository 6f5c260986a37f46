//! The protobuf messages of a CrAU version 1 payload, as they stand on the wire.
//!
//! Field numbers are those of ChromeOS `update_metadata.proto` (package
//! `chromeos_update_engine`, proto2). These structs are private to the codec:
//! prost enforces neither `required` nor known enum values, so everything else in
//! this crate works on the validated types of [`crate::manifest`].
//! Bytes that are not trusted go through [`crate::shape`] before they are decoded.

use prost::Message;

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
