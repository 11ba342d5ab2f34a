//! How a request comes in, from its caller or from a predecessor: it is written down, and its units go to a pipeline.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use janus_wire::status;
use janus_wire::v1::{self, AdmittedRequest, Kind, admitted_request};
use sha2::{Digest, Sha256};
use tonic::Status;
use tracing::Instrument;

use super::{Coordinator, RETRY, Shared, chat, paint};
use crate::drive::Sink;
use crate::images::Blob;
use crate::ledger::Logs;
use crate::params::Header;
use crate::request::{Failure, Joined, Reader, Record};
use crate::schedule::{UnitId, UnitSpec};

/// A request that was checked: everything that is needed to begin it, or to begin it again.
pub(super) struct Work {
    pub(super) header: Header,
    pub(super) fingerprint: [u8; 32],
    pub(super) record: Record,
    pub(super) specs: Vec<UnitSpec>,
    pub(super) pictures: Vec<Blob>,
    pub(super) home: Claim,
    pub(super) admitted: AdmittedRequest,
}

/// A place on a pipeline, until its units are there: who comes meanwhile is routed with them in mind.
pub(super) struct Claim {
    pub(super) home: usize,
    rows: usize,
    claimed: Arc<AtomicUsize>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claimed.fetch_sub(self.rows, Ordering::Relaxed);
    }
}

impl Coordinator {
    /// Takes on what a predecessor had admitted, with the ids it is known to have drawn. Nobody has to ask for it.
    pub async fn restore(&self, admitted: Vec<AdmittedRequest>, logs: &Logs) {
        self.0.calls.restarted(0);
        for request in admitted {
            let header = match &request.request {
                Some(admitted_request::Request::Image(image)) => image.header.as_ref(),
                Some(admitted_request::Request::Chat(chat)) => chat.header.as_ref(),
                None => continue,
            };
            let id = header.map_or("", |header| header.request_id.as_str());
            let span = tracing::error_span!("restored", request = id, tenant = request.tenant);
            let key = format!("{}/{id}", request.tenant);
            self.restore_one(key, request, logs).instrument(span).await;
        }
    }

    async fn restore_one(&self, key: String, request: AdmittedRequest, logs: &Logs) {
        let tenant = request.tenant.clone();
        // The cluster was started with another model since: its ids mean nothing to this one.
        if request.model[..] != self.0.identity.model[..] {
            tracing::warn!("a request that was admitted for another model is dropped");
            return;
        }
        let (foreign, mut restarted, since) = (self.0.foreign(&request), request.restarted, request.admitted_unix_ms);
        if foreign && !self.0.restart {
            tracing::warn!(numerics = request.numerics, "a request waits for nodes of other numerics");
            self.0.waiting().insert(key, request.numerics);
            return;
        }
        // Its log belongs to other numerics, whoever had it.
        let none = Logs::default();
        let logs = if foreign { &none } else { logs };
        restarted += u32::from(foreign);
        self.0.keep_blobs(&request);
        let work = match request.request {
            Some(admitted_request::Request::Image(image)) => paint::work(&self.0, &tenant, image, logs).await,
            Some(admitted_request::Request::Chat(chat)) => chat::work(&self.0, &tenant, chat, logs),
            None => return,
        };
        match work {
            Ok(mut work) => {
                (work.record.restarted, work.admitted.restarted) = (restarted, restarted);
                work.admitted.admitted_unix_ms = since;
                if foreign {
                    self.0.calls.restarted(1);
                    if let Some(ledger) = &self.0.ledger {
                        ledger.rewrite(&key, &work.admitted).await;
                    }
                }
                self.0.take_on(&tenant, work).await;
            }
            Err(status) => tracing::warn!(error = status.message(), "an admitted request cannot go on"),
        }
    }

    /// Moves everything from one pipeline to the others that are alive.
    pub async fn evacuate(&self, from: usize) {
        let alive = |i: &usize| *i != from && self.0.drivers[*i].proven() && *self.0.drivers[*i].ready().borrow();
        if !(0..self.0.drivers.len()).any(|i| alive(&i)) {
            return;
        }
        for (spec, sink) in self.0.drivers[from].evacuate().await {
            let claim = self.0.route(spec.target * spec.rows());
            let home = claim.home;
            sink.record.update(sink.index, |p| p.home = home);
            let (record, index) = (sink.record.clone(), sink.index);
            if self.0.drivers[home].submit(spec, sink).await.is_err() {
                record.update(index, |p| p.end = Some(Err(Failure::Ended)));
            }
        }
    }
}

impl Shared {
    /// A place among the calls that a shutdown waits for, until one has begun.
    pub(super) fn enter(&self) -> Result<Arc<()>, Status> {
        let place = self.running.clone();
        match self.draining.is_cancelled() {
            true => Err(status::unavailable("the server is shutting down", RETRY)),
            false => Ok(place),
        }
    }

    /// A pipeline that was ready once does what it takes on, after a recovery if need be.
    pub(super) fn admit(&self) -> Result<(), Status> {
        match self.drivers.iter().any(|driver| *driver.ready().borrow() || driver.proven()) {
            true => Ok(()),
            false => Err(status::unavailable("the pipeline is not ready", RETRY)),
        }
    }

    /// The pipeline with the least to do, among those that are ready if there are any; `rows` more are claimed on it.
    pub(super) fn route(&self, rows: usize) -> Claim {
        let rank = |i: &usize| {
            let driver = &self.drivers[*i];
            let backlog = driver.backlog() + self.claimed[*i].load(Ordering::Relaxed);
            (!*driver.ready().borrow(), !driver.proven(), backlog)
        };
        let home = (0..self.drivers.len()).min_by_key(rank).unwrap_or(0);
        let claimed = self.claimed[home].clone();
        claimed.fetch_add(rows, Ordering::Relaxed);
        Claim { home, rows, claimed }
    }

