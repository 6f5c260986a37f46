//! The name under which a FleetLock client is known: an application-specific
//! machine id, from which the machine id itself cannot be told.

use aws_lc_rs::hmac;
use uuid::{Builder, Uuid};

use crate::machine_id::MachineId;

/// Zincati's application, so that a machine keeps its name when it changes its
/// agent, and servers that look for the machine by it find it.
const ZINCATI: Uuid = Uuid::from_u128(0xde35_106b_6ec2_4688_b63a_fdda_a156_679b);

/// The machine id has another form than systemd's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the machine id {0:?} is not 32 hexadecimal digits, so no FleetLock id can be made of it; set one"
)]
pub struct NoClientId(String);

/// The id that Zincati would send from this machine: 32 hexadecimal digits.
///
/// # Errors
///
/// The machine id is not 32 hexadecimal digits (dashes may be between them).
pub fn client_id(machine: &MachineId) -> Result<String, NoClientId> {
    let no = |_| NoClientId(machine.to_string());
    let machine = Uuid::try_parse(machine.as_str()).map_err(no)?;
    Ok(app_specific(machine, ZINCATI).simple().to_string())
}

/// `sd_id128_get_machine_app_specific`: HMAC-SHA256 of the application under the
/// machine id, its first 16 bytes marked as a random UUID.
fn app_specific(machine: Uuid, application: Uuid) -> Uuid {
    let key = hmac::Key::new(hmac::HMAC_SHA256, machine.as_bytes());
    let tag = hmac::sign(&key, application.as_bytes());
    let mut bytes = [0; 16];
    for (byte, from) in bytes.iter_mut().zip(tag.as_ref()) {
        *byte = *from;
    }
    Builder::from_random_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_zincati_and_systemd() {
        let expected = "978a225b3d7b40e9acd7ce9b62f68444";
        for machine in [
            "1c09ca98649c4c7abc779cd04c96812e",
            "1c09ca98-649c-4c7a-bc77-9cd04c96812e",
        ] {
            assert_eq!(client_id(&machine.into()).unwrap(), expected);
        }
        let machine = Uuid::from_u128(0x2e074e9b299c41a59923c51ae16f279b);
        let application = Uuid::from_u128(0x033b1b9b264441fcaa173e9e5bf35c5a);
        assert_eq!(
            app_specific(machine, application).simple().to_string(),
            "4d4a86c9c6644a479560ded5d19a30c5"
        );
    }

    #[test]
    fn other_names_make_no_id() {
        for machine in ["", "web-1", "1c09ca98649c4c7abc779cd04c96812"] {
            assert!(client_id(&machine.into()).is_err(), "{machine:?}");
        }
    }
}
