//! What clients carry for us and bring back, tokens and cursors: sealed, so that what was not made here, or was made
//! for something else, is told from what was.
//!
//! A sealed text is a tag and the body that it vouches for, in base64. It is not encrypted: whoever carries it
//! can read it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Bytes of the tag. Chosen: 128 bits are beyond guessing.
const TAG_BYTES: usize = 16;

/// Seals bodies of one kind, for one purpose.
#[derive(Clone, Debug)]
pub(super) struct Seal(Hmac<Sha256>);

impl Seal {
    /// For bodies of a kind that are good with this beside them: the tenant, the filter, or nothing.
    pub(super) fn new(secret: &[u8; 32], kind: &'static str, beside: &[u8]) -> Self {
        let mac = Hmac::<Sha256>::new_from_slice(secret);
        let mut mac = mac.expect("a key of any length can be used");
        // Each behind its length, so that no two of them read alike.
        for part in [kind.as_bytes(), beside] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        Self(mac)
    }

    /// The text that is given away.
    pub(super) fn seal(&self, body: &[u8]) -> String {
        let mut bytes = self.tag(body).finalize().into_bytes()[..TAG_BYTES].to_vec();
        bytes.extend_from_slice(body);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The body of a text, where it was sealed so.
    pub(super) fn open(&self, text: &str) -> Option<Vec<u8>> {
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (given, body) = bytes.split_at_checked(TAG_BYTES)?;
        self.tag(body).verify_truncated_left(given).ok()?;
        bytes.drain(..TAG_BYTES);
        Some(bytes)
    }

    fn tag(&self, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(body);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];

    fn seal() -> Seal {
        Seal::new(&SECRET, "lease", b"a")
    }

    #[test]
    fn what_was_sealed_is_opened_by_the_same_seal_alone() {
        let text = seal().seal(b"body");
        assert_eq!(seal().open(&text).as_deref(), Some(&b"body"[..]));
        for other in [
            Seal::new(&[8; 32], "lease", b"a"),
            Seal::new(&SECRET, "page", b"a"),
            Seal::new(&SECRET, "lease", b"b"),
            Seal::new(&SECRET, "leas", b"ea"),
        ] {
            assert_eq!(other.open(&text), None);
        }
    }

    #[test]
    fn nothing_forged_or_damaged_is_opened() {
        let text = seal().seal(b"a body of some length");
        for end in 0..text.len() {
            assert_eq!(seal().open(&text[..end]), None);
            let mut forged = text.clone().into_bytes();
            forged[end] = if forged[end] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).expect("still text");
            assert_eq!(seal().open(&forged), None, "{forged}");
        }
        assert_eq!(seal().open("ü"), None);
        assert_eq!(seal().open(&format!("{text}A")), None);
    }
}
