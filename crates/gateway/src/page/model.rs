//! What is served, with the colours of its codes.

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use janus_wire::v1::DescribeModelRequest;
use janus_wire::v1::inference_client::InferenceClient;
use serde::{Deserialize, Serialize};

use super::PATIENCE;
use crate::query::Query;
use crate::{Asker, Gateway, Problem};

#[derive(Deserialize)]
pub(super) struct Wish {
    /// Wait for the palette.
    #[serde(default)]
    palette: bool,
}

#[derive(Serialize)]
pub(super) struct Model {
    model: String,
    digest: String,
    numerics: String,
    image_size: u32,
    grid: u32,
    codebook: u32,
    stages: u32,
    context: u32,
    guidance: f32,
    temperature: f32,
    /// 3 bytes a code, in base64; empty while it is not known.
    palette: String,
}

pub(super) async fn model(
    State(gateway): State<Gateway>,
    Query(wish): Query<Wish>,
    asker: Asker,
) -> Result<Json<Model>, Problem> {
    let call = gateway.coordinators().call(PATIENCE, |channel| {
        let request = asker.request(DescribeModelRequest { palette: wish.palette });
        async move { InferenceClient::new(channel).describe(request).await }
    });
    let told = call.await?;
    Ok(Json(Model {
        model: told.model,
        digest: janus_wire::hello::hex(&told.digest),
        numerics: told.numerics,
        image_size: told.image_size,
        grid: told.grid,
        codebook: told.codebook,
        stages: told.stages,
        context: told.context,
        guidance: told.cfg_weight,
        temperature: told.temperature,
        palette: STANDARD.encode(&told.palette),
    }))
}
