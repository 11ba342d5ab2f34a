//! Pushes metrics and spans to a collector over OTLP. A collector that is away costs what is told meanwhile, never work:
//! queues are bounded, and one line says that it is away and another that it is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, Temporality};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanExporter as Spans};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::failure::{Failure, Outcome};

/// A collector answers within this.
const ANSWER: Duration = Duration::from_secs(5);
/// Metrics are pushed this often, unless OTEL_METRIC_EXPORT_INTERVAL says otherwise.
const INTERVAL: Duration = Duration::from_secs(15);

/// Says once that telling fails, and once that it works again.
#[derive(Debug, Clone)]
struct Mood {
    collector: Arc<str>,
    what: &'static str,
    away: Arc<AtomicBool>,
}

impl Mood {
    fn told(&self, result: OTelSdkResult) -> OTelSdkResult {
        let (collector, what) = (&*self.collector, self.what);
        match (&result, self.away.swap(result.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(collector, %error, "{what} do not reach the collector; trying on"),
            (Ok(()), true) => tracing::warn!(collector, "{what} reach the collector again"),
            _ => {}
        }
        result
    }
}

/// An exporter whose failures are told.
#[derive(Debug)]
struct Told<E>(E, Mood);

impl Spans for Told<SpanExporter> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.1.told(self.0.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

impl PushMetricExporter for Told<MetricExporter> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.1.told(self.0.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.0.temporality()
    }
}

/// What pushes spans and metrics to `url`. To be called inside the runtime that sends.
///
/// # Errors
/// A URL or certificate that cannot be used.
pub(super) fn to(url: &str) -> Outcome<(BatchSpanProcessor, PeriodicReader<impl PushMetricExporter>)> {
    let channel = channel(url)?;
    let mood = |what| Mood { collector: url.into(), what, away: Arc::default() };
    let wrong = |e: opentelemetry_otlp::ExporterBuildError| Failure::mistake(format!("--otlp {url}: {e}"));
    let spans = SpanExporter::builder().with_tonic().with_channel(channel.clone()).with_timeout(ANSWER).build();
    let metrics = MetricExporter::builder().with_tonic().with_channel(channel).with_timeout(ANSWER).build();
    let spans = BatchSpanProcessor::builder(Told(spans.map_err(wrong)?, mood("traces"))).build();
    let mut reader = PeriodicReader::builder(Told(metrics.map_err(wrong)?, mood("metrics")));
    if std::env::var_os("OTEL_METRIC_EXPORT_INTERVAL").is_none() {
        reader = reader.with_interval(INTERVAL);
    }
    Ok((spans, reader.build()))
}

fn channel(url: &str) -> Outcome<Channel> {
    Ok(endpoint(url)?.connect_lazy())
}

/// The collector at `url`.
pub(super) fn endpoint(url: &str) -> Outcome<Endpoint> {
    let wrong =
        |reason: String| Failure::mistake(format!("--otlp {url}: {reason}; expected something like http://127.0.0.1:4317"));
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| wrong(e.to_string()))?;
    let uri = endpoint.uri();
    let endpoint = match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(_)) => endpoint,
        (Some("https"), Some(_)) => {
            let file = std::env::var("OTEL_EXPORTER_OTLP_CERTIFICATE")
                .map_err(|_| wrong("set OTEL_EXPORTER_OTLP_CERTIFICATE to the authority's certificate (PEM)".to_owned()))?;
            let pem = std::fs::read(&file).map_err(|e| wrong(format!("OTEL_EXPORTER_OTLP_CERTIFICATE {file}: {e}")))?;
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            endpoint.tls_config(tls).map_err(|e| wrong(format!("OTEL_EXPORTER_OTLP_CERTIFICATE {file}: {e}")))?
        }
        _ => return Err(wrong("it is no URL of http or https".to_owned())),
    };
    Ok(endpoint.connect_timeout(ANSWER).timeout(ANSWER))
}
