//! What is counted. Each workload is made, run to warm up, and run again to be counted, `times` times each.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use pointsman::collector::Plan;
use pointsman::collector::mapping::{BUILT_IN, EngineMapping};
use pointsman::collector::reading::Reading;
use pointsman::dialect::{AnswerFormat, Dialects, UsageReader, Wants};
use pointsman::domain::{Headers, Outcome, Prompt, Segment, Timestamp, Usage};
use pointsman::lifecycle::clock::ManualClock;
use pointsman::scheduling::plugin::Metric;
use pointsman::signals::prefix::hash;
use pointsman::signals::prefix::index::Index;
use pointsman::telemetry::access::AccessLine;
use pointsman::telemetry::log::{self, LogOptions};
use tracing_subscriber::layer::SubscriberExt as _;

use super::chains::{BLOCKS, ENDPOINTS, grown, staircase};
use super::edge::{self, Shape};
use super::held::Queue;
use super::pool::Pool;
use super::requests::{CHUNK, LAST_CHUNK, chat};

type Run = Box<dyn FnMut()>;

/// One operation, many times.
pub struct Workload {
    pub name: &'static str,
    pub times: u32,
    pub make: fn() -> Run,
}

/// Allocates three times: shows that allocations are counted.
pub const CONTROL: Workload = Workload {
    name: "control",
    times: 10,
    make: || {
        Box::new(|| {
            let mut grows = black_box(Vec::with_capacity(10));
            grows.extend_from_slice(black_box(&[1u8; 30]));
            black_box((grows, Box::new(black_box(1u64))));
        })
    },
};

const fn workload(name: &'static str, times: u32, make: fn() -> Run) -> Workload {
    Workload { name, times, make }
}

/// One decision of 64 is observed in detail, so requests come in multiples of 64.
pub const WORKLOADS: &[Workload] = &[
    workload("pick of 10 endpoints, 64 blocks", 500, || pick(10)),
    workload("pick of 1000 endpoints, 64 blocks", 20, || pick(1_000)),
    workload("pick of 10000 endpoints, 64 blocks", 5, || pick(10_000)),
    workload("index lookup, 2000 blocks x 100 endpoints", 20, lookup),
    workload("index insert, 2000 blocks held already", 20, insert_known),
    workload("index insert, 100 new of 132 blocks, full", 50, insert_new),
    workload("hash 128 KB", 10, || hashing(128)),
    workload("parse chat 1 KB", 200, || parse(1)),
    workload("parse chat 16 KB", 50, || parse(16)),
    workload("parse chat 128 KB", 10, || parse(128)),
    workload("usage, a chunk without", 500, usage_chunk),
    workload("usage, the last chunk", 100, usage_last),
    workload("scrape parse, vLLM page of 62 KB", 10, || scrape(false)),
    workload("scrape parse, filtered vLLM page", 50, || scrape(true)),
    workload("machine, 1 KB and 3 chunks", 100, || Box::new(edge::machine(SMALL))),
    workload("edge, 1 KB and 3 chunks", 64, || Box::new(edge::stream(SMALL))),
    workload("edge, 128 KB and 3 chunks", 32, || Box::new(edge::stream(LARGE))),
    workload("edge, 1 KB and 100 chunks", 16, || Box::new(edge::stream(LONG))),
    workload("decision, 1 KB", 128, || Box::new(edge::decision(1 << 10))),
    workload("decision, 16 KB", 64, || Box::new(edge::decision(16 << 10))),
    workload("decision, 128 KB", 64, || Box::new(edge::decision(128 << 10))),
    workload("plan, 10000 held, 8 endpoints busy", 100, || busy(8)),
    workload("plan, 10000 held, 100 endpoints busy", 100, || busy(100)),
    workload("plan, 10000 held, 1 of 8 endpoints taken", 64, || taken(8)),
    workload("plan, 10000 held, 1 of 100 endpoints taken", 64, || taken(100)),
    workload("plan, 10000 held, 1 of 100 endpoints for nobody", 10, || nobody(100)),
    workload("access log line", 100, access_line),
    workload("all of it, 1 KB and 3 chunks", 128, || whole(SMALL)),
    workload("all of it, 1 KB and 3 chunks, recorded", 128, || recorded(SMALL)),
    workload("all of it, 1 KB and 3 chunks, by cost", 128, || by_cost(SMALL, 0)),
    workload("all of it, 1 KB and 3 chunks, by cost, recorded", 128, || by_cost(SMALL, 64)),
    workload("all of it, 16 KB and 3 chunks, by cost", 64, || by_cost(MIDDLE, 0)),
    workload("all of it, 128 KB and 3 chunks, by cost", 64, || by_cost(LARGE, 0)),
    workload("all of it, 16 KB and 3 chunks", 64, || whole(MIDDLE)),
    workload("all of it, 128 KB and 3 chunks", 64, || whole(LARGE)),
    workload("all of it, 1 KB and 100 chunks", 64, || whole(LONG)),
];

