//! A job's items as they come and as they lie: in segments of bounded size, each an object. No more than a few segments
//! are ever held.

use std::collections::HashSet;

use bytes::Bytes;
use janus_wire::status::invalid;
use janus_wire::v1::JobItem;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use tonic::Status;

use super::objects::{Created, Objects};
use super::{Error, item};

/// Items of one job.
pub const MAX_ITEMS: u64 = 1_000_000;
/// A segment ends at so many items, unless told otherwise...
pub const SEGMENT: usize = 256;
/// ...or units...
const UNITS: u32 = 512;
/// ...or bytes.
const BYTES: usize = 256 << 10;
/// Segments that are on their way to the store of objects.
const WRITES: usize = 4;
/// Where the first line of each segment is in the manifest: little-endian `u64`s, and one more for the end.
const INDEX: &str = "index";

/// The object of a segment's items.
fn name(segment: u32) -> String {
    format!("items/{segment:06}")
}

/// Takes a job's items in.
pub(super) struct Spool {
    /// The job's folder; `None` if the items are only compared.
    objects: Option<Objects>,
    most: usize,
    writes: JoinSet<Result<Created, Error>>,
    segments: u32,
    bytes: Vec<u8>,
    items: usize,
    units: u32,
    /// Lines of the manifest before each segment.
    lines: Vec<u64>,
    end: u64,
    total: u64,
    seen: HashSet<u128>,
    digest: Sha256,
}

/// What was spooled.
pub(super) struct Spooled {
    pub(super) total: u64,
    pub(super) segments: u32,
    /// SHA-256 over all items.
    pub(super) digest: [u8; 32],
}

impl Spool {
    /// Segments have at most `most` items.
    pub(super) fn new(objects: Option<Objects>, most: usize) -> Self {
        Spool {
            objects,
            most: most.max(1),
            writes: JoinSet::new(),
            segments: 0,
            bytes: Vec::new(),
            items: 0,
            units: 0,
            lines: Vec::new(),
            end: 0,
            total: 0,
            seen: HashSet::new(),
            digest: Sha256::new(),
        }
    }

    /// Items so far.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Takes one item in.
    pub(super) async fn push(&mut self, item: &JobItem) -> Result<(), Refusal> {
        item::check(item, self.total)?;
        if self.total >= MAX_ITEMS {
            return Err(invalid("items", format!("a job has at most {MAX_ITEMS} items")).into());
        }
        let mut short = [0; 16];
        short.copy_from_slice(&Sha256::digest(&item.id)[..16]);
        if !self.seen.insert(u128::from_le_bytes(short)) {
            return Err(invalid(&format!("items[{}].id", self.total), format!("`{}` is there twice", item.id)).into());
        }
        let units = item::units(item);
        let full = self.items >= self.most || self.units + units > UNITS || self.bytes.len() + item.encoded_len() > BYTES;
        if self.items > 0 && full {
            self.flush().await?;
        }
        if self.items == 0 {
            self.lines.push(self.end);
        }
        let encoded = item.encode_length_delimited_to_vec();
        self.digest.update(&encoded);
        self.bytes.extend_from_slice(&encoded);
        self.items += 1;
        self.units += units;
        self.end += u64::from(units);
        self.total += 1;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let bytes = Bytes::from(std::mem::take(&mut self.bytes));
        let segment = self.segments;
        (self.items, self.units) = (0, 0);
        self.segments += 1;
        let Some(objects) = self.objects.clone() else { return Ok(()) };
        while self.writes.len() >= WRITES {
            self.written().await?;
        }
        self.writes.spawn(async move { objects.create(&name(segment), bytes).await });
        Ok(())
    }

    async fn written(&mut self) -> Result<(), Error> {
        match self.writes.join_next().await {
            None => Ok(()),
            Some(Ok(written)) => written.map(drop),
            Some(Err(error)) => Err(Error::Damaged { what: "the spool of a job".to_owned(), reason: error.to_string() }),
        }
    }

    /// Nothing is being written any more when this returns, so that the folder can be deleted.
    pub(super) async fn stop(&mut self) {
        while self.writes.join_next().await.is_some() {}
    }

