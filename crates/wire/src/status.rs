//! gRPC statuses with the details that machines need (google.rpc error model).

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// INVALID_ARGUMENT with a field violation.
pub fn invalid(field: &str, message: impl Into<String>) -> Status {
    let message = message.into();
    let details = ErrorDetails::with_bad_request_violation(field, &message);
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {message}"), details)
}

/// A node's INVALID_ARGUMENT with the field that its caller can mend; any other status as it is.
pub fn blame(field: &str, status: Status) -> Status {
    if status.code() != Code::InvalidArgument {
        return status;
    }
    let details = ErrorDetails::with_bad_request_violation(field, status.message());
    Status::with_error_details(Code::InvalidArgument, status.message(), details)
}

/// RESOURCE_EXHAUSTED with a delay after which trying again may help.
pub fn exhausted(message: impl Into<String>, retry: Duration) -> Status {
    Status::with_error_details(Code::ResourceExhausted, message, ErrorDetails::with_retry_info(Some(retry)))
}

/// UNAVAILABLE with a delay after which trying again may help.
pub fn unavailable(message: impl Into<String>, retry: Duration) -> Status {
    Status::with_error_details(Code::Unavailable, message, ErrorDetails::with_retry_info(Some(retry)))
}

/// The field that a status blames.
pub fn field(status: &Status) -> Option<String> {
    let details = status.get_error_details();
    let violation = details.bad_request()?.field_violations.first()?;
    Some(violation.field.clone()).filter(|field| !field.is_empty())
}

/// When trying again may help.
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_error_details().retry_info()?.retry_delay
}

/// What a caller sent, as far as it fits into an answer: the words of a status are a header, and headers are short.
pub fn shown(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

/// What a failed call failed of, as far down as anybody knows: tonic's own words for a broken connection say little.
pub fn cause(status: &Status) -> String {
    let mut words = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(inner) = source {
        words = inner.to_string();
        source = inner.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn an_answer_repeats_only_so_much_of_what_was_asked() {
        assert_eq!(shown("janus"), "janus");
        let long = "\u{e9}".repeat(1 << 20);
        assert!(shown(&long).len() < 200 && shown(&long).ends_with("(2097152 bytes)"));
    }
}
