//! Pictures that a request names: inside it as a data: URL, or on a host that the operator allows. A request must not make
//! this process talk to anybody else (server-side request forgery): hosts are compared whole, redirects are not followed,
//! and what a name resolves to is checked where the connection is made, so that it cannot change in between.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Url, redirect};

use crate::{Error, Problem};

/// Largest picture that is fetched.
const MAX_BYTES: usize = 32 << 20;
/// How long all of it may take.
const WHOLE: Duration = Duration::from_secs(20);

/// Hosts that pictures may come from.
pub(crate) struct Remote {
    hosts: Vec<Host>,
    /// There is none without hosts.
    client: Option<Client>,
    private: bool,
}

/// `host` on the usual port of the scheme, or `host:port`.
#[derive(Debug, PartialEq, Eq)]
struct Host {
    name: String,
    port: Option<u16>,
}

/// A picture's bytes from a data: URL, or from bare base64.
pub(crate) fn inline(param: &str, text: &str) -> Result<Bytes, Problem> {
    let base64 = match text.get(..5).filter(|scheme| scheme.eq_ignore_ascii_case("data:")) {
        None => text,
        Some(_) => {
            let (head, data) = text.split_once(',').unwrap_or((text, ""));
            if !head.to_ascii_lowercase().ends_with(";base64") {
                let message = format!("{param}: a data: URL has to be base64, as in data:image/png;base64,..");
                return Err(Problem::invalid(param, message));
            }
            data
        }
    };
    let bytes = BASE64.decode(base64.trim()).map_err(|e| Problem::invalid(param, format!("{param}: no base64: {e}")))?;
    match bytes.is_empty() {
        true => Err(Problem::invalid(param, format!("{param}: the picture is empty"))),
        false => Ok(bytes.into()),
    }
}

impl Remote {
    /// These hosts; private addresses only if `private`.
    pub(crate) fn new(hosts: &[String], private: bool) -> Result<Self, Error> {
        let hosts = hosts.iter().map(|host| Host::new(host)).collect::<Result<Vec<_>, _>>()?;
        if hosts.is_empty() {
            return Ok(Remote { hosts, client: None, private });
        }
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .timeout(WHOLE)
            .dns_resolver(Arc::new(Checked { private }))
            .build();
        let client = client.map_err(|e| Error::ImageHost { host: "any".to_owned(), reason: e.to_string() })?;
        Ok(Remote { hosts, client: Some(client), private })
    }

    /// A picture's bytes from wherever the URL says, if that is allowed.
    pub(crate) async fn picture(&self, param: &str, url: &str) -> Result<Bytes, Problem> {
        if url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:")) {
            return inline(param, url);
        }
        let refuse = |reason: String| Problem::invalid(param, format!("{param}: {reason}"));
        let url = Url::parse(url).map_err(|e| refuse(format!("neither a data: URL nor another one: {e}")))?;
        let host = url.host_str().unwrap_or_default();
        let allowed = ["http", "https"].contains(&url.scheme())
            && self.hosts.iter().any(|allowed| allowed.matches(host, url.port()))
            && url.username().is_empty()
            && url.password().is_none();
        let Some(client) = self.client.as_ref().filter(|_| allowed) else {
            return Err(refuse(
                "pictures are not fetched from there; send it as a data: URL, or have the operator allow the host"
                    .to_owned(),
            ));
        };
        // A name is checked where it is resolved; an address is not resolved.
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>()
            && !self.private
            && !is_public(address)
        {
            return Err(refuse(format!("{address} is no public address")));
        }
        self.fetch(client, url).await.map_err(refuse)
    }

    async fn fetch(&self, client: &Client, url: Url) -> Result<Bytes, String> {
        let host = url.host_str().unwrap_or_default().to_owned();
        let failed = |e: reqwest::Error| {
            let mut cause: &dyn std::error::Error = &e;
            while let Some(source) = cause.source() {
                cause = source;
            }
            format!("{host} did not give it: {cause}")
        };
        let mut response = client.get(url).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(format!("{host} answered {}; redirects are not followed", response.status()));
        }
        let large = || format!("it is larger than {MAX_BYTES} bytes");
        if response.content_length().is_some_and(|length| length > MAX_BYTES as u64) {
            return Err(large());
        }
        let mut bytes = BytesMut::new();
        while let Some(piece) = response.chunk().await.map_err(failed)? {
            if bytes.len() + piece.len() > MAX_BYTES {
                return Err(large());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    }
}

impl Host {
    fn new(text: &str) -> Result<Self, Error> {
        let bad = |reason: &str| Error::ImageHost { host: text.to_owned(), reason: reason.to_owned() };
        let url = Url::parse(&format!("http://{text}/")).map_err(|_| bad("expected host or host:port"))?;
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        let name = url.host_str().filter(|_| plain && !text.contains(['/', '@', '*'])).unwrap_or_default();
        if name.is_empty() {
            return Err(bad("expected host or host:port, without wildcards"));
        }
        // 80 is what the scheme means; only the text says whether it was meant.
        let port = url.port().or_else(|| text.ends_with(":80").then_some(80));
        Ok(Host { name: name.to_owned(), port })
    }

