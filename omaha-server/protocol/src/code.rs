//! Error codes of `update_engine` as they travel in `errorcode`.

use std::fmt;

/// Attribute `errorcode`: a base code, with flags in bits 28 to 31.
///
/// The original prints it as a signed 32-bit number, so a set bit 31 makes it
/// negative; other senders print it unsigned. Both spellings decode alike, and
/// the number itself is kept as it was written. Base codes from 2000 on mean
/// "HTTP status = code − 2000".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(i64);

macro_rules! error_codes {
    ($($number:literal $constant:ident $name:ident $words:literal)*) => {
        impl ErrorCode {
            $(#[doc = concat!("`", $number, "`: ", $words, ".")]
            pub const $constant: Self = Self($number);)*

            /// The codes with a published meaning, without flags.
            pub const KNOWN: &[Self] = &[$(Self::$constant),*];

            /// The name of the base code in the original's sources (there with the
            /// prefix `kActionCode`); `None` for unknown and HTTP codes.
            pub fn name(self) -> Option<&'static str> {
                match self.base() {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            fn words(self) -> Option<&'static str> {
                match self.base() {
                    $($number => Some($words),)*
                    _ => None,
                }
            }
        }
    };
}

error_codes! {
    0 SUCCESS Success "success"
    1 ERROR Error "unspecific error"
    2 OMAHA_REQUEST OmahaRequestError "update request failed"
    3 OMAHA_RESPONSE_HANDLER OmahaResponseHandlerError "update offer could not be turned into a plan"
    4 FILESYSTEM_COPIER FilesystemCopierError "copying the running partition failed"
    5 POSTINSTALL_RUNNER PostinstallRunnerError "postinstall script failed"
    6 SET_BOOTABLE_FLAG SetBootableFlagError "setting the boot flags failed"
    7 INSTALL_DEVICE_OPEN InstallDeviceOpenError "target partition could not be opened"
    8 KERNEL_DEVICE_OPEN KernelDeviceOpenError "target kernel could not be opened"
    9 DOWNLOAD_TRANSFER DownloadTransferError "download failed"
    10 PAYLOAD_HASH_MISMATCH PayloadHashMismatchError "payload hash differs from the offer"
    11 PAYLOAD_SIZE_MISMATCH PayloadSizeMismatchError "payload size differs from the offer"
    12 DOWNLOAD_PAYLOAD_VERIFICATION DownloadPayloadVerificationError "payload signature refused"
    13 DOWNLOAD_NEW_PARTITION_INFO DownloadNewPartitionInfoError "target partition information could not be computed"
    14 DOWNLOAD_WRITE DownloadWriteError "writing to the target failed"
    15 NEW_ROOTFS_VERIFICATION NewRootfsVerificationError "written partition does not match the manifest"
    16 NEW_KERNEL_VERIFICATION NewKernelVerificationError "written kernel does not match the manifest"
    17 SIGNED_DELTA_PAYLOAD_EXPECTED SignedDeltaPayloadExpectedError "payload is not signed"
    18 DOWNLOAD_PAYLOAD_PUB_KEY_VERIFICATION DownloadPayloadPubKeyVerificationError "payload signature matches no trusted key"
    19 POSTINSTALL_BOOTED_FROM_FIRMWARE_B PostinstallBootedFromFirmwareB "booted from firmware b"
    20 DOWNLOAD_STATE_INITIALIZATION DownloadStateInitializationError "source does not match the payload, or the state is not usable"
    21 DOWNLOAD_INVALID_METADATA_MAGIC_STRING DownloadInvalidMetadataMagicString "file is not an update payload"
    22 DOWNLOAD_SIGNATURE_MISSING_IN_MANIFEST DownloadSignatureMissingInManifest "manifest names no signature"
    23 DOWNLOAD_MANIFEST_PARSE DownloadManifestParseError "manifest could not be read"
    24 DOWNLOAD_METADATA_SIGNATURE DownloadMetadataSignatureError "metadata signature could not be checked"
    25 DOWNLOAD_METADATA_SIGNATURE_VERIFICATION DownloadMetadataSignatureVerificationError "metadata signature check failed"
    26 DOWNLOAD_METADATA_SIGNATURE_MISMATCH DownloadMetadataSignatureMismatch "metadata signature refused"
    27 DOWNLOAD_OPERATION_HASH_VERIFICATION DownloadOperationHashVerificationError "operation hash could not be checked"
    28 DOWNLOAD_OPERATION_EXECUTION DownloadOperationExecutionError "operation could not be carried out"
    29 DOWNLOAD_OPERATION_HASH_MISMATCH DownloadOperationHashMismatch "operation hash differs from the manifest"
    30 OMAHA_REQUEST_EMPTY_RESPONSE OmahaRequestEmptyResponseError "update server answered nothing"
    31 OMAHA_REQUEST_XML_PARSE OmahaRequestXMLParseError "update server's answer is not xml"
    32 DOWNLOAD_INVALID_METADATA_SIZE DownloadInvalidMetadataSize "metadata size is wrong"
    33 DOWNLOAD_INVALID_METADATA_SIGNATURE DownloadInvalidMetadataSignature "metadata signature is wrong"
    34 OMAHA_RESPONSE_INVALID OmahaResponseInvalid "update server's answer is not usable"
    35 OMAHA_UPDATE_IGNORED_PER_POLICY OmahaUpdateIgnoredPerPolicy "update ignored by policy"
    36 OMAHA_UPDATE_DEFERRED_PER_POLICY OmahaUpdateDeferredPerPolicy "update deferred by policy"
    37 OMAHA_ERROR_IN_HTTP_RESPONSE OmahaErrorInHTTPResponse "update server answered with an http error"
    38 DOWNLOAD_OPERATION_HASH_MISSING DownloadOperationHashMissingError "operation has no hash"
    39 DOWNLOAD_METADATA_SIGNATURE_MISSING DownloadMetadataSignatureMissingError "metadata has no signature"
    40 OMAHA_UPDATE_DEFERRED_FOR_BACKOFF OmahaUpdateDeferredForBackoff "update deferred after failures"
    41 POSTINSTALL_POWERWASH PostinstallPowerwashError "powerwash failed"
    42 NEW_PCR_POLICY_VERIFICATION NewPCRPolicyVerificationError "pcr policy does not match the manifest"
    43 NEW_PCR_POLICY_HTTP NewPCRPolicyHTTPError "pcr policy could not be delivered"
    44 ROLLBACK RollbackError "rolled back"
    100 DOWNLOAD_INCOMPLETE DownloadIncomplete "download is not complete"
}

