//! Hosts, and the simulated connections under their real channels and servers.

use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};

use janus_wire::{Dial, Origin, Security, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use turmoil::net::{TcpListener, TcpStream};

use crate::seen::Seen;

/// Every host serves on this port.
const PORT: u16 = 7070;

pub(crate) fn address(host: &str) -> String {
    format!("{host}:{PORT}")
}

type Socket = Mutex<Option<TcpStream>>;

/// A host from its start to its crash.
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) seen: Arc<Seen>,
    sockets: Mutex<Vec<Weak<Socket>>>,
    killed: CancellationToken,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Host {
    pub(crate) fn start(name: &'static str, seen: &Arc<Seen>) -> Arc<Self> {
        seen.note(format_args!("{name} starts"));
        let killed = seen.alive(name);
        Arc::new(Host { name, seen: seen.clone(), sockets: Mutex::default(), killed })
    }

    /// Connections that this host makes.
    pub(crate) fn security(self: &Arc<Self>) -> Security {
        Security::Through(Arc::new(Dialler(self.clone())))
    }

    /// Connections that come to it.
    pub(crate) async fn listen(self: &Arc<Self>) -> io::Result<ReceiverStream<io::Result<Connection>>> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
        let (connections, incoming) = mpsc::channel(16);
        let host = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, address)) = listener.accept().await {
                let origin = Origin { address, encrypted: false, peer: None };
                if connections.send(Ok(host.connection(stream, origin))).await.is_err() {
                    break;
                }
            }
        });
        Ok(ReceiverStream::new(incoming))
    }

    fn connection(&self, stream: TcpStream, origin: Origin) -> Connection {
        let socket = Arc::new(Mutex::new(Some(stream)));
        let mut sockets = self.sockets.lock().unwrap();
        sockets.retain(|socket| socket.strong_count() > 0);
        sockets.push(Arc::downgrade(&socket));
        Connection { socket, origin, seen: self.seen.clone() }
    }

    /// Runs until the host is killed. Its connections then end in the order in which they were made: tokio drops tasks in an
    /// order that depends on how many there were before, and each end takes a latency from the dice.
    pub(crate) async fn run(self: &Arc<Self>, software: impl Future<Output = turmoil::Result>) -> turmoil::Result {
        let killed = async {
            self.killed.cancelled().await;
            let sockets = self.sockets.lock().unwrap();
            sockets.iter().filter_map(Weak::upgrade).for_each(|socket| drop(socket.lock().unwrap().take()));
        };
        tokio::select! {
            biased;
            () = killed => std::future::pending().await,
            end = software => end,
        }
    }
}

#[derive(Debug)]
struct Dialler(Arc<Host>);

#[tonic::async_trait]
impl Dial for Dialler {
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn Stream>> {
        self.0.seen.mark(1);
        let stream = TcpStream::connect((host, port)).await?;
        let origin = Origin { address: stream.peer_addr()?, encrypted: false, peer: None };
        Ok(Box::new(self.0.connection(stream, origin)))
    }
}

/// Either end; whenever something is read or written, the history knows.
pub(crate) struct Connection {
    /// Until its host is killed.
    socket: Arc<Socket>,
    origin: Origin,
    seen: Arc<Seen>,
}

impl Connection {
    fn with<R>(&self, work: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        match self.socket.lock().unwrap().as_mut() {
            Some(stream) => work(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        self.origin.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.with(|stream| stream.poll_read(context, buffer));
        if read.is_ready() {
            self.seen.mark(2);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.seen.mark(3);
        self.with(|stream| stream.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(context))
    }
}
