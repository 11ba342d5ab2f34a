//! The manifest: sealed segments one after the other, and cancelled lines for what was never begun.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use super::objects::Objects;
use super::{Error, item, spool};

/// Its name, below a job's output.
pub const MANIFEST: &str = "manifest.jsonl";
/// Segments that are read ahead.
const AHEAD: usize = 4;

/// The object of a segment's lines.
pub(super) fn segment(number: u32) -> String {
    format!("segments/{number:06}")
}

/// The lines of a job's segments from `first` on, each with its end; those before `sealed` have results.
pub(super) fn lines(job: &Objects, first: u32, sealed: u32, segments: u32) -> BoxStream<'static, Result<Bytes, Error>> {
    let job = job.clone();
    let read = move |number: u32| {
        let job = job.clone();
        async move {
            if number < sealed {
                return job.expect(&segment(number)).await;
            }
            let items = spool::read(&job, number).await?;
            let mut lines = String::new();
            for (item, index) in spool::units_of(&items) {
                lines.push_str(&item::line(&items[item], index, None));
                lines.push('\n');
            }
            Ok(lines.into())
        }
    };
    stream::iter(first..segments).map(read).buffered(AHEAD).boxed()
}

/// Puts the manifest in its place, whole.
pub(super) async fn write(job: &Objects, output: &Objects, segments: u32, sealed: u32) -> Result<(), Error> {
    output.write(MANIFEST, lines(job, 0, sealed, segments)).await
}
