use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::collector::mapping::{EngineMapping, MetricSpec, built_in};
use crate::scheduling::plugin::Metric;

fn core() -> BTreeSet<Metric> {
    BTreeSet::from([Metric::Waiting, Metric::Running, Metric::KvUsage, Metric::CacheInfo, Metric::Lora])
}

fn mapping(name: &str) -> EngineMapping {
    built_in().into_iter().find(|e| e.name == name).unwrap()
}

fn plan(engine: &str) -> Plan {
    Plan::new(&mapping(engine), &core())
}

fn page(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/data/metrics/{name}.txt", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn sample(engine: &str, page: &[u8]) -> LoadSample {
    read(&plan(engine), page, Timestamp(7)).unwrap()
}

type Summary = (Option<f32>, Option<f32>, Option<f32>, Option<u32>, Option<u32>);

fn summary(s: &LoadSample) -> Summary {
    (s.waiting, s.running, s.kv_usage, s.detail.block_size, s.detail.num_blocks)
}

#[test]
fn every_engine_is_understood() {
    let all: [(&str, &str, Summary); 8] = [
        ("vllm", "vllm-metrics", (Some(10.0), Some(4.0), Some((28.0f64 / 47.0) as f32), Some(32), Some(48))),
        ("vllm", "vllm-metrics-idle", (Some(0.0), Some(0.0), Some(0.0), Some(32), Some(48))),
        ("vllm", "vllm-metrics-fresh", (Some(0.0), Some(0.0), Some(0.0), Some(32), Some(48))),
        ("vllm", "vllm-metrics-dp2", (Some(0.0), Some(0.0), Some(0.0), Some(32), Some(96))),
        ("sglang", "sglang", (Some(2826.0), Some(161.0), Some(0.28), Some(64), Some(6912))),
        ("trtllm-serve", "trtllm-serve", (Some(3.0), Some(12.0), Some(0.625), Some(32), Some(4096))),
        ("triton-tensorrt-llm", "triton-tensorrt-llm", (Some(5.0), Some(9.0), Some(0.875), Some(64), Some(6400))),
        ("triton", "triton", (Some(6.0), None, None, None, None)),
    ];
    for (engine, file, wanted) in all {
        let found = sample(engine, &page(file));
        assert_eq!(summary(&found), wanted, "{file}");
        assert_eq!(found.taken_at, Timestamp(7));
    }
}

#[test]
fn the_newest_lora_state_counts() {
    let lora = sample("vllm", &page("vllm-metrics")).detail.lora.clone().unwrap();
    assert_eq!(lora, adapters(&["sql-adapter", "chat-adapter"], 2));
    let idle = sample("vllm", &page("vllm-metrics-idle"));
    assert_eq!(idle.detail.lora, Some(adapters(&[], 2)), "its last lines name adapters that it had before");
    let fresh = sample("vllm", &page("vllm-metrics-fresh"));
    assert_eq!(fresh.detail.lora, None, "the family without a series says nothing");
}

/// The state in which vLLM's labels name `adapters`: both name all that have requests.
fn adapters(names: &[&str], max: u32) -> LoraState {
    let mut state = LoraState::default();
    state.set(names.iter().copied(), names.iter().copied(), max);
    state
}

#[test]
fn a_lora_state_is_read_whatever_the_order_of_lines_and_names() {
    let line = |names: &str, at: &str| {
        format!(
            "vllm:lora_requests_info{{max_lora=\"4\",running_lora_adapters=\"{names}\",waiting_lora_adapters=\"{names}\"}} {at}\n"
        )
    };
    let read = |lines: &[String]| {
        sample("vllm", format!("vllm:num_requests_waiting 1\n{}", lines.concat()).as_bytes()).detail.lora.clone()
    };
    let (old, new, broken) = (line("sql", "1.7e+09"), line(" chat ,sql,,chat", "1.8e+09"), line("code", "NaN"));
    for lines in [[&old, &new, &broken], [&new, &old, &broken], [&broken, &new, &old]] {
        let found = read(&lines.map(Clone::clone));
        assert_eq!(found, Some(adapters(&["chat", "sql"], 4)), "{lines:?}");
    }
    assert_eq!(read(&[broken]), None);
    let unlimited = old.replace("max_lora=\"4\",", "");
    assert_eq!(read(&[unlimited]), Some(adapters(&["sql"], 0)));
    let merged =
        "vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"a,b\",waiting_lora_adapters=\"b,c\"} 1\n";
    assert_eq!(read(&[merged.to_owned()]).map(|s| (s.running.len(), s.waiting.len(), s.named)), Some((2, 2, 3)));
}

