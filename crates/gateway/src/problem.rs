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
        Problem { status, retry_after: None, error: Error { message: message.into(), kind, param: None, code: None } }
    }

    /// A parameter that cannot be used.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut problem = Problem::new(StatusCode::BAD_REQUEST, message);
        problem.error.param = Some(param.into());
        problem.error.code = Some("invalid_value");
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

    /// With the parameter at fault renamed: what callers of this door call it.
    #[must_use]
    pub fn renamed(mut self, rename: impl FnOnce(&str) -> String) -> Self {
        if let Some(param) = &mut self.error.param {
            *param = rename(param);
        }
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
        let mut problem = Problem::new(http, status.message());
        problem.error.code = code;
        problem.error.param = janus_wire::status::field(&status);
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
}
