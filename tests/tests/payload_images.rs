//! `payload` on images as their own tools make them: what it generates it verifies
//! and applies, and the same input gives the same payload. How large and how fast
//! is the business of `make bench-payload`.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use system_tests::process::run;
use system_tests::programs::{program, system_tool};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);

/// Two releases of a small system, and images of both.
struct Pair {
    folder: TempDir,
}

impl Pair {
    fn new() -> Self {
        let pair = Self {
            folder: TempDir::new().unwrap(),
        };
        for release in [1, 2] {
            let root = pair.path(&format!("root-{release}"));
            fs::create_dir_all(root.join("lib")).unwrap();
            let mut random = fastrand::Rng::with_seed(1);
            for file in 0..30 {
                let mut bytes = text(&mut random, 2000 * file + 100);
                if release == 2 && file % 7 == 3 {
                    let at = bytes.len() / 2;
                    bytes.splice(at..at + 5, *b"other words");
                }
                fs::write(root.join(format!("lib/{file}")), bytes).unwrap();
            }
            let noise: Vec<u8> = (0..150_000).map(|_| random.u8(..)).collect();
            fs::write(root.join("noise"), noise).unwrap();
            fs::write(root.join("zeros"), vec![0; 100_000]).unwrap();
            fs::write(root.join("version"), format!("{release}\n")).unwrap();
            symlink("version", root.join("link")).unwrap();
        }
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes images `old` and `new` by `make`, which gets a root and a file.
    fn images(&self, make: impl Fn(&Path, &Path)) {
        for (release, name) in [(1, "old"), (2, "new")] {
            let image = self.path(name);
            let _ = fs::remove_file(&image);
            make(&self.path(&format!("root-{release}")), &image);
            let mut bytes = fs::read(&image).unwrap();
            bytes.resize(bytes.len().next_multiple_of(4096), 0);
            fs::write(&image, bytes).unwrap();
        }
    }

    /// Runs `payload` in the folder and returns what it prints.
    fn payload(&self, arguments: &[&str]) -> String {
        self.finish(&mut program("payload").unwrap(), arguments)
    }

    /// The same on one processor, so with one thread.
    fn payload_on_one_core(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("taskset");
        let payload = program("payload").unwrap();
        command.args(["-c", "0"]).arg(payload.get_program());
        self.finish(&mut command, arguments)
    }

    fn finish(&self, command: &mut Command, arguments: &[&str]) -> String {
        command.args(arguments).current_dir(self.folder.path());
        run(command, LIMIT).unwrap().success().unwrap()
    }

    /// Generates with `options`, verifies, applies, compares.
    fn round_trip(&self, what: &str, options: &[&str]) {
        let generate = [&["generate", "--new", "new"], options].concat();
        let from_old: &[&str] = if options.contains(&"--old") {
            &["--old", "old"]
        } else {
            &[]
        };
        self.payload(&[&generate[..], &["--out", "payload"]].concat());
        self.payload_on_one_core(&[&generate[..], &["--out", "again"]].concat());
        let same = fs::read(self.path("payload")).unwrap() == fs::read(self.path("again")).unwrap();
        assert!(same, "{what} {options:?}: two runs, two payloads");
        self.payload(&["verify", "--allow-unsigned", "payload"]);
        let apply = ["apply", "--allow-unsigned", "--target", "out", "payload"];
        self.payload(&[&apply[..], from_old].concat());
        let made = fs::read(self.path("out")).unwrap() == fs::read(self.path("new")).unwrap();
        assert!(made, "{what} {options:?}: another image came out");
        fs::remove_file(self.path("out")).unwrap();
    }
}

fn text(random: &mut fastrand::Rng, length: usize) -> Vec<u8> {
    let mut text = String::new();
    while text.len() < length {
        text.push_str(["usr ", "slot ", "of ", "update\n", "image ", "boot "][random.usize(..6)]);
    }
    text.truncate(length);
    text.into_bytes()
}

/// Runs a tool that makes `image`.
fn tool(name: &str, arguments: &[&str]) {
    let mut command = system_tool(name);
    command.env("SOURCE_DATE_EPOCH", "0").args(arguments);
    run(&mut command, LIMIT).unwrap().success().unwrap();
}

#[test]
fn images_of_every_kind_come_out_as_they_went_in() {
    let pair = Pair::new();
    let squashfs = |compressor: &'static str| {
        move |root: &Path, image: &Path| {
            // Here the paths come first.
            let (root, image) = (root.to_str().unwrap(), image.to_str().unwrap());
            let arguments = [root, image, "-noappend", "-quiet", "-no-progress", "-comp"];
            tool("mksquashfs", &[&arguments[..], &[compressor]].concat());
        }
    };
    let erofs = |root: &Path, image: &Path| {
        let (root, image) = (root.to_str().unwrap(), image.to_str().unwrap());
        tool("mkfs.erofs", &["-zlz4hc", image, root]);
    };
    let ext4 = |root: &Path, image: &Path| {
        fs::File::create(image).unwrap().set_len(8 << 20).unwrap();
        let root = root.to_str().unwrap();
        let mut command = system_tool("mkfs.ext4");
        command
            .args(["-q", "-O", "^has_journal", "-d", root])
            .arg(image);
        run(&mut command, LIMIT).unwrap().success().unwrap();
    };
    let plain = |root: &Path, image: &Path| {
        let parts = ["lib/7", "noise", "zeros", "lib/29", "version"];
        let parts: Vec<_> = parts.map(|part| fs::read(root.join(part)).unwrap()).into();
        fs::write(image, parts.concat()).unwrap();
    };
    type Make<'a> = &'a dyn Fn(&Path, &Path);
    let kinds: [(&str, Make<'_>); 7] = [
        ("plain", &plain),
        ("squashfs gzip", &squashfs("gzip")),
        ("squashfs zstd", &squashfs("zstd")),
        ("squashfs xz", &squashfs("xz")),
        ("squashfs lz4", &squashfs("lz4")),
        ("erofs", &erofs),
        ("ext4", &ext4),
    ];
    for (what, make) in kinds {
        pair.images(make);
        pair.round_trip(what, &["--old", "old"]);
        pair.round_trip(what, &["--old", "old", "--format", "v2-aosp"]);
        if what == "ext4" || what == "plain" {
            pair.round_trip(what, &["--format", "v1"]);
            pair.round_trip(what, &["--format", "v2"]);
            pair.round_trip(what, &["--format", "v2-aosp"]);
        }
    }
}