    /// `port` is `None` for the scheme's own.
    fn matches(&self, host: &str, port: Option<u16>) -> bool {
        self.name.eq_ignore_ascii_case(host) && self.port == port
    }
}

/// Resolves names to public addresses alone.
struct Checked {
    private: bool,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let (host, private) = (name.as_str().to_owned(), self.private);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            // One bad address is enough: whoever answers with it means no good.
            if let Some(bad) = found.iter().find(|address| !private && !is_public(address.ip())) {
                return Err(format!("{host} is at {}, which is no public address", bad.ip()).into());
            }
            let addresses: Addrs = Box::new(found.into_iter());
            Ok(addresses)
        })
    }
}

/// Whether an address is one of the internet's, and of no special purpose (IANA's registries).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match (a, b, c) {
        (0 | 10 | 127, ..) => true,
        (100, 64..=127, _) => true,
        (169, 254, _) | (172, 16..=31, _) | (192, 168, _) => true,
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 51, 100) | (203, 0, 113) => true,
        (198, 18..=19, _) => true,
        // Multicast, reserved, broadcast.
        (224.., ..) => true,
        _ => false,
    };
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match (a, b) {
        // IPv4 in IPv6: mapped; translated (64:ff9b::/96); 6to4.
        (0, 0) if [c, d, e] == [0, 0, 0] && f == 0xffff => v4(g, h),
        (0x64, 0xff9b) if [c, d, e, f] == [0, 0, 0, 0] => v4(g, h),
        (0x2002, _) => v4(b, c),
        // Teredo, benchmarking, documentation.
        (0x2001, 0 | 2 | 0xdb8) => false,
        // Global unicast is 2000::/3, and nothing else is.
        _ => (0x2000..0x4000).contains(&a),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::response::Redirect;
    use axum::routing::get;

    #[test]
    fn only_public_addresses_count_as_such() {
        let public = ["1.1.1.1", "93.184.216.34", "2606:4700::1", "::ffff:1.1.1.1", "64:ff9b::101:101"];
        let private = [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "fe80::1",
            "fc00::1",
            "fd00::1",
            "ff02::1",
            "2001:db8::1",
            "::7f00:1",
        ];
        assert!(public.iter().all(|a| is_public(a.parse().unwrap())), "{public:?}");
        for address in private {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn hosts_are_compared_whole_and_with_their_ports() {
        let host = |text: &str| Host::new(text).unwrap();
        assert!(host("Example.org").matches("example.org", None));
        assert!(!host("example.org").matches("a.example.org", None));
        assert!(!host("example.org").matches("example.org", Some(8080)));
        assert!(host("example.org:8080").matches("example.org", Some(8080)));
        for wrong in ["", "http://example.org", "example.org/a", "*.example.org", "a@example.org", "example.org:99999"] {
            assert!(Host::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn data_urls_and_base64_are_read_and_nothing_else() {
        for text in ["AQID", "data:image/png;base64,AQID", "DATA:;base64,AQID"] {
            assert_eq!(inline("init_image", text).unwrap()[..], [1, 2, 3], "{text}");
        }
        for text in ["", "data:image/png,AQID", "data:image/png;base64", "not base64!", "data:;base64,"] {
            assert_eq!(inline("init_image", text).unwrap_err().param(), Some("init_image"), "{text}");
        }
    }

    /// A host with a picture, a way elsewhere, and something endless.
    async fn host() -> SocketAddr {
        let endless = || async {
            let pieces = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[0; 1 << 16])));
            axum::body::Body::from_stream(pieces)
        };
        let router = Router::new()
            .route("/picture", get(|| async { "bytes" }))
            .route("/elsewhere", get(|| async { Redirect::temporary("/picture") }))
            .route("/endless", get(endless));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    #[tokio::test]
    async fn only_allowed_hosts_at_public_addresses_are_fetched_from() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let port = host().await.port();
        let allowed = [format!("localhost:{port}"), format!("127.0.0.1:{port}")];
        let said = async |remote: &Remote, host: &str, path: &str| {
            let url = format!("http://{host}:{port}/{path}");
            remote.picture("image_url", &url).await.map_err(|problem| problem.message().to_owned())
        };
        let open = Remote::new(&allowed, true).unwrap();
        assert_eq!(said(&open, "localhost", "picture").await.unwrap()[..], *b"bytes");
        assert!(said(&open, "localhost", "elsewhere").await.unwrap_err().contains("redirects"));
        assert!(said(&open, "localhost", "endless").await.unwrap_err().contains("larger"));
        assert!(said(&open, "user@localhost", "picture").await.unwrap_err().contains("not fetched"));
        assert!(said(&open, "127.0.0.2", "picture").await.unwrap_err().contains("not fetched"));
        // Allowed by name, and yet private: neither the name nor the address is connected to.
        let strict = Remote::new(&allowed, false).unwrap();
        for host in ["localhost", "127.0.0.1"] {
            assert!(said(&strict, host, "picture").await.unwrap_err().contains("no public address"), "{host}");
        }
        let none = Remote::new(&[], true).unwrap();
        assert!(said(&none, "localhost", "picture").await.unwrap_err().contains("not fetched"));
    }
}
