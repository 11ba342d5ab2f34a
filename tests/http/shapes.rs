//! Requests of a wrong shape, written by hand: each is answered with an error that says what was wrong.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::fake::Fake;
use super::{Door, http};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn what_has_the_wrong_shape_is_refused_in_words() {
    let door = Door::open(&Fake::new([]).serve().await).await;
    let client = http();
    let json = "application/json";
    let cases = [
        (Method::GET, "/nowhere", "", "", 404, "/openapi.json"),
        (Method::POST, "/nowhere", json, "{}", 404, "/openapi.json"),
        (Method::GET, CHAT, "", "", 405, "GET"),
        (Method::DELETE, "/v1/models", "", "", 405, "DELETE"),
        (Method::POST, CHAT, "", "{}", 415, "application/json"),
        (Method::POST, CHAT, "text/plain", "{}", 415, "text/plain"),
        (Method::POST, CHAT, json, "", 400, "not JSON"),
        (Method::POST, CHAT, json, "{\"messages\":", 400, "not JSON"),
        (Method::POST, CHAT, json, "[]", 400, "must be a JSON object"),
        (Method::POST, CHAT, json, "null", 400, "must be a JSON object"),
        (Method::POST, "/v1/images/generations", json, "[\"a red circle\",null,1]", 400, "must be a JSON object"),
        (Method::POST, CHAT, json, "{\"messages\":[{\"role\":\"user\",\"content\":7}]}", 400, "messages[0].content"),
        (
            Method::POST,
            CHAT,
            json,
            "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"x\"}]}]}",
            400,
            "messages[0].content",
        ),
        (Method::POST, "/v1/images/generations", json, "{\"prompt\":\"x\",\"n\":-1}", 400, "n:"),
        (Method::POST, "/v1/files", json, "{}", 415, "multipart/form-data"),
        (Method::GET, "/v1/images/results/none.png", "", "", 404, "an hour"),
        (Method::GET, "/v1/batches?limit=x", "", "", 400, "limit: invalid"),
        (Method::GET, "/v1/files?limit=x", "", "", 400, "limit: invalid"),
        (Method::GET, "/ui/api/model?palette=x", "", "", 400, "palette: "),
        (Method::GET, "/metrics", "", "", 404, "no metrics"),
    ];
    for (method, path, kind, body, status, words) in cases {
        let mut request = client.request(method.clone(), door.at(path)).body(body);
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status, "{method} {path} {body}");
        assert!(response.headers().contains_key("x-request-id"));
        assert_eq!(response.headers().contains_key("allow"), status == 405, "{method} {path}");
        let answer: Value = response.json().await.unwrap();
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{method} {path} {body}: {message}");
        assert!(answer["error"]["type"].is_string());
    }
}

#[tokio::test]
async fn a_wrong_query_names_its_parameter() {
    let door = Door::open(&Fake::new([]).serve().await).await;
    for path in ["/v1/files?limit=abc", "/v1/batches?limit=abc", "/v1/batches?after=x&limit=-1"] {
        let response = http().get(door.at(path)).send().await.unwrap();
        assert_eq!(response.status(), 400, "{path}");
        let error = &response.json::<Value>().await.unwrap()["error"];
        assert_eq!((error["param"].as_str(), error["code"].as_str()), (Some("limit"), Some("invalid_value")), "{error}");
    }
}

#[tokio::test]
async fn an_error_repeats_only_so_much_of_what_was_sent() {
    let door = Door::open(&Fake::new([]).serve().await).await;
    let long = "x".repeat(4 << 20);
    let parts = serde_json::json!([{ "type": "image_url", "image_url": format!("data:image/png;base64,{long}") }]);
    let bodies = [
        serde_json::json!({ "messages": [{ "role": "user", "content": parts }] }),
        serde_json::json!({ "messages": [{ "role": &long, "content": "hello" }] }),
        serde_json::json!({ &long: 1 }),
    ];
    for body in bodies {
        let response = http().post(door.at(CHAT)).json(&body).send().await.unwrap();
        assert_eq!(response.status(), 400);
        let text = response.text().await.unwrap();
        assert!(text.len() < 2000, "{} bytes", text.len());
    }
}

