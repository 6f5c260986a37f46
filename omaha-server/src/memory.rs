//! How many connections the memory is enough for.

use std::fs;
use std::path::{Path, PathBuf};

use crate::catalogue::CHUNK_BYTES;

/// The rest is for what the system holds of each connection, for its cache of the files,
/// and for others.
const PART: u64 = 4;
/// However little there is.
const FEWEST: u64 = 64;

/// As many of `connections` as may each hold a chunk of a file in a quarter of the memory,
/// or 64: a client that is slow or stalls has its download keep one. The memory is the
/// machine's, or what the control group of this process (version 2) or one above it may
/// use, if that is less. All of them where the system tells neither.
#[must_use]
pub fn fit(connections: usize) -> usize {
    fit_into(connections, memory(|path| fs::read_to_string(path).ok()))
}

fn fit_into(connections: usize, memory: Option<u64>) -> usize {
    let fit = memory.map(|memory| (memory / PART / CHUNK_BYTES).max(FEWEST));
    // More than can be counted is no bound.
    fit.and_then(|fit| usize::try_from(fit).ok())
        .map_or(connections, |fit| connections.min(fit))
}

/// In bytes, by what `read` finds in the files of the system.
fn memory(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| total(&text));
    let group = read(Path::new("/proc/self/cgroup")).and_then(|text| group(&text));
    let limit = |group: &Path| read(&group.join("memory.max"))?.trim().parse().ok();
    let above = group.iter().flat_map(|group| group.ancestors());
    // `max`, for none, is no number.
    machine.into_iter().chain(above.filter_map(limit)).min()
}

/// Of `/proc/meminfo`.
fn total(text: &str) -> Option<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The folder of the group that `/proc/self/cgroup` names.
fn group(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new("/sys/fs/cgroup").join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn chunks_of_all_connections_fit_into_a_quarter_of_the_memory() {
        for (connections, memory, fit) in [
            (4096, None, 4096),
            (4096, Some(0), 64),
            (4096, Some(64 * MIB), 64),
            (16, Some(64 * MIB), 16),
            (4096, Some(512 * MIB), 512),
            (496, Some(512 * MIB), 496),
            (4096, Some(1024 * MIB), 1024),
            (4096, Some(4096 * MIB), 4096),
            (4096, Some(u64::MAX), 4096),
        ] {
            assert_eq!(fit_into(connections, memory), fit, "{memory:?}");
        }
    }

    #[test]
    fn the_memory_is_the_least_that_anything_allows() {
        let machine = (
            "/proc/meminfo",
            "MemTotal:        1024 kB\nMemFree:  1 kB\n",
        );
        let own = (
            "/proc/self/cgroup",
            "4:memory:/old\n0::/a.slice/b.service\n",
        );
        let of_own = "/sys/fs/cgroup/a.slice/b.service/memory.max";
        let of_slice = "/sys/fs/cgroup/a.slice/memory.max";
        let of_root = "/sys/fs/cgroup/memory.max";
        for (files, memory) in [
            (&[][..], None),
            (&[machine], Some(MIB)),
            (&[machine, own], Some(MIB)),
            (&[machine, own, (of_own, "max\n")], Some(MIB)),
            (&[machine, own, (of_own, "2097152\n")], Some(MIB)),
            (&[machine, own, (of_own, "4096\n")], Some(4096)),
            (
                &[machine, own, (of_own, "max\n"), (of_slice, "8192\n")],
                Some(8192),
            ),
            (
                &[
                    machine,
                    ("/proc/self/cgroup", "0::/\n"),
                    (of_root, "4096\n"),
                ],
                Some(4096),
            ),
            (
                &[
                    machine,
                    ("/proc/self/cgroup", "4:memory:/\n"),
                    (of_root, "4096\n"),
                ],
                Some(MIB),
            ),
            (&[own, (of_own, "4096\n")], Some(4096)),
            (&[("/proc/meminfo", "MemTotal: much\n")], None),
            (
                &[("/proc/meminfo", "MemTotal: 18446744073709551615 kB\n")],
                None,
            ),
        ] {
            let read = |path: &Path| {
                let file = files.iter().find(|(name, _)| Path::new(name) == path);
                file.map(|(_, text)| (*text).to_owned())
            };
            assert_eq!(super::memory(read), memory, "{files:?}");
        }
    }
}
