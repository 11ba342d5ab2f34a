//! Certificates: those that connections are made with, and those that are issued.

use std::path::PathBuf;

use clap::Args;
use janus_wire::tls::Role;

/// What connections are protected with. Without any of these, and of JANUS_TLS_CA, JANUS_TLS_CERT and JANUS_TLS_KEY in the
/// environment, they are not.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Tls {
    /// Speak TLS: PEM of the authority that signs the cluster's certificates [env: JANUS_TLS_CA]
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// PEM of our certificate; it may change while this runs [env: JANUS_TLS_CERT]
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// PEM of its key [env: JANUS_TLS_KEY]
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Certs {
    /// Where they are kept: the authority is made there if there is none, and nothing is ever written over
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Name of the cluster that they are for
    #[arg(long, value_name = "NAME", default_value = "janus", value_parser = name)]
    pub(crate) cluster: String,
    /// Roles of the one certificate to issue [default: one certificate for every role]
    #[arg(long, value_name = "ROLE[,..]", value_delimiter = ',', value_parser = role)]
    pub(crate) role: Vec<Role>,
    /// Name of its bearer, and of its files [default: its roles]
    #[arg(long, value_name = "NAME", requires = "role", value_parser = name)]
    pub(crate) name: Option<String>,
    /// Names and addresses at which clients without a certificate find its bearer
    #[arg(long, value_name = "HOST|IP[,..]", value_delimiter = ',', default_value = "localhost,127.0.0.1,::1", value_parser = host)]
    pub(crate) host: Vec<String>,
    /// Days until it expires
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(crate) days: u32,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

/// An address, or a name as a certificate can have it; the first label may be `*`.
fn host(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = text.strip_prefix("*.").unwrap_or(text);
    match text.parse::<std::net::IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(label)) {
        true => Ok(text.to_owned()),
        false => Err("must be a host's name or an address".to_owned()),
    }
}

fn role(text: &str) -> Result<Role, String> {
    text.parse()
}

fn name(text: &str) -> Result<String, String> {
    let sound = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    match (1..=63).contains(&text.len()) && text.bytes().all(sound) && !text.starts_with('.') {
        true => Ok(text.to_owned()),
        false => Err("must be 1 to 63 of a-z A-Z 0-9 . _ -, and not begin with a dot".to_owned()),
    }
}
