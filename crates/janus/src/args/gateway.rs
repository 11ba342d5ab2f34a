//! Arguments of the HTTP door.

use clap::Args;

use super::{Sight, Tls};

/// The door itself, wherever it stands.
#[derive(Debug, Clone, Args)]
pub(crate) struct Door {
    /// A host (`example.org` or `example.org:8443`) that pictures of a conversation may be fetched from; repeat it for
    /// several [default: none, pictures come as data: URLs]
    #[arg(long = "image-host", value_name = "HOST")]
    pub(crate) image_hosts: Vec<String>,
    /// How clients reach the HTTP door, for the URLs of pictures [default: what each request says]
    #[arg(long, value_name = "URL")]
    pub(crate) public_url: Option<String>,
    /// A name (`janus.lan`) that clients may ask for on this machine where no key is needed; repeat it for several
    /// [default: none beside localhost, addresses and the public URL's]
    #[arg(long = "allow-host", value_name = "NAME[,..]", value_delimiter = ',')]
    pub(crate) allow_hosts: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Gateway {
    /// Coordinators; several addresses are tried in turn
    #[arg(long, value_name = "ADDR|URL[,..]", default_value = "127.0.0.1:7070")]
    pub(crate) endpoint: String,
    /// Where HTTP clients connect
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) listen: String,
    /// Listen beyond this machine without encryption
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Seconds that requests under way may take after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) grace: u64,
    #[command(flatten)]
    pub(crate) door: Door,
    #[command(flatten)]
    pub(crate) tls: Tls,
    #[command(flatten)]
    pub(crate) sight: Sight,
}
