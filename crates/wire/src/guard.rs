//! Who may call what of the services that nodes offer to each other: by the role in the caller's certificate. On plain
//! connections, which are for loopback and trusted networks, everybody may.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::connection::Origin;
use crate::tls::{Role, Roles};

const COORDINATOR: Roles = Roles::of(&[Role::Coordinator]);

/// Every method of a node, and the roles that may call it. What does not stand here is refused.
const GRANTS: [(&str, Roles); 15] = [
    // Frames come from the stage before; the first one's from the coordinator.
    ("/janus.v1.Stage/Link", Roles::of(&[Role::Coordinator, Role::Stage])),
    ("/janus.v1.Stage/Results", COORDINATOR),
    ("/janus.v1.Stage/Prepare", COORDINATOR),
    ("/janus.v1.Stage/Configure", COORDINATOR),
    ("/janus.v1.Stage/PutFeatures", Roles::of(&[Role::Encoder])),
    ("/janus.v1.Stage/Logs", COORDINATOR),
    ("/janus.v1.Stage/Describe", COORDINATOR),
    // A worker that starts asks whether another one has its name; all measure the way to each other.
    ("/janus.v1.Node/Identify", Roles::NODES),
    ("/janus.v1.Node/Drain", COORDINATOR),
    ("/janus.v1.Encoder/Understand", COORDINATOR),
    ("/janus.v1.Encoder/Tokenize", COORDINATOR),
    ("/janus.v1.Decoder/Palette", COORDINATOR),
    ("/janus.v1.Decoder/Decode", COORDINATOR),
    ("/janus.v1.Weights/Manifest", Roles::NODES),
    ("/janus.v1.Weights/Read", Roles::NODES),
];

/// A service whose methods are called by those alone who may.
#[derive(Debug, Clone)]
pub struct Guarded<S>(pub S);

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

fn check(path: &str, origin: Option<&Origin>) -> Result<(), Status> {
    // Whoever serves without a Listener has taken the guard's eyes.
    let Some(origin) = origin else { return Err(Status::permission_denied("nobody knows where this call comes from")) };
    if !origin.encrypted {
        return Ok(());
    }
    let allowed = GRANTS.iter().find(|(method, _)| *method == path).map_or(Roles::default(), |(_, roles)| *roles);
    match &origin.peer {
        Some(peer) if peer.roles.meet(allowed) => Ok(()),
        Some(peer) => Err(Status::permission_denied(format!("{path} is for {allowed}; your certificate is {peer}"))),
        None => Err(Status::unauthenticated(format!("{path} is for {allowed}, with a certificate that says so"))),
    }
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Unpin + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match check(request.uri().path(), request.extensions().get()) {
            Ok(()) => Answer::Given(self.0.call(request)),
            Err(status) => {
                tracing::warn!(path = request.uri().path(), reason = status.message(), "a call was refused");
                Answer::Refused(ready(Ok(status.into_http())))
            }
        }
    }
}

/// What a guarded call becomes.
pub enum Answer<F> {
    /// The service's own answer.
    Given(F),
    /// The guard's.
    Refused(Ready<Result<Response<Body>, Infallible>>),
}

impl<F: Future<Output = Result<Response<Body>, Infallible>> + Unpin> Future for Answer<F> {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Answer::Given(answer) => Pin::new(answer).poll(context),
            Answer::Refused(refusal) => Pin::new(refusal).poll(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Peer;
    use std::sync::Arc;
    use tonic::Code;

    fn origin(encrypted: bool, roles: Option<Roles>) -> Origin {
        let peer = roles.map(|roles| Arc::new(Peer { cluster: "a".to_owned(), roles, name: "n".to_owned() }));
        Origin { address: ([127, 0, 0, 1], 1).into(), encrypted, peer }
    }

    #[test]
    fn every_method_of_a_node_stands_in_the_table_once() {
        let proto = include_str!("../../../proto/janus/v1/nodes.proto");
        let (mut service, mut methods) = ("", Vec::new());
        for line in proto.lines() {
            let words: Vec<&str> = line.split([' ', '(']).filter(|word| !word.is_empty()).collect();
            match words[..] {
                ["service", name, ..] => service = name,
                ["rpc", name, ..] => methods.push(format!("/janus.v1.{service}/{name}")),
                _ => {}
            }
        }
        let mut table: Vec<_> = GRANTS.iter().map(|(method, _)| (*method).to_owned()).collect();
        methods.sort();
        table.sort();
        assert_eq!(methods, table);
    }

    #[test]
    fn a_role_may_call_what_is_its_business_and_nothing_else() {
        for (method, allowed) in GRANTS {
            for role in Role::ALL {
                let called = check(method, Some(&origin(true, Some(role.into()))));
                assert_eq!(called.is_ok(), allowed.has(role), "{method} by {}", role.name());
            }
            assert!(!allowed.has(Role::Client) && !allowed.has(Role::Gateway), "{method}");
            assert!(allowed.without(Roles::of(&[Role::Coordinator])).is_empty() || !method.ends_with("Configure"));
        }
        let refused = check("/janus.v1.Stage/Configure", Some(&origin(true, Some(Role::Stage.into())))).unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("is for coordinator; your certificate is janus://a/stage/n"), "{refused}");
    }

    #[test]
    fn who_shows_nothing_is_refused_and_so_is_what_nobody_thought_of() {
        let anonymous = check("/janus.v1.Stage/Link", Some(&origin(true, None))).unwrap_err();
        assert_eq!(anonymous.code(), Code::Unauthenticated);
        assert!(check("/janus.v1.Stage/New", Some(&origin(true, Some(Roles::NODES)))).is_err());
        assert!(check("/janus.v1.Stage/Link", None).is_err());
        assert!(check("/janus.v1.Stage/Link", Some(&origin(false, None))).is_ok());
    }
}