const SMALL: Shape = Shape { body: 1 << 10, chunks: 3 };
const MIDDLE: Shape = Shape { body: 16 << 10, chunks: 3 };
const LARGE: Shape = Shape { body: 128 << 10, chunks: 3 };
const LONG: Shape = Shape { body: 1 << 10, chunks: 100 };

fn pick(endpoints: usize) -> Run {
    // A worker borrows its pool, and this process does nothing else.
    let pool: &'static Pool = Box::leak(Box::new(Pool::new(endpoints)));
    let mut worker = pool.worker();
    Box::new(move || {
        black_box(worker.pick());
    })
}

fn lookup() -> Run {
    let (index, chain) = staircase();
    let mut matched = vec![0u32; ENDPOINTS as usize];
    Box::new(move || {
        matched.fill(0);
        index.lookup(black_box(&chain), &mut matched);
        black_box(matched[99]);
    })
}

fn insert_known() -> Run {
    let index = Arc::new(Index::new(u64::MAX, 31_250));
    let chain = grown(&[], 1, BLOCKS);
    Box::new(move || drop(index.insert(0, 1, black_box(&chain))))
}

/// At capacity: what is inserted drives out what was inserted 40 calls before.
fn insert_new() -> Run {
    let index = Arc::new(Index::new(u64::MAX, 4_032));
    let system = grown(&[], 2, 32);
    let mut chains = (10..200).map(|id| grown(&system, id, 132)).collect::<Vec<_>>().into_iter();
    chains.by_ref().take(80).for_each(|chain| drop(index.insert(0, 1, &chain)));
    Box::new(move || {
        let chain = chains.next().expect("made for each call");
        drop(index.insert(0, 1, &chain));
    })
}

fn hashing(kilobytes: usize) -> Run {
    let body = chat(kilobytes << 10, 1);
    let prompt = Prompt { segments: [Segment::Body(0..body.len())].into_iter().collect() };
    Box::new(move || {
        black_box(hash::chain(&prompt, black_box(&body), 7, 64, usize::MAX));
    })
}

fn parse(kilobytes: usize) -> Run {
    let dialects = Dialects::default();
    let headers = Headers::from([("content-type", "application/json")]);
    let body = chat(kilobytes << 10, 1);
    Box::new(move || {
        let parsed = dialects.parse("/v1/chat/completions", &headers, black_box(&body), Wants { prompts: true });
        assert!(black_box(parsed).is_ok_and(|parsed| parsed.prompts.len() == 1));
    })
}

const EVENTS: Option<&str> = Some("text/event-stream; charset=utf-8");

fn usage_chunk() -> Run {
    let mut reader = UsageReader::new(AnswerFormat::OpenAi, EVENTS, None);
    let chunk = Bytes::from_static(CHUNK);
    Box::new(move || reader.push(black_box(&chunk)))
}

fn usage_last() -> Run {
    let chunk = Bytes::from_static(LAST_CHUNK);
    Box::new(move || {
        let mut reader = UsageReader::new(AnswerFormat::OpenAi, EVENTS, None);
        reader.push(black_box(&chunk));
        assert_eq!(black_box(reader.finish()).prompt_tokens, Some(900));
    })
}

