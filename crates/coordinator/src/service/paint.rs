//! GenerateImage.

use super::partial::{Due, MAX_PARTIALS};
use super::*;
use crate::schedule::{DIVERGED, Finish};
use tokio::sync::watch;
use tokio::time::Instant;

/// Whoever sees ids sees new ones so often: an event costs as much as a step of a small model.
const PACE: Duration = Duration::from_millis(20);

type Out = mpsc::Sender<Result<v1::GenerateImageEvent, Status>>;

/// What a reader wants to see of unfinished pictures.
#[derive(Debug, Clone, Copy)]
struct Wishes {
    /// Ids as they are drawn.
    ids: bool,
    /// Partial pictures of each.
    partials: u32,
}

pub(super) async fn paint(
    shared: &Arc<Shared>,
    tenant: &str,
    request: v1::GenerateImageRequest,
) -> Result<Response<Events<v1::GenerateImageEvent>>, Status> {
    let place = shared.enter()?;
    let left = params::left(request.header.as_ref())?;
    let wishes = Wishes { ids: request.stream_ids, partials: request.partial_images };
    let work = within(left, work(shared, tenant, request, &Logs::default())).await?;
    shared.admit()?;
    let (seed, kept) = (work.specs.first().map_or(0, |s| s.sampling.seed), work.specs.first().map_or(0, |s| s.keep.len()));
    let reader = shared.join(tenant, work).await?;
    let shared = shared.clone();
    Ok(stream(shared.over.clone(), place, left, move |out| follow(shared, reader, seed, kept, wishes, out)))
}

/// Checks a request and lays out its units.
pub(super) async fn work(
    shared: &Arc<Shared>,
    tenant: &str,
    mut request: v1::GenerateImageRequest,
    logs: &Logs,
) -> Result<Work, Status> {
    let stored_header = request.header.take();
    let header = params::header(stored_header.clone(), &shared.model.name)?;
    let spec = &shared.model.spec;
    let count = request.n.max(1);
    if count > MAX_PICTURES {
        return Err(status::invalid("n", format!("{count} pictures are more than {MAX_PICTURES}")));
    }
    if request.prompt.len() > MAX_PROMPT {
        return Err(status::invalid("prompt", format!("{} bytes are more than {MAX_PROMPT}", request.prompt.len())));
    }
    if request.partial_images > MAX_PARTIALS {
        let asked = request.partial_images;
        return Err(status::invalid("partial_images", format!("{asked} partial pictures are more than {MAX_PARTIALS}")));
    }
    let sampling = params::image_sampling(&request, &spec.generation)?;
    let prompt = shared.model.tokenizer.generation_prompt(&request.prompt, request.raw_prompt);
    let prompt = prompt.map_err(|e| status::invalid("prompt", e.to_string()))?;
    let (rows, grid) = (request.keep_rows as usize, spec.vq.grid);
    let initial = match &mut request.init_image {
        Some(image) if rows <= grid => {
            let blob = shared.blobs.resolve(tenant, "init_image", image)?;
            *image = blob.named();
            Some(blob)
        }
        Some(_) => {
            return Err(status::invalid("keep_rows", format!("{rows}: a picture of this model has {grid} rows of ids")));
        }
        None if rows > 0 => return Err(status::invalid("keep_rows", "needs an init_image")),
        None => None,
    };
    let fingerprint = fingerprint("image", &request);
    let keep = match &initial {
        Some(blob) if rows > 0 => shared.encode_ids(blob).await?[..rows * grid].to_vec(),
        _ => Vec::new(),
    };

    let total = spec.image_tokens();
    let branches = if sampling.cfg_weight == 1.0 { 1 } else { 2 };
    let home = shared.route(count as usize * (total - keep.len()) * branches);
    let ids: Vec<UnitId> = shared.unit_ids(count as usize).collect();
    let record = Record::new(fingerprint, ids.clone(), &keep, prompt.cond.clone());
    let mut specs = Vec::new();
    for (i, id) in (0_u64..).zip(ids) {
        let sampling = Sampling { seed: sampling.seed.wrapping_add(i), ..sampling };
        let key = format!("{tenant}/{}#{i}", header.id);
        let mut unit = unit(tenant, id, &prompt, sampling, &keep, total, header.band);
        unit.log = logs.of(&key, total - keep.len());
        unit.key = key;
        record.update(i as usize, |p| p.ids.extend(&unit.log));
        specs.push(unit);
    }
    // A picture that is kept whole has nothing left to draw.
    if keep.len() == total {
        (0..count as usize).for_each(|i| record.update(i, |p| p.end = Some(Ok(Finish::Complete))));
    }
    request.header = stored_header;
    let admitted = AdmittedRequest {
        tenant: tenant.to_owned(),
        request: Some(admitted_request::Request::Image(request)),
        blobs: initial.iter().map(|blob| blob.data.clone()).collect(),
        admitted_unix_ms: params::now_unix_ms(),
        model: shared.identity.model.to_vec().into(),
        numerics: shared.identity.numerics.clone(),
        restarted: 0,
    };
    Ok(Work { header, fingerprint, record, specs, pictures: Vec::new(), home, admitted })
}

