//! What stands behind the `?` of a path: read like a body, so that a problem names the parameter at fault.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::Problem;

/// What axum's own words begin with.
const FAILED: &str = "Failed to deserialize query string: ";

/// The parameters of a query.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let read = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        read.map(|axum::extract::Query(value)| Query(value)).map_err(|rejection| problem(&rejection.body_text()))
    }
}

/// `limit: invalid digit found in string`, or a reason that quotes the parameter: "missing field `limit`".
fn problem(text: &str) -> Problem {
    let text = text.strip_prefix(FAILED).unwrap_or(text);
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if let Some((param, _)) = text.split_once(": ").filter(|(param, _)| is_name(param)) {
        return Problem::invalid(param, text);
    }
    match text.split('`').nth(1).filter(|quoted| is_name(quoted)) {
        Some(param) => Problem::invalid(param, format!("{param}: {text}")),
        None => Problem::new(StatusCode::BAD_REQUEST, format!("the query: {text}")).code("invalid_value"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code)]
    struct Which {
        limit: Option<u32>,
        after: Option<String>,
    }

    #[tokio::test]
    async fn a_problem_names_the_parameter_at_fault() {
        let read = async |query: &str| {
            let request = axum::http::Request::builder().uri(format!("/v1/files?{query}")).body(()).unwrap();
            Query::<Which>::from_request_parts(&mut request.into_parts().0, &()).await.map(|Query(which)| which)
        };
        for query in ["limit=abc", "after=x&limit=-1", "limit=", "limit=1&limit=2"] {
            let problem = read(query).await.unwrap_err();
            assert_eq!(problem.param(), Some("limit"), "{query}");
            assert!(problem.is_callers() && problem.message().starts_with("limit: "), "{query}: {}", problem.message());
        }
        let which = read("limit=3&other=x").await.unwrap();
        assert_eq!((which.limit, which.after), (Some(3), None));
    }
}
