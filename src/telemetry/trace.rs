//! Traces: one `gateway.request` span per sampled request with the steps of its decision below it, under
//! the names of the picker we replace (llm-d-router.md 5.2), exported in OTLP.
//!
//! Off unless the environment asks for an exporter; then a request costs one branch. When on, the start
//! of a request reads its W3C `traceparent` and asks the sampler. Only for a request that is sampled are
//! spans made, all of them when it has ended: until then the moments and what was observed of the
//! decision are kept ([`Laps`]). The request goes on to the model server with our `traceparent`, so that
//! its spans join the trace and the sampling decision is made once.
//!
//! Spans wait for export in a bounded queue; what does not fit is dropped, and a collector that is away
//! costs routing nothing (`trace/export.rs`). Texts of clients are cut at [`MAX_TEXT`] bytes; prompts and answers
//! never appear.
//!
//! Rejected: spans of the `tracing` crate bridged to OTLP (every span passes the log filter and allocates
//! whether sampled or not), and starting spans around the plugins (the decision knows no clock).

mod export;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use crate::domain::{Headers, Outcome, Rejection, Timestamp};
use crate::lifecycle::clock::Clock;
use crate::scheduling::profile::{Lap, Laps, Run};
use crate::telemetry::access::AccessLine;

pub use export::{ExportError, Exporter, Sampling};

use export::Counts;

/// Longest text in an attribute, in bytes.
pub const MAX_TEXT: usize = 1024;
/// Longest `traceparent` that is read; a well-formed one of today has 55 bytes.
const MAX_TRACEPARENT: usize = 256;
/// Longest `tracestate` that is read.
const MAX_TRACESTATE: usize = 4096;
/// Scored candidates that `pick_endpoints` names.
const TOP: usize = 5;

/// How spans are made and where they go.
pub struct Traces {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    propagator: TraceContextPropagator,
    clock: Arc<dyn Clock>,
    counts: Arc<Counts>,
}

impl std::fmt::Debug for Traces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Traces").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl Traces {
    /// Starts exporting. Must run inside a runtime, which the connection to the collector uses.
    ///
    /// # Errors
    /// An address, certificate or header that cannot be used. A collector that is away is no error.
    pub fn start(exporter: &Exporter, clock: Arc<dyn Clock>) -> Result<Arc<Self>, ExportError> {
        let counts = Arc::<Counts>::default();
        let provider = exporter.provider(&clock, &counts)?;
        Ok(Arc::new(Self::over(provider, clock, counts)))
    }

    fn over(provider: SdkTracerProvider, clock: Arc<dyn Clock>, counts: Arc<Counts>) -> Self {
        let scope = opentelemetry::InstrumentationScope::builder("pointsman").with_version(env!("CARGO_PKG_VERSION"));
        let tracer = provider.tracer_with_scope(scope.build());
        Self { tracer, provider, propagator: TraceContextPropagator::new(), clock, counts }
    }

    /// Begins a request whose headers came at `received`. `None` if there is nothing to record and nothing
    /// to tell the model server, because the client's own `traceparent` says that nobody records.
    pub fn begin(self: &Arc<Self>, headers: &Headers, received: Timestamp) -> Option<Box<RequestTrace>> {
        let parent = self.propagator.extract_with_context(&Context::new(), &Carrier(headers));
        let wall = self.clock.wall();
        let began = wall.checked_sub(self.clock.now().since(received)).unwrap_or(wall);
        let builder = SpanBuilder::from_name("gateway.request").with_kind(SpanKind::Server).with_start_time(began);
        let span = self.tracer.build_with_context(builder, &parent);
        let context = parent.with_span(span);
        let recording = context.span().is_recording();
        let has_parent = parent.span().span_context().is_valid();
        (recording || !has_parent).then(|| {
            let traces = Arc::clone(self);
            Box::new(RequestTrace { traces, context, recording, received, began, decided: None, laps: None })
        })
    }

    /// Spans recorded, exported, and lost because the collector did not take them.
    pub fn counts(&self) -> [u64; 3] {
        self.counts.get()
    }

    /// Exports what waits, within `patience`. Blocks: call it off the runtime's threads.
    pub fn shutdown(&self, patience: Duration) {
        // What could not be exported was counted, and the exporter logged why.
        let _ = self.provider.shutdown_with_timeout(patience);
    }
}

