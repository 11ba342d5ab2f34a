//! `/v1/chat/completions`.

use std::collections::BTreeMap;
use std::fmt;

use axum::Json as Answer;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use janus_wire::v1;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::attached::{Answered, Answering};
use crate::body::Json;
use crate::seed::Seed;
use crate::{Asker, Gateway, Problem, now, seed, sse};

/// Pictures of one conversation.
const MAX_PICTURES: usize = 64;

/// A conversation to go on with. What is not named here is refused rather than ignored.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what has no effect is read too, or it would be refused")]
pub(crate) struct ChatRequest {
    /// What was said so far.
    #[schema(required = true, nullable = false)]
    pub(crate) messages: Option<Vec<Message>>,
    /// The model that is served, or nothing.
    pub(crate) model: Option<String>,
    /// Send the answer as it grows.
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    /// The answer ends before any of these: a string, or up to 4.
    pub(crate) stop: Option<Stop>,
    /// For temperatures above 0. Drawn at random if it is left out.
    #[schema(value_type = Option<i64>)]
    pub(crate) seed: Option<Seed>,
    /// Most tokens to answer with.
    #[schema(minimum = 1)]
    pub(crate) max_tokens: Option<u32>,
    /// The same by its newer name.
    #[schema(minimum = 1)]
    pub(crate) max_completion_tokens: Option<u32>,
    /// 0, the likeliest token, if it is left out.
    #[schema(minimum = 0)]
    pub(crate) temperature: Option<f32>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub(crate) top_p: Option<f32>,
    /// Extension: sample among so many likeliest tokens.
    #[schema(minimum = 1)]
    pub(crate) top_k: Option<u32>,
    /// 1: there is one answer.
    #[schema(minimum = 1, maximum = 1)]
    pub(crate) n: Option<u32>,
    /// Without effect.
    pub(crate) user: Option<String>,
    /// Without effect.
    pub(crate) safety_identifier: Option<String>,
    /// Without effect.
    pub(crate) prompt_cache_key: Option<String>,
    /// Without effect.
    pub(crate) metadata: Option<BTreeMap<String, String>>,
    /// Without effect: nothing is stored.
    pub(crate) store: Option<bool>,
    /// Without effect.
    pub(crate) service_tier: Option<String>,
    /// Nothing but 0.
    #[schema(minimum = 0, maximum = 0)]
    pub(crate) frequency_penalty: Option<f32>,
    /// Nothing but 0.
    #[schema(minimum = 0, maximum = 0)]
    pub(crate) presence_penalty: Option<f32>,
    /// Nothing but false.
    pub(crate) logprobs: Option<bool>,
    /// Nothing but 0.
    #[schema(minimum = 0, maximum = 0)]
    pub(crate) top_logprobs: Option<u32>,
    /// Nothing but an empty one.
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    /// Nothing but an empty list.
    pub(crate) tools: Option<Vec<Value>>,
    /// Without effect: there are no tools to choose from.
    pub(crate) tool_choice: Option<ToolChoice>,
    /// Without effect.
    pub(crate) parallel_tool_calls: Option<bool>,
    /// Nothing but `{"type": "text"}`.
    pub(crate) response_format: Option<AnswerFormat>,
    /// Nothing but `["text"]`.
    pub(crate) modalities: Option<Vec<String>>,
}

/// Which tool is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ToolChoice {
    None,
    Auto,
}

/// What the answer is.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(crate) struct AnswerFormat {
    #[serde(rename = "type")]
    kind: String,
}

/// How a stream ends.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// Send a last chunk with the tokens used.
    include_usage: Option<bool>,
    /// Without effect.
    #[allow(dead_code)]
    include_obfuscation: Option<bool>,
}

/// Stop strings.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Stop {
    One(String),
    Many(Vec<String>),
}

/// One thing that was said.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(crate) struct Message {
    pub(crate) role: Role,
    #[schema(required = true)]
    pub(crate) content: Option<Content>,
    /// Nothing but null.
    #[schema(ignore)]
    tool_calls: Option<Value>,
}

