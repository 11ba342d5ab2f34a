//! Bodies of requests: read within bounds of size, time and memory, and JSON that says which parameter is wrong.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_stream::StreamExt;

use crate::{Gateway, Problem};

/// Largest JSON body: the pictures of a conversation come inside, a third larger than they are.
pub(crate) const MAX_JSON: usize = 64 << 20;
/// Bytes of bodies that are held at once.
const BUDGET: usize = 1 << 30;
/// A body may pause for so long...
const IDLE: Duration = Duration::from_secs(30);
/// ...take so long altogether...
const WHOLE: Duration = Duration::from_secs(600);
/// ...and not fall below so many bytes in a second, but for one pause: whoever drips holds a connection for little.
const SLOWEST: f64 = 4096.0;
const KIB: usize = 1 << 10;

/// What all bodies together may take.
#[derive(Clone)]
pub(crate) struct Budget(Arc<Semaphore>);

/// The part of it that one body takes, until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Room(Option<OwnedSemaphorePermit>);

impl Default for Budget {
    fn default() -> Self {
        Budget(Arc::new(Semaphore::new(BUDGET / KIB)))
    }
}

impl Budget {
    pub(crate) fn more(&self, room: &mut Room, bytes: usize) -> Result<(), Problem> {
        let have = room.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = bytes.div_ceil(KIB).saturating_sub(have);
        if missing == 0 {
            return Ok(());
        }
        let full = || {
            let message = "too much is being sent at the moment; try again";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, message).code("overloaded")
        };
        let permit = self.0.clone().try_acquire_many_owned(missing as u32).map_err(|_| full())?;
        match &mut room.0 {
            Some(held) => held.merge(permit),
            None => room.0 = Some(permit),
        }
        Ok(())
    }
}

/// The whole of a body.
pub(crate) async fn read(budget: &Budget, headers: &HeaderMap, body: Body, most: usize) -> Result<(Bytes, Room), Problem> {
    let large = || {
        let message = format!("the body is larger than {most} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("request_too_large")
    };
    let said = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if said.is_some_and(|length| length > most) {
        return Err(large());
    }
    let (mut bytes, mut room) = (BytesMut::new(), Room::default());
    let mut stream = body.into_data_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(broken)?;
        if bytes.len() + piece.len() > most {
            return Err(large());
        }
        budget.more(&mut room, bytes.len() + piece.len())?;
        bytes.extend_from_slice(&piece);
    }
    Ok((bytes.freeze(), room))
}

/// A body that ended before it was whole.
pub(crate) fn broken(error: axum::Error) -> Problem {
    let late = std::error::Error::source(&error).is_some_and(|source| source.is::<Late>());
    match late {
        true => Problem::new(StatusCode::REQUEST_TIMEOUT, Late.to_string()).code("timeout"),
        false => Problem::new(StatusCode::BAD_REQUEST, format!("the body could not be read: {error}")),
    }
}

/// Why a body was given up.
#[derive(Debug, thiserror::Error)]
#[error("the body took too long")]
struct Late;

/// Puts a clock on every request's body.
pub(crate) async fn timed(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let timed = futures_util::stream::unfold(Some(Timed::begin(body)), piece);
    next.run(Request::from_parts(parts, Body::from_stream(timed))).await
}

/// A body on its way.
struct Timed {
    stream: BodyDataStream,
    begun: Instant,
    bytes: usize,
}

impl Timed {
    fn begin(body: Body) -> Self {
        Timed { stream: body.into_data_stream(), begun: Instant::now(), bytes: 0 }
    }

    /// When its next piece has to be there.
    fn due(&self) -> Instant {
        let slowest = self.begun + IDLE + Duration::from_secs_f64(self.bytes as f64 / SLOWEST);
        slowest.min(self.begun + WHOLE).min(Instant::now() + IDLE)
    }
}

/// The next piece of a body, and what is left of it.
async fn piece(body: Option<Timed>) -> Option<(Result<Bytes, axum::Error>, Option<Timed>)> {
    let mut body = body?;
    match tokio::time::timeout_at(body.due(), body.stream.next()).await {
        Ok(piece) => piece.map(|piece| {
            body.bytes += piece.as_ref().map_or(0, Bytes::len);
            (piece, Some(body))
        }),
        Err(_) => Some((Err(axum::Error::new(Late)), None)),
    }
}

/// A body for a response, which keeps its room for as long as it is sent.
pub(crate) fn held(bytes: Bytes, room: Room) -> Body {
    let pieces = futures_util::stream::unfold((bytes, room), |(mut rest, room)| async {
        let piece = rest.split_to(rest.len().min(KIB * KIB));
        (!piece.is_empty()).then_some((Ok::<_, axum::Error>(piece), (rest, room)))
    });
    Body::from_stream(pieces)
}

/// A body of JSON.
pub(crate) struct Json<T> {
    pub(crate) value: T,
    /// To be kept for as long as the value's bytes are.
    pub(crate) room: Room,
}

