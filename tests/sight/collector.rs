//! An OpenTelemetry collector that remembers what it is told.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{MetricsService, MetricsServiceServer};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::Notify;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::up::LONG;

/// A span and who told it.
#[derive(Debug, Clone)]
pub struct Told {
    pub service: String,
    pub instance: String,
    pub span: Span,
}

impl Told {
    /// A whole number among its attributes.
    pub fn number(&self, key: &str) -> i64 {
        match value(&self.span.attributes, key) {
            Some(Value::IntValue(number)) => number,
            other => panic!("{key} is {other:?} in {self:?}"),
        }
    }
}

#[derive(Default)]
struct Heard {
    spans: Vec<Told>,
    /// Instance and name of each metric.
    metrics: Vec<(String, String)>,
}

/// A running collector.
#[derive(Clone, Default)]
pub struct Collector {
    heard: Arc<Mutex<Heard>>,
    more: Arc<Notify>,
}

impl Collector {
    /// Starts one; its URL.
    pub async fn start() -> (Collector, String) {
        let collector = Collector::default();
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", incoming.local_addr().unwrap());
        let router = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(MetricsServiceServer::new(collector.clone()));
        tokio::spawn(router.serve_with_incoming(incoming));
        (collector, url)
    }

    /// All spans of a trace so far.
    pub fn trace(&self, id: [u8; 16]) -> Vec<Told> {
        let heard = self.heard.lock().unwrap();
        heard.spans.iter().filter(|told| told.span.trace_id == id).cloned().collect()
    }

    pub fn metrics(&self) -> Vec<(String, String)> {
        self.heard.lock().unwrap().metrics.clone()
    }

    /// Waits until `found` finds what it looks for.
    pub async fn until<T>(&self, what: &str, found: impl Fn(&Collector) -> Option<T>) -> T {
        let until = Instant::now() + LONG;
        loop {
            let more = self.more.notified();
            if let Some(found) = found(self) {
                return found;
            }
            let left = until.saturating_duration_since(Instant::now());
            if tokio::time::timeout(left, more).await.is_err() {
                let heard = self.heard.lock().unwrap();
                let spans: Vec<_> = heard.spans.iter().map(|t| (&t.instance, &t.span.name, &t.span.trace_id)).collect();
                panic!("never told: {what}; told were {spans:?}");
            }
        }
    }
}

fn value(attributes: &[KeyValue], key: &str) -> Option<Value> {
    attributes.iter().find(|kv| kv.key == key)?.value.clone()?.value
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{key} is {other:?}"),
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for told in request.into_inner().resource_spans {
            let resource = told.resource.unwrap_or_default().attributes;
            let (service, instance) = (text(&resource, "service.name"), text(&resource, "service.instance.id"));
            let spans = told.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let told = spans.map(|span| Told { service: service.clone(), instance: instance.clone(), span });
            self.heard.lock().unwrap().spans.extend(told);
        }
        self.more.notify_waiters();
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        for told in request.into_inner().resource_metrics {
            let instance = text(&told.resource.unwrap_or_default().attributes, "service.instance.id");
            let metrics = told.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
            self.heard.lock().unwrap().metrics.extend(metrics.map(|metric| (instance.clone(), metric.name)));
        }
        self.more.notify_waiters();
        Ok(Response::new(Default::default()))
    }
}