/// Who said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    System,
    /// The same as `system`.
    Developer,
    User,
    Assistant,
}

/// A text, or parts.
#[derive(Debug, Clone, ToSchema)]
#[schema(as = MessageContent)]
#[serde(untagged)]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Part {
    Text { text: String },
    ImageUrl { image_url: ImageUrl },
}

/// A picture.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(crate) struct ImageUrl {
    /// A data: URL; another one only of hosts that the operator allows.
    pub(crate) url: String,
    /// Without effect: every picture is looked at in the model's size.
    #[allow(dead_code)]
    detail: Option<String>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of parts")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<Content, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(parts)).map(Content::Parts)
            }

            fn visit_map<A: MapAccess<'de>>(self, part: A) -> Result<Content, A::Error> {
                Part::deserialize(MapAccessDeserializer::new(part)).map(|part| Content::Parts(vec![part]))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// A whole answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    /// What computed it: equal fingerprints and seeds give equal answers.
    system_fingerprint: String,
    choices: Vec<Choice>,
    usage: Usage,
}

/// The answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Choice {
    index: u32,
    message: Reply,
    finish_reason: &'static str,
    logprobs: Option<Value>,
}

/// What was answered.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Reply {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

/// Tokens it took.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[schema(as = ChatUsage)]
pub(crate) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

impl Usage {
    fn of(done: &v1::ChatDone) -> Self {
        let usage = done.done.as_ref().and_then(|done| done.usage).unwrap_or_default();
        Usage {
            prompt_tokens: usage.input_tokens,
            completion_tokens: usage.output_tokens,
            total_tokens: usage.input_tokens + usage.output_tokens,
        }
    }
}

fn finish_reason(done: &v1::ChatDone) -> &'static str {
    match done.finish_reason() {
        v1::FinishReason::Length => "length",
        v1::FinishReason::Stop | v1::FinishReason::Unspecified => "stop",
    }
}

impl ChatRequest {
    /// Refuses what is known and not done here.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        let refuse =
            |param: &str, only: &str| Err(Problem::invalid(param, format!("{param}: nothing but {only} is served here")));
        if self.n.is_some_and(|n| n != 1) {
            return refuse("n", "1");
        }
        for (param, value) in [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)] {
            if value.is_some_and(|value| value != 0.0) {
                return refuse(param, "0");
            }
        }
        if self.logprobs == Some(true) {
            return refuse("logprobs", "false");
        }
        if self.top_logprobs.is_some_and(|n| n > 0) {
            return refuse("top_logprobs", "0");
        }
        if self.logit_bias.as_ref().is_some_and(|bias| !bias.is_empty()) {
            return refuse("logit_bias", "an empty one");
        }
        if self.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
            return refuse("tools", "an empty list");
        }
        if self.response_format.as_ref().is_some_and(|format| format.kind != "text") {
            return refuse("response_format", "`{\"type\": \"text\"}`");
        }
        if self.modalities.as_ref().is_some_and(|wanted| wanted.iter().any(|m| m != "text")) {
            return refuse("modalities", "`[\"text\"]`");
        }
        if self.stream_options.is_some() && !self.stream.unwrap_or_default() {
            return Err(Problem::invalid("stream_options", "stream_options: needs `stream: true`"));
        }
        if self.max_tokens.is_some() && self.max_completion_tokens.is_some() {
            return Err(Problem::invalid(
                "max_tokens",
                "max_tokens: it and max_completion_tokens are one; give one of them",
            ));
        }
        Ok(())
    }

    /// Most tokens, by either name.
    pub(crate) fn most(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// Stop strings.
    pub(crate) fn stops(&self) -> Vec<String> {
        match &self.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop.clone()],
            Some(Stop::Many(stops)) => stops.clone(),
        }
    }

    /// The request as the coordinator takes it.
    async fn ask(self, gateway: &Gateway, asker: &Asker) -> Result<v1::ChatRequest, Problem> {
        self.check()?;
        let (max_tokens, stop) = (self.most(), self.stops());
        let (mut messages, wanted) = said(self.messages)?;
        let mut pictures = Vec::new();
        for (param, url) in wanted {
            let data = gateway.remote().picture(&param, &url).await?;
            pictures.push(v1::Image { data, ..v1::Image::default() });
        }
        show(&mut messages, pictures);
        Ok(v1::ChatRequest {
            header: Some(asker.header(self.model)),
            messages,
            max_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed.map_or_else(seed::random, |seed| seed.0),
            stop,
            ..v1::ChatRequest::default()
        })
    }
}

