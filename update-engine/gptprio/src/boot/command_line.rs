//! The kernel's command line for a slot.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::RootHash;
use crate::Guid;

const SLOT: &str = "{usr}";
const HASH: &str = "{usrhash}";

/// Digits and dashes of a GUID.
const GUID_LENGTH: usize = 36;

/// Bytes that every architecture takes, its final zero not counted.
const MAX_LENGTH: usize = 2047;

/// Bytes that a selector may put ahead: the name of the initrd, for an EFI stub.
const INITRD_LENGTH: usize = "initrd=\\flatcar\\initrd-a ".len();

/// Words that a stage-0 got for itself: the next kernel has an initrd and a first
/// process of its own.
const OF_STAGE_0: [&str; 3] = ["initrd", "BOOT_IMAGE", "rdinit"];

/// A command line in which `{usr}` and `{usrhash}` stand for the slot's partition GUID
/// and root hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine(String);

impl CommandLine {
    /// The line as an operator wrote it. An error, in words, when no kernel can take it,
    /// or none of a slot with a root hash and an initrd: an update may bring both, and
    /// would not start.
    pub fn new(text: &str) -> Result<Self, String> {
        if text
            .chars()
            .any(|letter| letter.is_control() && letter != '\t')
        {
            return Err("has a control character in it".to_owned());
        }
        // Firmware has two bytes for each.
        if text.chars().any(|letter| letter.len_utf16() > 1) {
            return Err("has a letter in it that firmware does not know".to_owned());
        }
        let line = Self(text.to_owned());
        let digits = |count| "0".repeat(count);
        let longest = line.filled(&digits(GUID_LENGTH), Some(&digits(RootHash::DIGITS)));
        match longest.len() + INITRD_LENGTH {
            0..=MAX_LENGTH => Ok(line),
            length => Err(format!(
                "becomes {length} bytes long with all that is added, more than {MAX_LENGTH}"
            )),
        }
    }

    /// The line of a stage-0 without the words that were for itself: `initrd=`,
    /// `BOOT_IMAGE=`, `rdinit=` and whatever begins with `gptprio.`.
    pub fn handed_on(own: &str) -> Self {
        let (for_kernel, for_init) = split(own);
        let kept = for_kernel.into_iter().filter(|word| {
            let key = word.split('=').next().unwrap_or(word);
            !OF_STAGE_0.contains(&key) && !key.starts_with("gptprio.")
        });
        let words: Vec<_> = kept.chain(for_init).collect();
        Self(words.join(" "))
    }

    /// The line that starts the system in the slot with this GUID.
    ///
    /// A line without `{usr}` gets ` usr=PARTUUID=…` at the end of the kernel's words,
    /// and one without `{usrhash}` gets ` usrhash=…` if the slot has a root hash.
    ///
    /// An error, in words, when the line has `{usrhash}` and the slot has no root hash:
    /// whoever asked for a verified system must not get another one, so the word is not
    /// just left out. Also when the line becomes too long.
    pub fn for_slot(&self, slot: Guid, hash: Option<&RootHash>) -> Result<String, String> {
        if hash.is_none() && self.0.contains(HASH) {
            return Err(format!(
                "the command line has {HASH}, but the slot has no root hash"
            ));
        }
        let hash = hash.map(ToString::to_string);
        let line = self.filled(&slot.to_string(), hash.as_deref());
        match line.len() {
            0..=MAX_LENGTH => Ok(line),
            length => Err(format!(
                "the command line has {length} bytes, more than {MAX_LENGTH}"
            )),
        }
    }

    fn filled(&self, slot: &str, hash: Option<&str>) -> String {
        let Self(template) = self;
        let (for_kernel, for_init) = split(template);
        let mut words: Vec<_> = for_kernel.into_iter().map(str::to_owned).collect();
        if !template.contains(SLOT) {
            words.push(format!("usr=PARTUUID={SLOT}"));
        }
        if hash.is_some() && !template.contains(HASH) {
            words.push(format!("usrhash={HASH}"));
        }
        words.extend(for_init.into_iter().map(str::to_owned));
        let line = words.join(" ").replace(SLOT, slot);
        match hash {
            Some(hash) => line.replace(HASH, hash),
            None => line,
        }
    }
}