#[test]
fn ranks_behind_one_port_are_added_up() {
    let page = String::from_utf8(page("vllm-metrics-dp2")).unwrap();
    let set = |page: String, name: &str, rank: u8, value: &str| {
        let before = format!("{name}{{engine=\"{rank}\",model_name=\"tiny/llama\"}} 0.0\n");
        assert!(page.contains(&before));
        page.replace(&before, &before.replace(" 0.0", &format!(" {value}")))
    };
    let page = set(page, "vllm:num_requests_waiting", 0, "3.0");
    let page = set(page, "vllm:num_requests_waiting", 1, "4.0");
    let page = set(page, "vllm:num_requests_running", 1, "2.0");
    let page = set(page, "vllm:kv_cache_usage_perc", 0, "0.25");
    let page = set(page, "vllm:kv_cache_usage_perc", 1, "0.75");
    let found = sample("vllm", page.as_bytes());
    assert_eq!(summary(&found), (Some(7.0), Some(2.0), Some(0.5), Some(32), Some(96)));
    let broken =
        page.replace("engine=\"1\",model_name=\"tiny/llama\"} 4.0", "engine=\"1\",model_name=\"tiny/llama\"} NaN");
    assert_eq!(sample("vllm", broken.as_bytes()).waiting, None, "half a sum would look idle");
}

#[test]
fn the_older_name_of_kv_usage_counts_where_the_new_one_is_absent() {
    let old = b"vllm:num_requests_waiting 1\nvllm:num_requests_running 1\nvllm:gpu_cache_usage_perc 0.5\n";
    assert_eq!(sample("vllm", old).kv_usage, Some(0.5));
    let both = b"vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.25\n";
    assert_eq!(sample("vllm", both).kv_usage, Some(0.25));
    let mut reading = Reading::default();
    let plan = plan("vllm");
    reading.reset(&plan);
    reading.feed(&plan, old);
    assert!(
        (0..plan.names.len()).filter(|i| reading.saw(&plan, *i)).count() == 4,
        "old and new name both count as seen"
    );
}

#[test]
fn unusable_values_are_absent() {
    let page = b"vllm:num_requests_waiting NaN\nvllm:num_requests_running -1\nvllm:kv_cache_usage_perc +Inf\nvllm:cache_config_info{block_size=\"0\",num_gpu_blocks=\"None\"} 1\n";
    assert_eq!(summary(&sample("vllm", page)), (None, None, None, None, None));
    assert_eq!(sample("vllm", b"vllm:num_requests_waiting zero\n").waiting, None);
    assert_eq!(sample("vllm", b"vllm:kv_cache_usage_perc 1.7\n").kv_usage, Some(1.0));
    let invalid =
        b"vllm:num_requests_waiting 1\nvllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"\xff\"} 2\n";
    assert_eq!(sample("vllm", invalid).detail.lora, None);
}

#[test]
fn a_page_without_any_load_is_no_sample() {
    let other = b"process_open_fds 3\nvllm:lora_requests_info{max_lora=\"1\"} 2\n";
    assert!(read(&plan("vllm"), other, Timestamp(0)).is_none());
    assert!(read(&plan("vllm"), b"vllm:num_requests_waiting 12", Timestamp(0)).is_none(), "cut off");
    let lora_only = Plan::new(&mapping("vllm"), &BTreeSet::from([Metric::Lora]));
    assert!(read(&lora_only, b"process_open_fds 3\n", Timestamp(0)).is_some(), "a server may have no adapters");
}

