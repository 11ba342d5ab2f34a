//! What went wrong, in the shape that OpenAI's clients expect: `{"error":{"message","type","param","code"}}`.

use std::any::Any;
use std::time::Duration;

use axum::Json;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tonic::{Code, Status};
use utoipa::ToSchema;

/// An answer that says what went wrong.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    retry_after: Option<Duration>,
    error: Error,
}

/// The body of an error.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = ErrorResponse)]
pub(crate) struct Body {
    error: Error,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Error {
    /// In words.
    message: String,
    /// The kind of error.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The parameter at fault.
    param: Option<String>,
    /// For programs.
    code: Option<&'static str>,
}

/// `type` of what the caller can mend.
const INVALID: &str = "invalid_request_error";
/// Longest message in bytes: what was sent may stand in it, and may be as large as a body.
const LONGEST: usize = 500;
/// Fields of a request's header at the coordinator, and what all of HTTP calls them.
const HEADER: [(&str, &str); 3] =
    [("header.model", "model"), ("header.key", "idempotency-key"), ("header.request_id", "x-request-id")];
/// What stands before a caller's key among the cluster's (see `batches`).
const KEY: &str = "openai/";
/// What a worker calls the only picture that it is sent.
const PICTURE: &str = "image";

/// The beginning of what is too long.
fn cut(mut text: String) -> String {
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push_str("...");
    }
    text
}

/// What a message says of `field`, if it begins with that.
fn about<'a>(message: &'a str, field: &str) -> Option<&'a str> {
    message.strip_prefix(field)?.strip_prefix(": ")
}

impl Problem {
    /// A problem with this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => INVALID,
        };
        let error = Error { message: cut(message.into()), kind, param: None, code: None };
        Problem { status, retry_after: None, error }
    }

    /// A parameter that cannot be used.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut problem = Problem::new(StatusCode::BAD_REQUEST, message);
        problem.error.param = Some(cut(param.into()));
        problem.error.code = Some("invalid_value");
        problem
    }

    /// A model that is not served.
    pub(crate) fn unserved(asked: &str, served: &str) -> Self {
        let message = format!("model: `{}` is not served here; `{served}` is", janus_wire::status::shown(asked));
        let mut problem = Problem::not_found(message).code("model_not_found");
        problem.error.param = Some("model".to_owned());
        problem
    }

    /// What is asked for does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Problem::new(StatusCode::NOT_FOUND, message).code("not_found")
    }

    /// With a word for programs.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.error.code = Some(code);
        self
    }

    /// With the time after which trying again may help.
    #[must_use]
    pub fn retry(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// With the parameter at fault renamed, in the message too: what callers of this door call it. Names of HTTP stay.
    #[must_use]
    pub fn renamed(mut self, rename: impl FnOnce(&str) -> String) -> Self {
        let Some(param) = self.error.param.take() else { return self };
        if HEADER.iter().any(|(_, ours)| *ours == param) {
            self.error.param = Some(param);
            return self;
        }
        let ours = rename(&param);
        // Which item of many it is stands in the old name alone.
        if !param.starts_with("items[")
            && let Some(rest) = about(&self.error.message, &param)
        {
            self.error.message = cut(format!("{ours}: {rest}"));
        }
        self.error.param = Some(cut(ours));
        self
    }

    /// It is about something that does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND && self.error.code == Some("not_found")
    }

    /// The caller can mend it.
    pub fn is_callers(&self) -> bool {
        self.status == StatusCode::BAD_REQUEST
    }

    /// In words.
    pub fn message(&self) -> &str {
        &self.error.message
    }

    /// The parameter at fault.
    pub fn param(&self) -> Option<&str> {
        self.error.param.as_deref()
    }

    /// As an event of a stream.
    pub(crate) fn body(&self) -> Body {
        Body { error: self.error.clone() }
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        let (http, code) = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => (StatusCode::BAD_REQUEST, Some("invalid_value")),
            Code::FailedPrecondition => (StatusCode::BAD_REQUEST, Some("failed_precondition")),
            Code::NotFound => (StatusCode::NOT_FOUND, Some("not_found")),
            Code::Unimplemented => (StatusCode::NOT_FOUND, Some("not_supported")),
            Code::AlreadyExists => (StatusCode::CONFLICT, Some("already_exists")),
            Code::Aborted | Code::Cancelled => (StatusCode::CONFLICT, Some("cancelled")),
            Code::Unauthenticated => (StatusCode::UNAUTHORIZED, Some("invalid_api_key")),
            Code::PermissionDenied => (StatusCode::FORBIDDEN, Some("permission_denied")),
            Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded")),
            Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, Some("unavailable")),
            Code::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, Some("timeout")),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, None),
        };
        let (mut message, mut code) = (status.message().to_owned(), code);
        let mut param = janus_wire::status::field(&status);
        if let Some(field) = &param
            && let Some(rest) = about(&message, PICTURE)
        {
            message = format!("{field}: {rest}");
        }
        for (theirs, ours) in HEADER {
            let Some(rest) = about(&message, theirs) else { continue };
            let rest = if theirs == "header.key" { rest.replacen(&format!("`{KEY}"), "`", 1) } else { rest.to_owned() };
            message = format!("{ours}: {rest}");
            param = Some(ours.to_owned());
            if theirs == "header.model" && http == StatusCode::NOT_FOUND {
                code = Some("model_not_found");
            }
        }
        let mut problem = Problem::new(http, message);
        problem.error.code = code;
        problem.error.param = param.map(cut);
        problem.retry_after = janus_wire::status::retry_after(&status);
        problem
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        // Whole seconds, never fewer than asked for.
        let busy = matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let after = self.retry_after.or(busy.then_some(Duration::from_secs(2)));
        if let Some(after) = after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Nothing is at this path.