/// What was said, and where its pictures are: the parameter and the URL of each. Their places are empty until [`show`].
#[allow(clippy::type_complexity)]
pub(crate) fn said(given: Option<Vec<Message>>) -> Result<(Vec<v1::Message>, Vec<(String, String)>), Problem> {
    let given = given.filter(|given| !given.is_empty());
    let given = given.ok_or_else(|| Problem::invalid("messages", "messages: is empty: say something"))?;
    let (mut messages, mut pictures) = (Vec::new(), Vec::new());
    for (i, message) in given.into_iter().enumerate() {
        if message.tool_calls.is_some_and(|calls| !calls.is_null()) {
            let param = format!("messages[{i}].tool_calls");
            return Err(Problem::invalid(&param, format!("{param}: there are no tools here")));
        }
        let role = match message.role {
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        let given = match message.content {
            None => Vec::new(),
            Some(Content::Text(text)) => vec![Part::Text { text }],
            Some(Content::Parts(parts)) => parts,
        };
        let mut parts = Vec::new();
        for (j, part) in given.into_iter().enumerate() {
            let part = match part {
                Part::Text { text } => v1::part::Part::Text(text),
                Part::ImageUrl { image_url } => {
                    let param = format!("messages[{i}].content[{j}].image_url");
                    if pictures.len() == MAX_PICTURES {
                        let message = format!("{param}: a conversation has at most {MAX_PICTURES} pictures");
                        return Err(Problem::invalid(&param, message));
                    }
                    pictures.push((param, image_url.url));
                    v1::part::Part::Image(v1::Image::default())
                }
            };
            parts.push(v1::Part { part: Some(part) });
        }
        messages.push(v1::Message { role: role.to_owned(), parts });
    }
    Ok((messages, pictures))
}

/// Puts pictures in their places.
pub(crate) fn show(messages: &mut [v1::Message], pictures: Vec<v1::Image>) {
    let places = messages.iter_mut().flat_map(v1::Message::images_mut);
    places.zip(pictures).for_each(|(place, picture)| *place = picture);
}

/// What this door calls a field of the coordinator's.
fn renamed(problem: Problem) -> Problem {
    problem.renamed(|field| match field {
        // messages[1].parts[0].image
        other if other.starts_with("messages[") => other.replace(".parts[", ".content[").replace("].image", "].image_url"),
        "raw_images" => "messages".to_owned(),
        other => other.to_owned(),
    })
}

/// Answers, about pictures or without.
///
/// With `stream: true` the answer is a stream of server-sent events, chunks of it, that ends with `[DONE]`.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "chat", request_body = ChatRequest, responses(
    (status = 200, description = "The answer", content((ChatResponse = "application/json"), (String = "text/event-stream"))),
    (status = "default", description = "What went wrong", body = crate::problem::Body)
))]
pub(crate) async fn complete(
    State(gateway): State<Gateway>,
    asker: Asker,
    Json { value: request, room }: Json<ChatRequest>,
) -> Result<Response, Problem> {
    let model = gateway.describe(&asker).await?;
    let streaming = request.stream.unwrap_or_default();
    let include_usage = request.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or_default();
    let id = format!("chatcmpl-{}", asker.id().trim_start_matches("req-"));
    let asked = request.ask(&gateway, &asker).await?;
    let mut answering = Answering::new(gateway.clone(), asker, asked, room);
    answering.begin().await.map_err(|status| renamed(status.into()))?;
    if streaming {
        let frame = Frame { id, created: now(), model: model.model, system_fingerprint: model.numerics, include_usage };
        let growing = Growing { answering, frame, waiting: Vec::new(), begun: false, ended: false };
        return Ok(sse::stream(growing, Growing::next).into_response());
    }
    let done = loop {
        match answering.next().await.map_err(|status| renamed(status.into()))? {
            Answered::Text(_) | Answered::Restarted => {}
            Answered::Done(done, _) => break done,
        }
    };
    let (usage, finish_reason) = (Usage::of(&done), finish_reason(&done));
    let numerics = done.done.as_ref().map_or_else(String::new, |done| done.numerics.clone());
    let message = Reply { role: "assistant", content: done.text, refusal: None };
    let answer = ChatResponse {
        id,
        object: "chat.completion",
        created: now(),
        model: model.model,
        // What computed it, which may not be what the cluster began with.
        system_fingerprint: if numerics.is_empty() { model.numerics } else { numerics },
        choices: vec![Choice { index: 0, message, finish_reason, logprobs: None }],
        usage,
    };
    Ok(Answer(answer).into_response())
}