#[test]
fn an_unchanged_detail_is_shared() {
    let mut mapping = mapping("vllm");
    mapping
        .attributes
        .insert("deferred".into(), MetricSpec::parse("vllm:num_requests_waiting_by_reason{reason=deferred}").unwrap());
    mapping.attributes.insert("by-reason".into(), MetricSpec::parse("vllm:num_requests_waiting_by_reason").unwrap());
    let mut wanted = core();
    wanted.extend([Metric::Attribute("deferred".into()), Metric::Attribute("by-reason".into())]);
    let plan = Plan::new(&mapping, &wanted);
    let text = String::from_utf8(page("vllm-metrics")).unwrap();
    let mut reading = Reading::default();
    let mut detail = Arc::default();
    let mut poll = |text: &str| {
        reading.reset(&plan);
        for chunk in text.as_bytes().chunks(4096) {
            reading.feed(&plan, chunk);
        }
        assert!(!reading.finish());
        let sample = reading.sample(&plan, Timestamp(0), &detail);
        let shared = Arc::ptr_eq(&sample.detail, &detail);
        detail = sample.detail;
        (shared, detail.clone())
    };
    let (shared, first) = poll(&text);
    assert!(!shared);
    assert_eq!(first.attributes, [("by-reason".into(), 10.0), ("deferred".into(), 0.0)].into_iter().collect());
    assert!(poll(&text).0);
    assert!(
        poll(&text.replace(
            "num_requests_waiting{engine=\"0\",model_name=\"tiny/llama\"} 10",
            "num_requests_waiting{engine=\"0\",model_name=\"tiny/llama\"} 11"
        ))
        .0
    );
    let (shared, changed) = poll(&text.replace("reason=\"capacity\"} 10.0", "reason=\"capacity\"} 4.0"));
    assert!(!shared);
    assert_eq!(changed.attributes[&Box::from("by-reason")], 4.0);
    assert!(!poll(&text.replace("chat-adapter", "other-adapter")).0, "LoRA changes are seen");
}

#[test]
fn blocks_of_ranks_are_added_up_where_each_states_its_own() {
    let page = b"sglang:num_queue_reqs 1\nsglang:cache_config_info{dp_rank=\"0\",page_size=\"64\",num_pages=\"10\"} 1\nsglang:cache_config_info{dp_rank=\"1\",page_size=\"64\",num_pages=\"12\"} 1\n";
    let detail = sample("sglang", page).detail;
    assert_eq!((detail.block_size, detail.num_blocks), (Some(64), Some(22)));
}

proptest! {
    /// Real pages with bytes changed: values stay in range, and the cut into chunks does not matter.
    #[test]
    fn damaged_pages_yield_sane_samples(
        file in 0usize..5,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(b'\n'), Just(b'"'), Just(b'-')]), 0..40),
        keep in any::<prop::sample::Index>(),
        size in 1usize..5000,
    ) {
        let (engine, file) = [
            ("vllm", "vllm-metrics"), ("sglang", "sglang"), ("trtllm-serve", "trtllm-serve"),
            ("triton-tensorrt-llm", "triton-tensorrt-llm"), ("triton", "triton"),
        ][file];
        let mut page = page(file);
        for (at, byte) in edits {
            let at = at.index(page.len());
            page[at] = byte;
        }
        page.truncate(keep.index(page.len() * 2).max(1));
        let plan = plan(engine);
        let read = |chunk: usize| {
            let mut reading = Reading::default();
            reading.reset(&plan);
            page.chunks(chunk).for_each(|part| reading.feed(&plan, part));
            let cut = reading.finish();
            (cut, reading.has_load(&plan), reading.sample(&plan, Timestamp(1), &Arc::default()))
        };
        let whole = read(page.len());
        for value in [whole.2.waiting, whole.2.running, whole.2.kv_usage].into_iter().flatten() {
            prop_assert!(value >= 0.0 && value.is_finite());
        }
        prop_assert!(whole.2.kv_usage.is_none_or(|usage| usage <= 1.0));
        prop_assert_eq!(read(size), whole);
    }
}

#[test]
fn a_number_beyond_f32_is_absent() {
    // Found by fuzzing: it became an infinite queue.
    for (value, wanted) in [("1e39", None), ("-1e39", None), ("3e38", Some(3e38))] {
        let found = sample("vllm", format!("vllm:num_requests_waiting {value}\n").as_bytes());
        assert_eq!(found.waiting, wanted, "{value}");
    }
}
