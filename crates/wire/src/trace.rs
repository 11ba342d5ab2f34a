//! Trace context between processes: W3C `traceparent` in gRPC metadata, and in the frames of the steps that are traced.
//!
//! The binary installs a propagator; without one nothing is read and nothing is sent.

use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context, global};
use tonic::Request;
use tonic::metadata::{KeyRef, MetadataKey, MetadataMap};

const TRACEPARENT: &str = "traceparent";

struct Read<'a>(&'a MetadataMap);

impl Extractor for Read<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        let text = |key| match key {
            KeyRef::Ascii(key) => Some(key.as_str()),
            KeyRef::Binary(_) => None,
        };
        self.0.keys().filter_map(text).collect()
    }
}

struct Write<'a>(&'a mut MetadataMap);

impl Injector for Write<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

/// A frame has room for one of the fields.
struct Field<T>(T);

impl Extractor for Field<&str> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

impl Injector for Field<String> {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT {
            self.0 = value;
        }
    }
}

/// The caller's context, as its metadata say.
pub fn received(metadata: &MetadataMap) -> Context {
    global::get_text_map_propagator(|propagator| propagator.extract_with_context(&Context::new(), &Read(metadata)))
}

/// A request in the current context.
pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let context = Context::current();
    if context.has_active_span() {
        global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut Write(request.metadata_mut()));
        });
    }
    request
}

/// What a frame says of `context`; empty if there is nothing to say.
pub fn traceparent(context: &Context) -> String {
    let mut field = Field(String::new());
    global::get_text_map_propagator(|propagator| propagator.inject_context(context, &mut field));
    field.0
}

/// What a frame's `traceparent` stands for; none if it is empty, unreadable, or of a trace that nobody keeps.
pub fn context(traceparent: &str) -> Option<Context> {
    if traceparent.is_empty() {
        return None;
    }
    let context =
        global::get_text_map_propagator(|propagator| propagator.extract_with_context(&Context::new(), &Field(traceparent)));
    context.span().span_context().is_sampled().then_some(context)
}
