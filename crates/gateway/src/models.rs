//! `/v1/models`.

use axum::Json as Answer;
use axum::extract::{Path, State};
use janus_wire::v1;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{Asker, Gateway, Problem};

/// The models that are served: one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Models {
    object: &'static str,
    data: Vec<Model>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Model {
    id: String,
    object: &'static str,
    /// Unknown, so 0.
    created: u64,
    owned_by: &'static str,
    janus: Facts,
}

/// Extension: what the model is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Facts {
    /// Digest of its weights, configuration and tokeniser.
    digest: String,
    /// What computes it; equal ids mean equal bits.
    numerics: String,
    /// Pixels a side.
    image_size: u32,
    /// Codebook ids a side.
    grid: u32,
    codebook: u32,
    stages: u32,
    /// Positions of the longest sequence.
    context: u32,
    /// Where a request leaves it open.
    guidance: f32,
    temperature: f32,
}

impl From<v1::DescribeModelResponse> for Model {
    fn from(model: v1::DescribeModelResponse) -> Self {
        let janus = Facts {
            digest: janus_wire::hello::hex(&model.digest),
            numerics: model.numerics,
            image_size: model.image_size,
            grid: model.grid,
            codebook: model.codebook,
            stages: model.stages,
            context: model.context,
            guidance: model.cfg_weight,
            temperature: model.temperature,
        };
        Model { id: model.model, object: "model", created: 0, owned_by: "janus", janus }
    }
}

/// What is served.
#[utoipa::path(get, path = "/v1/models", tag = "models", responses(
    (status = 200, description = "The models", body = Models),
    (status = "default", description = "What went wrong", body = crate::problem::Body)
))]
pub(crate) async fn list(State(gateway): State<Gateway>, asker: Asker) -> Result<Answer<Models>, Problem> {
    let model = gateway.describe(&asker).await?.into();
    Ok(Answer(Models { object: "list", data: vec![model] }))
}

/// One model.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "models",
    params(("model" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = "default", description = "What went wrong", body = crate::problem::Body)
    )
)]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    asker: Asker,
    Path(id): Path<String>,
) -> Result<Answer<Model>, Problem> {
    let model = gateway.describe(&asker).await?;
    match model.model == id {
        true => Ok(Answer(model.into())),
        false => Err(Problem::unserved(&id, &model.model)),
    }
}
