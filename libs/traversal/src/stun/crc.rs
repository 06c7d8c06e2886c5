//! The checksum of FINGERPRINT: CRC-32 of ISO 3309 and ITU-T V.42.

/// The reversed polynomial.
const POLYNOMIAL: u32 = 0xedb8_8320;

pub(super) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL * (crc & 1))
        })
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_value() {
        assert_eq!(super::crc32(b"123456789"), 0xcbf4_3926);
    }
}