impl<T: DeserializeOwned> FromRequest<Gateway> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, gateway: &Gateway) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        // Browsers send other types from other sites without asking us first.
        let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            let message = format!("content-type: `{content_type}` is not application/json");
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).code("unsupported_media_type"));
        }
        let (bytes, room) = read(gateway.budget(), &parts.headers, body, MAX_JSON).await?;
        Ok(Json { value: parse(&bytes)?, room })
    }
}

/// Reads an object of JSON; a problem names the parameter at fault.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // A list would be read as well: its first value as the first parameter, and so on.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|first| *first != b'{') {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "the body must be a JSON object").code("invalid_json"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if !inner.is_data() {
            return Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {inner}")).code("invalid_json");
        }
        let message = inner.to_string();
        // Which line of a body is at fault says less than which parameter.
        let reason = message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason);
        let quoted =
            ["unknown field `", "missing field `"].iter().find_map(|start| reason.strip_prefix(start)?.split('`').next());
        let whole = ["", ".", "?"].contains(&path.as_str());
        let param = match (quoted, whole) {
            (Some(name), true) => name.to_owned(),
            (Some(name), false) if path.ends_with(name) => path,
            (Some(name), false) => format!("{path}.{name}"),
            (None, _) => path,
        };
        match param.is_empty() || param == "." {
            true => Problem::new(StatusCode::BAD_REQUEST, format!("the body: {reason}")).code("invalid_value"),
            false => Problem::invalid(&param, format!("{param}: {reason}")),
        }
    })?;
    json.end().map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")).code("invalid_json")
    })?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Outer {
        #[serde(default)]
        inner: Vec<Inner>,
        size: Option<u8>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code)]
    struct Inner {
        name: String,
    }

    #[test]
    fn a_problem_names_the_parameter_at_fault() {
        let param = |json: &str| parse::<Outer>(json.as_bytes()).unwrap_err().param().map(str::to_owned);
        assert_eq!(param(r#"{"size": 300}"#).as_deref(), Some("size"));
        assert_eq!(param(r#"{"inner": [{"name": "a"}, {"name": 1}]}"#).as_deref(), Some("inner[1].name"));
        assert_eq!(param(r#"{"inner": [{}]}"#).as_deref(), Some("inner[0].name"));
        assert_eq!(param(r#"{"colour": 1}"#).as_deref(), Some("colour"));
        for json in ["", "{", "[]", "{} {}"] {
            assert_eq!(param(json), None, "{json}");
        }
    }

    #[test]
    fn a_body_is_an_object_and_nothing_else() {
        for json in ["[]", " \n[[], 3]", "[[{\"name\": \"a\"}], 3]", "\"size\"", "3", "-3", "null", "true", "size"] {
            assert_eq!(parse::<Outer>(json.as_bytes()).unwrap_err().message(), "the body must be a JSON object", "{json}");
        }
        assert!(parse::<Outer>(b" \r\n\t{ \"size\": 3 } ").is_ok());
        assert!(parse::<Outer>(b" ").unwrap_err().message().contains("not JSON"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_given_up_and_a_slow_one_is_not() {
        let taken = async |bytes: usize, every: Duration| {
            let pieces = futures_util::stream::unfold((), move |()| async move {
                tokio::time::sleep(every).await;
                Some((Ok::<_, std::io::Error>(Bytes::from(vec![b' '; bytes])), ()))
            });
            let (mut body, begun) = (Some(Timed::begin(Body::from_stream(pieces))), Instant::now());
            loop {
                match piece(body).await.unwrap() {
                    (Ok(_), rest) => body = rest,
                    (Err(error), _) => break (broken(error).message().to_owned(), begun.elapsed()),
                }
            }
        };
        let late = "the body took too long".to_owned();
        let second = Duration::from_secs(1);
        for (bytes, every, end) in [(1, 15 * second, IDLE), (1 << 20, IDLE + second, IDLE), (8192, second, WHOLE)] {
            let (said, after) = taken(bytes, every).await;
            assert!(
                said == late && after >= end && after < end + second,
                "{bytes} bytes every {every:?}: {said}, {after:?}"
            );
        }
    }

    #[tokio::test]
    async fn bodies_share_a_budget_and_give_it_back() {
        let budget = Budget(Arc::new(Semaphore::new(3)));
        let body = || Body::from(vec![0; 2 * KIB]);
        let first = read(&budget, &HeaderMap::new(), body(), MAX_JSON).await.unwrap();
        assert!(read(&budget, &HeaderMap::new(), body(), MAX_JSON).await.is_err());
        drop(first);
        assert!(read(&budget, &HeaderMap::new(), body(), MAX_JSON).await.is_ok());
        assert!(read(&budget, &HeaderMap::new(), body(), KIB).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_pauses_too_long_is_given_up() {
        let stuck = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let (first, rest) = piece(Some(Timed::begin(stuck))).await.unwrap();
        assert_eq!(broken(first.unwrap_err()).message(), "the body took too long");
        assert!(rest.is_none());
    }
}
