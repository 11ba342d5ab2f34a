//! What handshakes fail of, in words that say what to do.

use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a refused client may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);
/// What it may have sent meanwhile.
const UNREAD: u64 = 256 << 10;

const SPEAKS_TLS: &str = "this port speaks TLS: connect with the authority's certificate (janus: --tls-ca)";

/// A language that is not TLS.
#[derive(Debug, Clone, Copy)]
pub(super) enum Plain {
    Http1,
    /// "PRI * HTTP/2.0", or a PUT or POST of HTTP/1, which will not understand the answer.
    Http2,
    Unknown,
}

fn cause(error: &io::Error) -> Option<&Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// Why a server cannot be talked to.
pub(super) fn for_client(error: &io::Error) -> String {
    let Some(cause) = cause(error) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => "it ended the TLS handshake".to_owned(),
            _ => error.to_string(),
        };
    };
    match cause {
        Error::InvalidCertificate(fault) => match fault {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is not signed by our authority (--tls-ca)".to_owned()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired".to_owned(),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet; do both clocks agree?".to_owned()
            }
            CertificateError::Other(other) => other.0.to_string(),
            other => format!("its certificate cannot be believed: {other}"),
        },
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => {
                "it wants a certificate, and we have none (--tls-cert, --tls-key)".to_owned()
            }
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                "it refused our certificate: another authority signed it".to_owned()
            }
            AlertDescription::CertificateExpired => "it refused our certificate: it has expired".to_owned(),
            AlertDescription::AccessDenied => {
                "it refused our certificate: of another cluster, or of a role that has no business there".to_owned()
            }
            AlertDescription::ProtocolVersion => "it speaks another version of TLS".to_owned(),
            other => format!("it refused the TLS handshake: {other:?}"),
        },
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "it does not speak TLS: leave out --tls-ca, or start it with --tls-cert".to_owned()
        }
        other => format!("TLS: {other}"),
    }
}

/// Why a client was not let in.
pub(super) fn for_server(error: &io::Error) -> String {
    match cause(error) {
        Some(Error::NoCertificatesPresented) => "it showed no certificate".to_owned(),
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            "its certificate is not signed by our authority".to_owned()
        }
        Some(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            "its certificate has expired".to_owned()
        }
        Some(Error::InvalidCertificate(other)) => format!("its certificate cannot be believed: {other}"),
        Some(Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError)) => {
            "it does not believe our certificate: another authority signed it".to_owned()
        }
        Some(Error::AlertReceived(alert)) => format!("it gave up: {alert:?}"),
        Some(other) => format!("TLS: {other}"),
        None => error.to_string(),
    }
}

/// Tells a client that speaks no TLS so, in its own language.
pub(super) async fn refuse_plain(mut stream: TcpStream, language: Plain) {
    let answer = match language {
        Plain::Http2 => goaway(SPEAKS_TLS),
        Plain::Http1 => {
            let body = format!("{SPEAKS_TLS}\n");
            let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close";
            format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
        }
        Plain::Unknown => return,
    };
    let farewell = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would take the answer back.
        tokio::io::copy(&mut (&mut stream).take(UNREAD), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
}

/// An HTTP/2 server's first and last frames: SETTINGS, and GOAWAY for inadequate security with `words`.
fn goaway(words: &str) -> Vec<u8> {
    const INADEQUATE_SECURITY: u32 = 0xc;
    let mut bytes = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    let length = (8 + words.len()) as u32;
    bytes.extend(&length.to_be_bytes()[1..]);
    bytes.extend([7, 0, 0, 0, 0, 0]);
    bytes.extend(0_u32.to_be_bytes());
    bytes.extend(INADEQUATE_SECURITY.to_be_bytes());
    bytes.extend(words.as_bytes());
    bytes
}
