//! Any bytes as a metrics page of any engine:
//!
//! * a sample holds finite values within their ranges, or none;
//! * the findings are the same however the page is cut into chunks, and when the buffers were used before;
//! * a page that cannot end in the middle of a line is never called cut.
//!
//! The first byte chooses the length of the chunks.
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

type Findings = (bool, bool, bool, LoadSample);

fn read(reading: &mut Reading, plan: &Plan, page: &[u8], chunk: usize) -> Findings {
    reading.reset(plan);
    for part in page.chunks(chunk) {
        reading.feed(plan, part);
    }
    let cut = reading.finish();
    let sample = reading.sample(plan, Timestamp(1), &Arc::default());
    (cut, reading.has_load(plan), reading.looks_foreign(), sample)
}

fuzz_target!(|data: &[u8]| {
    let Some((&size, page)) = data.split_first() else { return };
    for plan in PLANS.iter() {
        let mut reading = Reading::default();
        let whole = read(&mut reading, plan, page, page.len().max(1));
        let (cut, _, _, sample) = &whole;
        assert!(!cut || !page.ends_with(b"\n"), "a page of whole lines is not cut");
        for value in [sample.waiting, sample.running, sample.kv_usage].into_iter().flatten() {
            assert!(value >= 0.0 && value.is_finite(), "{sample:?}");
        }
        assert!(sample.kv_usage.is_none_or(|usage| usage <= 1.0));
        let detail = &sample.detail;
        assert!(detail.attributes.values().all(|value| value.is_finite()));
        assert!(detail.block_size != Some(0) && detail.num_blocks != Some(0), "zero is no geometry");
        if let Some(lora) = &detail.lora {
            let lists = [&lora.running, &lora.waiting];
            assert!(lists.iter().all(|list| list.len() <= 1024 && list.is_sorted()));
            assert!(lists.iter().all(|list| list.len() <= lora.named as usize) && lora.named <= 2048);
        }
        // Byte by byte only where that is quick.
        let least = if page.len() <= 512 { 1 } else { 13 };
        for chunk in [usize::from(size).max(1), least] {
            assert_eq!(read(&mut reading, plan, page, chunk), whole);
        }
    }
    let _ = MetricSpec::parse(&String::from_utf8_lossy(page));
});
