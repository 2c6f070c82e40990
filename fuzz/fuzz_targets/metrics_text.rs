//! Any bytes as a metrics page of any engine: no panic, no sample with values out of range, and the same
//! findings however the page is cut into chunks.
#![no_main]

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use pointsman::collector::mapping::built_in;
use pointsman::collector::reading::Reading;
use pointsman::collector::{MetricSpec, Plan};
use pointsman::domain::{LoadSample, Timestamp};
use pointsman::scheduling::plugin::Metric;

static PLANS: LazyLock<Vec<Plan>> = LazyLock::new(|| {
    let attribute = Metric::Attribute("custom".into());
    let core = [Metric::Waiting, Metric::Running, Metric::KvUsage, Metric::CacheInfo, Metric::Lora, attribute];
    let wanted = BTreeSet::from(core);
    let mut engines = built_in();
    for engine in &mut engines {
        if let Ok(spec) = MetricSpec::parse("custom_sum{a=b}") {
            engine.attributes.insert("custom".into(), spec);
        }
    }
    engines.iter().map(|engine| Plan::new(engine, &wanted)).collect()
});

fn read(plan: &Plan, page: &[u8], chunk: usize) -> (bool, bool, LoadSample) {
    let mut reading = Reading::default();
    reading.reset(plan);
    for part in page.chunks(chunk) {
        reading.feed(plan, part);
    }
    let cut = reading.finish();
    (cut, reading.has_load(plan), reading.sample(plan, Timestamp(1), &Arc::default()))
}

fuzz_target!(|data: &[u8]| {
    let Some((&size, page)) = data.split_first() else { return };
    for plan in PLANS.iter() {
        let whole = read(plan, page, page.len().max(1));
        let (_, _, sample) = &whole;
        for value in [sample.waiting, sample.running, sample.kv_usage].into_iter().flatten() {
            assert!(value >= 0.0);
        }
        assert!(sample.kv_usage.is_none_or(|usage| usage <= 1.0));
        assert!(sample.detail.attributes.values().all(|value| value.is_finite()));
        assert_eq!(read(plan, page, usize::from(size).max(1)), whole);
    }
    let _ = MetricSpec::parse(&String::from_utf8_lossy(page));
});
