use proptest::prelude::*;

use super::*;

fn log(memory_bytes: u64, total_bytes: u64, spool: &Path) -> ReplayLog {
    ReplayLog::new(Keep { memory_bytes, total_bytes }, spool, Bell::default())
}

/// Everything that can be read from `offset` on, `most` bytes at a time.
async fn read_all(log: &ReplayLog, mut offset: u64, most: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while let Read::Data(data) = log.read(offset, most).await.unwrap() {
        assert!(!data.is_empty() && data.len() <= most);
        offset += data.len() as u64;
        all.extend_from_slice(&data);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_offset_replays_exactly_the_kept_prefix(
        writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..30),
        memory in 0_u64..200,
        total in 0_u64..600,
        most in 1_usize..100,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let spool = tempfile::tempdir().unwrap();
        runtime.block_on(async {
            let log = log(memory, total, spool.path());
            for write in &writes {
                log.append(write).await;
            }
            let written = writes.concat();
            let kept = &written[..clamp(total, written.len())];
            for offset in 0..=kept.len() {
                assert_eq!(read_all(&log, offset as u64, most).await, &kept[offset..]);
            }
            let end = kept.len() as u64;
            assert_eq!(log.read(end, most).await.unwrap(), Read::AtEnd);
            assert_eq!(log.read(end + 1, most).await.unwrap(), Read::Beyond);
            assert_eq!(log.total(), written.len() as u64);
            assert_eq!(log.is_truncated(), kept.len() < written.len());
        });
    }
}

#[tokio::test]
async fn spool_holds_no_named_file() {
    let spool = tempfile::tempdir().unwrap();
    let log = log(4, 100, spool.path());
    log.append(b"more than four bytes").await;
    assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0);
    assert_eq!(read_all(&log, 2, 3).await, b"re than four bytes");
}

#[tokio::test]
async fn failing_spool_truncates_and_never_leaves_a_hole() {
    let log = log(4, 100, Path::new("/nonexistent"));
    log.append(b"0123456789").await;
    log.append(b"ab").await;
    assert_eq!(read_all(&log, 0, 100).await, b"0123");
    assert!(log.is_truncated());
    assert_eq!(log.total(), 12);
}

#[tokio::test]
async fn append_rings_the_bell() {
    let bell = Bell::default();
    let mut heard = bell.subscribe();
    let log = ReplayLog::new(Keep { memory_bytes: 10, total_bytes: 10 }, Path::new("/"), bell);
    log.append(b"x").await;
    assert!(heard.has_changed().unwrap());
    heard.mark_unchanged();
    log.append(b"dropped because it is too long").await;
    assert!(heard.has_changed().unwrap());
}
