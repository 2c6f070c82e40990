//! Tasks that come and go with their endpoints.

use super::*;

#[tokio::test]
async fn endpoints_come_and_go_with_the_topology() {
    let (mut a, b) = (Server::start(page).await, Server::start(page).await);
    let mut rig = Rig::start(settings(), topology(1, &[]));
    rig.topology.send_replace(topology(2, &[(0, 1, a.address, "")]));
    rig.sample().await;
    rig.topology.send_replace(topology(3, &[(0, 2, b.address, ""), (3, 3, a.address, "sglang")]));
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        match rig.event().await {
            Event::Sample(slot, generation, _) => {
                if generation != 1 {
                    assert_eq!((slot, generation), (Slot(0), 2));
                    seen.insert(2);
                }
            }
            Event::Failed(slot, generation, cause) => {
                let wanted = (Slot(3), 3, PollError::MissingFamily);
                assert_eq!((slot, generation, cause), wanted, "sglang's names are not on vLLM's page");
                seen.insert(3);
            }
        }
    }
    while let Ok(path) = a.requests.try_recv() {
        assert!(path.contains("vllm") || path.contains("sglang") || path == "/metrics");
    }
    rig.topology.send_replace(topology(4, &[]));
    // The last tasks are gone when no event comes for many intervals.
    soon(async { while timeout(Duration::from_millis(100), rig.events.recv()).await.is_ok() {} }).await;
    rig.end().await;
}

#[tokio::test]
async fn a_task_that_panics_is_started_again() {
    /// Panics at the first sample.
    struct Panicking(std::sync::atomic::AtomicBool, UnboundedSender<u64>);

    impl SampleSink for Panicking {
        fn report(&self, _: Slot, generation: u64, _: LoadSample) {
            assert!(self.0.swap(true, Ordering::SeqCst), "a defect");
            let _ = self.1.send(generation);
        }

        fn poll_failed(&self, _: Slot, _: u64, _: PollError) {}
    }

    let server = Server::start(page).await;
    let (_topology, seen) = watch::channel(topology(1, &[(0, 1, server.address, "")]));
    let (stop, stopped) = watch::channel(false);
    let (sender, mut reports) = unbounded_channel();
    let sink = Arc::new(Panicking(std::sync::atomic::AtomicBool::new(false), sender));
    let task = tokio::spawn(run(settings(), seen, sink, Arc::new(ManualClock::default()), stopping(stopped)));
    assert_eq!(soon(reports.recv()).await, Some(1));
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
    stop.send(true).unwrap();
    soon(task).await.unwrap().unwrap();
}

#[tokio::test]
async fn it_ends_when_the_sender_of_the_stop_signal_is_gone() {
    let rig = Rig::one(settings(), Server::start(page).await.address);
    drop(rig.stop);
    soon(rig.task).await.unwrap().unwrap();
}
