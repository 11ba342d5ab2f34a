//! The names that requests reach this door by. A page from elsewhere can make its own name mean this machine (DNS
//! rebinding): a browser then takes us for that page's server, and lets the page ask here whatever it likes. What it asks by
//! is still that name, so where nobody needs a key and only this machine reaches us, other names than this machine's are
//! refused.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::connection::Way;
use crate::{Error, Gateway, Problem};

/// Names beside those that every machine has.
pub(crate) struct Hosts(Vec<String>);

/// What a request says it is for: `host` or `host:port`, `None` where that is no text. HTTP/2 says it in the URI.
pub(crate) fn names<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> impl Iterator<Item = Option<&'a str>> {
    let said = headers.get_all(header::HOST).into_iter().map(|host| host.to_str().ok());
    said.chain(uri.authority().map(|authority| Some(authority.as_str())))
}

/// The host of `host:port`, in small letters and without the dot that may end it.
fn host(text: &str) -> Option<String> {
    let authority: Authority = text.parse().ok().filter(|_| !text.contains('@'))?;
    let host = authority.host();
    Some(host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()).filter(|host| !host.is_empty())
}

impl Hosts {
    /// These, and the one of the public URL.
    pub(crate) fn new(names: &[String], public_url: Option<&str>) -> Result<Self, Error> {
        let mut hosts = Vec::new();
        for name in names {
            let plain = |host: &String| !name.contains(['*', ':']) && name.len() - host.len() <= 1;
            hosts.push(host(name).filter(plain).ok_or_else(|| Error::AllowHost { host: name.clone() })?);
        }
        let public = public_url.and_then(|url| url.parse::<Uri>().ok());
        hosts.extend(public.as_ref().and_then(Uri::authority).and_then(|authority| host(authority.as_str())));
        Ok(Hosts(hosts))
    }

    /// An address cannot be made to mean another machine; these names mean this one.
    fn allow(&self, name: &str) -> bool {
        let Some(host) = host(name) else { return false };
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        address.is_ok() || host == "localhost" || host.ends_with(".localhost") || self.0.contains(&host)
    }
}

/// Refuses what is meant for others. Probes may ask by any name.
pub(crate) async fn known(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let loopback = request.extensions().get::<Way>().is_some_and(|way| way.loopback);
    let probe = matches!(request.uri().path(), "/healthz" | "/readyz");
    let other = names(request.headers(), request.uri()).find(|name| name.is_none_or(|name| !gateway.hosts().allow(name)));
    let other = other.filter(|_| loopback && !probe).map(|name| name.unwrap_or_default().to_owned());
    let Some(name) = other else { return next.run(request).await };
    match gateway.asks_for_keys().await {
        Ok(true) => next.run(request).await,
        Ok(false) => {
            let shown = janus_wire::status::shown(&host(&name).unwrap_or(name));
            let message = format!(
                "`{shown}` is not a name of this machine, and no key is needed here: ask by localhost or an address, start \
                 janus with --allow-host {shown} or a --public-url of that name, or ask for keys (--operator-key-file)"
            );
            Problem::new(StatusCode::FORBIDDEN, message).code("unknown_host").into_response()
        }
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_and_those_that_were_given_are_allowed() {
        let given = ["Janus.lan".to_owned(), "other.".to_owned()];
        let hosts = Hosts::new(&given, Some("https://Paint.example:8443/janus")).unwrap();
        let allowed = "localhost localhost:8080 LOCALHOST localhost. a.localhost:1 127.0.0.1 127.0.0.1:8080 192.0.2.1:80 \
                       [::1] [::1]:8080 [2001:db8::1] janus.lan JANUS.LAN:8080 janus.lan. other paint.example \
                       paint.example:80";
        for name in allowed.split_whitespace() {
            assert!(hosts.allow(name), "{name}");
        }
        let others = "evil.example evil.example:8080 localhost.evil.example notlocalhost .localhost.evil a.janus.lan lan \
                      127.0.0.1.evil.example 127.1 localhost@evil.example evil.example@localhost [::1 : :80 a/b";
        for name in others.split_whitespace().chain(["", " ", "a b"]) {
            assert!(!hosts.allow(name), "{name}");
        }
    }

    #[test]
    fn a_name_that_can_be_none_is_refused_at_once() {
        for name in ["", ".", "a:80", "*.example", "http://a", "a/b", "u@a", "a b"] {
            assert!(Hosts::new(&[name.to_owned()], None).is_err(), "{name}");
        }
    }

    #[test]
    fn a_request_names_its_host_in_its_header_or_in_its_uri() {
        let mut headers = HeaderMap::new();
        let (path, whole) = (Uri::from_static("/v1"), Uri::from_static("https://b:1/v1"));
        assert_eq!(names(&headers, &path).count(), 0);
        assert!(names(&headers, &whole).eq([Some("b:1")]));
        headers.append(header::HOST, "a".parse().unwrap());
        headers.append(header::HOST, header::HeaderValue::from_bytes(b"\xff").unwrap());
        assert!(names(&headers, &whole).eq([Some("a"), None, Some("b:1")]));
    }
}