impl ErrorCode {
    /// Bit 28: the server is not the vendor's, so it is set on every private server.
    pub const FLAG_TEST_OMAHA_URL: u32 = 1 << 28;
    /// Bit 29: the machine runs a test image.
    pub const FLAG_TEST_IMAGE: u32 = 1 << 29;
    /// Bit 30: the download had been resumed.
    pub const FLAG_RESUMED: u32 = 1 << 30;
    /// Bit 31: the machine is in developer mode.
    pub const FLAG_DEV_MODE: u32 = 1 << 31;

    const BASE_MASK: u32 = (1 << 28) - 1;
    const HTTP_BASE: u32 = 2000;
    const HTTP_MAX: u32 = 999;

    /// A code as it stands on the wire.
    pub fn new(number: i64) -> Self {
        Self(number)
    }

    /// The code of an HTTP status; what is no status of three digits counts as 999.
    pub fn http(status: u16) -> Self {
        Self(i64::from(
            Self::HTTP_BASE + u32::from(status).min(Self::HTTP_MAX),
        ))
    }

    /// The base code with these flags (bits 28 to 31 of `flags`) instead of its own.
    pub fn with_flags(self, flags: u32) -> Self {
        let word = self.base() | (flags & !Self::BASE_MASK);
        Self(i64::from(word.cast_signed()))
    }

    /// The number as it stands on the wire.
    pub fn number(self) -> i64 {
        self.0
    }

    /// The code without its flags.
    pub fn base(self) -> u32 {
        self.word() & Self::BASE_MASK
    }

    /// The flag bits in their places, to be compared with the `FLAG_` constants.
    pub fn flags(self) -> u32 {
        self.word() & !Self::BASE_MASK
    }

    /// The HTTP status when the code stands for one; 999 for what was none.
    pub fn http_status(self) -> Option<u16> {
        let status = self.base().checked_sub(Self::HTTP_BASE)?;
        u16::try_from(status)
            .ok()
            .filter(|&status| u32::from(status) <= Self::HTTP_MAX)
    }

