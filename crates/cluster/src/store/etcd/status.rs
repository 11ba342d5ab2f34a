//! What an error from etcd means. Codes alone do not say it, so etcd's own words decide first.

use std::error::Error as _;
use std::io::ErrorKind;

use etcd_client::Error as Raw;
use tonic::Code;

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Surely not done, and another endpoint or another moment may do it.
    NotDone,
    /// Perhaps done, and the connection is not to be trusted.
    Broken,
    /// The lease is gone.
    LeaseGone,
    /// Access is refused.
    Auth,
    /// The history asked for is compacted.
    Compacted,
    /// etcd can be reached and does not do this; nothing was changed.
    Refused,
    /// The configuration cannot work.
    Config,
}

/// Parts of etcd's messages, and what they mean.
const WORDS: [(&str, Verdict); 22] = [
    ("requested lease not found", Verdict::LeaseGone),
    ("lease not found", Verdict::LeaseGone),
    ("invalid auth token", Verdict::NotDone),
    ("revision of auth store is old", Verdict::NotDone),
    ("permission denied", Verdict::Auth),
    ("authentication failed", Verdict::Auth),
    ("authentication is not enabled", Verdict::Auth),
    ("user name is empty", Verdict::Auth),
    ("user name not found", Verdict::Auth),
    ("has been compacted", Verdict::Compacted),
    ("future revision", Verdict::Refused),
    ("duplicate key", Verdict::Refused),
    ("too many operations", Verdict::Refused),
    ("request is too large", Verdict::Refused),
    ("key is not provided", Verdict::Refused),
    ("too large TTL", Verdict::Refused),
    // Not the request's fault: the operator can make space, and then it works.
    ("database space exceeded", Verdict::NotDone),
    ("too many requests", Verdict::NotDone),
    ("etcdserver: no leader", Verdict::NotDone),
    ("not capable", Verdict::NotDone),
    ("invalid peer certificate", Verdict::NotDone),
    ("tcp connect error", Verdict::NotDone),
];

pub(super) fn judge(error: &Raw) -> Verdict {
    let message = explain(error);
    if let Some((_, verdict)) = WORDS.iter().find(|(word, _)| message.contains(word)) {
        return *verdict;
    }
    match error {
        Raw::InvalidArgs(_) | Raw::InvalidUri(_) | Raw::InvalidMetadataValue(_) | Raw::EndpointsNotManaged => {
            Verdict::Config
        }
        Raw::GRpcStatus(status) if never_connected(status) => Verdict::NotDone,
        Raw::GRpcStatus(status) => match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => Verdict::Auth,
            Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => Verdict::Refused,
            _ => Verdict::Broken,
        },
        _ => Verdict::Broken,
    }
}

/// Whether the system refused the connection, so that nothing can have been sent.
fn never_connected(status: &tonic::Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(kind, Some(ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)) {
            return true;
        }
        source = error.source();
    }
    false
}

/// The whole story: tonic hides the cause behind "transport error".
pub(super) fn explain(error: &Raw) -> String {
    let mut text = match error {
        Raw::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    let mut source = match error {
        Raw::GRpcStatus(status) => status.source(),
        Raw::TransportError(error) => error.source(),
        _ => None,
    };
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_s_words_outrank_codes() {
        let judged = |code, message: &str| judge(&Raw::GRpcStatus(tonic::Status::new(code, message)));
        assert_eq!(judged(Code::NotFound, "etcdserver: requested lease not found"), Verdict::LeaseGone);
        assert_eq!(judged(Code::Unauthenticated, "etcdserver: invalid auth token"), Verdict::NotDone);
        assert_eq!(judged(Code::InvalidArgument, "etcdserver: user name is empty"), Verdict::Auth);
        assert_eq!(judged(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"), Verdict::Compacted);
        assert_eq!(judged(Code::Unavailable, "etcdserver: request timed out"), Verdict::Broken);
        assert_eq!(judged(Code::InvalidArgument, "etcdserver: something new"), Verdict::Refused);
    }
}
