//! Where spans go: a batch processor with a bounded queue on a thread of its own, and an OTLP exporter
//! over gRPC.
//!
//! A collector that is away, slow or refusing costs the requests nothing: a full queue drops spans, and
//! what went wrong is logged at most once a minute. Everything is counted.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{Compression, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
};

use crate::lifecycle::clock::Clock;

/// Least time between two log lines about a collector.
const QUIET: Duration = Duration::from_secs(60);

/// Which requests are recorded (`OTEL_TRACES_SAMPLER`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Share of the requests that nobody decided about, 0 to 1.
    pub ratio: f64,
    /// Whether the decision in the request's `traceparent` counts.
    pub follows_parent: bool,
}

impl From<Sampling> for Sampler {
    fn from(Sampling { ratio, follows_parent }: Sampling) -> Self {
        let root = match ratio {
            ratio if ratio >= 1.0 => Sampler::AlwaysOn,
            ratio if ratio > 0.0 => Sampler::TraceIdRatioBased(ratio),
            _ => Sampler::AlwaysOff,
        };
        if follows_parent { Sampler::ParentBased(Box::new(root)) } else { root }
    }
}

/// A collector and how it is fed.
#[derive(Clone, Debug, PartialEq)]
pub struct Exporter {
    /// `http://` or `https://`, host and port.
    pub endpoint: String,
    /// Headers of each call.
    pub headers: Vec<(String, String)>,
    /// Longest time of one export, retries included.
    pub timeout: Duration,
    /// Whether calls are compressed with gzip.
    pub gzip: bool,
    /// PEM file of the authorities for `https`; otherwise the system's.
    pub certificate: Option<PathBuf>,
    /// Which requests are recorded.
    pub sampling: Sampling,
    /// Attributes of this process; `service.name` among them.
    pub resource: Vec<(String, String)>,
    /// Spans that may wait; further ones are dropped.
    pub queue: usize,
    /// Spans of one export at most.
    pub batch: usize,
    /// Longest time that a span waits for others.
    pub delay: Duration,
}

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The file of authorities cannot be read.
    #[error("the certificate {} cannot be read: {source}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The exporter refuses its settings.
    #[error("the exporter for {endpoint} cannot be made: {message}")]
    Settings {
        /// The collector.
        endpoint: String,
        /// What it says.
        message: String,
    },
}

impl Exporter {
    pub(super) fn provider(
        &self,
        clock: &Arc<dyn Clock>,
        counts: &Arc<Counts>,
    ) -> Result<SdkTracerProvider, ExportError> {
        let wrong = |message: String| ExportError::Settings { endpoint: self.endpoint.clone(), message };
        let mut builder = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&self.endpoint)
            .with_timeout(self.timeout)
            .with_metadata(self.metadata().map_err(wrong)?);
        if self.gzip {
            builder = builder.with_compression(Compression::Gzip);
        }
        if self.endpoint.starts_with("https://") {
            let mut tls = ClientTlsConfig::new();
            match &self.certificate {
                Some(path) => {
                    let pem = std::fs::read(path)
                        .map_err(|source| ExportError::Certificate { path: path.clone(), source })?;
                    tls = tls.ca_certificate(Certificate::from_pem(pem));
                }
                None => tls = tls.with_native_roots(),
            }
            builder = builder.with_tls_config(tls);
        }
        let exporter = builder.build().map_err(|error| wrong(error.to_string()))?;
        let watched = Watched {
            exporter,
            endpoint: self.endpoint.clone(),
            clock: Arc::clone(clock),
            counts: Arc::clone(counts),
            logged_at: AtomicU64::new(0),
        };
        Ok(self.provider_over(watched, counts))
    }

    pub(super) fn provider_over(
        &self,
        exporter: impl SpanExporter + 'static,
        counts: &Arc<Counts>,
    ) -> SdkTracerProvider {
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(self.queue.max(1))
            .with_max_export_batch_size(self.batch.clamp(1, self.queue.max(1)))
            .with_scheduled_delay(self.delay.max(Duration::from_millis(10)));
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batch.build()).build();
        let attributes = self.resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        SdkTracerProvider::builder()
            .with_sampler(Sampler::from(self.sampling))
            .with_resource(Resource::builder_empty().with_attributes(attributes).build())
            .with_span_processor(Counting { processor, counts: Arc::clone(counts) })
            .build()
    }

    fn metadata(&self) -> Result<opentelemetry_otlp::tonic_types::metadata::MetadataMap, String> {
        let mut headers = http::HeaderMap::new();
        for (name, value) in &self.headers {
            let parsed = (name.parse::<http::HeaderName>(), value.parse::<http::HeaderValue>());
            let (Ok(name), Ok(value)) = parsed else { return Err(format!("`{name}` cannot be sent as a header")) };
            headers.append(name, value);
        }
        Ok(opentelemetry_otlp::tonic_types::metadata::MetadataMap::from_headers(headers))
    }
}

