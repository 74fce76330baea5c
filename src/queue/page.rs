//! Page tokens: opaque, authenticated, and good for one tenant and one filter only.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

use crate::job::name::{JobId, Name};
use crate::store::ListQuery;

/// Bytes of the tag that stand behind the id in a token. Chosen: 128 bits are beyond guessing.
const TAG_BYTES: usize = 16;

/// The token that goes on behind a job.
pub(super) fn token(secret: &[u8; 32], query: &ListQuery, last: JobId) -> String {
    let mut bytes = last.as_uuid().as_bytes().to_vec();
    let tag = tag(secret, query, last).finalize().into_bytes();
    bytes.extend_from_slice(&tag[..TAG_BYTES]);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Where a token goes on.
///
/// # Errors
/// A sentence, where it was not made here for this tenant and filter.
pub(super) fn parse(secret: &[u8; 32], query: &ListQuery, token: &str) -> Result<JobId, String> {
    let wrong = || "was not made for this filter by this server".to_owned();
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
    let (id, given) = bytes.split_at_checked(16).ok_or_else(wrong)?;
    let id = JobId::new(Uuid::from_slice(id).map_err(|_| wrong())?);
    if given.len() != TAG_BYTES {
        return Err(wrong());
    }
    let tag = tag(secret, query, id);
    tag.verify_truncated_left(given).map_err(|_| wrong())?;
    Ok(id)
}

fn tag(secret: &[u8; 32], query: &ListQuery, id: JobId) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length can be used");
    // The page's size may change from page to page; everything else is part of the filter.
    let filter = ListQuery {
        before_id: Some(id),
        limit: 0,
        rows: 0,
        ..query.clone()
    };
    mac.update(format!("page {filter:?}").as_bytes());
    mac
}

/// The token that goes on behind a queue.
pub(super) fn name_token(secret: &[u8; 32], tenant: &Name, last: &Name) -> String {
    let mut bytes = name_tag(secret, tenant, last).finalize().into_bytes()[..TAG_BYTES].to_vec();
    bytes.extend_from_slice(last.as_str().as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Behind which queue a token goes on.
///
/// # Errors
/// A sentence, where it was not made here for this tenant.
pub(super) fn parse_name(secret: &[u8; 32], tenant: &Name, token: &str) -> Result<Name, String> {
    let wrong = || "was not made for this list by this server".to_owned();
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
    let (given, name) = bytes.split_at_checked(TAG_BYTES).ok_or_else(wrong)?;
    let name = std::str::from_utf8(name).map_err(|_| wrong())?;
    let name = Name::new(name).map_err(|_| wrong())?;
    let tag = name_tag(secret, tenant, &name);
    tag.verify_truncated_left(given).map_err(|_| wrong())?;
    Ok(name)
}

fn name_tag(secret: &[u8; 32], tenant: &Name, name: &Name) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length can be used");
    mac.update(format!("queues {tenant:?} {name:?}").as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobState;

    fn query(tenant: &'static str) -> ListQuery {
        ListQuery::all(Name::of(tenant))
    }

    #[test]
    fn a_token_is_good_for_its_own_tenant_and_filter_only() {
        let secret = [7; 32];
        let last = JobId::new(Uuid::from_u128(1));
        let token = token(&secret, &query("a"), last);
        let next_page = ListQuery {
            limit: 9,
            ..query("a")
        };
        assert_eq!(parse(&secret, &next_page, &token), Ok(last));
        let other_filter = ListQuery {
            states: vec![JobState::Failed],
            ..query("a")
        };
        assert!(parse(&secret, &other_filter, &token).is_err());
        assert!(parse(&secret, &query("b"), &token).is_err());
        assert!(parse(&[8; 32], &query("a"), &token).is_err());
    }

    #[test]
    fn no_forged_or_damaged_token_is_taken() {
        let secret = [7; 32];
        let token = token(&secret, &query("a"), JobId::new(Uuid::from_u128(1)));
        for end in 0..token.len() {
            assert!(parse(&secret, &query("a"), &token[..end]).is_err());
            let mut forged = token.clone().into_bytes();
            forged[end] = if forged[end] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).expect("still text");
            assert!(parse(&secret, &query("a"), &forged).is_err(), "{forged}");
        }
        assert!(parse(&secret, &query("a"), "ü").is_err());
    }

    #[test]
    fn a_token_of_queues_is_good_for_its_own_tenant_and_as_it_was_made() {
        let (secret, tenant, name) = ([7; 32], Name::of("a"), Name::of("reports/daily"));
        let token = name_token(&secret, &tenant, &name);
        assert_eq!(parse_name(&secret, &tenant, &token), Ok(name));
        assert!(parse_name(&secret, &Name::of("b"), &token).is_err());
        assert!(parse_name(&[8; 32], &tenant, &token).is_err());
        for end in 0..token.len() {
            assert!(parse_name(&secret, &tenant, &token[..end]).is_err());
        }
        assert!(parse_name(&secret, &tenant, "ü").is_err());
    }
}
