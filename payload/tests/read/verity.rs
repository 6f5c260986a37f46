//! Hash trees that machines build: which are refused, and when the result is.

use std::io::Cursor;

use payload::make::verity::{ImageReader, WithVerity};
use payload::make::{self, Profile, Source};
use payload::{
    Image, PayloadError, Release, Sources, Targets, Trust, apply_payload, verify_payload,
};

use crate::craft::{Message, extent, info, noise};
use crate::craft_v2::file;
use crate::drive::check;
use crate::image::MemoryImage;

const BLOCK: usize = 4096;
const SALT: [u8; 4] = [1, 2, 3, 4];

/// A partition of 130 blocks of data, a superblock, and a tree of 2 + 1 blocks, with
/// one operation over data and superblock.
struct Crafted {
    name: &'static str,
    blocks: u64,
    data: Option<(u64, u64)>,
    tree: Option<(u64, u64)>,
    algorithm: Option<&'static str>,
    salt: Vec<u8>,
    fec: Option<(u64, u64)>,
    operation: (u64, u64),
}

impl Default for Crafted {
    fn default() -> Self {
        Self {
            name: "usr",
            blocks: 134,
            data: Some((0, 130)),
            tree: Some((131, 3)),
            algorithm: Some("sha256"),
            salt: SALT.to_vec(),
            fec: None,
            operation: (0, 131),
        }
    }
}