    /// Whether the code says that the machine chose to wait rather than failed.
    pub fn is_deferral(self) -> bool {
        [
            Self::OMAHA_UPDATE_IGNORED_PER_POLICY,
            Self::OMAHA_UPDATE_DEFERRED_PER_POLICY,
            Self::OMAHA_UPDATE_DEFERRED_FOR_BACKOFF,
        ]
        .iter()
        .any(|code| code.base() == self.base())
    }

    /// The low 32 bits; codes are never longer, and a negative one is its
    /// two's complement.
    fn word(self) -> u32 {
        let [a, b, c, d, ..] = self.0.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self.base();
        match (self.words(), self.http_status()) {
            (Some(words), _) => write!(f, "{words} ({base}")?,
            (None, Some(0)) => write!(f, "no connection ({base}")?,
            (None, Some(status)) => write!(f, "http status {status} ({base}")?,
            (None, None) => write!(f, "unknown error ({base}")?,
        }
        for (flag, words) in [
            (Self::FLAG_TEST_OMAHA_URL, "private server"),
            (Self::FLAG_TEST_IMAGE, "test image"),
            (Self::FLAG_RESUMED, "resumed"),
            (Self::FLAG_DEV_MODE, "developer mode"),
        ] {
            if self.flags() & flag != 0 {
                write!(f, ", {words}")?;
            }
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_http_statuses_and_negative_numbers_decode() {
        let all_flags = 0xf000_0000;
        for (number, base, flags, http, words) in [
            (0, 0, 0, None, "success (0)"),
            (44, 44, 0, None, "rolled back (44)"),
            (
                268_435_490,
                34,
                ErrorCode::FLAG_TEST_OMAHA_URL,
                None,
                "update server's answer is not usable (34, private server)",
            ),
            (
                268_437_959,
                2503,
                ErrorCode::FLAG_TEST_OMAHA_URL,
                Some(503),
                "http status 503 (2503, private server)",
            ),
            (2000, 2000, 0, Some(0), "no connection (2000)"),
            (2999, 2999, 0, Some(999), "http status 999 (2999)"),
            (3000, 3000, 0, None, "unknown error (3000)"),
            // Bit 31 + 9, printed signed and unsigned.
            (
                -2_147_483_639,
                9,
                ErrorCode::FLAG_DEV_MODE,
                None,
                "download failed (9, developer mode)",
            ),
            (
                2_147_483_657,
                9,
                ErrorCode::FLAG_DEV_MODE,
                None,
                "download failed (9, developer mode)",
            ),
            (
                -1,
                0x0fff_ffff,
                all_flags,
                None,
                "unknown error (268435455, private server, test image, resumed, developer mode)",
            ),
        ] {
            let code = ErrorCode::new(number);
            assert_eq!(code.base(), base, "base of {number}");
            assert_eq!(code.flags(), flags, "flags of {number}");
            assert_eq!(code.http_status(), http, "http status of {number}");
            assert_eq!(code.to_string(), words);
            assert_eq!(code.number(), number);
        }
    }

    #[test]
    fn flags_are_written_as_the_original_prints_them() {
        let code = ErrorCode::OMAHA_RESPONSE_INVALID;
        assert_eq!(
            code.with_flags(ErrorCode::FLAG_TEST_OMAHA_URL).number(),
            268_435_490
        );
        assert_eq!(
            code.with_flags(ErrorCode::FLAG_DEV_MODE).number(),
            34 - (1 << 31)
        );
        assert_eq!(code.with_flags(7), code, "only bits 28 to 31 are flags");
        let flagged = code.with_flags(ErrorCode::FLAG_RESUMED);
        assert_eq!(flagged.with_flags(0), code);
    }

    #[test]
    fn http_statuses_outside_of_three_digits_are_999() {
        assert_eq!(ErrorCode::http(501).number(), 2501);
        assert_eq!(ErrorCode::http(1500).number(), 2999);
        assert_eq!(ErrorCode::http(0).number(), 2000);
    }

    #[test]
    fn every_known_code_has_name_and_words() {
        assert_eq!(ErrorCode::KNOWN.len(), 46);
        for code in ErrorCode::KNOWN {
            assert!(code.name().is_some());
            assert!(!code.to_string().contains("unknown"));
        }
        assert_eq!(ErrorCode::ROLLBACK.name(), Some("RollbackError"));
        assert_eq!(ErrorCode::http(404).name(), None);
    }
}