/// What became of the spans.
#[derive(Debug, Default)]
pub(super) struct Counts {
    recorded: AtomicU64,
    exported: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    pub(super) fn get(&self) -> [u64; 3] {
        [&self.recorded, &self.exported, &self.failed].map(|count| count.load(Ordering::Relaxed))
    }
}

/// Counts what the batch processor is given.
#[derive(Debug)]
struct Counting {
    processor: BatchSpanProcessor,
    counts: Arc<Counts>,
}

impl SpanProcessor for Counting {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.processor.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        self.counts.recorded.fetch_add(1, Ordering::Relaxed);
        self.processor.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// Counts what the exporter does and says, rarely, that it cannot.
struct Watched<E> {
    exporter: E,
    endpoint: String,
    clock: Arc<dyn Clock>,
    counts: Arc<Counts>,
    /// Microseconds of the clock plus one; zero is never.
    logged_at: AtomicU64,
}

impl<E> std::fmt::Debug for Watched<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.exporter.export(batch).await;
        match &result {
            Ok(()) => {
                self.counts.exported.fetch_add(spans, Ordering::Relaxed);
                if self.logged_at.swap(0, Ordering::Relaxed) > 0 {
                    tracing::info!(endpoint = self.endpoint, "the trace collector takes spans again");
                }
            }
            Err(error) => {
                let lost = self.counts.failed.fetch_add(spans, Ordering::Relaxed) + spans;
                let (now, last) = (self.clock.now().0.saturating_add(1), self.logged_at.load(Ordering::Relaxed));
                if last == 0 || now.saturating_sub(last) >= QUIET.as_micros() as u64 {
                    self.logged_at.store(now, Ordering::Relaxed);
                    tracing::warn!(
                        endpoint = self.endpoint,
                        error = %error,
                        spans_lost = lost,
                        "the trace collector does not take spans; requests are not affected"
                    );
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::clock::ManualClock;
    use crate::telemetry::log::LogOptions;
    use crate::telemetry::log::tests::lines;
    use opentelemetry_sdk::error::OTelSdkError;

    #[derive(Debug)]
    struct Flaky(std::sync::atomic::AtomicBool);

    impl SpanExporter for Flaky {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            if self.0.load(Ordering::Relaxed) { Ok(()) } else { Err(OTelSdkError::InternalFailure("away".into())) }
        }
    }

    #[test]
    fn a_collector_that_is_away_is_mentioned_once_a_minute() {
        let clock = Arc::new(ManualClock::default());
        let watched = Watched {
            exporter: Flaky(false.into()),
            endpoint: "http://collector:4317".into(),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            counts: Arc::default(),
            logged_at: AtomicU64::new(0),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let said = lines(LogOptions::default(), |_| {
            // Two minutes of an export every five seconds.
            for _ in 0..24 {
                assert!(runtime.block_on(watched.export(Vec::new())).is_err());
                clock.advance(Duration::from_secs(5));
            }
            watched.exporter.0.store(true, Ordering::Relaxed);
            for _ in 0..3 {
                runtime.block_on(watched.export(Vec::new())).unwrap();
            }
        });
        assert_eq!(said.len(), 3, "{said:#?}");
        assert!(said[0].contains("does not take spans") && said[2].contains("takes spans again"), "{said:#?}");
    }

    #[test]
    fn headers_that_cannot_be_sent_are_refused() {
        let exporter = Exporter {
            endpoint: "http://localhost:4317".into(),
            headers: vec![("a b".into(), "c".into())],
            timeout: Duration::from_secs(1),
            gzip: false,
            certificate: None,
            sampling: Sampling { ratio: 1.0, follows_parent: true },
            resource: Vec::new(),
            queue: 10,
            batch: 10,
            delay: Duration::from_secs(1),
        };
        assert!(exporter.metadata().unwrap_err().contains("a b"));
    }
}
