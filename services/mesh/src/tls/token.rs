//! What a machine joins with: the fingerprint of the authority, a time, and proof that the authority made it.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use ring::{digest, hmac};

/// What every token begins with, so that one is known that was published by mistake.
const PREFIX: &str = "smj_";

/// Said before what is signed, so that it can be taken for nothing else.
const CONTEXT: &[u8] = b"sandmesh join token 1";

const FINGERPRINT: usize = 32;
const TIME: usize = 8;
const PROOF: usize = 32;

/// A token to join with. Printing it shows the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    fingerprint: [u8; FINGERPRINT],
    expires: i64,
    proof: [u8; PROOF],
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// It is no token.
#[derive(Debug, thiserror::Error)]
#[error("it is no token as `sandmesh nodes token` makes them: these begin with `{PREFIX}`")]
pub struct NoToken;

impl JoinToken {
    pub(super) fn make(authority: &[u8], expires_at: DateTime<Utc>, key: &hmac::Key) -> Self {
        let (fingerprint, expires) = (fingerprint(authority), expires_at.timestamp());
        let mut proof = [0; PROOF];
        proof.copy_from_slice(hmac::sign(key, &signed(&fingerprint, expires)).as_ref());
        Self { fingerprint, expires, proof }
    }

    pub(super) fn is_made_with(&self, key: &hmac::Key) -> bool {
        hmac::verify(key, &signed(&self.fingerprint, self.expires), &self.proof).is_ok()
    }

    /// Whether this is the authority, DER, of the mesh that the token is for.
    pub(super) fn names(&self, authority: &[u8]) -> bool {
        fingerprint(authority) == self.fingerprint
    }

    /// Until when it works; the past for one that cannot be.
    #[must_use]
    pub fn expires_at(&self) -> DateTime<Utc> {
        DateTime::from_timestamp(self.expires, 0).unwrap_or(DateTime::UNIX_EPOCH)
    }
}

fn fingerprint(authority: &[u8]) -> [u8; FINGERPRINT] {
    let mut fingerprint = [0; FINGERPRINT];
    fingerprint.copy_from_slice(digest::digest(&digest::SHA256, authority).as_ref());
    fingerprint
}

fn signed(fingerprint: &[u8], expires: i64) -> Vec<u8> {
    [CONTEXT, fingerprint, &expires.to_be_bytes()].concat()
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.fingerprint[..], &self.expires.to_be_bytes(), &self.proof].concat();
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for JoinToken {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let text = text.trim().strip_prefix(PREFIX).ok_or(NoToken)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| NoToken)?;
        let (fingerprint, rest) = bytes.split_at_checked(FINGERPRINT).ok_or(NoToken)?;
        let (expires, proof) = rest.split_at_checked(TIME).ok_or(NoToken)?;
        Ok(Self {
            fingerprint: fingerprint.try_into().map_err(|_| NoToken)?,
            expires: i64::from_be_bytes(expires.try_into().map_err(|_| NoToken)?),
            proof: proof.try_into().map_err(|_| NoToken)?,
        })
    }
}
