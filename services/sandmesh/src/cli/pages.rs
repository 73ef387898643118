//! Lists that come in pages.

use super::{failure::Failure, output, view::Page};

/// The most that the server puts on a page.
const PAGE: u32 = 200;

/// A page of an answer, or several of them joined.
#[derive(Debug)]
pub(super) struct Found<T> {
    /// What was found.
    pub(super) items: Vec<T>,
    /// Where it goes on; empty at the end.
    pub(super) next_page_token: String,
    /// How many there are in all.
    pub(super) total: u64,
}

/// Fetches pages until there are `limit` items or no more.
pub(super) async fn collect<T>(
    limit: u32,
    fetch: impl AsyncFn(u32, String) -> Result<Found<T>, Failure>,
) -> Result<Found<T>, Failure> {
    let mut found = Found { items: Vec::new(), next_page_token: String::new(), total: 0 };
    loop {
        let missing = limit.saturating_sub(u32::try_from(found.items.len()).unwrap_or(u32::MAX));
        let page = fetch(missing.min(PAGE), found.next_page_token).await?;
        let was_empty = page.items.is_empty();
        found.items.extend(page.items);
        found.next_page_token = page.next_page_token;
        found.total = page.total;
        if was_empty || found.next_page_token.is_empty() || found.items.len() >= limit as usize {
            return Ok(found);
        }
    }
}

/// What was found, as it is printed.
pub(super) fn view<T, V>(found: Found<T>, limit: u32, item: impl Fn(T) -> V) -> Page<V> {
    Page {
        items: found.items.into_iter().map(item).collect(),
        total: found.total,
        limit,
        offset: 0,
        has_more: !found.next_page_token.is_empty(),
        next_page_token: Some(found.next_page_token).filter(|token| !token.is_empty()),
    }
}

/// Says on the standard error that there are more.
pub(super) fn note<V>(page: &Page<V>) {
    if page.has_more {
        output::note(&format!("{} of {}; use --limit for more", page.items.len(), page.total));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of the numbers from 0 to 449, whose page token is the next number.
    async fn numbers(page_size: u32, token: String) -> Result<Found<u32>, Failure> {
        assert!(page_size > 0 && page_size <= PAGE);
        let start: u32 = token.parse().unwrap_or(0);
        let end = (start + page_size).min(450);
        let next_page_token = if end < 450 { end.to_string() } else { String::new() };
        Ok(Found { items: (start..end).collect(), next_page_token, total: 450 })
    }

    #[tokio::test]
    async fn pages_are_joined_up_to_the_limit() {
        for (limit, expected) in [(1, 1), (200, 200), (201, 201), (450, 450), (1000, 450)] {
            let page = view(collect(limit, numbers).await.unwrap(), limit, |number| number);
            assert_eq!(page.items, (0..expected).collect::<Vec<u32>>());
            assert_eq!(page.has_more, expected < 450);
            assert_eq!(page.total, 450);
        }
    }
}