pub(crate) async fn nowhere(method: Method, uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {method} {}; see /openapi.json", uri.path()))
        .code("unknown_url")
}

/// Something is at this path, for other methods.
pub(crate) async fn other_method(method: Method, uri: Uri) -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} is not for {method}; see /openapi.json", uri.path()))
        .code("method_not_allowed")
}

/// A handler panicked: the connection and all others go on.
pub(crate) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = said.unwrap_or("no message"), "a request's handler panicked");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error; please report it with the x-request-id").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_keeps_its_field_and_its_delay() {
        let problem = Problem::from(janus_wire::status::invalid("keep_rows", "needs an init_image"));
        assert_eq!((problem.status, problem.param()), (StatusCode::BAD_REQUEST, Some("keep_rows")));
        let full = janus_wire::status::exhausted("the queue is full", Duration::from_millis(1500));
        let response = Problem::from(full).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    }

    #[test]
    fn a_message_says_only_so_much_of_what_was_sent() {
        let sent = "\u{e9}".repeat(1 << 20);
        let problem = Problem::invalid(&sent, format!("x{sent}"));
        assert!(problem.message().starts_with('x') && problem.message().ends_with("\u{e9}..."));
        assert_eq!((problem.message().len(), problem.param().map(str::len)), (502, Some(503)));
        let renamed = Problem::invalid("a", "a: b").renamed(|_| sent.clone());
        assert!(renamed.message().len() <= 503 && renamed.param().is_some_and(|param| param.len() <= 503));
        assert!(Problem::from(Status::internal(sent)).message().len() <= 503);
        assert_eq!(Problem::invalid("a", "a: short").message(), "a: short");
    }

    #[test]
    fn a_message_has_the_names_of_this_door() {
        let said = |status: Status| {
            let problem = Problem::from(status).renamed(|field| match field {
                "cfg_weight" => "guidance".to_owned(),
                "items[1].prompt" | "header.files" => "input_file_id".to_owned(),
                other => other.to_owned(),
            });
            (problem.message().to_owned(), problem.param().unwrap_or_default().to_owned(), problem.error.code)
        };
        let invalid = |field: &str| said(janus_wire::status::invalid(field, "is wrong"));
        let expected = |message: &str, param: &str, code| (message.to_owned(), param.to_owned(), Some(code));
        assert_eq!(invalid("cfg_weight"), expected("guidance: is wrong", "guidance", "invalid_value"));
        assert_eq!(invalid("header.files"), expected("input_file_id: is wrong", "input_file_id", "invalid_value"));
        assert_eq!(invalid("header.key"), expected("idempotency-key: is wrong", "idempotency-key", "invalid_value"));
        // Which of the items it is must not be lost.
        assert_eq!(invalid("items[1].prompt"), expected("items[1].prompt: is wrong", "input_file_id", "invalid_value"));
        let blamed = janus_wire::status::blame("init_image", Status::invalid_argument("image: no picture"));
        assert_eq!(said(blamed), expected("init_image: no picture", "init_image", "invalid_value"));
        let used = Status::already_exists("header.key: `openai/k1` is in use with other items");
        let message = "idempotency-key: `k1` is in use with other items";
        assert_eq!(said(used), expected(message, "idempotency-key", "already_exists"));
        let used = Status::already_exists("header.request_id: `a` is in use with other parameters");
        let message = "x-request-id: `a` is in use with other parameters";
        assert_eq!(said(used), expected(message, "x-request-id", "already_exists"));
        let model = Status::not_found("header.model: `a` is not served here; `b` is");
        assert_eq!(said(model), expected("model: `a` is not served here; `b` is", "model", "model_not_found"));
        assert_eq!(Problem::unserved("a", "b").message(), "model: `a` is not served here; `b` is");
    }
}