/// An answer as a stream of chunks.
struct Growing {
    answering: Answering,
    frame: Frame,
    /// Events that are ready, the next one last.
    waiting: Vec<sse::Event>,
    begun: bool,
    ended: bool,
}

/// What all chunks of an answer say.
struct Frame {
    id: String,
    created: u64,
    model: String,
    system_fingerprint: String,
    include_usage: bool,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<Delta<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct Delta<'a> {
    index: u32,
    delta: Piece<'a>,
    finish_reason: Option<&'static str>,
    logprobs: Option<Value>,
}

#[derive(Default, Serialize)]
struct Piece<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl Frame {
    fn chunk(&self, choices: Vec<Delta<'_>>, usage: Option<Usage>) -> Result<sse::Event, Problem> {
        sse::Event::nameless(&Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.system_fingerprint,
            choices,
            usage: self.include_usage.then_some(usage),
        })
    }

    fn delta(&self, delta: Piece<'_>, finish_reason: Option<&'static str>) -> Result<sse::Event, Problem> {
        self.chunk(vec![Delta { index: 0, delta, finish_reason, logprobs: None }], None)
    }

    fn text(&self, text: &str) -> Result<sse::Event, Problem> {
        self.delta(Piece { content: Some(text), role: None }, None)
    }
}

impl Growing {
    async fn next(mut self) -> Option<(Result<sse::Event, Problem>, Option<Self>)> {
        if self.waiting.is_empty() && self.ended {
            return None;
        }
        match self.event().await {
            Ok(event) => Some((Ok(event), Some(self))),
            Err(problem) => Some((Err(problem), None)),
        }
    }

    async fn event(&mut self) -> Result<sse::Event, Problem> {
        if let Some(event) = self.waiting.pop() {
            return Ok(event);
        }
        if !self.begun {
            self.begun = true;
            return self.frame.delta(Piece { role: Some("assistant"), content: Some("") }, None);
        }
        let (done, rest) = match self.answering.next().await.map_err(|status| renamed(status.into()))? {
            Answered::Text(text) => return self.frame.text(&text),
            // What was sent cannot be taken back.
            Answered::Restarted => {
                let text =
                    "nothing is left of the nodes that had begun this answer, and others would give another one: ask again";
                return Err(Problem::from(tonic::Status::aborted(text)));
            }
            Answered::Done(done, rest) => (done, rest),
        };
        self.ended = true;
        self.waiting.push(sse::Event::word("[DONE]"));
        if self.frame.include_usage {
            self.waiting.push(self.frame.chunk(Vec::new(), Some(Usage::of(&done)))?);
        }
        self.waiting.push(self.frame.delta(Piece::default(), Some(finish_reason(&done)))?);
        if rest.is_empty() {
            return self.waiting.pop().ok_or_else(|| Problem::from(tonic::Status::internal("no last chunk")));
        }
        self.frame.text(&rest)
    }
}
