//! Chat.

use janus_spec::{Message, Part, Prompt, Role};

use super::paint::failed;
use super::stops::Stops;
use super::*;
use crate::schedule::Finish;

type Out = mpsc::Sender<Result<v1::ChatEvent, Status>>;

/// Most stop strings, and the longest one.
const MAX_STOPS: (usize, usize) = (4, 256);

pub(super) async fn chat(
    shared: &Arc<Shared>,
    tenant: &str,
    request: v1::ChatRequest,
) -> Result<Response<Events<v1::ChatEvent>>, Status> {
    let place = shared.enter()?;
    let (left, stops) = (params::left(request.header.as_ref())?, request.stop.clone());
    let work = work(shared, tenant, request, &Logs::default())?;
    shared.admit()?;
    // Features are pushed before the unit is queued, so that its prompt finds them.
    within(left, shared.understand(tenant, &work.pictures, work.home.home)).await?;
    let reader = shared.join(tenant, work).await?;
    let shared = shared.clone();
    Ok(stream(shared.over.clone(), place, left, move |out| follow(shared, reader, stops, out)))
}

/// Checks a request and lays out its unit.
pub(super) fn work(shared: &Arc<Shared>, tenant: &str, mut request: v1::ChatRequest, logs: &Logs) -> Result<Work, Status> {
    let stored_header = request.header.take();
    let header = params::header(stored_header.clone(), &shared.model.name)?;
    let spec = &shared.model.spec;
    let sampling = params::sampling(
        request.temperature.unwrap_or(spec.generation.text_temperature),
        request.top_k,
        request.top_p,
        request.seed,
    )?;
    if request.stop.len() > MAX_STOPS.0 || request.stop.iter().any(|s| s.is_empty() || s.len() > MAX_STOPS.1) {
        return Err(status::invalid("stop", format!("takes at most {} strings of 1 to {} bytes", MAX_STOPS.0, MAX_STOPS.1)));
    }
    let (prompt, pictures) = prompt(shared, tenant, &request)?;
    let room = spec.llm.max_positions.saturating_sub(prompt.ids.len());
    let wanted = request.max_tokens.map_or(spec.generation.text_max_tokens, |n| n as usize);
    if wanted == 0 {
        return Err(status::invalid("max_tokens", "0 leaves nothing to answer with"));
    }
    name_pictures(&mut request, &pictures);
    let fingerprint = fingerprint("chat", &request);
    let target = wanted.min(room.max(1));
    let home = shared.route(target);
    let ids: Vec<UnitId> = shared.unit_ids(1).collect();
    let record = Record::new(fingerprint, ids.clone(), &[], prompt.ids.clone());
    let key = format!("{tenant}/{}#0", header.id);
    let log = logs.of(&key, target);
    record.update(0, |p| p.ids.extend(&log));
    let unit = |id: UnitId| UnitSpec {
        id,
        kind: Kind::Text,
        sampling,
        branches: vec![pieces(&prompt, tenant, &pictures)],
        prompt: prompt.ids.len(),
        keep: Vec::new(),
        target,
        end: Some(shared.model.tokenizer.special().eos),
        band: header.band,
        tenant: tenant.into(),
        share: Share::default(),
        log: log.clone(),
        key: key.clone(),
        admitted: false,
    };
    let specs = ids.into_iter().map(unit).collect();
    request.header = stored_header;
    let admitted = AdmittedRequest {
        tenant: tenant.to_owned(),
        request: Some(admitted_request::Request::Chat(request)),
        blobs: pictures.iter().map(|blob| blob.data.clone()).collect(),
        admitted_unix_ms: params::now_unix_ms(),
        model: shared.identity.model.to_vec().into(),
        numerics: shared.identity.numerics.clone(),
        restarted: 0,
    };
    Ok(Work { header, fingerprint, record, specs, pictures, home, admitted })
}

/// Puts digests in the places of pictures' bytes: a request is the same however its pictures came.
fn name_pictures(request: &mut v1::ChatRequest, pictures: &[Blob]) {
    let said = request.messages.iter_mut().flat_map(v1::Message::images_mut);
    for (image, blob) in said.chain(&mut request.raw_images).zip(pictures) {
        *image = blob.named();
    }
}

