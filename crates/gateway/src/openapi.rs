//! The OpenAPI document, made of the types that are read and written.

use axum::Json as Answer;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

use crate::{batches, chat, files, health, images, models, results};

#[derive(OpenApi)]
#[openapi(
    info(title = "Janus", description = "Paints pictures from text and answers questions about pictures, as OpenAI's API does."),
    paths(
        images::generate,
        results::get,
        chat::complete,
        files::upload,
        files::list,
        files::look,
        files::content,
        files::delete,
        batches::create,
        batches::list,
        batches::look,
        batches::cancel,
        models::list,
        models::get,
        health::alive,
        health::ready,
        health::metrics,
        document
    ),
    modifiers(&Key),
    security((), ("key" = [])),
    tags(
        (name = "images", description = "Text to pictures"),
        (name = "chat", description = "Questions, about pictures or without"),
        (name = "batches", description = "Files of requests that nobody waits for"),
        (name = "models", description = "What is served"),
        (name = "operation", description = "For probes and scrapers")
    )
)]
struct Api;

/// `authorization: Bearer KEY`, where the cluster asks for one.
struct Key;

impl utoipa::Modify for Key {
    fn modify(&self, document: &mut Document) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        document.components.get_or_insert_default().add_security_scheme("key", SecurityScheme::Http(scheme));
    }
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operation", responses(
    (status = 200, description = "The document", body = Object)
))]
pub(crate) async fn document() -> Answer<Document> {
    Answer(Api::openapi())
}