fn unit(
    tenant: &str,
    id: u64,
    prompt: &GenerationPrompt,
    sampling: Sampling,
    keep: &[u32],
    target: usize,
    band: crate::schedule::Band,
) -> UnitSpec {
    let branch = |ids: &[u32]| vec![Piece { piece: Some(piece::Piece::Text(Ids { ids: ids.to_vec() })) }];
    // Weight 1 is the conditional branch alone, exactly: there is no unconditional row to compute.
    let (kind, branches) = match sampling.cfg_weight {
        1.0 => (Kind::Unguided, vec![branch(&prompt.cond)]),
        _ => (Kind::Pair, vec![branch(&prompt.cond), branch(&prompt.uncond)]),
    };
    UnitSpec {
        id,
        kind,
        sampling,
        branches,
        prompt: prompt.cond.len(),
        keep: keep.to_vec(),
        target,
        end: None,
        band,
        tenant: tenant.into(),
        share: Share::default(),
        log: Vec::new(),
        key: String::new(),
        admitted: false,
    }
}

/// Reads a record to its end, at the reader's pace.
async fn follow(
    shared: Arc<Shared>,
    reader: Reader,
    seed: u64,
    kept: usize,
    wishes: Wishes,
    out: Out,
) -> Result<(), Status> {
    let record = &reader.record;
    let count = record.units.len();
    let send = async |event| out.send(Ok(v1::GenerateImageEvent { event: Some(event) })).await.map_err(gone);
    let total = shared.model.spec.image_tokens();
    let mut watch = record.watch();
    let (mut announced, mut queued, mut resumed) = (false, None, 0);
    let mut seen = vec![0; count];
    let mut done = vec![false; count];
    let mut due = vec![Due::new(kept, total, wishes.partials); count];
    // One at a time: whoever asks for many pictures has no more of the decoders than others.
    let (mut wanted, mut partial) = (vec![None; count], JoinSet::new());
    let mut shown = None;
    let durable = record.accepted().await?;
    send(v1::generate_image_event::Event::Accepted(v1::Accepted { durable })).await?;
    if let Some(restarted) = shared.restarted(record) {
        send(v1::generate_image_event::Event::Restarted(restarted)).await?;
    }
    loop {
        watch.borrow_and_update();
        let times = record.resumed();
        if times > resumed {
            resumed = times;
            send(v1::generate_image_event::Event::Resumed(v1::Resumed { count: times })).await?;
        }
        for index in 0..count {
            if done[index] {
                continue;
            }
            let from = seen[index];
            let look = record.look(index, |p| {
                (p.queued, p.started || p.end.is_some(), p.ids.len(), p.ids[from..].to_vec(), p.end.clone())
            });
            let Some((place, started, known, new, end)) = look else { continue };
            if let Some(place) = place
                && index == 0
                && queued != Some(place)
            {
                queued = Some(place);
                send(v1::generate_image_event::Event::Queued(v1::Queued { position: place as u32 })).await?;
            }
            if started && !announced {
                announced = true;
                send(v1::generate_image_event::Event::Started(v1::Started { prompt_tokens: record.prompt.clone() })).await?;
            }
            if !new.is_empty() {
                seen[index] = known;
                shown = Some(Instant::now());
                let progress = v1::ImageProgress {
                    index: index as u32,
                    known: known as u32,
                    total: total as u32,
                    ids: if wishes.ids { new } else { Vec::new() },
                };
                send(v1::generate_image_event::Event::Progress(progress)).await?;
                wanted[index] = due[index].reached(known).or(wanted[index]);
            }
            match end {
                None => {}
                Some(Err(failure)) => return Err(failed(failure)),
                Some(Ok(_)) => {
                    done[index] = true;
                    let ids = record.look(index, |p| p.ids.clone()).unwrap_or_default();
                    let picture = shared.picture(record, index, &ids).await?;
                    let image = v1::ImageDone {
                        index: index as u32,
                        seed: seed.wrapping_add(index as u64),
                        sha256: sha256_of_ids(&ids).to_vec().into(),
                        tokens: ids,
                        width: picture.width,
                        height: picture.height,
                        rgb: picture.rgb,
                    };
                    send(v1::generate_image_event::Event::Image(image)).await?;
                }
            }
        }
        if done.iter().all(|d| *d) {
            let end = shared.done(record.prompt.len(), count * (total - kept));
            return send(v1::generate_image_event::Event::Done(end)).await;
        }
        if partial.is_empty()
            && let Some((index, number)) = (0..count).find_map(|i| wanted[i].take().filter(|_| !done[i]).map(|n| (i, n)))
        {
            let known = record.look(index, |p| p.ids.clone()).unwrap_or_default();
            partial.spawn(shared.clone().partial(index, number, known));
        }
        tokio::select! {
            changed = watch.changed() => {
                changed.map_err(|_| Status::internal("the request's record is gone"))?;
                if let Some(shown) = shown.filter(|_| wishes.ids) {
                    calm(record, &done, &mut watch, shown + PACE).await;
                }
            }
            Some(decoded) = partial.join_next() => {
                if let Ok(Some(decoded)) = decoded
                    && !done[decoded.index as usize]
                {
                    send(v1::generate_image_event::Event::Partial(decoded)).await?;
                }
            }
        }
    }
}