/// The conversation as ids, and its pictures in order.
fn prompt(shared: &Shared, tenant: &str, request: &v1::ChatRequest) -> Result<(Prompt, Vec<Blob>), Status> {
    let tokenizer = &shared.model.tokenizer;
    let resolve = |field: String, image: &v1::Image| shared.blobs.resolve(tenant, &field, image);
    let mut pictures = Vec::new();
    let prompt = if request.messages.is_empty() {
        if request.raw_prompt.len() > MAX_PROMPT {
            return Err(status::invalid(
                "raw_prompt",
                format!("{} bytes are more than {MAX_PROMPT}", request.raw_prompt.len()),
            ));
        }
        for (i, image) in request.raw_images.iter().enumerate() {
            pictures.push(resolve(format!("raw_images[{i}]"), image)?);
        }
        tokenizer.raw_prompt(&request.raw_prompt).map_err(|e| status::invalid("raw_prompt", e.to_string()))?
    } else {
        let mut messages = Vec::new();
        let mut bytes = 0;
        for (i, message) in request.messages.iter().enumerate() {
            let role = match message.role.as_str() {
                "system" => Role::System,
                "user" => Role::User,
                "assistant" => Role::Assistant,
                other => {
                    return Err(status::invalid(
                        &format!("messages[{i}].role"),
                        format!("`{}` is not system, user or assistant", status::shown(other)),
                    ));
                }
            };
            let mut parts = Vec::new();
            for (j, part) in message.parts.iter().enumerate() {
                match &part.part {
                    Some(v1::part::Part::Text(text)) => {
                        bytes += text.len();
                        parts.push(Part::Text(text.clone()));
                    }
                    Some(v1::part::Part::Image(image)) => {
                        pictures.push(resolve(format!("messages[{i}].parts[{j}].image"), image)?);
                        parts.push(Part::Image);
                    }
                    None => return Err(status::invalid(&format!("messages[{i}].parts[{j}]"), "says nothing")),
                }
            }
            messages.push(Message { role, parts });
        }
        if bytes > MAX_PROMPT {
            return Err(status::invalid("messages", format!("{bytes} bytes are more than {MAX_PROMPT}")));
        }
        tokenizer.chat_prompt(&messages, None).map_err(|e| status::invalid("messages", e.to_string()))?
    };
    prompt.expect_images(pictures.len()).map_err(|e| status::invalid("raw_images", e.to_string()))?;
    Ok((prompt, pictures))
}

/// The prompt's ids with the places of its pictures filled by features.
fn pieces(prompt: &Prompt, tenant: &str, pictures: &[Blob]) -> Vec<Piece> {
    let text = |ids: &[u32]| Piece { piece: Some(piece::Piece::Text(Ids { ids: ids.to_vec() })) };
    let mut pieces = Vec::new();
    let mut at = 0;
    for (place, picture) in prompt.images.iter().zip(pictures) {
        pieces.push(text(&prompt.ids[at..place.start]));
        let handle = crate::images::feature_handle(tenant, &picture.digest);
        let span = v1::FeatureSpan { handle, first: 0, count: place.len() as u32 };
        pieces.push(Piece { piece: Some(piece::Piece::Features(span)) });
        at = place.end;
    }
    pieces.push(text(&prompt.ids[at..]));
    pieces
}

/// Why an answer ended that no stop string did.
pub(super) fn reason(finish: Finish) -> v1::FinishReason {
    match finish {
        Finish::EndOfSentence => v1::FinishReason::Stop,
        Finish::Complete => v1::FinishReason::Length,
    }
}

async fn follow(shared: Arc<Shared>, reader: Reader, stops: Vec<String>, out: Out) -> Result<(), Status> {
    let record = &reader.record;
    let tokenizer = &shared.model.tokenizer;
    let send = async |event| out.send(Ok(v1::ChatEvent { event: Some(event) })).await.map_err(gone);
    let mut watch = record.watch();
    let mut decoder = tokenizer.stream_decoder();
    let (mut announced, mut queued, mut seen, mut resumed) = (false, None, 0, 0);
    let durable = record.accepted().await?;
    send(v1::chat_event::Event::Accepted(v1::Accepted { durable })).await?;
    if let Some(restarted) = shared.restarted(record) {
        send(v1::chat_event::Event::Restarted(restarted)).await?;
    }
    let mut stops = Stops::new(stops);
    let mut text = String::new();
    let mut tokens = Vec::new();
    let broken = |e: janus_spec::Error| Status::internal(e.to_string());
    let reason = 'answer: loop {
        watch.borrow_and_update();
        let times = record.resumed();
        if times > resumed {
            resumed = times;
            send(v1::chat_event::Event::Resumed(v1::Resumed { count: times })).await?;
        }
        let look = record.look(0, |p| (p.queued, p.started || p.end.is_some(), p.ids[seen..].to_vec(), p.end.clone()));
        let Some((place, started, new, end)) = look else { return Err(Status::internal("the request's record is gone")) };
        if let Some(place) = place
            && queued != Some(place)
        {
            queued = Some(place);
            send(v1::chat_event::Event::Queued(v1::Queued { position: place as u32 })).await?;
        }
        if started && !announced {
            announced = true;
            send(v1::chat_event::Event::Started(v1::Started { prompt_tokens: record.prompt.clone() })).await?;
        }
        for id in new {
            seen += 1;
            tokens.push(id);
            let piece = decoder.push(tokenizer, id).map_err(broken)?.unwrap_or_default();
            let passed = stops.push(&piece);
            text.push_str(&passed.text);
            send(v1::chat_event::Event::Token(v1::ChatToken { id, text: passed.text })).await?;
            if passed.stopped {
                break 'answer v1::FinishReason::Stop;
            }
        }
        match end {
            None => {}
            Some(Err(failure)) => return Err(failed(failure)),
            Some(Ok(finish)) => {
                // Bytes that never became a character may still complete a stop.
                let passed = stops.push(&decoder.finish(tokenizer).map_err(broken)?);
                text.push_str(&passed.text);
                if passed.stopped {
                    break v1::FinishReason::Stop;
                }
                text.push_str(&stops.finish());
                break reason(finish);
            }
        }
        watch.changed().await.map_err(|_| Status::internal("the request's record is gone"))?;
    };
    let output = tokens.len();
    let done = Some(shared.done(record.prompt.len(), output));
    send(v1::chat_event::Event::Done(v1::ChatDone { tokens, text, finish_reason: reason.into(), done })).await
}
