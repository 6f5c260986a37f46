//! The protobuf messages of a payload, as they stand on the wire.
//!
//! Field numbers are those of `update_metadata.proto` (package
//! `chromeos_update_engine`, proto2): ChromeOS of 2013 for version 1, Android for
//! version 2. Numbers from 200 on are our own and mean nothing to other readers;
//! `docs/payload-format.md` lists them. These structs are private to the codec:
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

/// One step; `crate::operation` has the numbers of the types.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct InstallOperation {
    #[prost(int32, optional, tag = "1")]
    pub(crate) kind: Option<i32>,
    /// 32 bits wide in version 1.
    #[prost(uint64, optional, tag = "2")]
    pub(crate) data_offset: Option<u64>,
    /// 32 bits wide in version 1.
    #[prost(uint64, optional, tag = "3")]
    pub(crate) data_length: Option<u64>,
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
    /// Version 2.
    #[prost(bytes = "vec", optional, tag = "9")]
    pub(crate) src_sha256_hash: Option<Vec<u8>>,
    /// Our own: bytes of the first destination block that are left alone.
    #[prost(uint64, optional, tag = "200")]
    pub(crate) dst_skip: Option<u64>,
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

/// The manifest of version 1.
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

/// What a version 2 payload does to one partition.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PartitionUpdate {
    #[prost(string, optional, tag = "1")]
    pub(crate) partition_name: Option<String>,
    #[prost(bool, optional, tag = "2")]
    pub(crate) run_postinstall: Option<bool>,
    #[prost(string, optional, tag = "3")]
    pub(crate) postinstall_path: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub(crate) filesystem_type: Option<String>,
    /// Messages that nobody here reads stay bytes.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub(crate) new_partition_signature: Vec<Vec<u8>>,
    #[prost(message, optional, tag = "6")]
    pub(crate) old_partition_info: Option<InstallInfo>,
    #[prost(message, optional, tag = "7")]
    pub(crate) new_partition_info: Option<InstallInfo>,
    #[prost(message, repeated, tag = "8")]
    pub(crate) operations: Vec<InstallOperation>,
    #[prost(bool, optional, tag = "9")]
    pub(crate) postinstall_optional: Option<bool>,
    #[prost(message, optional, tag = "10")]
    pub(crate) hash_tree_data_extent: Option<Extent>,
    #[prost(message, optional, tag = "11")]
    pub(crate) hash_tree_extent: Option<Extent>,
    #[prost(string, optional, tag = "12")]
    pub(crate) hash_tree_algorithm: Option<String>,
    #[prost(bytes = "vec", optional, tag = "13")]
    pub(crate) hash_tree_salt: Option<Vec<u8>>,
    #[prost(message, optional, tag = "14")]
    pub(crate) fec_data_extent: Option<Extent>,
    #[prost(message, optional, tag = "15")]
    pub(crate) fec_extent: Option<Extent>,
    #[prost(uint32, optional, tag = "16")]
    pub(crate) fec_roots: Option<u32>,
    #[prost(string, optional, tag = "17")]
    pub(crate) version: Option<String>,
    #[prost(bytes = "vec", repeated, tag = "18")]
    pub(crate) merge_operations: Vec<Vec<u8>>,
    #[prost(uint64, optional, tag = "19")]
    pub(crate) estimate_cow_size: Option<u64>,
    #[prost(uint64, optional, tag = "20")]
    pub(crate) estimate_op_count_max: Option<u64>,
}

/// What the makers of a release say of it. Our own message.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Release {
    #[prost(string, optional, tag = "1")]
    pub(crate) app_id: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(crate) board: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub(crate) version: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub(crate) min_source_version: Option<String>,
    #[prost(uint64, optional, tag = "5")]
    pub(crate) security_epoch: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub(crate) created: Option<u64>,
    #[prost(uint64, optional, tag = "7")]
    pub(crate) expires: Option<u64>,
    #[prost(bytes = "vec", optional, tag = "8")]
    pub(crate) verity_root_hash: Option<Vec<u8>>,
}

/// The manifest of version 2. Numbers that version 1 used are retired.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeltaArchiveManifestV2 {
    #[prost(uint32, optional, tag = "3", default = "4096")]
    pub(crate) block_size: Option<u32>,
    #[prost(uint64, optional, tag = "4")]
    pub(crate) signatures_offset: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    pub(crate) signatures_size: Option<u64>,
    #[prost(uint32, optional, tag = "12")]
    pub(crate) minor_version: Option<u32>,
    #[prost(message, repeated, tag = "13")]
    pub(crate) partitions: Vec<PartitionUpdate>,
    #[prost(int64, optional, tag = "14")]
    pub(crate) max_timestamp: Option<i64>,
    #[prost(bytes = "vec", optional, tag = "15")]
    pub(crate) dynamic_partition_metadata: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "16")]
    pub(crate) partial_update: Option<bool>,
    #[prost(bytes = "vec", repeated, tag = "17")]
    pub(crate) apex_info: Vec<Vec<u8>>,
    #[prost(string, optional, tag = "18")]
    pub(crate) security_patch_level: Option<String>,
    #[prost(message, optional, tag = "200")]
    pub(crate) release: Option<Release>,
    #[prost(string, repeated, tag = "201")]
    pub(crate) encoders: Vec<String>,
}

/// One signature. Version 2: RSA PKCS#1 v1.5 with SHA-256; version 3: Ed25519.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Signature {
    #[prost(uint32, optional, tag = "1")]
    pub(crate) version: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(crate) data: Option<Vec<u8>>,
    /// Android pads signatures of small keys with zeros behind this length.
    #[prost(fixed32, optional, tag = "3")]
    pub(crate) unpadded_signature_size: Option<u32>,
}

/// The message at `signatures_offset`, last in the file, and that after the
/// manifest of version 2.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Signatures {
    #[prost(message, repeated, tag = "1")]
    pub(crate) signatures: Vec<Signature>,
}
