//! What can be seen of this process from outside: log lines, metrics and traces. Parts of the program say what happens
//! through `tracing` and the API of OpenTelemetry; here is decided who hears of it. Without a flag nobody does, and
//! nothing is counted.

mod export;
mod process;
mod scrape;

use std::io::IsTerminal;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use opentelemetry::{KeyValue, global};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus::Registry;
use tokio::runtime::Runtime;
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::{LogFormat, Sight};
use crate::failure::{Failure, Outcome};
use crate::output;

/// What is left to tell at the end may take so long.
const FAREWELL: Duration = Duration::from_secs(2);

/// Everything that tells others about this process; says its last words when it is dropped.
#[derive(Default)]
pub(crate) struct Telemetry {
    /// Where metrics can be read, and what is read there.
    metrics: Option<(SocketAddr, Registry)>,
    meters: Option<SdkMeterProvider>,
    tracers: Option<SdkTracerProvider>,
    /// Sends and answers on a thread of its own; the last to go.
    _runtime: Option<Runtime>,
}

/// What is wrong with the flags, without anything that is started.
///
/// # Errors
/// A collector's URL or certificate, or an address of metrics, that cannot be used.
pub(crate) fn check(sight: &Sight) -> Outcome {
    if let Some(address) = &sight.metrics {
        address.to_socket_addrs().map_err(|e| Failure::mistake(format!("--metrics {address}: {e}; expected host:port")))?;
    }
    sight.collector().map_or(Ok(()), |url| export::endpoint(&url).map(drop))
}

/// Log lines alone, from `level` on or what JANUS_LOG asks for.
pub(crate) fn log(format: LogFormat, level: &str) -> Telemetry {
    tracing_subscriber::registry().with(lines(format, level)).init();
    Telemetry::default()
}

/// Log lines, and whatever the flags ask for. `name` is what the process is called, if it was told.
///
/// # Errors
/// Addresses that cannot be used.
pub(crate) fn start(sight: &Sight, level: &str, service: &'static str, name: Option<&str>) -> Outcome<Telemetry> {
    let collector = sight.collector();
    if !sight.counts() {
        return Ok(log(sight.log_format, level));
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("telemetry").enable_all().build();
    let runtime = runtime.map_err(|e| Failure::Broken(format!("no runtime: {e}")))?;
    let instance = name.map_or_else(|| format!("{}:{}", process::host(), std::process::id()), str::to_owned);
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(KeyValue::new("service.instance.id", instance))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();

    let mut meters = SdkMeterProvider::builder().with_resource(resource.clone());
    let mut metrics = None;
    if let Some(address) = &sight.metrics {
        let (reader, registry) = scrape::reader()?;
        meters = meters.with_reader(reader);
        let address = runtime.block_on(scrape::serve(address, registry.clone()))?;
        metrics = Some((address, registry));
    }
    let mut tracers = None;
    if let Some(url) = &collector {
        let _inside = runtime.enter();
        let (spans, measurements) = export::to(url)?;
        meters = meters.with_reader(measurements);
        tracers = Some(SdkTracerProvider::builder().with_resource(resource).with_span_processor(spans).build());
    }
    let meters = meters.build();
    global::set_meter_provider(meters.clone());
    process::observe();
    let spans = tracers.as_ref().map(|tracers| {
        global::set_text_map_propagator(TraceContextPropagator::new());
        global::set_tracer_provider(tracers.clone());
        let ours = ["janus", "janus_coordinator", "janus_gateway", "janus_wire", "janus_worker"];
        let ours: Targets = ours.into_iter().map(|name| (name, Level::INFO)).collect();
        let tracer = opentelemetry::trace::TracerProvider::tracer(tracers, "janus");
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        layer.with_location(false).with_threads(false).with_tracked_inactivity(false).with_filter(ours).boxed()
    });
    tracing_subscriber::registry().with(spans).with(lines(sight.log_format, level)).init();
    Ok(Telemetry { metrics, meters: Some(meters), tracers, _runtime: Some(runtime) })
}

impl Telemetry {
    /// Says where metrics can be read, after whatever a server's first line is.
    pub(crate) fn announce(&self) {
        if let Some((address, _)) = &self.metrics {
            output::print_line(&format!("metrics {address}"));
        }
    }

    /// What gives the metrics of this process as text, if they are served.
    pub(crate) fn scrape(&self) -> Option<impl Fn() -> String + Send + Sync + use<>> {
        let (_, registry) = self.metrics.clone()?;
        Some(move || scrape::text(&registry).unwrap_or_else(|error| format!("# {error}\n")))
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        // A collector that is gone is not worth waiting for, nor worth an error at the very end.
        if let Some(tracers) = &self.tracers {
            let _ = tracers.shutdown_with_timeout(FAREWELL);
        }
        if let Some(meters) = &self.meters {
            let _ = meters.shutdown_with_timeout(FAREWELL);
        }
    }
}

/// The layer that writes log lines.
fn lines<S>(format: LogFormat, level: &str) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let filter = EnvFilter::try_from_env("JANUS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => layer.with_ansi(std::io::stderr().is_terminal()).with_filter(filter).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).with_filter(filter).boxed(),
    }
}
