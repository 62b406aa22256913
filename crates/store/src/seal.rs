//! Authenticated encryption of small secrets, XChaCha20-Poly1305.
//!
//! A sealed value is bound to its place (`place`, the associated data): moved to another instance
//! or field it does not open. Nonces are random: 192 bits never repeat by chance.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

pub(crate) const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gives no random bytes: {0}")]
pub(crate) struct NoRandom(String);

/// What was sealed with another key, for another place, or was altered.
#[derive(Debug, thiserror::Error)]
#[error("a sealed value does not open")]
pub(crate) struct DoesNotOpen;

/// A secret key, wiped when dropped.
pub(crate) struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Fresh random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| NoRandom(e.to_string()))?;
    Ok(bytes)
}

impl Key {
    pub(crate) fn random() -> Result<Self, NoRandom> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// `None` when it has not exactly [`KEY_BYTES`] bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(Zeroizing::new(bytes.try_into().ok()?)))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &*self.0
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }

    /// Nonce, then ciphertext with its tag.
    pub(crate) fn seal(&self, place: &str, plain: &[u8]) -> Result<Vec<u8>, NoRandom> {
        let nonce: [u8; NONCE_BYTES] = random()?;
        let payload = Payload { msg: plain, aad: place.as_bytes() };
        let sealed = self
            .cipher()
            .encrypt(&XNonce::from(nonce), payload)
            .expect("only texts of 256 GiB and more cannot be sealed");
        Ok([nonce.as_slice(), &sealed].concat())
    }

    pub(crate) fn open(
        &self,
        place: &str,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, DoesNotOpen> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(DoesNotOpen)?;
        let payload = Payload { msg: sealed, aad: place.as_bytes() };
        let plain =
            self.cipher().decrypt(&XNonce::from(*nonce), payload).map_err(|_| DoesNotOpen)?;
        Ok(Zeroizing::new(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_with_its_key_at_its_place_only() {
        let key = Key::random().expect("random");
        let sealed = key.seal("i-1/system-password", b"s3cret").expect("seal");
        assert_eq!(key.open("i-1/system-password", &sealed).expect("open").as_slice(), b"s3cret");
        assert!(key.open("i-2/system-password", &sealed).is_err());
        assert!(Key::random().expect("random").open("i-1/system-password", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(key.open("i-1/system-password", &altered).is_err(), "byte {at}");
        }
        assert!(key.open("i-1/system-password", &sealed[..10]).is_err());
    }

    #[test]
    fn a_key_is_not_printed() {
        let key = Key::from_bytes(&[7; KEY_BYTES]).expect("32 bytes");
        assert_eq!(format!("{key:?}"), "Key(…)");
        assert!(Key::from_bytes(&[7; 31]).is_none());
    }
}