fn scrape(filtered: bool) -> Run {
    const PAGE: &str = include_str!("../../tests/data/metrics/vllm-metrics.txt");
    const FAMILIES: [&str; 4] = ["num_requests", "kv_cache_usage", "lora_requests", "cache_config"];
    let keep = |line: &&str| !filtered || FAMILIES.iter().any(|family| line.contains(family));
    let page: String = PAGE.lines().filter(keep).flat_map(|line| [line, "\n"]).collect();
    let core = [Metric::Waiting, Metric::Running, Metric::KvUsage, Metric::CacheInfo, Metric::Lora];
    let plan = Plan::new(&EngineMapping::from(&BUILT_IN[0]), &BTreeSet::from(core));
    let (mut reading, mut detail) = (Reading::default(), Arc::default());
    Box::new(move || {
        reading.reset(&plan);
        for chunk in black_box(&page).as_bytes().chunks(16 << 10) {
            reading.feed(&plan, chunk);
        }
        assert!(!reading.finish());
        let sample = reading.sample(&plan, Timestamp(1), &detail);
        assert!(sample.waiting.is_some());
        detail = Arc::clone(&sample.detail);
        black_box(sample);
    })
}

fn whole(shape: Shape) -> Run {
    log_nowhere();
    Box::new(edge::picker(shape, true, 0))
}

/// As [`whole`], with a record of each decision.
fn recorded(shape: Shape) -> Run {
    log_nowhere();
    Box::new(edge::picker(shape, true, 64))
}

/// As [`whole`], with the configuration that is shipped and so many records of decisions.
fn by_cost(shape: Shape, recorded: usize) -> Run {
    log_nowhere();
    Box::new(edge::configured(shape, include_str!("../../config/default.yaml"), recorded))
}

/// A plan while nothing can go, which is all that most of them are under overload.
fn busy(endpoints: u8) -> Run {
    let mut queue = Queue::new(endpoints, endpoints);
    Box::new(move || queue.plan(Duration::from_millis(20)))
}

/// An endpoint becomes free, and the next request goes there.
fn taken(endpoints: u8) -> Run {
    let mut queue = Queue::new(endpoints, endpoints);
    Box::new(move || queue.next())
}

/// An endpoint is free that no request may use: a full round, which is made three times a second at most.
fn nobody(endpoints: u8) -> Run {
    let mut queue = Queue::new(endpoints, endpoints - 1);
    Box::new(move || queue.plan(Duration::from_millis(301)))
}

fn access_line() -> Run {
    log_nowhere();
    let line = AccessLine {
        request_id: "0f8fad5b-d9cb-469f-a165-70867728950e",
        method: Some("POST"),
        path: "/v1/chat/completions",
        model: "bench/model",
        target_model: "bench/model",
        objective: None,
        fairness_id: "default-flow",
        priority: 0,
        endpoint: Some("10.0.0.1:8000"),
        served_by: None,
        status: Some(200),
        outcome: Outcome::Completed,
        total: Duration::from_micros(1_500_250),
        decision: Some(Duration::from_micros(42)),
        held: None,
        ttft: Some(Duration::from_micros(90_130)),
        request_bytes: 4_000,
        response_bytes: 900,
        usage: Usage { prompt_tokens: Some(1_000), cached_tokens: Some(960), completion_tokens: Some(50) },
        rejection: None,
        predicted_cached_tokens: Some(944),
    };
    Box::new(move || black_box(&line).emit())
}

/// The logger of the process with a reader that takes one line and sticks: else now and then a line would pay for
/// waking the writer's thread. The queue has room for all that a workload says.
fn log_nowhere() {
    struct Sticks(mpsc::Sender<()>);
    impl io::Write for Sticks {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(());
            loop {
                std::thread::park();
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (stuck, is_stuck) = mpsc::channel();
    let (layer, handle, guard) = log::layer(LogOptions::default(), Arc::new(ManualClock::default()), Sticks(stuck));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).expect("the only logger");
    // They live as long as the process.
    std::mem::forget((handle, guard));
    tracing::error!(target: "pointsman", "the line that is taken");
    is_stuck.recv().expect("a line is taken");
}