#[tokio::test]
async fn a_name_that_another_page_made_ours_is_refused_where_no_key_is_needed() {
    let client = http();
    let ask = async |door: &Door, path: &str, host: &str| {
        let response = client.get(door.at(path)).header("host", host).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let door = Door::open(&Fake::new([]).serve().await).await;
    for host in ["evil.example", "evil.example:8080", "localhost.evil.example"] {
        for path in ["/v1/models", "/", "/openapi.json", "/nowhere"] {
            let (status, said) = ask(&door, path, host).await;
            assert!(status == 403 && said.contains("unknown_host") && said.contains("--allow-host"), "{host}{path}: {said}");
            assert!(said.contains(host.split(':').next().unwrap()), "{said}");
        }
        for path in ["/healthz", "/readyz"] {
            assert_eq!(ask(&door, path, host).await.0, 200, "{host}{path}");
        }
    }
    for host in ["localhost", "LOCALHOST:1", "a.localhost", "127.0.0.1:1", "[::1]:1", "192.0.2.1"] {
        assert_eq!(ask(&door, "/v1/models", host).await.0, 200, "{host}");
    }
    // What was given, and the public URL's.
    let (endpoints, security) = (Fake::new([]).serve().await, janus_wire::Security::Plain);
    let (allow_hosts, public_url) = (vec!["janus.lan".to_owned()], Some("https://paint.example/".to_owned()));
    let options = janus_gateway::Options { endpoints, security, allow_hosts, public_url, ..Default::default() };
    let named = Door::open_with(options).await;
    for (host, expected) in [("janus.lan:8080", 200), ("Paint.Example", 200), ("evil.example", 403)] {
        assert_eq!(ask(&named, "/v1/models", host).await.0, expected, "{host}");
    }
    // A page has no key to show, and this cluster wants one.
    let mut fake = Fake::new([]);
    fake.keyed = true;
    let keyed = Door::open(&fake.serve().await).await;
    assert_eq!(ask(&keyed, "/v1/models", "evil.example").await.0, 401);
    assert_eq!(ask(&keyed, "/openapi.json", "evil.example").await.0, 200);
}

#[tokio::test]
async fn headers_have_a_bound() {
    let door = Door::open(&Fake::new([]).serve().await).await;
    let client = http();
    for (bytes, expected) in [(8 << 10, 200), (20 << 10, 431), (300 << 10, 431)] {
        let asked = client.get(door.at("/v1/models")).header("x-long", "x".repeat(bytes)).send().await;
        // Whoever sends much more may find the connection closed before he has read why.
        let status = asked.map(|response| response.status().as_u16()).unwrap_or(431);
        assert_eq!(status, expected, "{bytes} bytes");
    }
}

#[tokio::test]
async fn a_page_from_elsewhere_cannot_make_a_browser_paint() {
    let door = Door::open(&Fake::new([]).serve().await).await;
    let request = http().post(door.at(CHAT)).header("sec-fetch-site", "cross-site").body("{}");
    assert_eq!(request.send().await.unwrap().status(), 403);
    let read = http().get(door.at("/healthz")).header("sec-fetch-site", "cross-site");
    assert_eq!(read.send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_is_refused_before_it_is_sent() {
    let door = Door::open(&Fake::new([]).serve().await).await;
    let address = door.url.strip_prefix("http://").unwrap().to_owned();
    let said = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                    content-length: 100000000\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut said = [0; 2048];
        let read = stream.read(&mut said).unwrap();
        String::from_utf8_lossy(&said[..read]).into_owned()
    });
    let said = said.await.unwrap();
    assert!(said.starts_with("HTTP/1.1 413 ") && said.contains("request_too_large"), "{said}");
}

#[tokio::test]
async fn the_document_names_every_path_that_answers() {
    let door = Door::open(&Fake::new([]).serve().await).await;
    let document: Value = http().get(door.at("/openapi.json")).send().await.unwrap().json().await.unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 12, "{:?}", paths.keys());
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace(['{', '}'], "x");
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let response = http().request(method.clone(), door.at(&path)).send().await.unwrap();
            let unknown = response.status() == 405 || response.text().await.unwrap().contains("unknown_url");
            assert!(!unknown, "{method} {path} is described and not there");
        }
    }
}
