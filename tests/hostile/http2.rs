//! Frames of HTTP/2 by hand, as no client library would send them. Each attack says whether its connection was ended.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How long a server may bear it.
const PATIENCE: Duration = Duration::from_secs(40);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

pub type Attack = (&'static str, fn(&str) -> bool);

pub const ATTACKS: [Attack; 9] = [
    ("streams that are reset at once", resets),
    ("headers that never end", continuations),
    ("a frame larger than allowed", large_frame),
    ("settings again and again, answers unread", settings),
    ("pings without end, answers unread", pings),
    ("bytes that are no HTTP/2", nonsense),
    ("half a preface", half_preface),
    ("nothing at all", |address| ends(connect(address))),
    ("a caller that answers no ping", |address| ends(greeted(address))),
];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    stream
}

fn greeted(address: &str) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(PREFACE).unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    stream
}

/// A call of a method that is not there, in literals that need no table.
fn headers(flags: u8, stream: u32) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, 5];
    block.extend(b"/x/Yz");
    block.extend([0x01, 1, b'h']);
    frame(HEADERS, flags, stream, &block)
}

/// Whether the other side ends the connection in time, whatever it says before.
fn ends(mut stream: TcpStream) -> bool {
    let until = Instant::now() + PATIENCE;
    let mut bytes = [0; 4096];
    while Instant::now() < until {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return true,
        }
    }
    false
}

/// Writes without reading until the other side has had enough.
fn floods(mut stream: TcpStream, mut next: impl FnMut(u32) -> Vec<u8>) -> bool {
    let until = Instant::now() + PATIENCE;
    let mut count = 0;
    while Instant::now() < until {
        match stream.write_all(&next(count)) {
            Ok(()) => count += 1,
            // It takes nothing more, for now or for ever.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return ends(stream),
            Err(_) => return true,
        }
    }
    false
}

fn resets(address: &str) -> bool {
    floods(greeted(address), |i| {
        let stream = 2 * i + 1;
        [headers(END_HEADERS, stream), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    })
}

fn continuations(address: &str) -> bool {
    let mut stream = greeted(address);
    stream.write_all(&headers(0, 1)).unwrap();
    // A header `a: b` that is never complete.
    floods(stream, |_| frame(CONTINUATION, 0, 1, &[0x00, 1, b'a', 1, b'b'].repeat(800)))
}

fn large_frame(address: &str) -> bool {
    let mut stream = greeted(address);
    stream.write_all(&headers(END_HEADERS, 1)).unwrap();
    let _ = stream.write_all(&frame(DATA, 0, 1, &vec![0; 1 << 20]));
    ends(stream)
}

fn settings(address: &str) -> bool {
    floods(greeted(address), |_| frame(SETTINGS, 0, 0, &[]).repeat(1000))
}

fn pings(address: &str) -> bool {
    floods(greeted(address), |_| frame(PING, 0, 0, &[7; 8]).repeat(1000))
}

fn nonsense(address: &str) -> bool {
    let mut stream = connect(address);
    stream.write_all(&[PREFACE, &[0xab; 4096]].concat()).unwrap();
    ends(stream)
}

fn half_preface(address: &str) -> bool {
    let mut stream = connect(address);
    stream.write_all(&PREFACE[..10]).unwrap();
    ends(stream)
}
