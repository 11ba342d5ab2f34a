//! What each code looks like by itself: asked of a decoder once, when somebody wants to see unfinished pictures.

use super::*;

/// How long a caller waits for it: a few decodes on a slow machine.
const WITHIN: Duration = Duration::from_secs(120);

impl Shared {
    /// The palette; empty if it is not known, and not `wanted` or not to be had.
    pub(super) async fn palette(&self, wanted: bool) -> Bytes {
        if !wanted {
            return self.palette.get().cloned().unwrap_or_default();
        }
        let fetched = tokio::time::timeout(WITHIN, self.palette.get_or_try_init(|| self.fetch_palette())).await;
        match fetched {
            Ok(Ok(palette)) => palette.clone(),
            Ok(Err(status)) => {
                tracing::warn!(error = status.message(), "no palette; previews have no colours");
                Bytes::new()
            }
            // A decoder goes on from where it is when somebody asks again.
            Err(_) => Bytes::new(),
        }
    }

    async fn fetch_palette(&self) -> Result<Bytes, Status> {
        let request = v1::PaletteRequest { hello: Some(self.hello()) };
        let call = |mut decoder: DecoderClient<Channel>| {
            let request = request.clone();
            async move { decoder.palette(request).await }
        };
        let rgb = self.decoders.call(call).await?.rgb;
        let expected = 3 * self.model.spec.vq.codebook;
        match rgb.len() == expected {
            true => Ok(rgb),
            false => Err(Status::internal(format!("a decoder's palette has {} bytes, not {expected}", rgb.len()))),
        }
    }
}
