//! Which keys make a payload acceptable.

use payload::{PayloadError, PublicKey, Trust};

use crate::craft::{ED25519, OTHER_ED25519, RSA_2048, RSA_4096, Signatory, small};
use crate::drive::check;
use crate::fixtures::read;

fn trust(keys: &[Signatory], threshold: usize) -> Trust {
    Trust::new(keys.iter().map(Signatory::public).collect(), threshold).unwrap()
}

#[test]
fn enough_different_trusted_keys_must_have_signed() {
    let as_version_1 = Signatory {
        version: 1,
        ..RSA_2048
    };
    let as_version_3 = Signatory {
        version: 3,
        ..RSA_2048
    };
    let ed25519_as_version_2 = Signatory {
        version: 2,
        ..ED25519
    };
    let (payload, _) = small();
    // Signed by, trusted, threshold, keys that count or None when refused.
    type Case<'a> = (&'a [Signatory], &'a [Signatory], usize, Option<usize>);
    let cases: [Case; 18] = [
        (&[RSA_2048], &[RSA_2048], 1, Some(1)),
        (&[RSA_4096], &[RSA_4096], 1, Some(1)),
        (&[ED25519], &[ED25519], 1, Some(1)),
        (&[RSA_2048], &[RSA_4096], 1, None),
        (&[ED25519], &[OTHER_ED25519], 1, None),
        (&[RSA_2048], &[ED25519], 1, None),
        // Any one of several trusted keys suffices, wherever its entry stands.
        (&[RSA_2048], &[ED25519, RSA_4096, RSA_2048], 1, Some(1)),
        (&[RSA_4096, RSA_2048], &[RSA_2048], 1, Some(1)),
        (&[OTHER_ED25519, RSA_4096, ED25519], &[ED25519], 1, Some(1)),
        // A threshold counts keys, not signatures.
        (&[RSA_2048, ED25519], &[RSA_2048, ED25519], 2, Some(2)),
        (&[RSA_2048], &[RSA_2048, ED25519], 2, None),
        (&[RSA_2048, RSA_2048], &[RSA_2048, ED25519], 2, None),
        (&[ED25519, ED25519, ED25519], &[RSA_2048, ED25519], 2, None),
        (
            &[RSA_2048, RSA_4096, ED25519],
            &[RSA_2048, ED25519],
            2,
            Some(2),
        ),
        // An entry counts only under the version of its algorithm.
        (&[as_version_1], &[RSA_2048], 1, None),
        (&[as_version_3], &[RSA_2048], 1, None),
        (&[ed25519_as_version_2], &[ED25519], 1, None),
        (&[as_version_1, RSA_2048], &[RSA_2048], 1, Some(1)),
    ];
    for (signed, trusted, threshold, expected) in cases {
        let result = check(&payload.signed(signed), &trust(trusted, threshold));
        let context = format!("{signed:?} {trusted:?} {threshold}");
        match (result, expected) {
            (Ok(verified), Some(signers)) => assert_eq!(verified.signers(), signers, "{context}"),
            (Err(PayloadError::SignatureRefused { entries, .. }), None) => {
                assert_eq!(entries, signed.len(), "{context}");
            }
            (other, _) => panic!("{context}: {other:?}"),
        }
    }
}

#[test]
fn a_set_of_keys_that_could_accept_anything_or_nothing_is_refused() {
    let key = || RSA_2048.public();
    let cases = [
        (vec![], 1, "trusted keys: there is no key"),
        (vec![], 0, "trusted keys: there is no key"),
        (
            vec![key()],
            0,
            "trusted keys: a threshold of 0 would accept anything",
        ),
        (
            vec![key()],
            2,
            "trusted keys: 2 of only 1 different keys can never sign",
        ),
        (
            vec![key(), key()],
            2,
            "trusted keys: 2 of only 1 different keys can never sign",
        ),
    ];
    for (keys, threshold, expected) in cases {
        assert_eq!(
            Trust::new(keys, threshold).unwrap_err().to_string(),
            expected
        );
    }
}

#[test]
fn allowing_unsigned_payloads_does_not_allow_foreign_signatures() {
    let (payload, _) = small();
    let unsigned = payload.unsigned();
    let signed = payload.signed(&[RSA_2048]);
    let anything = Trust::allow_unsigned(vec![]);
    let own = Trust::allow_unsigned(vec![RSA_2048.public()]);
    let other = Trust::allow_unsigned(vec![ED25519.public()]);
    for (payload, trust, expected) in [
        (&unsigned, &anything, Some(0)),
        (&unsigned, &other, Some(0)),
        (&signed, &anything, Some(0)),
        (&signed, &own, Some(1)),
        (&signed, &other, None),
    ] {
        assert_eq!(
            check(payload, trust)
                .ok()
                .map(|verified| verified.signers()),
            expected
        );
    }
}

#[test]
fn unusable_public_keys_are_refused_with_the_reason() {
    let file = |name: &str| String::from_utf8(read(name)).unwrap();
    let pem = |der: &[u8]| {
        pkcs8::Document::try_from(der)
            .unwrap()
            .to_pem("PUBLIC KEY", pkcs8::LineEnding::LF)
            .unwrap()
    };
    // SubjectPublicKeyInfo of Ed25519 before the 32 bytes of the key.
    let ed25519 = |key: [u8; 32]| {
        let mut der = vec![0x30, 42, 0x30, 5, 0x06, 3, 0x2b, 0x65, 0x70, 0x03, 33, 0];
        der.extend_from_slice(&key);
        pem(&der)
    };
    let mut identity = [0; 32];
    identity[0] = 1;
    let cases = [
        (String::new(), "public key: the file is empty"),
        (" \n".to_owned(), "public key: the file is empty"),
        ("hello".to_owned(), "public key: not one PEM block"),
        (
            file("keys/rsa-1024.pub.pem"),
            "public key: an RSA key of 1024 bits, not from 2048 to 8192",
        ),
        (
            file("keys/ec-p256.pub.pem"),
            "public key: algorithm 1.2.840.10045.2.1 is neither RSA nor Ed25519",
        ),
        (
            file("keys/rsa-2048_DO_NOT_USE.pem"),
            "public key: it holds a PRIVATE KEY, not a PUBLIC KEY",
        ),
        (ed25519(identity), "public key: a weak Ed25519 key"),
        (ed25519([0; 32]), "public key: a weak Ed25519 key"),
        // Two keys in one file: silently taking the first would drop the other.
        (
            file("keys/rsa-2048.pub.pem") + &file("keys/ed25519.pub.pem"),
            "public key: not one PEM block",
        ),
    ];
    for (pem, expected) in cases {
        let error = PublicKey::from_pem(&pem).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
