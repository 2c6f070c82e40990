//! A decision must not allocate per endpoint: memory that grows with the pool is time that grows with
//! the pool, and more than arithmetic does.

#[path = "../benches/pick/pool.rs"]
mod pool;

use pool::Pool;

#[test]
fn a_warm_pick_allocates_nothing_at_any_pool_size() {
    let counts = allocation_counter::measure(|| drop(std::hint::black_box(vec![0u8; 64])));
    assert_eq!(counts.count_total, 1, "the counter counts");
    for endpoints in [1, 10, 1_000] {
        let pool = Pool::new(endpoints);
        let mut worker = pool.worker();
        // The first decision grows the scratch buffers.
        assert!(worker.pick().is_some());
        let used = allocation_counter::measure(|| {
            for _ in 0..10 {
                assert!(worker.pick().is_some());
            }
        });
        assert_eq!(used.count_total, 0, "{endpoints} endpoints: {} bytes", used.bytes_total);
    }
}
