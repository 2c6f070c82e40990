//! When endpoints are asked: slow ones, dead ones, revived ones, a thousand of them.

use std::sync::atomic::AtomicBool;

use tokio::time::Instant;

use super::*;
use crate::lifecycle::open_files;

#[tokio::test]
async fn a_failing_endpoint_recovers() {
    let polls = AtomicUsize::new(0);
    let flaky = move |p: &str| if polls.fetch_add(1, Ordering::SeqCst) % 6 < 2 { Reply::Status(503) } else { page(p) };
    let server = Server::start(flaky).await;
    let mut rig = Rig::one(settings(), server.address);
    let (mut good, mut bad) = (0, 0);
    while good < 6 || bad < 2 {
        match rig.event().await {
            Event::Sample(_, _, sample) => {
                assert_eq!(values(&sample), GOOD);
                good += 1;
            }
            Event::Failed(_, _, cause) => {
                assert_eq!(cause, PollError::Status);
                bad += 1;
            }
        }
    }
    rig.end().await;
}

#[tokio::test]
async fn a_dead_endpoint_delays_no_other() {
    let (good, dead) = (Server::start(page).await, Server::start(|_| Reply::Hang).await);
    let mut slow = settings();
    slow.timeout = Duration::from_secs(60);
    let mut rig = Rig::start(slow, topology(1, &[(0, 1, dead.address, ""), (1, 2, good.address, "")]));
    for _ in 0..20 {
        match rig.event().await {
            Event::Sample(Slot(1), 2, sample) => assert_eq!(values(&sample), GOOD),
            other => panic!("{other:?}"),
        }
    }
    rig.end().await;
}

#[tokio::test]
async fn a_slow_endpoint_delays_no_other_and_is_left_alone_for_as_long_as_it_took() {
    const SLOW: Duration = Duration::from_millis(100);
    let (good, slow) = (Server::start(page).await, Server::start(|_| Reply::Later(SLOW, PAGE.into())).await);
    let quick = (1..10).map(|i| (i, u64::from(i), good.address, ""));
    let endpoints: Vec<_> = std::iter::once((0, 100, slow.address, "")).chain(quick).collect();
    let mut rig = Rig::start(settings(), topology(1, &endpoints));
    let mut counts = [0; 10];
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let Event::Sample(slot, _, sample) = rig.event().await else { panic!("no poll fails") };
        assert_eq!(values(&sample), GOOD);
        counts[slot.index()] += 1;
        if slot == Slot(0) {
            seen.push(Instant::now());
        }
    }
    assert!(counts[1..].iter().all(|count| *count > 6), "{counts:?}");
    // The answer itself and the rest after it, twice, but for what the last event was late.
    assert!(seen[2] - seen[0] > SLOW * 3, "{:?}", seen[2] - seen[0]);
    rig.end().await;
}

#[tokio::test]
async fn a_dead_endpoint_is_asked_less_and_less_often_and_found_again() {
    let alive = Arc::new(AtomicBool::new(false));
    let is_alive = Arc::clone(&alive);
    let server =
        Server::start(move |p| if is_alive.load(Ordering::SeqCst) { page(p) } else { Reply::Status(503) }).await;
    let mut slow = settings();
    slow.interval = Duration::from_millis(100);
    let interval = slow.interval;
    let mut rig = Rig::one(slow, server.address);
    let mut times = Vec::new();
    for _ in 0..5 {
        assert_eq!(rig.failure().await, PollError::Status);
        times.push(Instant::now());
    }
    // Pauses of 200, 400, 800 and 1000 ms, less the jitter and what an earlier event may have been late.
    let least = Duration::from_millis((200 + 400 + 800 + 1000) * 8 / 10);
    assert!(times[4] - times[0] > least, "{:?}", times[4] - times[0]);
    alive.store(true, Ordering::SeqCst);
    rig.sample().await;
    let revived = Instant::now();
    for _ in 0..10 {
        rig.sample().await;
    }
    // At full pace at once: ten polls take a second, not ten.
    assert!(revived.elapsed() < interval * 50, "{:?}", revived.elapsed());
    rig.end().await;
}

#[tokio::test]
async fn a_thousand_endpoints_are_all_read_over_one_connection_each() {
    open_files::raise();
    let server = Server::start(page).await;
    // Endpoints may share an address here; each has its own connection.
    let endpoints: Vec<_> = (0..1000).map(|i| (i, u64::from(i) + 1, server.address, "")).collect();
    let mut settings = settings();
    settings.interval = Duration::from_secs(1);
    settings.timeout = Duration::from_secs(20);
    let mut rig = Rig::start(settings, topology(1, &endpoints));
    let (mut counts, mut waiting) = (vec![0; 1000], 1000);
    while waiting > 0 {
        match rig.event().await {
            Event::Sample(slot, _, _) => {
                counts[slot.index()] += 1;
                waiting -= usize::from(counts[slot.index()] == 2);
            }
            failed @ Event::Failed(..) => panic!("{failed:?}"),
        }
    }
    assert!(counts.iter().all(|count| *count < 10), "none is read at the cost of others");
    assert_eq!(server.connections.load(Ordering::SeqCst), 1000);
    rig.end().await;
}