    /// Everything is in the store of objects when this returns.
    pub(super) async fn finish(&mut self) -> Result<Spooled, Error> {
        if self.items > 0 {
            self.flush().await?;
        }
        while !self.writes.is_empty() {
            self.written().await?;
        }
        if let Some(objects) = &self.objects {
            self.lines.push(self.end);
            let index: Vec<u8> = self.lines.iter().flat_map(|line| line.to_le_bytes()).collect();
            objects.create(INDEX, index.into()).await?;
        }
        Ok(Spooled { total: self.total, segments: self.segments, digest: self.digest.finalize_reset().into() })
    }
}

/// Why an item was not taken in.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The caller's mistake.
    Item(Status),
    /// Ours.
    Broken(Error),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Refusal::Item(status)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Broken(error)
    }
}

/// The items of a segment, in order.
pub(super) async fn read(job: &Objects, segment: u32) -> Result<Vec<JobItem>, Error> {
    let name = name(segment);
    let mut bytes = job.expect(&name).await?;
    let mut items = Vec::new();
    while !bytes.is_empty() {
        let item = JobItem::decode_length_delimited(&mut bytes)
            .map_err(|error| Error::Damaged { what: format!("{}/{name}", job.url()), reason: error.to_string() })?;
        items.push(item);
    }
    Ok(items)
}

/// The units of a segment: index of its item within the segment, and its own within the item.
pub(super) fn units_of(items: &[JobItem]) -> Vec<(usize, u32)> {
    let of = |(at, item): (usize, &JobItem)| (0..item::units(item)).map(move |index| (at, index));
    items.iter().enumerate().flat_map(of).collect()
}

/// The segment that has line `line` of the manifest, and that line's number within it.
pub(super) async fn find_line(job: &Objects, line: u64) -> Result<(u32, u64), Error> {
    if line == 0 {
        return Ok((0, 0));
    }
    let index = job.expect(INDEX).await?;
    let first =
        |at: usize| index.get(8 * at..8 * at + 8).and_then(|b| b.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes);
    let entries = index.len() / 8;
    // The last segment that begins at or before it.
    let (mut low, mut high) = (0, entries);
    while low + 1 < high {
        let middle = usize::midpoint(low, high);
        if first(middle) <= line { low = middle } else { high = middle }
    }
    Ok((low as u32, line.saturating_sub(first(low))))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use janus_wire::v1::{PaintItem, job_item};

    use super::*;

    fn paint(number: usize, n: u32) -> JobItem {
        let work = PaintItem { prompt: format!("prompt {number}"), n, ..PaintItem::default() };
        JobItem { id: format!("item-{number}"), work: Some(job_item::Work::Paint(work)) }
    }

    async fn spooled(objects: Option<Objects>, items: &[JobItem]) -> Spooled {
        let mut spool = Spool::new(objects, SEGMENT);
        for item in items {
            spool.push(item).await.unwrap();
        }
        spool.finish().await.unwrap()
    }

    #[tokio::test]
    async fn items_come_back_in_order_and_every_line_is_found() {
        let objects = Objects::of(Arc::new(object_store::memory::InMemory::new()), "memory:///x");
        let items: Vec<JobItem> = (0..1000).map(|number| paint(number, 1 + number as u32 % 5)).collect();
        let done = spooled(Some(objects.clone()), &items).await;
        assert_eq!(done.total, 1000);
        assert_eq!(spooled(None, &items).await.digest, done.digest);
        assert_ne!(spooled(None, &items[1..]).await.digest, done.digest);

        let (mut all, mut line) = (Vec::new(), 0);
        for segment in 0..done.segments {
            let items = read(&objects, segment).await.unwrap();
            for within in 0..units_of(&items).len() as u64 {
                assert_eq!(find_line(&objects, line).await.unwrap(), (segment, within), "line {line}");
                line += 1;
            }
            all.extend(items);
        }
        assert_eq!(all, items);
        assert_eq!(line, 3000);
        assert!(find_line(&objects, 3000).await.unwrap() >= (done.segments, 0));
    }

    #[tokio::test]
    async fn an_id_that_comes_twice_is_refused() {
        let mut spool = Spool::new(None, SEGMENT);
        spool.push(&paint(1, 1)).await.unwrap();
        match spool.push(&paint(1, 2)).await {
            Err(Refusal::Item(status)) => assert!(status.message().contains("`item-1` is there twice"), "{status:?}"),
            other => panic!("{other:?}"),
        }
    }
}