/// Waits until `at`, unless a unit that is not done ends before.
async fn calm(record: &Record, done: &[bool], watch: &mut watch::Receiver<u64>, at: Instant) {
    let running = |i: &usize| record.look(*i, |p| p.end.is_none()).unwrap_or(false);
    let ended =
        async { while (0..done.len()).filter(|i| !done[*i]).all(|i| running(&i)) && watch.changed().await.is_ok() {} };
    tokio::select! {
        () = ended => {}
        () = tokio::time::sleep_until(at) => {}
    }
}

pub(super) fn failed(failure: Failure) -> Status {
    match failure {
        Failure::Full => status::exhausted("the queue is full", RETRY),
        Failure::Cancelled => Status::cancelled("the request was cancelled"),
        Failure::Ended => status::unavailable("this coordinator does not lead any more", RETRY),
        // Not the caller's fault, and trying again is in vain.
        Failure::Lost(reason) if reason.ends_with(DIVERGED) => Status::data_loss(reason),
        Failure::Lost(reason) => Status::internal(reason),
    }
}

/// SHA-256 over ids as little-endian u16: what stands for a picture.
pub(super) fn sha256_of_ids(ids: &[u32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    ids.iter().for_each(|id| hash.update((*id as u16).to_le_bytes()));
    hash.finalize().into()
}