    pub(super) fn unit_ids(&self, count: usize) -> impl Iterator<Item = UnitId> + use<> {
        let first = self.next_unit.fetch_add(count as u64, Ordering::Relaxed);
        first..first + count as u64
    }

    pub(super) fn keep_blobs(&self, request: &AdmittedRequest) {
        for data in &request.blobs {
            let image = v1::Image { data: data.clone(), ..v1::Image::default() };
            // What it is was checked when it was admitted.
            let _ = self.blobs.resolve(&request.tenant, "image", &image);
        }
    }

    /// What is done when the last reader of a request has left.
    fn leaving(self: &Arc<Self>, key: &str) -> impl Fn(&Record, bool) + Send + Sync + use<> {
        let (shared, key) = (Arc::downgrade(self), key.to_owned());
        move |record: &Record, unfinished| {
            let Some(shared) = shared.upgrade() else { return };
            // A reign that ends leaves its requests to the next one.
            if shared.over.is_cancelled() || (shared.ledger.is_some() && shared.draining.is_cancelled()) {
                return;
            }
            if unfinished {
                shared.give_up(record);
            }
            if let Some(ledger) = &shared.ledger {
                ledger.forget(&key);
            }
        }
    }

    pub(super) fn give_up(&self, record: &Record) {
        for (index, unit) in record.units.iter().enumerate() {
            let home = record.look(index, |p| p.home).unwrap_or_default();
            self.drivers[home].cancel(&[*unit]);
        }
    }

    /// Joins a request, or makes it: then it is written down, and its units are submitted.
    pub(super) async fn join(self: &Arc<Self>, tenant: &str, work: Work) -> Result<Reader, Status> {
        let Work { header, fingerprint, record, specs, pictures, home, admitted } = work;
        let key = format!("{tenant}/{}", header.id);
        if let Some(numerics) = self.waiting().get(&key) {
            return Err(status::unavailable(
                format!("the request began under `{numerics}` and waits for nodes of these numerics"),
                RETRY,
            ));
        }
        let reader = match self.requests.join(&key, fingerprint, || record, self.leaving(&key)) {
            Joined::Conflict => {
                return Err(Status::already_exists(format!(
                    "header.request_id: `{}` is in use with other parameters",
                    header.id
                )));
            }
            Joined::Known(reader) => {
                reader.record.accepted().await?;
                return Ok(reader);
            }
            Joined::New(reader) => reader,
        };
        let asked = specs.iter().filter(|spec| spec.kind != Kind::Text).count() as u64;
        // Over a quota its readers leave again, and nothing is left of the request.
        self.tenants
            .admit(tenant, asked, || self.requests.unfinished(tenant))
            .inspect_err(|status| reader.record.refuse(status))?;
        let (shared, tenant, mine) = (self.clone(), tenant.to_owned(), reader.another());
        // A caller that goes away meanwhile does not end this: others may have joined.
        let begin = async move {
            let durable = match &shared.ledger {
                Some(ledger) => ledger.admit(&key, admitted).await,
                None => false,
            };
            mine.record.accept(durable);
            shared.submit(&tenant, specs, pictures, home, mine).await;
        };
        let _ = tokio::spawn(begin.in_current_span()).await;
        Ok(reader)
    }

    /// Begins a request that is written down already; it runs to its end whether anybody asks for it or not.
    pub(super) async fn take_on(self: &Arc<Self>, tenant: &str, work: Work) {
        let Work { header, fingerprint, record, mut specs, pictures, home, .. } = work;
        specs.iter_mut().for_each(|spec| spec.admitted = true);
        let key = format!("{tenant}/{}", header.id);
        let Joined::New(reader) = self.requests.join(&key, fingerprint, || record, self.leaving(&key)) else { return };
        reader.record.accept(true);
        let (holding, keep) = (reader.another(), self.requests.keep);
        self.submit(tenant, specs, pictures, home, reader).await;
        tokio::spawn(async move {
            let mut watch = holding.record.watch();
            while !holding.record.finished() && watch.changed().await.is_ok() {}
            // Its caller, if it is still there, comes back within this time.
            tokio::time::sleep(keep).await;
        });
    }

    /// Gives units to their driver.
    pub(super) async fn submit(
        self: &Arc<Self>,
        tenant: &str,
        specs: Vec<UnitSpec>,
        pictures: Vec<Blob>,
        claim: Claim,
        reader: Reader,
    ) {
        let home = claim.home;
        let pictures = Arc::new(pictures);
        let share = self.tenants.share(tenant);
        for (index, mut spec) in specs.into_iter().enumerate() {
            let record = &reader.record;
            // Cancelled before it was the turn of this one.
            if record.look(index, |p| p.end.is_some()).unwrap_or(true) {
                continue;
            }
            record.update(index, |p| p.home = home);
            spec.share = share;
            let encode_again = self.encoding(tenant, &pictures, &reader.record, index);
            let sink = Sink { record: record.clone(), index, encode_again: Some(encode_again) };
            if self.drivers[home].submit(spec, sink).await.is_err() {
                record.update(index, |p| p.end = Some(Err(Failure::Ended)));
            }
        }
    }
}

/// SHA-256 of a request's parameters: everything but its header.
pub(super) fn fingerprint(what: &str, request: &impl prost::Message) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(what);
    hash.update(request.encode_to_vec());
    hash.finalize().into()
}
