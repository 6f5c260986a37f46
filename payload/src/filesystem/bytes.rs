//! Fields at offsets that may lie anywhere.

/// A length in memory as an offset.
pub(super) fn size(length: usize) -> u64 {
    // No address space is wider.
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// `length` bytes from `offset`, if they are there.
pub(super) fn slice(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    bytes.get(start..end)
}

fn array<const N: usize>(bytes: &[u8], offset: u64) -> Option<[u8; N]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..)?.first_chunk().copied()
}

/// The byte at `offset`.
pub(super) fn u8(bytes: &[u8], offset: u64) -> Option<u8> {
    array::<1>(bytes, offset).map(|[byte]| byte)
}

/// Two bytes at `offset`, little-endian.
pub(super) fn u16(bytes: &[u8], offset: u64) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

/// Four bytes at `offset`, little-endian.
pub(super) fn u32(bytes: &[u8], offset: u64) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

/// Eight bytes at `offset`, little-endian.
pub(super) fn u64(bytes: &[u8], offset: u64) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}