/// The headers that carry a trace, of bounded length.
struct Carrier<'a>(&'a Headers);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let most = if key == "traceparent" { MAX_TRACEPARENT } else { MAX_TRACESTATE };
        self.0.get(key).filter(|value| value.len() <= most)
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// One request of a trace. Dropped without [`Self::end`] it leaves its own span and none below.
pub struct RequestTrace {
    traces: Arc<Traces>,
    /// Holds the span `gateway.request`.
    context: Context,
    recording: bool,
    /// The same moment by both clocks.
    received: Timestamp,
    began: SystemTime,
    decided: Option<(Timestamp, Timestamp)>,
    laps: Option<Laps>,
}

impl RequestTrace {
    /// Whether spans are recorded; if not, [`Self::traceparent`] is all that this is good for.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// The `traceparent` for the model server.
    pub fn traceparent(&self) -> String {
        let span = self.context.span();
        let context = span.span_context();
        format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8() & 1)
    }

    /// When the decision, parsing included, began and ended.
    pub fn decided(&mut self, began: Timestamp, ended: Timestamp) {
        self.decided = Some((began, ended));
    }

    /// What was observed of the decision.
    pub fn observed(&mut self, laps: Laps) {
        self.laps = Some(laps);
    }

    /// Makes the spans of a request that ended at `now`. `kinds` are plugin types by name.
    pub fn end(self, line: &AccessLine<'_>, kinds: &[(Arc<str>, &'static str)], now: Timestamp) {
        if !self.recording {
            return;
        }
        if let Some((began, ended)) = self.decided {
            self.decision(line, kinds, began, ended);
        }
        let span = self.context.span();
        span.set_attributes(request_attributes(line));
        if let Some(at) = line.ttft {
            span.add_event_with_timestamp("first_token", self.began + at, Vec::new());
        }
        if let Some(problem) = problem(line) {
            span.set_status(Status::error(problem));
        }
        span.end_with_timestamp(self.wall(now));
    }

    fn decision(&self, line: &AccessLine<'_>, kinds: &[(Arc<str>, &'static str)], began: Timestamp, ended: Timestamp) {
        let mut attributes =
            vec![KeyValue::new("target_model", text(line.target_model)), count("request_prio", line.priority)];
        if let Some(predicted) = line.predicted_cached_tokens {
            attributes.push(count("llm_d.epp.predicted_cached_tokens", predicted));
        }
        let context = self.child(&self.context, "gateway.request_orchestration", began, ended, attributes);
        if let Some(rejection) = line.rejection {
            context.span().set_status(Status::error(clipped(&rejection.to_string()).into_owned()));
        }
        if let Some(observed) = &self.laps {
            self.steps(&context, line, kinds, observed);
        }
        self.end_child(&context, ended);
    }

    /// The spans of what the decision consisted of.
    fn steps(&self, parent: &Context, line: &AccessLine<'_>, kinds: &[(Arc<str>, &'static str)], observed: &Laps) {
        for lap in &observed.laps {
            let name = match lap.point {
                "DataProducer" => "index_lookup",
                "PreRequest" => "index_add",
                _ => continue,
            };
            if kind_of(kinds, &lap.name).ends_with("-prefix-cache-producer") {
                let attributes = vec![KeyValue::new("llm_d.epp.producer.name", text(&lap.name))];
                self.whole(parent, name, lap.started, lap_end(lap), attributes);
            }
        }
        for run in &observed.runs {
            self.run(parent, line, kinds, run, observed.laps.get(run.laps.clone()).unwrap_or_default());
        }
    }

    /// The spans of one run of a profile.
    fn run(
        &self,
        parent: &Context,
        line: &AccessLine<'_>,
        kinds: &[(Arc<str>, &'static str)],
        run: &Run,
        laps: &[Lap],
    ) {
        let name = vec![KeyValue::new("llm_d.epp.scheduling.profile.name", text(&run.profile))];
        let context = self.child(parent, "run_scheduler_profile", run.started, run.ended, name);
        let request = || {
            vec![
                KeyValue::new("gen_ai.request.id", text(line.request_id)),
                KeyValue::new("gen_ai.request.model", text(line.target_model)),
            ]
        };
        let of = |point: &'static str| laps.iter().filter(move |lap| lap.point == point);
        let left = run.candidates.len();

        let filtered = of("Filter").next_back().map_or(run.started, lap_end);
        let mut attributes = request();
        attributes.push(count("llm_d.epp.filter.candidate_endpoints", run.base));
        attributes.push(count("llm_d.epp.filter.filtered_endpoints", left));
        self.whole(&context, "filter_endpoints", run.started, filtered, attributes);

        if let (Some(first), Some(last)) = (of("Scorer").next(), of("Scorer").next_back()) {
            let mut attributes = request();
            attributes.push(count("llm_d.epp.scorer.count", run.scorers.len()));
            attributes.push(count("llm_d.epp.scoring.candidate_endpoints", left));
            let scoring = self.child(&context, "llm_d.epp.scoring", first.started, lap_end(last), attributes);
            for (i, (lap, (scorer, weight))) in of("Scorer").zip(&run.scorers).enumerate() {
                let values = run.values.get(i * left..(i + 1) * left).unwrap_or_default();
                let kind = kind_of(kinds, scorer);
                let attributes = scorer_attributes(scorer, kind, *weight, values);
                self.whole(&scoring, format!("llm_d.epp.scorer.{kind}"), lap.started, lap_end(lap), attributes);
            }
            self.end_child(&scoring, lap_end(last));
        }

        if let Some(lap) = of("Picker").next() {
            let mut attributes = request();
            attributes.push(count("llm_d.epp.picker.candidate_endpoints", left));
            let (names, scores) = top(run);
            attributes.push(KeyValue::new("llm_d.epp.picker.top_endpoints", Value::Array(Array::String(names))));
            attributes.push(KeyValue::new("llm_d.epp.picker.top_scores", Value::Array(Array::F64(scores))));
            self.whole(&context, "pick_endpoints", lap.started, lap_end(lap), attributes);
        }
        self.end_child(&context, run.ended);
    }

    /// A span below `parent` that still has to be ended.
    fn child(
        &self,
        parent: &Context,
        name: impl Into<Cow<'static, str>>,
        began: Timestamp,
        ended: Timestamp,
        attributes: Vec<KeyValue>,
    ) -> Context {
        debug_assert!(began <= ended);
        let builder = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Internal)
            .with_start_time(self.wall(began))
            .with_attributes(attributes);
        parent.with_span(self.traces.tracer.build_with_context(builder, parent))
    }

    fn end_child(&self, context: &Context, ended: Timestamp) {
        context.span().end_with_timestamp(self.wall(ended));
    }

    /// A span without children.
    fn whole(
        &self,
        parent: &Context,
        name: impl Into<Cow<'static, str>>,
        began: Timestamp,
        ended: Timestamp,
        attributes: Vec<KeyValue>,
    ) {
        self.end_child(&self.child(parent, name, began, ended, attributes), ended);
    }

    /// Wall time of a moment after the request's headers came.
    fn wall(&self, at: Timestamp) -> SystemTime {
        self.began + at.since(self.received)
    }
}