/// The words for the kernel, and those for the first process, from `--` on.
fn split(line: &str) -> (Vec<&str>, Vec<&str>) {
    let mut for_kernel: Vec<_> = words(line).collect();
    let end = for_kernel.iter().position(|&word| word == "--");
    let for_init = for_kernel.split_off(end.unwrap_or(for_kernel.len()));
    (for_kernel, for_init)
}

/// The words of a command line. White space between double quotes is part of a word, as
/// for the kernel.
pub fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    line.split(move |letter: char| {
        quoted ^= letter == '"';
        !quoted && letter.is_ascii_whitespace()
    })
    .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: &str = "e03dd35c-7c2d-4a47-b3fe-27f15780a57c";
    const DIGITS: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn line(template: &str, has_hash: bool) -> Result<String, String> {
        let hash = RootHash::of_slot(&[], has_hash.then_some(DIGITS.as_bytes())).unwrap();
        let guid = GUID.to_uppercase().parse().unwrap();
        CommandLine::new(template)?.for_slot(guid, hash.as_ref())
    }

    #[test]
    fn the_slot_and_its_hash_are_named_where_the_line_wants_them_or_at_its_end() {
        for (template, has_hash, expected) in [
            ("", false, format!("usr=PARTUUID={GUID}")),
            ("quiet", false, format!("quiet usr=PARTUUID={GUID}")),
            (
                "quiet",
                true,
                format!("quiet usr=PARTUUID={GUID} usrhash={DIGITS}"),
            ),
            (
                "root=PARTUUID={usr}  a=\"b  c\"",
                false,
                format!("root=PARTUUID={GUID} a=\"b  c\""),
            ),
            (
                "verity.usr=PARTUUID={usr} verity.usrhash={usrhash} ro",
                true,
                format!("verity.usr=PARTUUID={GUID} verity.usrhash={DIGITS} ro"),
            ),
            // What follows the dashes is for the first process.
            (
                "ro -- single",
                true,
                format!("ro usr=PARTUUID={GUID} usrhash={DIGITS} -- single"),
            ),
            ("a={b} x={usr}", false, format!("a={{b}} x={GUID}")),
        ] {
            assert_eq!(line(template, has_hash), Ok(expected), "{template}");
        }
    }

    #[test]
    fn a_line_that_demands_verity_does_not_start_a_slot_without_a_hash() {
        let error = line("usrhash={usrhash}", false).unwrap_err();
        assert!(error.contains("no root hash"), "{error}");
    }

    #[test]
    fn a_line_that_no_kernel_takes_is_refused() {
        assert!(line("a\nb", false).is_err());
        assert!(line("a\0b", false).is_err());
        assert!(CommandLine::new("a=\u{ffe6}").is_ok());
        assert!(CommandLine::new("a=\u{1f512}").is_err());
        // What fits, fits with all that any slot adds.
        let added = " usr=PARTUUID=".len() + GUID.len() + " usrhash=".len() + DIGITS.len();
        let mut fits = "x".repeat(MAX_LENGTH - added - INITRD_LENGTH);
        assert!(line(&fits, true).is_ok());
        fits.push('x');
        assert!(CommandLine::new(&fits).is_err());
        let repeated = "{usrhash}".repeat(100);
        assert!(repeated.len() < MAX_LENGTH && CommandLine::new(&repeated).is_err());
        // One that was handed on is looked at when it is used.
        let long = CommandLine::handed_on(&"x".repeat(MAX_LENGTH));
        assert!(long.for_slot(GUID.parse().unwrap(), None).is_err());
    }

    #[test]
    fn a_stage_0_keeps_its_own_words_to_itself() {
        let own = "BOOT_IMAGE=/s initrd=a.cpio initrd=b console=ttyS0 rdinit=/x gptprio.debug \
                   gptprio.a=b root=LABEL=ROOT initrdx=1 -- initrd=c";
        assert_eq!(
            CommandLine::handed_on(own),
            CommandLine("console=ttyS0 root=LABEL=ROOT initrdx=1 -- initrd=c".to_owned())
        );
        assert_eq!(CommandLine::handed_on(" \n"), CommandLine::default());
    }
}
