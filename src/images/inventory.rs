//! `inventory.img`, the first image that a restore reads (criu/cr-restore.c, `cr_restore_tasks`). It says among other things how
//! the network was locked for the dump, and a restore locks and unlocks in the same way, whatever its own options are.
//!
//! A destination keeps the gate of the container's network closed until everything is restored, so there is nothing to lock:
//! the images say so before CRIU reads them. That spares the restore a table of rules, and taking it away again costs a grace
//! period of the kernel while the container stands still. Only this field is appended, which in protobuf replaces the earlier
//! value; every other byte stays as CRIU wrote it.

use bytes::Buf;
use prost::encoding::{WireType, encode_key, encode_varint};

/// `INVENTORY_MAGIC` (criu/include/magic.h); this image has no second one.
const MAGIC: u32 = 0x5831_3116;
/// `network_lock_method` in `inventory_entry` (images/inventory.proto).
const TAG_LOCK: u32 = 11;
/// `NETWORK_LOCK_SKIP` (criu/include/cr_options.h).
const LOCK_SKIP: u64 = 2;

/// The image is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("inventory.img cannot be read: {0}")]
pub struct BadInventory(&'static str);

/// The same inventory for a restore that locks no network.
///
/// # Errors
/// The image is not well formed.
pub fn without_network_lock(image: &[u8]) -> Result<Vec<u8>, BadInventory> {
    let mut rest = image;
    let short = |_| BadInventory("it is too short");
    if rest.try_get_u32_le().map_err(short)? != MAGIC {
        return Err(BadInventory("its magic number is another"));
    }
    let length = rest.try_get_u32_le().map_err(short)? as usize;
    if length != rest.len() {
        return Err(BadInventory("it is not one entry"));
    }
    let mut entry = rest.to_vec();
    encode_key(TAG_LOCK, WireType::Varint, &mut entry);
    encode_varint(LOCK_SKIP, &mut entry);
    let length = u32::try_from(entry.len()).map_err(|_| BadInventory("it is too long"))?;
    let mut out = MAGIC.to_le_bytes().to_vec();
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&entry);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entry: &[u8]) -> Vec<u8> {
        let mut image = MAGIC.to_le_bytes().to_vec();
        image.extend_from_slice(&u32::try_from(entry.len()).unwrap().to_le_bytes());
        image.extend_from_slice(entry);
        image
    }

    #[test]
    fn only_the_lock_is_changed() {
        // img_version = 2, network_lock_method = 0.
        let entry = [0x08, 2, 0x58, 0];
        assert_eq!(without_network_lock(&image(&entry)).unwrap(), image(&[0x08, 2, 0x58, 0, 0x58, 2]));
    }

    #[test]
    fn what_is_not_an_inventory_is_refused() {
        for bad in [&b""[..], b"1234", &image(&[1, 2])[..9], b"\x16\x31\x31\x59\0\0\0\0"] {
            assert!(without_network_lock(bad).is_err(), "{bad:?}");
        }
    }
}