impl Crafted {
    fn refusal(&self) -> String {
        let (start, count) = self.operation;
        // A DISCARD needs no data.
        let operation = Message::new().varint(1, 7).message(6, extent(start, count));
        let size = self.blocks * u64::try_from(BLOCK).unwrap();
        let mut update = Message::new()
            .bytes(1, self.name.as_bytes())
            .message(7, info(size, &[0; 32]))
            .message(8, operation);
        for (tag, blocks) in [(10, self.data), (11, self.tree)] {
            if let Some((start, count)) = blocks {
                update = update.message(tag, extent(start, count));
            }
        }
        if let Some(algorithm) = self.algorithm {
            update = update.bytes(12, algorithm.as_bytes());
        }
        update = update.bytes(13, &self.salt);
        if let Some((start, count)) = self.fec {
            update = update.message(15, extent(start, count));
        }
        let manifest = Message::new().varint(3, 4096).message(13, update);
        match check(
            &file(&manifest, &[], &[], &[]),
            &Trust::allow_unsigned(vec![]),
        ) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

#[test]
fn trees_that_no_machine_could_build_are_refused_with_the_place() {
    let good = Crafted::default;
    let hole = u64::MAX;
    let cases = [
        (good(), "accepted"),
        (
            Crafted {
                data: None,
                tree: None,
                ..good()
            },
            "accepted",
        ),
        (
            Crafted {
                data: Some((3, 0)),
                tree: Some((9, 0)),
                ..good()
            },
            "accepted",
        ),
        (
            Crafted {
                data: Some((0, 1)),
                tree: Some((131, 0)),
                ..good()
            },
            "accepted",
        ),
        (
            Crafted {
                algorithm: Some("sha1"),
                ..good()
            },
            "hash_tree_algorithm: \"sha1\" is not supported, only sha256",
        ),
        (
            Crafted {
                algorithm: None,
                ..good()
            },
            "hash_tree_algorithm: \"\" is not supported, only sha256",
        ),
        (
            Crafted {
                salt: vec![0; 257],
                ..good()
            },
            "hash_tree_extent: the salt has 257 bytes, the limit is 256",
        ),
        (
            Crafted {
                fec: Some((133, 1)),
                ..good()
            },
            "fec_extent: error correction data made on the machine is not supported",
        ),
        (
            Crafted {
                data: None,
                ..good()
            },
            "hash_tree_data_extent: missing",
        ),
        (
            Crafted {
                tree: None,
                ..good()
            },
            "hash_tree_extent: missing",
        ),
        (
            Crafted {
                data: Some((9, 0)),
                ..good()
            },
            "hash_tree_extent: there is no data to hash",
        ),
        (
            Crafted {
                data: Some((hole, 130)),
                ..good()
            },
            "hash_tree_data_extent: it is a hole",
        ),
        (
            Crafted {
                data: Some((0, 135)),
                ..good()
            },
            "hash_tree_data_extent: 552960 bytes at 0 reach behind the image of 548864 bytes",
        ),
        (
            Crafted {
                data: Some((1 << 62, 1 << 62)),
                ..good()
            },
            "hash_tree_data_extent: 4611686018427387904 blocks at block 4611686018427387904 are \
             beyond any image",
        ),
        (
            Crafted {
                tree: Some((132, 3)),
                ..good()
            },
            "hash_tree_extent: 12288 bytes at 540672 reach behind the image of 548864 bytes",
        ),
        (
            Crafted {
                tree: Some((131, 2)),
                ..good()
            },
            "hash_tree_extent: a tree over this data ends at byte 548864, not at 544768",
        ),
        (
            Crafted {
                tree: Some((129, 3)),
                ..good()
            },
            "hash_tree_extent: it would lie in its own data: hashes at 528384..540672, data at \
             0..532480",
        ),
        (
            Crafted {
                operation: (0, 132),
                ..good()
            },
            "operations[0].dst_extents: it writes where hash_tree_extent lies",
        ),
        (
            Crafted {
                operation: (133, 1),
                ..good()
            },
            "operations[0].dst_extents: it writes where hash_tree_extent lies",
        ),
        (
            Crafted {
                name: "kernel",
                ..good()
            },
            "hash_tree_extent: a kernel is a file and has no hash tree",
        ),
    ];
    for (crafted, reason) in cases {
        let found = crafted.refusal();
        let expected = match reason {
            "accepted" => reason.to_owned(),
            reason => format!("manifest: partitions[0].{reason}"),
        };
        assert!(
            found.starts_with(&expected),
            "\n   found {found}\nexpected {expected}"
        );
    }
}

/// Data counts as much as what is written.
#[test]
fn more_data_than_any_machine_hashes_is_refused_before_it_is_hashed() {
    let blocks = (64 << 30) / 4096;
    let refusal = Crafted {
        blocks: 2 * blocks,
        data: Some((0, blocks)),
        tree: Some((blocks + 1, blocks / 127 + 1)),
        ..Crafted::default()
    };
    let found = refusal.refusal();
    assert!(
        found.contains("destinations add up to more than"),
        "{found}"
    );
}

#[test]
fn a_tree_other_than_the_signed_one_is_refused_and_the_right_one_is_written() {
    let image = MemoryImage::new(noise(4, 140 * BLOCK + 5));
    let scratch = MemoryImage::new(vec![0; 8 * BLOCK]);
    let with = WithVerity::append(&image, None, &scratch).unwrap();
    let make = |root_hash| {
        let mut reader = ImageReader::new(&with);
        let source = Source {
            reader: &mut reader,
            size: with.len(),
        };
        let threads = std::num::NonZeroUsize::MIN;
        let scratch = Cursor::new(Vec::new());
        let mut draft =
            make::full(source, None, Vec::new(), Profile::V2, scratch, threads).unwrap();
        draft.set_hash_tree(with.tree(), with.info()).unwrap();
        draft
            .set_release(Release {
                verity_root_hash: root_hash,
                ..Release::default()
            })
            .unwrap();
        let mut payload = Vec::new();
        draft.sign(&[], &mut payload).unwrap();
        payload
    };
    let other = [7; 32];
    for (root_hash, good) in [
        (Some(with.root_hash()), true),
        (None, true),
        (Some(other), false),
    ] {
        let payload = make(root_hash);
        let trust = Trust::allow_unsigned(vec![]);
        let verified = verify_payload(&mut &payload[..], &trust, &mut |_| ()).unwrap();
        assert_eq!(verified.manifest().verity_root_hash(), root_hash);
        let partition = MemoryImage::new(noise(5, 150 * BLOCK));
        let targets = Targets {
            partition: &partition,
            kernel: None,
            pcr_policy: None,
            named: &[],
        };
        let applied = apply_payload(
            &mut Cursor::new(&payload),
            &verified,
            &targets,
            &Sources::default(),
            &mut |_| (),
        );
        match applied {
            Ok(()) => assert!(good),
            Err(PayloadError::RootHashMismatch { signed, built }) => {
                assert!(!good);
                assert_eq!((signed, built), (other, with.root_hash()));
            }
            Err(error) => panic!("{error}"),
        }
        // 141 blocks of data, the superblock, two blocks of hashes and one above them.
        assert_eq!(with.info().size, 145 * 4096);
        assert!(
            verified
                .manifest()
                .partition
                .new
                .matches(&partition)
                .unwrap()
        );
    }
}