/// The type of the plugin called `name`, or nothing.
pub fn kind_of(kinds: &[(Arc<str>, &'static str)], name: &str) -> &'static str {
    kinds.iter().find(|(known, _)| **known == *name).map_or("", |(_, kind)| kind)
}

fn lap_end(lap: &Lap) -> Timestamp {
    Timestamp(lap.started.0.saturating_add(u64::try_from(lap.took.as_micros()).unwrap_or(u64::MAX)))
}

fn request_attributes(line: &AccessLine<'_>) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new("gen_ai.request.id", text(line.request_id)),
        KeyValue::new("gen_ai.request.model", text(line.model)),
        KeyValue::new("url.path", text(line.path)),
        KeyValue::new("llm_d.epp.outcome", line.outcome.as_str()),
        count("http.request.body.size", line.request_bytes),
        count("http.response.body.size", line.response_bytes),
    ];
    let texts = [
        ("http.request.method", line.method),
        ("llm_d.epp.endpoint", line.endpoint),
        ("llm_d.epp.served_by", line.served_by),
        ("llm_d.epp.objective", line.objective),
        ("error.type", line.rejection.map(Rejection::code)),
    ];
    all.extend(texts.into_iter().filter_map(|(key, value)| Some(KeyValue::new(key, text(value?)))));
    let counts = [
        ("http.response.status_code", line.status.map(u64::from)),
        ("gen_ai.usage.input_tokens", line.usage.prompt_tokens),
        ("gen_ai.usage.output_tokens", line.usage.completion_tokens),
        ("gen_ai.usage.cache_read.input_tokens", line.usage.cached_tokens),
    ];
    all.extend(counts.into_iter().filter_map(|(key, value)| Some(count(key, value?))));
    all
}

fn scorer_attributes(name: &str, kind: &'static str, weight: f32, values: &[f32]) -> Vec<KeyValue> {
    let most = values.iter().copied().fold(0.0_f32, f32::max);
    let sum: f64 = values.iter().copied().map(f64::from).sum();
    vec![
        KeyValue::new("llm_d.epp.scorer.type", kind),
        KeyValue::new("llm_d.epp.scorer.name", text(name)),
        KeyValue::new("llm_d.epp.scorer.weight", f64::from(weight)),
        count("llm_d.epp.scorer.candidate_endpoints", values.len()),
        KeyValue::new("llm_d.epp.scorer.score.max", f64::from(most)),
        KeyValue::new("llm_d.epp.scorer.score.avg", sum / values.len().max(1) as f64),
        count("llm_d.epp.scorer.endpoints_scored", values.iter().filter(|v| **v > 0.0).count()),
    ]
}

/// The best candidates by their totals, best first, as `namespace/name`.
fn top(run: &Run) -> (Vec<StringValue>, Vec<f64>) {
    let mut order: Vec<usize> = (0..run.totals.len().min(run.candidates.len())).collect();
    order.sort_by(|a, b| run.totals[*b].total_cmp(&run.totals[*a]));
    order.truncate(TOP);
    let named = order.into_iter().filter_map(|i| {
        let endpoint = run.topology.get(run.candidates[i])?;
        Some((format!("{}/{}", endpoint.spec.namespace, endpoint.name()).into(), f64::from(run.totals[i])))
    });
    named.unzip()
}

/// What went wrong, if something did.
fn problem(line: &AccessLine<'_>) -> Option<Cow<'static, str>> {
    if let Some(rejection) = line.rejection {
        return Some(clipped(&rejection.to_string()).into_owned().into());
    }
    match line.outcome {
        Outcome::Completed | Outcome::RoutedOnly => None,
        other => Some(other.as_str().into()),
    }
}

fn text(value: &str) -> Value {
    Value::String(clipped(value).into_owned().into())
}

fn clipped(value: &str) -> Cow<'_, str> {
    if value.len() <= MAX_TEXT {
        return Cow::Borrowed(value);
    }
    let mut end = MAX_TEXT;
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}…", &value[..end]))
}

fn count(key: &'static str, value: impl TryInto<i64>) -> KeyValue {
    KeyValue::new(key, value.try_into().unwrap_or(i64::MAX))
}
